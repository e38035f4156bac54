"""The labs: source and notebook are one, plots speak, numbers are fresh and inside their bands."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

import minidiff as md

ROOT = Path(__file__).resolve().parents[1]
LABS = sorted((ROOT / "notebooks").glob("*.py"))
labs = pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
LIMIT = 600_000  # bytes of a committed .ipynb


@functools.cache
def source(lab: Path):
    return jupytext.read(lab)


@functools.cache
def executed(lab: Path):
    return nbformat.read(lab.with_suffix(".ipynb"), as_version=4)


@functools.cache
def record(lab: Path) -> dict:
    return json.loads(lab.with_suffix(".json").read_text(encoding="utf-8"))


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def tags(cell) -> list[str]:
    return list(cell.metadata.get("tags", []))


def tree(cell) -> ast.Module:
    """Parse a cell without its magics."""
    text = "\n".join(
        "pass" if re.match(r"\s*[%!]", line) else line for line in cell.source.splitlines()
    )
    return ast.parse(text)


def test_labs_of_the_toc_exist():
    """Each lab in the table of contents has its source, its notebook and its numbers."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    names = [f for f in files if f.startswith("notebooks/")]
    assert names and all(
        (ROOT / f"{n}{e}").is_file() for n in names for e in (".py", ".ipynb", ".json")
    )
    assert sorted(ROOT / f"{n}.py" for n in names) == LABS


@labs
def test_notebook_is_its_source(lab):
    """Same cells: type, text, tags and what is said of the picture."""

    def shape(notebook):
        return [(c.cell_type, c.source, tags(c), c.metadata.get("mystnb")) for c in notebook.cells]

    for number, (ours, theirs) in enumerate(
        zip(shape(source(lab)), shape(executed(lab)), strict=False)
    ):
        assert theirs == ours, f"cell {number}: run `make labs`"
    assert len(source(lab).cells) == len(executed(lab).cells)


