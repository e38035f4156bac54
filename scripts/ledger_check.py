"""Check that every tie of the ledger can break: `make ledger-check`.

A row of `book/claims/*.yml` says: this function computes this equation, and this test proves it.
Here each tied function is made wrong (its output times 1.01) and the test must fail. First the
tests must pass without sabotage.

    python scripts/ledger_check.py                    all rows
    python scripts/ledger_check.py --label eq:jump    one row (may be given several times)

The sabotage replaces the code inside the function object, so that it holds wherever the function
was imported to. Every trial runs in its own forked process; torch is imported once, before the
forks.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "_ext")]
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
import course_source as source  # noqa: E402
from sabotage import FACTOR, sabotage, scaled, target  # noqa: E402


class Trial(NamedTuple):
    """One function to break, and the row whose tests must then fail."""

    row: source.Row
    function: str


def run_tests(tests: list[str], stop: bool) -> dict[str, str]:
    """Run tests in this process; return the outcome of each."""
    import pytest

    try:
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("ledger", database=None, deadline=None, phases=phases)
        hypothesis.settings.load_profile("ledger")
    except ImportError:
        pass

    outcomes: dict[str, str] = {}

    class Watch:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                lines = str(report.longrepr).strip().splitlines()
                outcomes[report.nodeid] = next(
                    (x for x in lines if x.startswith("E ")), lines[-1] if lines else "?"
                )
            elif report.when == "call":
                outcomes.setdefault(report.nodeid, report.outcome)

        def pytest_collectreport(self, report):
            if report.failed:
                outcomes[report.nodeid or "collection"] = (
                    "not collected: " + str(report.longrepr).strip()[-200:]
                )

    flags = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore", "--no-header"]
    pytest.main([*flags, *(["-x"] if stop else []), *tests], plugins=[Watch()])
    return outcomes


def forked(work: Callable[[], Any]) -> tuple[int, int]:
    """Run something in a forked child with its output swallowed; return its process and the pipe
    with its JSON result.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        result = work()
    except BaseException as error:  # the parent must hear of it, whatever it is
        result = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(writer, "w") as pipe:
        json.dump(result, pipe)
    os._exit(0)


def collect(child: int, reader: int) -> Any:
    """Wait for a forked child and read its result."""
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the trial died"}


def all_of(jobs: list[Callable[[], Any]], width: int) -> Iterator[tuple[int, Any]]:
    """Run jobs in forked children, `width` at a time; yield index and result as they end."""
    import select

    waiting, open_jobs = list(enumerate(jobs)), {}
    while waiting or open_jobs:
        while waiting and len(open_jobs) < width:
            index, job = waiting.pop(0)
            child, reader = forked(job)
            open_jobs[reader] = (index, child)
        ready, _, _ = select.select(list(open_jobs), [], [])
        for reader in ready:
            index, child = open_jobs.pop(reader)
            yield index, collect(child, reader)


def preload(rows: list[source.Row]) -> None:
    """Import once, before the forks, what the tests import, but neither minidiff nor the tests
    themselves.
    """
    import torch

    torch.set_num_threads(1)
    files = {ROOT / t.partition("::")[0] for r in rows for t in r.tests}
    for path in sorted(files | {ROOT / "tests" / "conftest.py"}):
        if not path.is_file():
            continue
        for node in ast.walk(source.parse(path)[1]):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else names
            for name in names:
                if (
                    name.split(".")[0] in {"minidiff", "tests", "conftest"}
                    or (ROOT / "tests" / f"{name}.py").exists()
                ):
                    continue
                try:
                    module = importlib.import_module(name)
                    for alias in node.names if isinstance(node, ast.ImportFrom) else []:
                        getattr(module, alias.name, None)  # wakes lazy packages
                except Exception as error:
                    print(f"note: {path.name}: import {name}: {error}", file=sys.stderr)
    try:  # a failing comparison imports half of torch: once is enough
        torch.testing.assert_close(torch.ones(2), torch.zeros(2))
    except AssertionError:
        pass
    importlib.import_module("minidiff")
    gc.collect()
    gc.freeze()


