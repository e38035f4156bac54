"""Every code block in a solution of the book runs, and asserts something; every planted bug is
found by the check that its solution gives.
"""

import re
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[1] / "book"
SOLUTION = re.compile(r"^(`{3,})\{solution\} (\S+)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
EXERCISE = re.compile(r"^(`{3,})\{exercise\}\n:label: (\S+)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def is_bug(label: str) -> bool:
    """Say whether an exercise asks for a planted bug."""
    return "bug" in label.split("-")


def found() -> list:
    rows = []
    for page in sorted(BOOK.glob("*.md")):
        for _, label, body in SOLUTION.findall(page.read_text(encoding="utf-8")):
            for i, code in enumerate([] if is_bug(label) else CODE.findall(body)):
                rows.append(pytest.param(code, id=f"{page.stem}-{label}-{i}"))
    return rows


def planted() -> list:
    """Rows ``(buggy, repaired, check)``: one block in the exercise, two in its solution."""
    rows = []
    for page in sorted(BOOK.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        asked = {label: CODE.findall(body) for _, label, body in EXERCISE.findall(text)}
        solved = {label: CODE.findall(body) for _, label, body in SOLUTION.findall(text)}
        for label in filter(is_bug, asked):
            blocks = [asked[label], solved.get(label, [])]
            rows.append(pytest.param(*blocks, id=f"{page.stem}-{label}"))
    return rows


@pytest.mark.parametrize("code", found())
def test_solution_runs(code):
    """A solution without an assert would prove nothing, so it must hold one."""
    assert "assert " in code
    exec(code, {"__name__": "solution"})


@pytest.mark.parametrize(("asked", "solved"), planted())
def test_check_finds_the_planted_bug(asked, solved):
    """A solution repairs the exercise's function and then checks it: the check must fail on the
    first and pass on the second.
    """
    assert len(asked) == 1, "one ```python block in the exercise"
    assert len(solved) == 2, "two in the solution: the repaired function, then the check"
    (buggy,), (repaired, check) = asked, solved
    assert "assert " in check
    exec(repaired + check, {"__name__": "solution"})
    with pytest.raises(AssertionError):
        exec(buggy + check, {"__name__": "solution"})


def test_exercises_have_solutions():
    """Each exercise has a solution, but for those that point to an assignment; six a chapter."""
    for page in sorted(BOOK.glob("[0-9][0-9]_*.md")):
        text = page.read_text()
        exercises = set(re.findall(r"\{exercise\}\n:label: (\S+)", text))
        solved = {label for _, label, _ in SOLUTION.findall(text)}
        assert len(exercises) >= 6, page.name
        assert solved <= exercises
        assert {e for e in exercises - solved if "assignment" not in e} == set(), page.name
        assert any(is_bug(label) for label in exercises), f"{page.name}: no bug to find"
