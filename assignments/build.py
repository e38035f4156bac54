"""Make the student's and the instructor's notebook of an assignment from its one source.

    python assignments/build.py 05_ddpm          # writes student.ipynb and instructor.ipynb
    python assignments/build.py --check          # fails if a committed notebook is out of date

The source is py:percent. In it,

    ### BEGIN SOLUTION: a hint for the student     and   ### END SOLUTION
    <!-- BEGIN ANSWER -->                          and   <!-- END ANSWER -->

enclose what the student writes, and cells tagged "instructor" are left out of the student's file.
Two cells are put before it: the one that finds or installs minidiff, as in the labs
(scripts/colab_cell.py), and the one that finds checks.py.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))
from colab_cell import colab_cell
VERSIONS = ("student", "instructor")
CODE = re.compile(
    r"^(?P<indent> *)### BEGIN SOLUTION(?:: *(?P<hint>.*))?\n(?P<body>(?:.*\n)*?) *### END SOLUTION$",
    re.MULTILINE,
)
TEXT = re.compile(r"<!-- BEGIN ANSWER -->\n(?P<body>(?:.*\n)*?)<!-- END ANSWER -->", re.MULTILINE)
# The second cell. checks.py lies beside the notebook; in Colab it is fetched from the repository.
FIND_CHECKS = """\
# %%
# finds checks.py, which lies beside this notebook; in Colab it is fetched from the repository
import urllib.request

here = Path.cwd() if root is None else root / "assignments" / "{name}"
if not (here / "checks.py").exists():
    address = f"{{REPOSITORY}}/raw/{{TAG}}/assignments/{name}/checks.py"
    urllib.request.urlretrieve(address, here / "checks.py")
sys.path.insert(0, str(here))

"""
MARK = re.compile(r"### (?:BEGIN|END) SOLUTION|<!-- (?:BEGIN|END) ANSWER -->")


def for_student(text: str) -> str:
    """Replace every solution by a task and every answer by a place to write."""

    def todo(match: re.Match[str]) -> str:
        indent, hint = match["indent"], match["hint"] or "your code"
        return f"{indent}# TODO: {hint}\n{indent}raise NotImplementedError"

    return TEXT.sub("*Your answer:*", CODE.sub(todo, text))


def for_instructor(text: str) -> str:
    """Keep solutions and answers, and drop the marks around them."""
    text = CODE.sub(lambda m: m["body"].removesuffix("\n"), text)
    return TEXT.sub(lambda m: "**Answer.** " + m["body"].strip(), text)


def build(source: Path, version: str) -> str:
    """Return the text of a notebook: the same bytes for the same source."""
    home = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    first = colab_cell(home["minidiff"]["repository"], home["minidiff"]["tag"])
    setup = first + "\n" + FIND_CHECKS.format(name=source.parent.name)
    nb = jupytext.reads(setup + source.read_text(encoding="utf-8"), fmt="py:percent")
    cells = []
    for i, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags", [])
        if version == "student" and "instructor" in tags:
            continue
        convert = for_student if version == "student" else for_instructor
        cell.source = convert(cell.source)
        if MARK.search(cell.source):
            sys.exit(f"{source}: a mark without its partner in cell {i}:\n{cell.source}")
        cell.id = f"c{i:03d}"  # of the source, so that both versions agree
        for key in [k for k in cell.metadata if k != "tags"]:
            del cell.metadata[key]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cells.append(cell)
    nb.cells = cells
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nb.nbformat, nb.nbformat_minor = 4, 5
    nbformat.validate(nb)
    return nbformat.writes(nb) + "\n"


def main() -> int:
    names = sorted(p.parent.name for p in HERE.glob("*/source.py"))
    parser = argparse.ArgumentParser(description="make the notebooks of an assignment")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args()
    stale = []
    for name in args.names or names:
        if name not in names:
            sys.exit(f"no assignment named {name!r}; there are: {', '.join(names)}")
        for version in VERSIONS:
            path = HERE / name / f"{version}.ipynb"
            text = build(HERE / name / "source.py", version)
            if args.check:
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    stale.append(path.relative_to(HERE).as_posix())
                continue
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {path.relative_to(HERE.parent).as_posix()}")
    if stale:
        print(f"out of date: {', '.join(stale)}; run python assignments/build.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
