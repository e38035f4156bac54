"""Execute the labs: notebooks/NAME.py -> NAME.ipynb with outputs, and NAME.json with its numbers.

    python scripts/run_notebooks.py --preset cpu               # all labs, written to notebooks/
    python scripts/run_notebooks.py --preset cpu 05_swiss_roll # one of them
    python scripts/run_notebooks.py --preset smoke --jobs 2    # a trial: to _build/labs/smoke

A lab runs in a scratch copy of notebooks/ inside the checkout, so a run that fails leaves the
committed files as they were. It sees PRESET, one thread, and NUMBERS: a path to which its last
cell writes the dict `numbers` as JSON (key -> {"value": ..., "band": [low, high], "seeds": [...]}).
A number outside its band, or a notebook over 600 kB, fails the run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "notebooks"
LIMIT = 600_000  # bytes: what GitHub and Colab open without a wait
SMOKE_SECONDS = 12  # of CPU time, printed when exceeded, never failed on: machines differ

# Runs after the lab's last cell and is taken out again: what the process imported and what it used.
LAST_WORDS = """
import json as _json, os as _os, sys as _sys, time as _time
_files = [getattr(m, "__file__", None) for n, m in list(_sys.modules.items())
          if n.split(".")[0] == "minidiff"]
try:
    import resource as _resource
    _peak = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss
    _peak *= 1 if _sys.platform == "darwin" else 1024
except ImportError:  # Windows
    _peak = 0
with open(_os.environ["NUMBERS"] + ".process", "w") as _f:
    _files = sorted({f for f in _files if f})
    _json.dump({"files": _files, "cpu": _time.process_time(), "peak": _peak}, _f)
"""


class Result(NamedTuple):
    name: str
    error: str | None
    seconds: float = 0.0
    cpu: float = 0.0
    peak_mb: float = 0.0
    size: int = 0
    numbers: int = 0


def sha256(path: Path) -> str:
    """Hash a text file with its line ends made equal, so that a Windows checkout agrees."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def check_numbers(numbers: Any) -> list[str]:
    """Return one complaint for each number that is not a finite value inside its band."""
    if not isinstance(numbers, dict) or not numbers:
        return ["`numbers` is empty or no dict: the lab's last cell writes it to $NUMBERS"]
    complaints = []
    for key, entry in numbers.items():
        try:
            value, (low, high) = float(entry["value"]), map(float, entry["band"])
        except (TypeError, KeyError, ValueError):
            complaints.append(f'{key}: {entry!r} is not {{"value": number, "band": [low, high]}}')
            continue
        if not low <= high:
            complaints.append(f"{key}: band [{low:g}, {high:g}] is empty")
        elif not (math.isfinite(value) and low <= value <= high):
            complaints.append(f"{key}: {value:g} lies outside its band [{low:g}, {high:g}]")
    return complaints


def clean(nb: Any) -> Any:
    """Remove what differs between two runs: timestamps, injected cells, random cell ids."""
    nb.metadata.pop("papermill", None)
    nb.metadata.pop("jupytext", None)
    nb.metadata.get("language_info", {}).pop("version", None)
    for i, cell in enumerate(nb.cells):
        for key in ("papermill", "execution", "lines_to_next_cell"):
            cell.metadata.pop(key, None)
        cell.id = f"c{i:03d}"
    return nb


def palette(nb: Any) -> Any:
    """Store pictures with 256 colours, if that is smaller and an entry changes by .5 at most.

    That is half the bytes for most figures. Grey pictures stay the same; .5 is a mean over all
    entries, of 256 levels.
    """
    import numpy as np
    from PIL import Image

    for output in (o for c in nb.cells for o in c.get("outputs", [])):
        png = base64.b64decode(output.get("data", {}).get("image/png", ""))
        if png:
            picture, file = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
            few = picture.quantize(256)
            few.save(file, "PNG", optimize=True)
            off = np.asarray(few.convert("RGB"), int) - np.asarray(picture, int)
            if len(file.getvalue()) < len(png) and np.abs(off).mean() <= 0.5:
                output["data"]["image/png"] = base64.b64encode(file.getvalue()).decode()
    return nb


