"""What the book knows about the code, read without importing it: functions, tests, labels, ledger
rows.

Used by the Sphinx extension, by ``tests/test_book.py`` and by ``scripts/ledger_check.py``, so
that a page, a test and the sabotage all mean the same thing by a name such as
``minidiff.process.diffuse``.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "book" / "claims"
KINDS = ("implemented", "derived", "definition")
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


class Found(NamedTuple):
    """A named object in a source file; lines count from 1, the last one included."""

    path: Path
    node: ast.AST
    first: int
    last: int


class Row(NamedTuple):
    """One row of the ledger."""

    label: str
    kind: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]
    breaks: tuple[str, ...]
    page: str
    keys: frozenset[str]


@functools.cache
def _parse(path: Path, stamp: int) -> tuple[str, ast.Module]:
    text = path.read_text(encoding="utf-8")
    return text, ast.parse(text)


def parse(path: Path) -> tuple[str, ast.Module]:
    """Read a Python file once for each time it changed."""
    return _parse(path, path.stat().st_mtime_ns)


def _child(body: list, name: str) -> ast.AST | None:
    for node in body:
        if isinstance(node, DEFINITIONS) and node.name == name:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and any(
            isinstance(t, ast.Name) and t.id == name for t in targets
        ):
            return node
        if isinstance(node, (ast.If, ast.Try)) and (inner := _child(node.body, name)):
            return inner
    return None


def _inherited(tree: ast.Module, owner: ast.AST | None, name: str) -> ast.AST | None:
    """Find a method in the bases of a class, as far as they stand in the same file."""
    for base in getattr(owner, "bases", []):
        parent = _child(tree.body, base.id) if isinstance(base, ast.Name) else None
        if parent is not None and (
            found := _child(parent.body, name) or _inherited(tree, parent, name)
        ):
            return found
    return None


def split(dotted: str, root: Path = ROOT) -> tuple[Path, str, list[str]]:
    """Split ``package.module.name[key].attr`` into the file, the module's name and the parts
    inside it.
    """
    parts = re.findall(r"\[[^]]*\]|[^.\[\]]+", dotted)
    folder, file, used = root, None, 0
    for i, part in enumerate(parts):
        if (folder / f"{part}.py").is_file():
            file, used = folder / f"{part}.py", i + 1
            break
        if not (folder / part).is_dir():
            break
        folder = folder / part
        if (folder / "__init__.py").is_file():
            file, used = folder / "__init__.py", i + 1
    if file is None:
        raise LookupError(f"{dotted}: no such module under {root.name}/")
    return file, ".".join(parts[:used]), parts[used:]


def locate(dotted: str, root: Path = ROOT) -> Found:
    """Find a function, class, method or module-level constant by its full dotted name."""
    file, module, inner = split(dotted, root)
    _, tree = parse(file)
    if not inner:
        raise LookupError(f"{dotted} is a module: name something inside it")
    body, node, where = tree.body, None, module
    for part in inner:
        if part.startswith("["):
            break  # an entry of a table: shown and checked as the table
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            break
        node = _child(body, part) or _inherited(tree, node, part)
        if node is None:
            hint = " (give the module where it is defined)" if file.name == "__init__.py" else ""
            raise LookupError(f"{where} has no {part}{hint}")
        where, body = f"{where}.{part}", getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return Found(file, node, first, node.end_lineno)


def _docstrings(node: ast.AST) -> list[tuple[int, int, bool]]:
    """First and last line of each docstring inside a node, and whether it is the whole body."""
    spans = []
    for inner in ast.walk(node):
        if isinstance(inner, DEFINITIONS) and ast.get_docstring(inner, clean=False) is not None:
            text = inner.body[0]
            spans.append((text.lineno, text.end_lineno, len(inner.body) == 1))
    return spans


def code(dotted: str, keep_docstring: bool = False, root: Path = ROOT) -> str:
    """Return the source of an object, without its docstrings unless they are wanted."""
    found = locate(dotted, root)
    lines = parse(found.path)[0].splitlines()
    shown: dict[int, str] = {i: lines[i - 1] for i in range(found.first, found.last + 1)}
    if not keep_docstring:
        for first, last, alone in _docstrings(found.node):
            indent = re.match(r"\s*", lines[first - 1])[0]
            for i in range(first, last + 1):
                shown.pop(i, None)
            if alone:
                shown[first] = f"{indent}..."
            elif last + 1 in shown and not shown[last + 1].strip():
                shown.pop(last + 1)
    return textwrap.dedent("\n".join(shown[i] for i in sorted(shown))).rstrip() + "\n"


def locate_test(test: str, root: Path = ROOT) -> Found:
    """Find ``tests/test_x.py::test_y`` (or ``::TestZ::test_y``, or with a ``[parameter]``)."""
    file, _, names = test.partition("::")
    path = root / file
    if not path.is_file():
        raise LookupError(f"{test}: there is no file {file}")
    if not names:
        raise LookupError(f"{test}: name one test, as {file}::test_something")
    node: ast.AST = parse(path)[1]
    for name in re.sub(r"\[.*\]$", "", names).split("::"):
        node = _child(node.body, name)
        if not isinstance(node, DEFINITIONS):
            raise LookupError(f"{test}: {file} has no {name}")
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return Found(path, node, first, node.end_lineno)


def _listed(value: str | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def rows(claims: Path = CLAIMS) -> list[Row]:
    """Read every row of the ledger, in the order of the files and of the rows in them."""
    found = []
    for path in sorted(claims.glob("*.yml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for label, entry in entries.items():
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{path.name}: {label} must be a mapping {{kind: ..., ...}}, not {entry!r}"
                )
            row = Row(
                label,
                entry.get("kind", ""),
                _listed(entry.get("function")),
                _listed(entry.get("test")),
                _listed(entry.get("breaks")),
                path.stem,
                frozenset(entry),
            )
            found.append(row)
    return found


def records(root: Path = ROOT) -> list[Path]:
    """Return the committed results of runs, labs first: NAME.json beside NAME.py."""
    folders = (root / "notebooks", root / "benchmarks")
    found = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return [p for p in found if p.with_suffix(".py").is_file()]


def pages(root: Path = ROOT) -> list[Path]:
    """Return the sources of all pages: chapters (.md) and labs (.py)."""
    return sorted((root / "book").glob("*.md")) + sorted((root / "notebooks").glob("*.py"))


def prose(path: Path) -> str:
    """Return the text of a page with its line numbers kept and everything that is code blanked.

    In a lab only the markdown cells are text. Fenced blocks are code unless they are directives
    (``{solution}`` holds text; ``{code-cell}``, ``{function}`` and the like hold none).
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".py":
        inside, out = False, []
        for line in lines:
            if line.startswith("# %%"):
                inside = "[markdown]" in line
                out.append("")
            else:
                out.append(re.sub(r"^# ?", "", line) if inside else "")
        lines = out
    out, fence = [], ""
    for line in lines:
        mark = re.match(r"\s*(`{3,}|~{3,})(.*)$", line)
        if fence:
            closes = mark and mark[1].startswith(fence) and not mark[2].strip()
            fence = "" if closes else fence
            out.append("")
        elif mark and mark[2].strip() and not mark[2].strip().startswith("{"):
            fence = mark[1]
            out.append("")
        elif mark and re.match(
            r"\{(code|code-cell|code-block|literalinclude|eval-rst|function)\}", mark[2].strip()
        ):
            fence = mark[1]
            out.append("")
        else:
            out.append(line)
    return "\n".join(out)


def labels(path: Path) -> list[str]:
    """Return the equation labels of a page, in order: ``$$ ... $$ (eq:name)`` or ``:label:
    eq:name``.
    """
    return re.findall(r"(?:\$\$[ \t]*\(|^\s*:label:[ \t]*)(eq:[\w:.-]+)", prose(path), re.M)