@labs
def test_notebook_is_small_and_ran(lab):
    """Every code cell ran, in order, without an error; and GitHub shows the file."""
    assert lab.with_suffix(".ipynb").stat().st_size < LIMIT
    counts = [c.execution_count for c in code_cells(executed(lab)) if c.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [o for c in code_cells(executed(lab)) for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]


@labs
def test_outputs_name_no_machine(lab):
    """No path of the machine that ran it, no progress bar, no warning."""
    text = json.dumps([c.get("outputs") for c in executed(lab).cells if c.cell_type == "code"])
    assert not re.search(r"(?:/home/|/root/|/Users/|/tmp/|/content/|[A-Z]:\\\\)", text)
    assert str(ROOT) not in text and str(Path.home()) not in text
    assert '"name": "stderr"' not in text


@labs
def test_parameters(lab):
    """One cell of plain literals tagged `parameters`; the preset comes from the environment."""
    cells = [c for c in code_cells(source(lab)) if "parameters" in tags(c)]
    assert len(cells) == 1
    preset = 0
    for line in tree(cells[0]).body:
        if isinstance(line, (ast.Import, ast.ImportFrom)):
            continue
        assert isinstance(line, ast.Assign), f"{ast.unparse(line)}: plain assignments only"
        if ast.unparse(line) == "PRESET = os.environ.get('PRESET', 'cpu')":
            preset += 1
        else:
            ast.literal_eval(line.value)
    assert preset == 1


@labs
def test_plots_speak(lab):
    """Every cell with a picture has an alt text, a caption and a name; none is missing, none is
    said twice.
    """
    names = []
    for number, cell in enumerate(executed(lab).cells):
        outputs = cell.get("outputs", []) if cell.cell_type == "code" else []
        pictures = [o for o in outputs if any(k.startswith("image/") for k in o.get("data", {}))]
        said = cell.metadata.get("mystnb", {})
        if not pictures:
            assert "image" not in said, f"cell {number} describes a picture and makes none"
            continue
        assert len([o for o in outputs if "data" in o]) == len(pictures) == 1, (
            f"cell {number}: one picture a cell and no value beside it (end the cell with ;), so "
            "that alt text, caption and name are the picture's own"
        )
        assert len(said.get("image", {}).get("alt", "")) >= 40, (
            f"cell {number}: say in the alt text what is seen"
        )
        figure = said.get("figure", {})
        assert len(figure.get("caption", "")) >= 20 and figure.get("name", "").startswith("fig-"), (
            f"cell {number}"
        )
        names.append(figure["name"])
    assert len(names) == len(set(names))


@labs
def test_functions_are_short_and_new(lab):
    """Nothing over twelve lines, and nothing that the package exports."""
    for cell in code_cells(source(lab)):
        for node in ast.walk(tree(cell)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 12, f"{node.name} has {lines} lines: it belongs into the package"
                assert node.name not in md.__all__, f"{node.name}: use md.{node.name}"


@labs
def test_has_a_check(lab):
    """At least one cell is compared by nbval, and it asserts; the text's numbers hang on these."""
    checks = [c for c in code_cells(source(lab)) if "nbval-check-output" in tags(c)]
    assert checks
    for cell in checks:
        assert any(isinstance(n, ast.Assert) for n in ast.walk(tree(cell))), cell.source[:60]


@labs
def test_compared_cells_draw_no_progress_bar(lab):
    """A bar goes to stderr after a while: a cell compared by nbval would differ on a slow day."""

    def names(node):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}

    cells = code_cells(source(lab))
    functions = [n for c in cells for n in ast.walk(tree(c)) if isinstance(n, ast.FunctionDef)]
    bars = {"tqdm"}
    while more := {f.name for f in functions if names(f) & bars} - bars:
        bars |= more
    for number, cell in enumerate(cells):
        if "nbval-check-output" in tags(cell):
            used = names(tree(cell)) & bars
            assert not used, f"code cell {number} runs {used}: train in a cell of its own"


@labs
def test_last_cell_writes_the_numbers(lab):
    """The last code cell hands the numbers over when asked to."""
    last = code_cells(source(lab))[-1].source
    assert "NUMBERS" in last and "json" in last


@labs
def test_numbers_are_those_of_this_source(lab):
    """The committed numbers come from the text that is committed, at the preset that the book
    prints.
    """
    digest = hashlib.sha256(lab.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    assert record(lab)["source"] == digest, (
        f"{lab.name} changed since its numbers were written: make labs"
    )
    assert record(lab)["preset"] == "cpu"
    assert record(lab)["minidiff"] and all(
        (ROOT / f).suffix == ".py" for f in record(lab)["minidiff"]
    )


@labs
def test_numbers_are_inside_their_bands(lab):
    """Each number is finite and inside the band that was justified for it; the band is no blank
    cheque.
    """
    assert record(lab)["numbers"]
    for name, entry in record(lab)["numbers"].items():
        low, high = entry["band"]
        assert low <= entry["value"] <= high, f"{name}: {entry}"
        assert high - low < float("inf"), f"{name}: an open band asserts nothing"


@labs
def test_text_quotes_numbers_by_name(lab):
    """Each {number} of the lab's own text is a number of some lab."""
    text = "\n".join(c.source for c in source(lab).cells if c.cell_type == "markdown")
    for name, key in re.findall(r"\{number\}`(\w+):(\w+)", text):
        data = json.loads((lab.parent / f"{name}.json").read_text(encoding="utf-8"))
        assert key in data["numbers"] or key in data, f"{name}:{key}"


def test_every_page_quotes_numbers_that_exist():
    """Each {number} in a chapter names a lab or a benchmark, and a key of its last run."""
    for page in (ROOT / "book").glob("*.md"):
        text = re.sub(r"``.*?``", "", page.read_text(encoding="utf-8"))
        for name, key in re.findall(r"\{number\}`(\w+):(\w+)", text):
            path = ROOT / "notebooks" / f"{name}.json"
            path = path if path.is_file() else ROOT / "benchmarks" / f"{name}.json"
            data = (
                json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"numbers": {}}
            )
            assert key in data["numbers"] or key in data, f"{page.name}: {name}:{key}"