def run(job: tuple[Path, str, Path]) -> Result:
    """Execute one lab in its own scratch folder; write NAME.ipynb and NAME.json to `out`."""
    import jupytext
    import nbformat
    import papermill

    source, preset, out = job
    name = source.stem
    scratch = ROOT / "_build" / "labs" / "scratch" / name
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(LABS, scratch, ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    numbers_path = scratch / "NUMBERS.out"
    os.environ.update(PRESET=preset, NUMBERS=str(numbers_path))

    digest = sha256(source)  # of the text that runs, taken before it runs
    nb = jupytext.read(source)
    nb.cells.append(nbformat.v4.new_code_cell(LAST_WORDS))
    begin, end = scratch / "begin.ipynb", scratch / "end.ipynb"
    nbformat.write(nb, begin)
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(begin), str(end), cwd=str(scratch), kernel_name="python3",
            progress_bar=False, log_output=False,
        )  # fmt: skip
    except Exception as error:  # the lab's own exception, with its traceback, or a dead kernel
        return Result(name, f"{type(error).__name__}: {error}", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    nb = nbformat.read(end, as_version=4)
    nb.cells.pop()
    nb = palette(clean(nb))

    if not numbers_path.exists():
        return Result(name, "nothing was written to $NUMBERS by the lab's last cell", seconds)
    numbers = json.loads(numbers_path.read_text())
    process = json.loads(Path(f"{numbers_path}.process").read_text())
    files = sorted(Path(f).resolve().relative_to(ROOT).as_posix() for f in process["files"])
    record = {
        "preset": preset,
        "seconds": round(seconds, 1),
        "source": digest,
        "minidiff": {f: sha256(ROOT / f) for f in files},
        "numbers": numbers,
    }
    text = nbformat.writes(nb) + "\n"
    size = len(text.encode())
    used = (seconds, process["cpu"], process["peak"] / 1e6, size)
    complaints = check_numbers(numbers)
    if size > LIMIT:
        complaints.append(f"{name}.ipynb has {size / 1000:.0f} kB, more than {LIMIT // 1000}")
    if complaints:
        return Result(name, "\n".join(complaints), *used)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.ipynb").write_text(text, encoding="utf-8", newline="\n")
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", newline="\n")
    shutil.rmtree(scratch)
    return Result(name, None, *used, len(numbers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("labs", nargs="*", help="names, as 05_swiss_roll (default: all)")
    parser.add_argument("--preset", default="cpu", choices=["smoke", "cpu", "gpu"])
    parser.add_argument("--jobs", type=int, default=1, help="labs at a time")
    parser.add_argument("--out", type=Path, help="where to write (cpu: notebooks/)")
    args = parser.parse_args()

    found = {p.stem: p for p in sorted(LABS.glob("*.py"))}
    if not found:
        sys.exit(f"no lab in {LABS}")
    for name in args.labs:
        if name not in found:
            sys.exit(f"no lab named {name!r}; there are: {', '.join(found)}")
    # Only what the book prints goes to notebooks/: a smoke run must not replace it.
    out = args.out or (LABS if args.preset == "cpu" else ROOT / "_build" / "labs" / args.preset)

    # One thread a kernel: 1 and 2 threads give different bits, and two kernels run side by side.
    # The GPU preset leaves the CPU's threads alone.
    if args.preset != "gpu":
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for readers at a screen, not for outputs
    os.environ.pop("MPLBACKEND", None)  # or figures would not reach the notebook
    # A first import of pyplot may build the font cache and say so in a lab's output: do it here.
    subprocess.run([sys.executable, "-c", "import matplotlib.pyplot"], stderr=subprocess.DEVNULL)

    jobs = [(found[n], args.preset, out) for n in args.labs or found]
    failed = 0
    # Processes, not threads: NUMBERS is an environment variable and differs between labs.
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(1, min(args.jobs, len(jobs)))) as pool:
        for r in pool.imap_unordered(run, jobs):
            if r.error is not None:
                failed += 1
                print(f"FAILED {r.name} ({r.seconds:.1f} s)\n{r.error}", flush=True)
                continue
            slow = args.preset == "smoke" and r.cpu > SMOKE_SECONDS
            print(
                f"{r.name}: {r.seconds:.1f} s, {r.cpu:.1f} s of CPU, {r.peak_mb:.0f} MB at most, "
                f"{r.size / 1000:.0f} kB, {r.numbers} numbers in their bands"
                + (f"  (over the {SMOKE_SECONDS} s of a smoke run)" if slow else ""),
                flush=True,
            )
    print(f"labs at PRESET={args.preset}: {len(jobs) - failed} passed, {failed} failed")
    if not failed:
        print(f"written to {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
