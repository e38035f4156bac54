"""The words this book adds to MyST: {function}, {proved-by}, {number}, {ledger}.

A reader can follow every line: from an equation to the function that computes it, to the test
that would fail if the function were wrong, and from a number in the prose to the run that
produced it. Whatever is named must exist: a name that does not is a warning, and the build treats
warnings as errors.
"""

from __future__ import annotations

import json
import re

import course_links
import course_source as source
from course_links import (
    api_link,
    course_details,
    equation_link,
    filled,
    joined,
    test_links,
    watch_ledger,
)
from course_tables import LedgerDirective, row_id
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.domains.python import PyFunction
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

log = logging.getLogger(__name__)


class FunctionDirective(PyFunction):
    """Show the real source of an object without its docstring, with its API entry, equations and
    tests.

    MyST's ``{function}`` and reStructuredText's ``.. function::`` are one name for
    Sphinx; autodoc needs the second.
    """

    option_spec = {  # noqa: RUF012
        **PyFunction.option_spec,
        "keep-docstring": directives.flag,
        "caption": directives.unchanged,
    }

    def run(self):
        if type(self.state).__name__ != "MockState":
            return super().run()
        dotted = self.arguments[0].strip()
        try:
            found = source.locate(dotted)
            text = source.code(dotted, "keep-docstring" in self.options)
        except (LookupError, OSError, SyntaxError) as error:
            log.warning("{function} %s", error, location=self.get_location())
            return []
        self.env.note_dependency(str(found.path))
        watch_ledger(self.env)
        box = nodes.container(classes=["course-function"])
        self.set_source_info(box)
        head = nodes.paragraph("", "", nodes.literal(text=dotted), classes=["course-function-head"])
        if "caption" in self.options:
            inline, messages = self.state.inline_text(self.options["caption"], self.lineno)
            head += [
                nodes.Text(" "),
                nodes.inline("", "", *inline, classes=["course-caption"]),
                *messages,
            ]
        block = nodes.literal_block(text, text, language="python", classes=["course-code"])
        block.source, block.line = str(found.path), found.first
        rows = [r for r in source.rows() if dotted in r.functions]
        foot = nodes.paragraph(classes=["course-function-foot"])
        foot += filled(
            nodes.inline(classes=["course-item"]),
            nodes.Text("API: "),
            api_link(dotted, self.env, ".".join(source.split(dotted)[2]).replace(".[", "[")),
        )
        if rows:
            foot += filled(
                nodes.inline(classes=["course-item"]),
                nodes.Text("Ledger: "),
                *joined([equation_link(r.label, self.env) for r in rows]),
            )
            tests = list(dict.fromkeys(t for r in rows for t in r.tests))
            foot += filled(
                nodes.inline(classes=["course-item"]),
                nodes.Text("Proved by: "),
                *joined(test_links(self, tests, long=False)),
            )
        return [filled(box, head, block, foot)]


class ProvedBy(SphinxDirective):
    """The *Proved by* box: tests by name, in words, and their source, folded."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self):
        tests = self.arguments[0].replace(",", " ").split()
        box = nodes.admonition(classes=["tip", "course-proof"])
        box += nodes.title(text="Proved by")
        links = test_links(self, tests)
        if not links:
            return []
        box += nodes.paragraph("", "", *joined(links), classes=["course-tests"])
        self.state.nested_parse(self.content, self.content_offset, box)
        for test in tests:
            found = source.locate_test(test)
            lines = source.parse(found.path)[0].splitlines()[found.first - 1 : found.last]
            details = course_details(summary=f"Show {test.rpartition('::')[2]}")
            text = "\n".join(lines)
            details += nodes.literal_block(text, text, language="python")
            box += details
        return [box]


class NumberRole(SphinxRole):
    """A number of a run, of a lab or a benchmark: ``{number}`05_swiss_roll:swd_ddpm|.3f```."""

    def run(self):
        key, _, spec = self.text.partition("|")
        lab, _, name = key.strip().partition(":")
        missing = source.ROOT / "notebooks" / f"{lab}.json"
        path = next((p for p in source.records() if p.stem == lab), missing)
        self.env.note_dependency(str(path))
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            entry = data["numbers"].get(name) or {"value": data[name]}
            shown = format(entry["value"], spec.strip())
        except (OSError, KeyError, ValueError, TypeError) as error:
            log.warning(
                "{number} %s: %s: %s",
                self.text,
                type(error).__name__,
                error,
                location=self.get_location(),
            )
            return [nodes.inline(text="?")], []
        facts = [f"from {path.parent.name}/{lab}.py"]
        if "preset" in data:
            facts = [f"from lab {lab}, preset {data['preset']}"]
        if "band" in entry:
            facts.append("band {} to {}".format(*entry["band"]))
        if seeds := entry.get("seeds", data.get("seeds")):
            facts.append(f"seeds {seeds}")
        node = nodes.inline(text=shown, classes=["course-number"])
        target = "book/ledger"
        if name in data["numbers"] and target in self.env.found_docs:
            node = nodes.reference(
                "",
                "",
                nodes.inline(text=shown),
                internal=True,
                classes=["course-number"],
                reftitle="; ".join(facts),
                course_row=row_id(lab, name),
            )
        return [node], []


def resolve_numbers(app, doctree, docname):
    """Point each number at its row on the ledger page."""
    for node in doctree.findall(nodes.reference):
        if "course_row" in node:
            uri = app.builder.get_relative_uri(docname, "book/ledger")
            node["refuri"] = f"{uri}#{node['course_row']}"


def name_chapters(app, doctree, docname):
    """Say "Chapter 5" and "Lab L5" where Sphinx calls every numbered heading a section."""
    for node in doctree.findall(nodes.inline):
        whole = (
            re.fullmatch(r"Section (L?)(\d+)", node.astext())
            if "std-numref" in node["classes"]
            else None
        )
        if whole:
            node.children = [nodes.Text(f"{'Lab' if whole[1] else 'Chapter'} {whole[1]}{whole[2]}")]


def outdated(app, env, added, changed, removed):
    """Read the ledger at every build, and pages with rows when a ledger file came or went."""
    now = {str(p) for p in source.CLAIMS.glob("*.yml")}
    again = {d for d in env.found_docs if d == "book/ledger"}
    root = str(source.CLAIMS)
    for doc, files in env.dependencies.items():
        known = {str(source.ROOT / f) for f in files}
        known = {f for f in known if f.startswith(root) and f.endswith(".yml")}
        if any("README.md" in str(f) and "claims" in str(f) for f in files) and known != now:
            again.add(doc)
    return sorted((again & env.found_docs) - removed)


def setup(app):
    """Register roles and directives."""
    course_links.setup(app)
    app.add_directive_to_domain("py", "function", FunctionDirective, override=True)
    app.add_directive("proved-by", ProvedBy)
    app.add_directive("ledger", LedgerDirective)
    app.add_role("number", NumberRole())
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-resolved", resolve_numbers)
    app.connect("doctree-resolved", name_chapters)
