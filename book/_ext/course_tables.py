"""The ledger page: which function and which test stand behind each equation, and how fresh each
lab's numbers are.
"""

from __future__ import annotations

import hashlib
import json

import course_source as source
from course_links import api_link, equation_link, joined, test_links, watch_ledger
from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)


def row_id(lab: str, name: str) -> str:
    """Return the anchor of a number's row on the ledger page."""
    return nodes.make_id(f"number-{lab}-{name}")


def _cell(*children, **attributes):
    entry = nodes.entry(**attributes)
    entry += nodes.paragraph("", "", *children)
    return entry


def _row(cells, ids=()):
    row = nodes.row(ids=list(ids))
    row.extend(cells)
    return row


def table(heads: list[str], rows: list[nodes.row]) -> nodes.table:
    """Build a table with a head line."""
    node = nodes.table(classes=["course-table"])
    group = nodes.tgroup(cols=len(heads))
    group.extend(nodes.colspec(colwidth=1) for _ in heads)
    group += nodes.thead("", _row([_cell(nodes.Text(h)) for h in heads]))
    group += nodes.tbody("", *rows)
    node += group
    return node


def page_of(stem: str) -> str:
    """Return the docname of the page a ledger file belongs to."""
    page = (source.ROOT / "book" / f"{stem}.md").is_file()  # a chapter and its lab may share a name
    return f"book/{stem}" if page else f"notebooks/{stem}"


def digest(path) -> str:
    """Hash a text file with its line ends made equal, as the runner of the labs does."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def freshness(data: dict, lab: str) -> list[str]:
    """Say in words what changed since a lab's numbers were written."""
    path = source.ROOT / "notebooks" / f"{lab}.py"
    said = []
    if digest(path) != data.get("source"):
        said.append("the lab's own source changed since")
    stale = []
    for file, wanted in sorted(data.get("minidiff", {}).items()):
        file = file if file.startswith("minidiff/") else f"minidiff/{file}"
        at = source.ROOT / file
        if not at.is_file() or digest(at) != wanted:
            stale.append(file)
    if stale:
        said.append("changed since in the core: " + ", ".join(stale))
    return said or ["nothing it imports has changed since"]


class LedgerDirective(SphinxDirective):
    """Print every row of the ledger, page by page, then every number with the run it came from."""

    def run(self):
        watch_ledger(self.env)
        rows = source.rows()
        self.env.note_dependency(__file__)
        sections = [self._totals(rows)]
        for stem in dict.fromkeys(r.page for r in rows):
            order = {
                label: i
                for page in source.pages()
                if page.stem == stem
                for i, label in enumerate(source.labels(page))
            }
            mine = sorted(
                (r for r in rows if r.page == stem), key=lambda r: order.get(r.label, 999)
            )
            doc = page_of(stem)
            title = addnodes.pending_xref(
                "",
                nodes.inline(text=stem),
                refdomain="std",
                reftype="doc",
                reftarget=f"/{doc}",
                refdoc=self.env.docname,
                refexplicit=False,
                refwarn=True,
            )
            body = []
            for r in mine:
                functions = joined(
                    [api_link(f, self.env, f.removeprefix("minidiff.")) for f in r.functions]
                )
                body.append(
                    _row(
                        [
                            _cell(equation_link(r.label, self.env)),
                            _cell(nodes.Text(r.kind)),
                            _cell(*functions or [nodes.Text("")]),
                            _cell(
                                *joined(test_links(self, r.tests, long=False)) or [nodes.Text("")]
                            ),
                        ]
                    )
                )
            sections.append(
                self._section(
                    f"ledger-{stem}",
                    title,
                    [
                        nodes.paragraph(text=self._count(mine)),
                        table(["Equation", "Kind", "Function", "Test"], body),
                    ],
                )
            )
        return sections + self._numbers()

    def _section(self, name, title, children):
        """Head a table by a rubric with an anchor: real headings would need a nested parse."""
        box = nodes.container(ids=[nodes.make_id(name)], classes=["course-ledger"])
        box += nodes.rubric("", "", title)
        box.extend(children)
        return box

    @staticmethod
    def _count(rows):
        parts = [f"{sum(r.kind == kind for r in rows)} {kind}" for kind in source.KINDS]
        return f"{len(rows)} equations: {', '.join(parts)}."

    def _totals(self, rows):
        return nodes.paragraph(text="In all " + self._count(rows), classes=["course-total"])

    def _numbers(self):
        out = []
        for path in sorted((source.ROOT / "minidiff").rglob("*.py")):
            self.env.note_dependency(str(path))
        for path in source.records():
            self.env.note_dependency(str(path))
            data = json.loads(path.read_text(encoding="utf-8"))
            if "numbers" not in data:
                continue
            body = []
            for name, entry in data["numbers"].items():
                low, high = (_short(b) for b in entry.get("band", ["", ""]))
                value = nodes.Text(_short(entry["value"]))
                body.append(
                    _row(
                        [
                            _cell(nodes.literal(text=name)),
                            _cell(value),
                            _cell(nodes.Text(f"{low} to {high}")),
                            _cell(nodes.Text(_seeds(entry.get("seeds", data.get("seeds", ""))))),
                        ],
                        ids=[row_id(path.stem, name)],
                    )
                )
            if path.parent.name == "benchmarks":
                title = nodes.literal(text=f"benchmarks/{path.name}")
                text = f"Made by benchmarks/{path.stem}.py; the band is the range of the seeds."
                out.append(self._record(path, title, text, body))
                continue
            doc = f"notebooks/{path.stem}"
            title = addnodes.pending_xref(
                "",
                nodes.inline(text=path.stem),
                refdomain="std",
                reftype="doc",
                reftarget=f"/{doc}",
                refdoc=self.env.docname,
                refexplicit=False,
                refwarn=True,
            )
            run = f"Preset {data.get('preset', '?')}"
            if data.get("seconds"):
                run += f", {float(data['seconds']):.0f} s"
            text = f"{run}. Since the run: {'; '.join(freshness(data, path.stem))}."
            out.append(self._record(path, title, text, body))
        if out:
            head = nodes.paragraph(
                text="The numbers in the text and the runs they came from:",
                classes=["course-total"],
            )
            return [head, *out]
        return out

    def _record(self, path, title, text, body):
        rows = table(["Number", "Value", "Band", "Seeds"], body)
        return self._section(f"numbers-{path.stem}", title, [nodes.paragraph(text=text), rows])


def _short(value):
    return format(value, ".4g") if isinstance(value, float) else str(value)


def _seeds(seeds):
    return ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)
