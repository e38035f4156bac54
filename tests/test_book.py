"""The book keeps its word: every equation has its row, every row its function and test, every
page its manners.
"""

from __future__ import annotations

import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "scripts")]
import course_source as source  # noqa: E402
import sabotage as wrong  # noqa: E402

PAGES = source.pages()
ROWS = source.rows()
LABELS = {path: source.labels(path) for path in PAGES}  # a chapter and its lab may share a name
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}/{p.stem}")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda r: r.label)


# ---- the ledger ----------------------------------------------------------------------------------


def test_every_equation_has_one_row():
    """A label stands on one page and in one ledger file, which bears the page's name."""
    on_pages = Counter(label for labels in LABELS.values() for label in labels)
    in_files = Counter(row.label for row in ROWS)
    assert not [label for label, n in on_pages.items() if n > 1], "labelled twice"
    assert not [label for label, n in in_files.items() if n > 1], "two rows"
    assert not sorted(set(on_pages) - set(in_files)), "equations without a row in book/claims"
    assert not sorted(set(in_files) - set(on_pages)), "rows whose equation is on no page"
    home = {label: page.stem for page, labels in LABELS.items() for label in labels}
    wrong = [
        f"{r.label}: row in {r.page}.yml, equation on {home[r.label]}"
        for r in ROWS
        if home[r.label] != r.page
    ]
    assert not wrong


@rows
def test_row_is_whole(row):
    """Each kind carries what it needs and nothing else, and what it names exists."""
    assert row.kind in source.KINDS
    needs = {
        "implemented": {"kind", "function", "test"},
        "derived": {"kind", "test"},
        "definition": {"kind"},
    }
    assert needs[row.kind] <= row.keys, (
        f"{row.label} is {row.kind}: it lacks {needs[row.kind] - row.keys}"
    )
    allowed = needs[row.kind] | ({"breaks"} if row.kind == "derived" else set())
    assert row.keys <= allowed, (
        f"{row.label} is {row.kind}: {row.keys - allowed} mean nothing there"
    )
    for name in (*row.functions, *row.breaks):
        source.locate(name)
    for test in row.tests:
        source.locate_test(test)


@pytest.mark.parametrize("page", sorted({r.page for r in ROWS}))
def test_few_definitions(page):
    """At most a quarter of a page's equations may go unproved."""
    kinds = [row.kind for row in ROWS if row.page == page]
    assert kinds.count("definition") <= len(kinds) / 4


def test_docstrings_cite_equations_that_exist():
    """A docstring's label is on some page."""
    known = {label for labels in LABELS.values() for label in labels}
    cited = {
        (path.relative_to(ROOT).as_posix(), label)
        for path in (ROOT / "minidiff").rglob("*.py")
        for label in re.findall(r":eq:`([^`]+)`", path.read_text(encoding="utf-8"))
    }
    assert not sorted((file, label) for file, label in cited if label not in known)


def test_claims_have_no_repeated_keys():
    """YAML keeps the last of two equal keys in silence; the ledger must not."""
    for path in source.CLAIMS.glob("*.yml"):
        keys = re.findall(r"^(eq:[\w:.-]+?):\s", path.read_text(encoding="utf-8"), re.M)
        assert (
            len(keys)
            == len(set(keys))
            == len(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        ), path.name


# ---- the text ------------------------------------------------------------------------------------

TYPED = re.compile(
    r"\b(?:figures?|figs?\.|tables?|equations?|eqs?\.|chapters?|sections?|sect?\.|labs?|theorems?|exercises?)"
    r"[ ~\n]\(?[0-9L]", re.I)  # fmt: skip


@pages
def test_no_typed_reference(page):
    """Numbers of chapters, figures and equations come from labels; only literature is cited by
    number.

    A citation says whose number it is in the same sentence: a {cite} role, a year, or "et al.".
    """
    text = source.prose(page)
    for found in TYPED.finditer(text):
        start = max(
            text.rfind(". ", 0, found.start()),
            text.rfind("\n\n", 0, found.start()),
            text.rfind("\n|", 0, found.start()),
        )
        end = re.compile(r"\.\s|\n\n|\n\|").search(text, found.end())
        sentence = text[start + 1 : end.end() if end else len(text)]
        if not re.search(r"\{cite|\bet al\.|\((?:19|20)\d\d|deck|slide", sentence):
            line = text.count("\n", 0, found.start()) + 1
            pytest.fail(f"{page.name}:{line}: {found[0]!r}: use {{ref}}, {{numref}} or {{eq}}")


@pages
def test_nothing_is_called_easy(page):
    """What is obvious to the author is where the reader stops."""
    text = source.prose(page)
    found = re.search(
        r"\b(simply|obviously|clearly|trivial(?:ly)?|it is easy to see|of course)\b", text, re.I
    )
    assert not found, f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}"


