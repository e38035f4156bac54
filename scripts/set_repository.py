"""Write the repository's address and tag everywhere they stand (make repository URL=... TAG=...).

They are said once, in pyproject.toml [tool.minidiff]; the files that must repeat them (_config.yml,
README, CITATION.cff, the labs' first cells, ...) are rewritten from there. A lab's JSON keeps its
tie to the lab: its hash is renewed where it was right before, since only the first cell changes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from colab_cell import PLACE
from run_notebooks import sha256

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".ipynb", ".md", ".toml", ".yml", ".yaml", ".cff", ".bib", ".html", ".js", ".css"}
IGNORED = {"__pycache__", "_build", "node_modules", "build", "dist"}
URL = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")


def home(root: Path = ROOT) -> tuple[str, str]:
    """Return (repository, tag) as pyproject.toml says them."""
    tool = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return tool["minidiff"]["repository"], tool["minidiff"]["tag"]


def text_files(root: Path) -> list[Path]:
    """Return the text files of the checkout; .github is a source, other dot folders are not."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [d for d in folders if d == ".github" or (d[0] != "." and d not in IGNORED)]
        found += [Path(folder) / f for f in files if Path(f).suffix in TEXT]
    return sorted(found)


def retag(path: Path, text: str, slug: str, tag: str) -> str:
    """Replace the tag in the places that name it."""
    text = PLACE.sub(lambda m: m[0].replace(f'"{m["tag"]}"', f'"{tag}"'), text)
    # the same line inside a notebook, where it is a JSON string
    text = re.sub(
        r'("REPOSITORY, TAG = \\"[^"\\]*\\", \\")[^"\\]*(\\"\\n")', rf"\g<1>{tag}\g<2>", text
    )
    if path.name == "pyproject.toml":
        text = re.sub(r'(?m)^tag = "[^"]*"$', f'tag = "{tag}"', text)
    if path.name == "_config.yml":
        text = re.sub(r"(?m)^(  branch:).*$", rf"\g<1> {tag}", text)
    # links into the repository, GitHub's own and Colab's; Binder's have no /blob/
    text = re.sub(rf"({re.escape(slug)}/(?:blob|tree|raw)/)[^/\s)\"']+", rf"\g<1>{tag}", text)
    return re.sub(rf"(/v2/gh/{re.escape(slug)}/)[^/?\s)\"']+", rf"\g<1>{tag}", text)


def move(root: Path, url: str, tag: str) -> list[Path]:
    """Rewrite all files below `root`; return those that changed."""
    old, new = (urlsplit(u).path.strip("/") for u in (home(root)[0], url))
    changed = []
    for path in text_files(root):
        before = path.read_text(encoding="utf-8")
        after = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-]|\.(?!git\b)\w)", new, before)
        after = retag(path, after, new, tag)
        if after == before:
            continue
        record = path.with_suffix(".json")
        tied = path.suffix == ".py" and path.parent.name == "notebooks" and record.exists()
        numbers = json.loads(record.read_text(encoding="utf-8")) if tied else {}
        tied = numbers.get("source") == sha256(path)
        path.write_text(after, encoding="utf-8", newline="\n")
        if tied:
            text = record.read_text(encoding="utf-8").replace(numbers["source"], sha256(path))
            record.write_text(text, encoding="utf-8", newline="\n")
            changed.append(record)
        changed.append(path)
    return changed


def main() -> int:
    repository, tag = home()
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="")
    parser.add_argument("--tag", default="")
    args = parser.parse_args()
    if not args.url and not args.tag:
        print(
            f"{repository} at {tag}; change it: make repository URL=https://github.com/you/minidiff"
        )
        return 0
    url = (args.url or repository).removesuffix("/").removesuffix(".git")
    if not URL.fullmatch(url):
        sys.exit(f"URL={args.url!r} is not https://github.com/OWNER/NAME, which Colab can open")
    if args.tag and not re.fullmatch(r"[\w.-]+", args.tag):
        sys.exit(f"TAG={args.tag!r} is not the name of a tag or branch without a slash")
    for path in move(ROOT, url, args.tag or tag):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
