"""Grade submitted notebooks: run each check of an assignment on them and add up the points.

    python assignments/grade.py 05_ddpm submission.ipynb
    python assignments/grade.py 05_ddpm submissions/*.ipynb --json grades.json

A notebook's cells are executed in order, then the public and the hidden checks run on the functions
they defined. Cells that begin with `# experiment` and cells that call a check are left out; a cell
that raises is noted and does no further harm. A task that was not done gives no points. A cell or a
check that runs longer than the time limit, or ends the process, fails alone: the rest goes on in a
new process.

A submission is a program that somebody else wrote. It runs with your rights: grade in a container
or under another user if you do not know its author. It could also be written to deceive this
script; points that matter are worth a look at the notebook.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
LEFT_OUT = re.compile(r"\s*#\s*experiment\b|(?s:.*)\bchecks\.run\(")
START_SECONDS = 120.0  # to start Python and import torch, on a slow disk


class Result(NamedTuple):
    """What one check gave."""

    task: str
    function: str
    check: str
    hidden: bool
    points: int
    of: int
    message: str  # empty if passed


class Grade(NamedTuple):
    """All of one submission."""

    submission: str
    points: int
    of: int
    written: dict[str, int]  # question -> points that a person gives
    results: list[Result]
    cells: list[str]  # what cells raised

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"results": [r._asdict() for r in self.results]}


def load(name: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Import the assignment's checks and hidden checks, fresh."""
    folder = str(HERE / name)
    sys.path[:] = [folder, str(HERE.parent), *(p for p in sys.path if p != folder)]
    for module in ("checks", "hidden_checks"):
        sys.modules.pop(module, None)
    return importlib.import_module("checks"), importlib.import_module("hidden_checks")


# ---- the worker: a process that executes the submission ------------------------------------------


def cells_of(path: Path) -> list[str]:
    """Return the code cells, with IPython's magics and shell lines taken out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", s) for s in sources]


def work(name: str, path: Path, skip: list[int], wanted: list[str]) -> None:
    """Execute the cells and run the wanted checks; report each line by line."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # what the submission prints goes nowhere
    os.dup2(quiet, 2)

    def say(**line: Any) -> None:
        report.write(json.dumps(line) + "\n")

    load(name)
    space: dict[str, Any] = {"__name__": "__main__"}
    for k, source in enumerate(cells_of(path)):
        if k in skip or LEFT_OUT.match(source):
            continue
        say(begin=k)
        error = ""
        try:
            exec(compile(source, f"cell {k + 1}", "exec"), space)
        except NotImplementedError:
            pass
        except BaseException as problem:  # also SystemExit, which exit() in a cell raises
            error = f"cell {k + 1}: {type(problem).__name__}: {problem}"
        say(end=k, message=error)
    checks, hidden = load(name)  # again, in case a cell changed them
    for c in [*checks.CHECKS, *hidden.HIDDEN]:
        if c.name not in wanted:
            continue
        say(begin=c.name)
        message = ""
        try:
            if c.function not in space:
                message = f"the notebook defines no function {c.function}"
            else:
                c.test(space[c.function])
        except NotImplementedError:
            message = "not done"
        except Exception as problem:
            message = checks.explain(problem)
        except BaseException as problem:
            message = f"your function raised {type(problem).__name__}"
        say(end=c.name, message=message)
    say(done=True)


# ---- the parent: watches the worker ---------------------------------------------------------------


def lines_of(command: list[str], folder: Path, seconds: float) -> Iterator[dict[str, Any] | None]:
    """Yield what a worker reports, then None if it was silent for too long or died."""
    # one thread: tensors here are small, and several gradings may run side by side
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    worker = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    said: queue.Queue[str] = queue.Queue()

    def listen(stream: Any) -> None:
        for line in stream:
            said.put(line)
        said.put("")

    threading.Thread(target=listen, args=(worker.stdout,), daemon=True).start()
    wait = START_SECONDS
    try:
        while True:
            line = said.get(timeout=wait)
            if not line:
                yield None
                return
            told = json.loads(line)
            yield told
            if "done" in told:
                return
            wait = seconds if "begin" in told else START_SECONDS
    except queue.Empty:
        yield None
    finally:
        worker.kill()
        worker.wait()


