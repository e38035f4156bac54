"""Every code block in a solution of the book runs, and asserts something."""

import re
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[1] / "book"
SOLUTION = re.compile(r"^(`{3,})\{solution\} (\S+)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def found() -> list:
    rows = []
    for page in sorted(BOOK.glob("*.md")):
        for _, label, body in SOLUTION.findall(page.read_text()):
            for i, code in enumerate(CODE.findall(body)):
                rows.append(pytest.param(code, id=f"{page.stem}-{label}-{i}"))
    return rows


@pytest.mark.parametrize("code", found())
def test_solution_runs(code):
    """A solution without an assert would prove nothing, so it must hold one."""
    assert "assert " in code
    exec(code, {"__name__": "solution"})


def test_exercises_have_solutions():
    """Each exercise has a solution, but for those that point to an assignment; six a chapter."""
    for page in sorted(BOOK.glob("[0-9][0-9]_*.md")):
        text = page.read_text()
        exercises = set(re.findall(r"\{exercise\}\n:label: (\S+)", text))
        solved = {label for _, label, _ in SOLUTION.findall(text)}
        assert len(exercises) >= 6, page.name
        assert solved <= exercises
        assert {e for e in exercises - solved if "assignment" not in e} == set(), page.name
