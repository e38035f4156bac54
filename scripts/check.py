"""Run every check of the course, stage by stage, and print how long each took.

    python scripts/check.py              # all stages
    python scripts/check.py lint tests   # some of them

A stage that fails does not stop the later ones (one run then shows all that is wrong), but the
run fails. The last line is `stages: N passed, N failed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q"]
# Two workers; a file stays on one of them, or nbval's cells of one notebook would be scattered.
TWO = ["-n", "2", "--dist", "loadfile"]
SMOKE = {"PRESET": "smoke"}


def stages() -> dict[str, tuple[dict[str, str], list[list[str]]]]:
    """Return name -> (environment, commands); the order is cheap and telling first."""
    notebooks = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("notebooks/*.ipynb"))
    nbval = ["--nbval-lax", "--nbval-current-env", *TWO]
    return {
        "lint": ({}, [[PYTHON, "-m", "ruff", "check", "--output-format=concise", "."],
                      [PYTHON, "-m", "ruff", "format", "--check", "."]]),
        "types": ({}, [[PYTHON, "-m", "basedpyright", "--pythonpath", PYTHON]]),
        "tests": ({"MPLBACKEND": "Agg"}, [[*PYTEST, *TWO]]),
        "labs": (SMOKE, [[PYTHON, "scripts/run_notebooks.py", "--preset", "smoke", "--jobs", "2"]]),
        # a notebook that is missing is an argument that is missing: pytest then fails
        "nbval": (SMOKE, [[*PYTEST, *nbval, *(notebooks or ["notebooks/*.ipynb"])]]),
        "book": ({}, [[PYTHON, "scripts/build_book.py", "--force"]]),
        "maths": ({}, [[PYTHON, "scripts/mathlint.py"]]),
    }  # fmt: skip


def main(names: list[str]) -> int:
    every = stages()
    for name in names:
        if name not in every:
            sys.exit(f"no stage named {name!r}; there are: {', '.join(every)}")
    # One thread each: bits must not depend on the machine's cores. No hub is ever asked.
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    rows = []
    for name in names or every:
        extra, commands = every[name]
        print(f"\n=== {name}", flush=True)
        environment = {**os.environ, **fixed, **extra}
        start = time.perf_counter()
        codes = [subprocess.run(c, cwd=ROOT, env=environment).returncode for c in commands]
        rows.append((name, time.perf_counter() - start, not any(codes)))
    print("\nstage       seconds")
    for name, seconds, good in rows:
        print(f"{name:10s} {seconds:8.1f}  {'passed' if good else 'FAILED'}")
    print(f"{'total':10s} {sum(r[1] for r in rows):8.1f}")
    failed = sum(not r[2] for r in rows)
    print(f"\nstages: {len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