@pages
def test_pictures_have_alt_text(page):
    """Every picture that the text brings in says in words what it shows (plots of labs:
    test_notebooks).
    """
    text = source.prose(page)
    for found in re.finditer(
        r"^(\s*)(`{3,}|:{3,})\{(?:figure|image)\}.*?\n(.*?)^\s*\2", text, re.M | re.S
    ):
        alt = re.search(r"^\s*:alt:[ \t]*(\S.*)$", found[3], re.M)
        assert alt and len(alt[1]) >= 20, (
            f"{page.name}: {found[0].splitlines()[0]} needs :alt: with a sentence"
        )
    assert "![](" not in text, f"{page.name}: a picture without alt text"
    for image in re.findall(r"<img[^>]*>", text):
        assert re.search(r'alt="[^"]{20,}"', image), f"{page.name}: {image}"


@pages
def test_equations_are_written_the_house_way(page):
    r"""``$$\begin{aligned}...$$ (eq:name)``: the other forms lose their number or break in
    notebooks.
    """
    assert not re.search(
        r"\\begin\{(align|equation|gather|eqnarray)\*?\}|\\label\{|\\eqref", source.prose(page)
    )


def test_toc_files_exist():
    """Every page of the table of contents is there; a lab is there as source and as notebook."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [c for part in toc["parts"] for c in part["chapters"]]
    under = [s for c in chapters for s in c.get("sections", [])]
    files = [toc["root"], *(c["file"] for c in chapters + under)]
    assert len(files) == len(set(files))
    for file in files:
        ends = [".py", ".ipynb"] if file.startswith("notebooks/") else [".md"]
        assert [e for e in ends if not (ROOT / f"{file}{e}").is_file()] == [], file
    listed = {Path(file).name for file in files}
    assert {path.stem for path in PAGES} <= listed, "a page is missing from _toc.yml"


# ---- the tools above are themselves checked ------------------------------------------------------

FAKE = """
from typing import NamedTuple
from functools import lru_cache, cached_property
import torch

class Pair(NamedTuple):
    t: object
    x: object

def double(x): return 2 * x
def halves(x, n=3, *, start=0):
    for i in range(start, n):
        yield Pair(torch.tensor(float(i)), x / 2**i)
def wrap(f):
    def inner(x): return f(x) + 1
    return inner
@lru_cache
def root(x): return x ** 0.5
class Base:
    def level(self, t): return t + 1.0
class Child(Base):
    def __call__(self, t): return super().__init__() or self.level(t)
    @property
    def size(self): return 4.0
    @staticmethod
    def unit(): return {"a": [1.0, 2]}