def try_one(trial: Trial) -> dict[str, Any]:
    """In a child: break the function, run the row's tests, say whether one failed."""
    began = time.perf_counter()
    reached = []

    def change(value):
        reached.append(1)
        return scaled(value)

    sabotage(target(trial.function), change)
    outcomes = run_tests(list(trial.row.tests), stop=True)
    failed = {k: v for k, v in outcomes.items() if v not in {"passed", "skipped"}}
    return {"failed": failed, "reached": len(reached), "seconds": time.perf_counter() - began}


def unhealthy(tests: list[str], width: int) -> dict[str, str]:
    """Run tests without sabotage; return those that do not count, each with the reason."""
    sick, present = {}, []
    for test in tests:
        try:
            source.locate_test(test)
            present.append(test)
        except LookupError as error:
            sick[test] = str(error)
    outcomes: dict[str, str] = {}
    parts = [present[i::width] for i in range(width) if present[i::width]]
    for _, result in all_of([lambda p=p: run_tests(p, stop=False) for p in parts], width):
        outcomes.update(result)
    for test in present:
        file = test.partition("::")[0]
        mine = [
            v for k, v in outcomes.items() if k == test or k.startswith((f"{test}[", f"{test}::"))
        ]
        failed = [v for v in mine if v not in {"passed", "skipped"}]
        if failed:
            sick[test] = failed[0]
        elif "passed" not in mine:
            sick[test] = outcomes.get(file) or outcomes.get("error") or "skipped, or did not run"
    return sick


def check(rows: list[source.Row], width: int) -> int:
    """Check rows, print the table, return the number of bad ones."""
    bad = 0
    proven = [r for r in rows if r.kind != "definition"]
    sick = unhealthy(sorted({t for r in proven for t in r.tests}), width)
    trials: list[Trial] = []
    results: dict[str, list[str]] = {}
    for row in proven:
        results[row.label] = [f"BAD  {t}: {sick[t]}" for t in row.tests if t in sick]
        if results[row.label]:
            bad += 1
        elif row.functions or row.breaks:
            trials += [Trial(row, f) for f in (*row.functions, *row.breaks)]
        else:
            results[row.label].append("holds")
    jobs = [lambda trial=trial: try_one(trial) for trial in trials]
    for index, result in all_of(jobs, width):
        row, function = trials[index]
        name = function.removeprefix("minidiff.")
        if result.get("failed"):
            why = next(iter(result["failed"].values()))
            line = f"breaks  {name} ({result['seconds']:.1f} s): {why[:90]}"
        else:
            bad += 1
            hint = " (the test never calls it)" if result.get("reached") == 0 else ""
            said = result.get("error", ", ".join(row.tests))
            line = f"SURVIVES  {name} x {FACTOR}{hint}: {said}"
        results[row.label].append(line)
    wide = max((len(r.label) for r in rows), default=0)
    for row in rows:
        for line in results.get(row.label, ["definition"]):
            print(f"{row.page:14} {row.label:{wide}}  {line}")
    kinds = ", ".join(f"{sum(r.kind == k for r in rows)} {k}" for k in source.KINDS)
    print(f"\n{len(rows)} rows ({kinds}), {len(trials)} sabotages, {bad} bad")
    return bad


def main(argv: list[str] | None = None) -> int:
    """Read the command line, check, return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--label", action="append", help="check this row only, e.g. eq:jump")
    parser.add_argument(
        "-j", type=int, default=min(2, os.cpu_count() or 1), help="trials at a time (default 2)"
    )
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    rows = [r for r in source.rows() if not args.label or r.label in args.label]
    if args.label and len(rows) != len(set(args.label)):
        parser.error(f"no such row: {', '.join(set(args.label) - {r.label for r in rows})}")
    began = time.perf_counter()
    preload([r for r in rows if r.kind != "definition"])
    bad = check(rows, args.j)
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
