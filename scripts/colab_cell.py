"""The first cell of every lab, said once: Colab's bootstrap, and nothing at all in a checkout."""

from __future__ import annotations

import re

# The cell reads from `# %% tags=["remove-cell"]` to the line before the next `# %%`.
TEMPLATE = """\
# %% tags=["remove-cell"]
# In Colab: installs minidiff and keeps Colab's own torch. In a checkout: finds the package.
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY, TAG = "{repository}", "{tag}"
root = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "_toc.yml").exists()), None)
if root is not None and str(root) not in sys.path:
    sys.path.insert(0, str(root))
if "google.colab" in sys.modules and importlib.util.find_spec("minidiff") is None:
    if "/OWNER/" in REPOSITORY:
        print("minidiff has no home yet: set REPOSITORY in this cell to its address on GitHub")
    else:
        keep = [p for p in ("torch", "torchvision", "numpy") if importlib.util.find_spec(p)]
        pins = "".join(f"{{p}}=={{importlib.metadata.version(p)}}\\n" for p in keep)
        Path("colab-pins.txt").write_text(pins)
        source = f"minidiff[labs,data] @ git+{{REPOSITORY}}@{{TAG}}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "colab-pins.txt", source]
        subprocess.run(pip, check=True)
        importlib.invalidate_caches()
"""

PLACE = re.compile(r'^REPOSITORY, TAG = "(?P<repository>[^"]*)", "(?P<tag>[^"]*)"$', re.MULTILINE)


def colab_cell(repository: str, tag: str) -> str:
    """Return the cell as lines of py:percent, without a blank line at its end."""
    return TEMPLATE.format(repository=repository, tag=tag)


def first_cell(lab: str) -> str:
    """Return the text of a lab's first cell, trailing blank lines removed."""
    start = lab.index("# %%")
    end = lab.find("\n# %%", start)
    return lab[start : end if end >= 0 else len(lab)].rstrip() + "\n"


if __name__ == "__main__":  # python scripts/colab_cell.py: print the cell, to begin a lab with
    import tomllib
    from pathlib import Path

    home = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]
    print(colab_cell(home["minidiff"]["repository"], home["minidiff"]["tag"]), end="")