ROWS = {"eps": Pair(None, double)}
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A module with one of each kind of function that a ledger row may name."""
    (tmp_path / "fakecore.py").write_text(FAKE)
    module = types.ModuleType("fakecore")
    exec(compile(FAKE, "fakecore.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "fakecore", module)
    split = source.split
    monkeypatch.setattr(source, "split", lambda dotted: split(dotted, tmp_path))
    return module


@pytest.mark.parametrize(
    ("name", "use", "healthy"),
    [
        ("double", lambda m: m.double(1.5), 3.0),
        ("double", lambda m: m.wrap(m.double)(1.5), 4.0),
        ("wrap", lambda m: m.wrap(m.double)(1.5), 4.0),
        ("root", lambda m: m.root(9.0), 3.0),
        ("halves", lambda m: [s.x for s in m.halves(8.0)][2], 2.0),
        ("halves", lambda m: float(next(iter(m.halves(torch.tensor(8.0), start=1))).x), 4.0),
        ("Child.__call__", lambda m: m.Child()(2.0), 3.0),
        ("Child.level", lambda m: m.Child()(2.0), 3.0),
        ("Child", lambda m: m.Child()(2.0), 3.0),
        ("Child.size", lambda m: m.Child().size, 4.0),
        ("Child.unit", lambda m: m.Child.unit()["a"][0], 1.0),
        ("ROWS[eps].x", lambda m: m.double(2.0), 4.0),
    ],
)
def test_sabotage_reaches_and_leaves(fake, name, use, healthy):
    """The output of every kind of function is scaled wherever it was bound before, and is whole
    again afterwards.
    """
    assert use(fake) == healthy
    bound = vars(fake).get(name)  # a reference taken before the sabotage, as an import takes it
    restore = wrong.sabotage(wrong.target(f"fakecore.{name}"))
    changed = use(fake)
    assert vars(fake).get(name) is bound
    restore()
    if name == "double" and healthy == 4.0:
        assert changed == pytest.approx(3 * 1.01 + 1)  # scaled inside, then used
    else:
        assert changed == pytest.approx(healthy * wrong.FACTOR)
    if name == "root":
        fake.root.cache_clear()
    assert use(fake) == healthy


def test_scaling_leaves_clocks_and_counts_alone():
    """State.t says when and an integer says how many: neither is the value that an equation
    gives.
    """

    class State(__import__("typing").NamedTuple):
        t: torch.Tensor
        x: torch.Tensor

    state = wrong.scaled(State(torch.tensor(0.5), torch.ones(2)))
    assert float(state.t) == 0.5 and torch.equal(state.x, torch.full((2,), 1.01))
    assert wrong.scaled((3, True, "a", None)) == (3, True, "a", None)
    assert torch.equal(wrong.scaled(torch.arange(3)), torch.arange(3))


def test_ledger_check_tells_a_real_tie_from_a_loose_one(tmp_path):
    """A tie whose test looks breaks; one whose test does not look, or looks elsewhere, survives
    and is reported.
    """
    import shutil
    import subprocess

    for name in ("scripts/ledger_check.py", "scripts/sabotage.py", "book/_ext/course_source.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("minidiff", "tests", "book/claims"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "minidiff/__init__.py").write_text("from .core import area as area\n")
    (tmp_path / "minidiff/core.py").write_text(
        "def area(r): return 3.0 * r * r\ndef edge(r): return 6.0 * r\n"
    )
    (tmp_path / "tests/test_core.py").write_text(
        "import minidiff\nfrom minidiff import area\nfrom minidiff.core import edge\n"
        "def test_real(): assert area(2.0) == 12.0\n"
        "def test_blind(): assert edge(1.0) > 0\n"
        "def test_elsewhere(): assert minidiff.area(1.0) == 3.0\n"
        "def test_red(): assert False\n"
    )
    row = (
        "eq:{0}: {{kind: implemented, function: minidiff.core.{1}, "
        "test: 'tests/test_core.py::test_{0}'}}\n"
    )
    claims = [
        ("real", "area"),
        ("blind", "edge"),
        ("elsewhere", "edge"),
        ("red", "area"),
        ("gone", "area"),
    ]
    (tmp_path / "book/claims/core.yml").write_text("".join(row.format(*c) for c in claims[:4]))
    done = subprocess.run(
        [sys.executable, "scripts/ledger_check.py"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("core ")}
    assert done.returncode == 1, done.stdout + done.stderr
    assert "breaks  core.area" in lines["eq:real"]
    assert "SURVIVES" in lines["eq:blind"] and "never calls" not in lines["eq:blind"]
    assert "SURVIVES" in lines["eq:elsewhere"] and "never calls" in lines["eq:elsewhere"]
    assert "BAD" in lines["eq:red"] and "assert False" in lines["eq:red"]
    assert "4 rows" in done.stdout and "3 bad" in done.stdout
    (tmp_path / "book/claims/core.yml").write_text(row.format(*claims[0]))
    done = subprocess.run(
        [sys.executable, "scripts/ledger_check.py", "--label", "eq:real"], cwd=tmp_path
    )
    assert done.returncode == 0


def test_source_is_shown_without_docstrings(tmp_path):
    """What {function} prints: decorators stay, docstrings go, methods are moved to the left."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/core.py").write_text(
        'class A:\n    """About A."""\n\n    size: int = 1\n\n    @property\n    def area(self):\n'
        '        """Return it."""\n\n        return self.size\n\n'
        '    def only(self):\n        """Words."""\n'
    )
    assert (
        source.code("pack.core.A.area", root=tmp_path)
        == "@property\ndef area(self):\n    return self.size\n"
    )
    assert source.code("pack.core.A.only", root=tmp_path) == "def only(self):\n    ...\n"
    assert source.code("pack.core.A", root=tmp_path).startswith("class A:\n    size: int = 1\n")
    assert '"""About A."""' in source.code("pack.core.A", keep_docstring=True, root=tmp_path)
    with pytest.raises(LookupError, match=r"pack\.core has no B"):
        source.code("pack.core.B", root=tmp_path)


def test_prose_leaves_code_out(tmp_path):
    """The checks of text look at text: not at code blocks, and in a lab only at markdown cells."""
    page = tmp_path / "a.md"
    page.write_text(
        "see\n```python\nfigure 1\n```\n````{solution} x\nhere\n```\nfigure 2\n```python\n"
        "```\n````\n"
        "$$ a $$ (eq:a)\n\n```{math}\n:label: eq:b\n```\n"
    )
    assert source.labels(page) == ["eq:a", "eq:b"]
    assert "figure 1" not in source.prose(page) and "here" in source.prose(page)
    lab = tmp_path / "lab.py"
    lab.write_text("# %% [markdown]\n# $$ a $$ (eq:c)\n# %%\n# figure 3\n")
    assert source.labels(lab) == ["eq:c"] and "figure" not in source.prose(lab)