def grade(name: str, path: Path, *, seconds: float = 30.0) -> Grade:
    """Grade one notebook.

    Args:
        name: The assignment, a folder beside this file.
        path: The submitted notebook.
        seconds: Time limit of each cell and of each check.
    """
    checks, hidden = load(name)
    every = {c.name: (c, c in hidden.HIDDEN) for c in [*checks.CHECKS, *hidden.HIDDEN]}
    messages: dict[str, str] = {}
    cells: list[str] = []
    skip: list[int] = []
    while open_checks := [n for n in every if n not in messages]:
        command = [sys.executable, str(HERE / "grade.py"), name, str(path.resolve()), "--worker"]
        command += [json.dumps({"skip": skip, "wanted": open_checks})]
        running, before = None, (len(messages), len(skip))
        cells = [c for c in cells if c.endswith("(left out)")]
        for told in lines_of(command, HERE / name, seconds):
            if told is None:  # it hung or died in `running`
                what = f"did not end within {seconds:g} s, or ended the process"
                if isinstance(running, int):
                    skip.append(running)
                    cells.append(f"cell {running + 1}: {what} (left out)")
                elif running is not None:
                    messages[running] = f"your function {what}"
            elif "begin" in told:
                running = told["begin"]
            elif "end" in told:
                running = None
                if isinstance(told["end"], str):
                    messages[told["end"]] = told["message"]
                elif told["message"]:
                    cells.append(told["message"])
        if (len(messages), len(skip)) == before:
            raise RuntimeError(f"{path}: the process that grades ended without a word")
    results = [
        Result(
            checks.TASKS[c.function],
            c.function,
            c.name,
            is_hidden,
            0 if messages[c.name] else c.points,
            c.points,
            messages[c.name],
        )
        for c, is_hidden in every.values()
    ]
    results.sort(key=lambda r: r.task)  # stable: public before hidden
    points, of = sum(r.points for r in results), sum(r.of for r in results)
    return Grade(path.name, points, of, dict(checks.WRITTEN), results, cells)


def table(g: Grade) -> str:
    """Return a grade as text."""
    lines = [g.submission, "", "task  function       points"]
    for task in dict.fromkeys(r.task for r in g.results):
        rows = [r for r in g.results if r.task == task]
        got, of = sum(r.points for r in rows), sum(r.of for r in rows)
        lines.append(f"({task})   {rows[0].function:14s} {got:2d} of {of}")
    for question, points in g.written.items():
        lines.append(f"({question})  {'in words':14s}  ? of {points}   (read it)")
    lines += [f"      {'checked':14s} {g.points:2d} of {g.of}", ""]
    for r in g.results:
        if r.message:
            kind = "hidden" if r.hidden else "public"
            lines.append(f"({r.task}) -{r.of}  {r.check} ({kind}): {r.message}")
    return "\n".join([*lines, *g.cells]).rstrip() + "\n"


def main() -> int:
    names = sorted(p.parent.name for p in HERE.glob("*/checks.py"))
    parser = argparse.ArgumentParser(description="grade submitted notebooks")
    parser.add_argument("name", choices=names, help="the assignment")
    parser.add_argument("submissions", nargs="+", type=Path, help="notebooks")
    parser.add_argument("--json", type=Path, help="write all grades to this file")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of a cell or check")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args.name, args.submissions[0], **json.loads(args.worker))
        return 0
    grades = []
    for path in args.submissions:
        try:
            grades.append(grade(args.name, path, seconds=args.seconds))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            print(f"{path}: not graded, {type(error).__name__}: {error}", file=sys.stderr)
            continue
        print(table(grades[-1]))
    if args.json is not None:
        text = json.dumps([g.as_json() for g in grades], indent=1) + "\n"
        args.json.write_text(text, encoding="utf-8")
    return 0 if len(grades) == len(args.submissions) else 1


if __name__ == "__main__":
    sys.exit(main())
