"""Links of this book: to API entries, to equations, and to tests, shown as pages of the book."""

from __future__ import annotations

import ast
import html

import course_source as source
from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

log = logging.getLogger(__name__)


class course_test(nodes.inline, nodes.Element):
    """A link to a test's source, which the build writes as a page of the book."""


class course_details(nodes.container):
    """A closed ``<details>`` with a summary."""


def test_page(path) -> str:
    """Return the page name under which a test file is shown."""
    return f"_modules/{path.relative_to(source.ROOT).with_suffix('').as_posix()}"


def watch_ledger(env):
    """Rebuild the page being read when a ledger file changes."""
    for path in [source.CLAIMS / "README.md", *sorted(source.CLAIMS.glob("*.yml"))]:
        env.note_dependency(str(path))


def api_link(dotted: str, env, text: str | None = None) -> nodes.Node:
    """Link to the API entry of an object, or of what holds it (a table for its entry, a class for
    an inherited method).
    """
    return addnodes.pending_xref(
        "",
        nodes.literal(text=text or dotted),
        refdomain="py",
        reftype="obj",
        reftarget=dotted.partition("[")[0],
        refdoc=env.docname,
        refwarn=True,
        course_api=True,
    )


def equation_link(label: str, env) -> nodes.Node:
    """Link to an equation by its label; the text becomes its number."""
    return addnodes.pending_xref(
        "",
        nodes.inline(text=label),
        refdomain="math",
        reftype="eq",
        reftarget=label,
        refdoc=env.docname,
        refexplicit=False,
        refwarn=True,
    )


def resolve_api(app, env, node, contnode):
    """Climb from a name without an entry of its own to the nearest one that has."""
    name = node.get("reftarget", "")
    while node.get("course_api") and "." in name:
        name = name.rpartition(".")[0]
        if entry := env.domains["py"].objects.get(name):
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name
            )
    return None


def test_link(test: str, env, long: bool = True) -> nodes.Node:
    """Link to a test inside the book, by its path and name or by its name alone."""
    found = source.locate_test(test)
    env.note_dependency(str(found.path))
    node = course_test("", page=test_page(found.path), anchor=f"L-{found.first}")
    return filled(node, nodes.literal(text=test if long else test.rpartition("::")[2]))


def filled(parent, *children):
    """Return a node with children added."""
    parent.extend(children)
    return parent


def joined(items: list[nodes.Node]) -> list[nodes.Node]:
    """Put commas between nodes."""
    out: list[nodes.Node] = []
    for item in items:
        out += [nodes.Text(", "), item] if out else [item]
    return out


def test_links(directive, tests: list[str], long: bool = True) -> list[nodes.Node]:
    """Link to several tests; a test that does not exist is a warning."""
    links = []
    for test in tests:
        try:
            links.append(test_link(test, directive.env, long))
        except (LookupError, SyntaxError) as error:
            log.warning("%s", error, location=directive.get_location())
    return links


def visit_test(self, node):
    if self.builder.format == "html" and self.builder.name != "singlehtml":
        uri = self.builder.get_relative_uri(self.builder.current_docname, node["page"])
        self.body.append(
            self.starttag(
                node,
                "a",
                "",
                CLASS="reference internal course-test",
                href=f"{uri}#{node['anchor']}",
            )
        )
        return
    self.body.append(self.starttag(node, "span", ""))


def depart_test(self, node):
    paged = self.builder.format == "html" and self.builder.name != "singlehtml"
    self.body.append("</a>" if paged else "</span>")


def visit_details(self, node):
    self.body.append(
        f'<details class="course-details"><summary>{self.encode(node["summary"])}</summary>\n'
    )


def depart_details(self, node):
    self.body.append("</details>\n")


def _skip(self, node):
    pass


def collect_test_pages(app):
    """Write the tests into the book, so that a link to a test works offline and shows the test of
    this build.
    """
    if app.builder.format != "html" or app.builder.name == "singlehtml":
        return
    for path in sorted((source.ROOT / "tests").glob("test_*.py")):
        text = source.parse(path)[0]
        body = app.builder.highlighter.highlight_block(text, "python", linespans="L")
        name = path.relative_to(source.ROOT).as_posix()
        about = ast.get_docstring(ast.parse(text)) or ""
        body = body.replace("<pre>", '<pre tabindex="0">', 1)
        title = f"<h1>Tests: <code>{name}</code></h1><p>{html.escape(about.split(chr(10))[0])}</p>"
        yield test_page(path), {"title": f"Tests: {name}", "body": title + body}, "page.html"


def setup(app):
    """Register the nodes and what resolves and writes them."""
    linked = {"html": (visit_test, depart_test), "latex": (_skip, _skip), "text": (_skip, _skip)}
    app.add_node(course_test, **linked)
    app.add_node(
        course_details,
        html=(visit_details, depart_details),
        latex=(_skip, _skip),
        text=(_skip, _skip),
    )
    app.connect("missing-reference", resolve_api)
    app.connect("html-collect-pages", collect_test_pages)
