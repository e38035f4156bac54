"""Build the book with warnings as errors, unless it is up to date.

    python scripts/build_book.py           # builds if a source changed since the last good build
    python scripts/build_book.py --force   # from scratch
    python scripts/build_book.py --draft   # only the pages that changed, warnings as errors

A page that did not change is not read again by Sphinx, and its warnings are not repeated: a label
removed from one page breaks another in silence. So a build that counts is from scratch, and is
skipped only when the sources' hash equals that of the last build that succeeded. The hash is
removed before a build and written after success: a build that failed stays failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
INDEX = BUILD / "html" / "index.html"
STAMP = BUILD / "book.sha256"
# `python -m jupyter_book` does not exist, and the script beside python may have moved with .venv
JUPYTER_BOOK = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
IGNORED = {"__pycache__", "_build", "node_modules", "build", "dist", "runs"}


def sources() -> list[Path]:
    """Return every file a page may be made of: all of the checkout but caches and builds."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            d for d in folders if d not in IGNORED and d[0] != "." and not d.endswith(".egg-info")
        ]
        found += [Path(folder) / f for f in files if not f.startswith(".")]
    return sorted(found)


def digest() -> str:
    """Hash names and contents of the sources, and the interpreter that builds."""
    total = hashlib.sha256(sys.version.encode())
    for path in sources():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(ROOT).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def build(*, scratch: bool) -> int:
    """Run jupyter-book; from scratch, nothing of an earlier build is left to read."""
    if scratch:
        shutil.rmtree(BUILD / "html", ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
    options = ["--all"] if scratch else []
    command = [*JUPYTER_BOOK, "build", ".", "-W", "-n", "--keep-going", *options]
    return subprocess.run(command, cwd=ROOT).returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--force", action="store_true", help="from scratch")
    how.add_argument("--draft", action="store_true", help="only the pages that changed")
    args = parser.parse_args()

    start, before = time.perf_counter(), digest()
    current = INDEX.exists() and STAMP.exists() and STAMP.read_text() == before
    if current and not args.force:
        print(f"the book is up to date: {INDEX}")
        return 0
    STAMP.unlink(missing_ok=True)
    code = build(scratch=not args.draft)
    if code or not INDEX.exists():
        print(f"the book was NOT built (exit {code}): see the warnings above", file=sys.stderr)
        return code or 1
    if not args.draft:
        STAMP.write_text(before)  # of the sources as they were when the build began
    print(f"built in {time.perf_counter() - start:.0f} s: {INDEX}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
