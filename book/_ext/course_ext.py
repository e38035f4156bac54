"""Sphinx glue of this book: import path, numbers that follow file names, MathJax from the book
itself.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import course_directives
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Pages outside the numbered chapters whose equations and figures need a letter, so that no two
# pages share (1).
LETTERS = {
    "book/intro": "I",
    "book/how_to_use": "H",
    "book/notation": "N",
    "book/formulas": "F",
    "book/formulas_training": "FT",
    "book/formulas_oracles": "FO",
    "book/formulas_sampling": "FS",
    "book/formulas_likelihood": "FL",
    "book/formulas_guidance": "FG",
    "book/errata": "E",
    "book/glossary": "G",
    "book/ledger": "V",
}


def chapter_number(docname: str) -> int | str | None:
    """Return the number in a file's name: 5 for book/05_ddpm, "L5" for notebooks/05_swiss_roll,
    else None.
    """
    folder, _, name = docname.rpartition("/")
    digits = re.match(r"(\d\d)_", name)
    if not digits:
        return None
    return f"L{int(digits[1])}" if folder == "notebooks" else int(digits[1])


def _number_by_file_name():
    """Make chapter 05 chapter 5 also while chapters 1 to 4 are not written, and give each lab and
    appendix its own letter.

    Numbers of chapters are stable names; Sphinx would count pages. Section numbers are rewritten
    after the theme's collector has counted them; figures and equations of unnumbered pages get a
    letter, their headings stay bare.
    """
    count_sections = TocTreeCollectorWithStyles.assign_section_numbers
    if getattr(count_sections, "by_file_name", False):
        return
    count_figures = TocTreeCollector.assign_figure_numbers

    def assign_section_numbers(self, env):
        before = {doc: dict(numbers) for doc, numbers in env.toc_secnumbers.items()}
        count_sections(self, env)
        for doc, numbers in env.toc_secnumbers.items():
            first = chapter_number(doc)
            if first is None:
                continue
            for anchor, number in numbers.items():
                numbers[anchor] = (first, *number[1:]) if number else number
            for node in [env.titles[doc], *env.tocs[doc].findall()]:
                if getattr(node, "get", None) and node.get("secnumber"):
                    node["secnumber"] = [first, *node["secnumber"][1:]]
        return [doc for doc, numbers in env.toc_secnumbers.items() if before.get(doc) != numbers]

    def assign_figure_numbers(self, env):
        bare = {
            doc: {"": (letter,)}
            for doc, letter in LETTERS.items()
            if not env.toc_secnumbers.get(doc)
        }
        env.toc_secnumbers.update(bare)
        changed = count_figures(self, env)
        for doc in bare:
            del env.toc_secnumbers[doc]
        return changed

    assign_section_numbers.by_file_name = True
    TocTreeCollectorWithStyles.assign_section_numbers = assign_section_numbers
    TocTreeCollector.assign_figure_numbers = assign_figure_numbers


def _drop_thebe(app, pagename, templatename, context, doctree):
    """Jupyter Book loads thebe twice, from another host; the book uses neither."""
    context["script_files"] = [
        js
        for js in context.get("script_files", [])
        if "THEBE_JS_URL" not in (getattr(js, "attributes", {}).get("body") or "")
        and "sphinx-thebe.js" not in str(getattr(js, "filename", js) or "")
    ]


def _singlehtml(app):
    """Let the single-page builder draw what the page builder can (an extension switches Sphinx's
    fall-back off).
    """
    handlers = app.registry.translation_handlers
    if app.builder.name == "singlehtml":
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers.get("singlehtml", {})}


def _copy_mathjax(app, exception):
    """Serve MathJax from the book: the two pieces it needs, out of the installed package sphinx-
    mathjax-offline.
    """
    if exception or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    source = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    fonts = Path("output/chtml/fonts/woff-v2")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tex-chtml-full.js", target)
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    for licence in source.glob("LICENSE*"):
        shutil.copy(licence, target)


def _skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of NamedTuples: their class describes them in words."""
    return (
        True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field number") else None
    )


def setup(app):
    """Connect the pieces."""
    app.connect("config-inited", lambda app, config: _number_by_file_name(), priority=999)
    app.connect("builder-inited", _singlehtml)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("html-page-context", _drop_thebe, priority=900)
    app.connect("build-finished", _copy_mathjax)
    app.add_css_file("course.css", priority=900)
    app.add_js_file("course.js", loading_method="defer")
    course_directives.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
