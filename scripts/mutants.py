"""Make small mistakes in the core modules, one at a time, and see whether the core tests notice.

A mutant is one change at one place: an operator, a comparison, a constant, an argument order, a
checking statement left out. It is killed when a test fails, an import fails or time runs out. The
tests of the module itself run first, then the others, the quickest first; tests that never enter
the changed function are left out (the first run, without a mistake, notes who enters what).

    python scripts/mutants.py                       judge 300 mutants, write tests/mutants.json
    python scripts/mutants.py --n 20 --out x.json   a look; OUT would lose the larger sample
    python scripts/mutants.py --set-aside           leave out tests that fail without a mistake
    python scripts/mutants.py --list                say which mutants, run nothing
    python scripts/mutants.py --only 3f2a90c1d4     judge these again, with every test
    python scripts/mutants.py --show-survivors      print the survivors in OUT as diffs, run nothing

The sample is fixed by the seed and stratified: each module gets its share of the places that can be
changed. It moves little when a module is edited: which mutants are taken hangs on the text of their
own line. A run that was broken off goes on where it stopped. A verdict is kept while its module is
as it was; "survived" only while all modules and tests are as they were. A person may fill in the
field "reason" of a survivor (why no test could tell it from the original): later runs keep it.

Not changed: docstrings, annotations, `raise` statements, f-strings, `__all__`, classes given to
`isinstance`, `strict=` of zip. Package and tests are copied to a temporary folder first, so files
may be edited meanwhile. Every trial is a forked process; torch is imported once, before the forks.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from ledger_check import ROOT, all_of, collect, forked

MODULES = (
    *("tables", "schedules", "process", "predictions", "variance", "times", "losses"),
    *("samplers", "solvers", "stochastic", "conditions", "guidance", "bounds", "likelihood"),
)
SUITE = (
    *("tensors", "tables", "schedules", "grids", "process", "predictions", "denoiser", "variance"),
    *("times", "losses", "samplers", "solvers", "stochastic", "conditions", "guidance", "bounds"),
    *("likelihood", "exact", "exact_bound", "exact_full", "exact_oracles", "exact_posterior"),
    *("formulas", "contracts", "inputs", "notation"),
)
COPIED = ("minidiff", "tests", "scripts", "book", "pyproject.toml")  # what the core tests read
LEAST = 0.85  # share of the mutants that must be killed
MEMORY = 12 << 30  # bytes of address space of a trial: a mutant may ask for a tensor without end

# ---- places and changes --------------------------------------------------------------------

SIGNS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.And: "and",
    ast.Or: "or",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Not: "not",
    ast.USub: "-",
    ast.Invert: "~",
}
INSTEAD: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),  # the boundary, and the other side
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = ("min max", "amin amax", "argmin argmax", "ceil floor", "any all", "sin cos", "sum mean")
NAMES = {a: b for p in (*PAIRS, "zeros ones", "zeros_like ones_like") for a, b in [p.split()]}
NAMES |= {b: a for a, b in NAMES.items()}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
SYMMETRIC = {"max", "maximum", "min", "minimum", "isinstance", "hypot", "allclose", "equal"}


class Change(NamedTuple):
    """A node that may stand in place of another, and where the difference is seen."""

    line: int
    column: int
    text: str
    node: ast.AST


class Site(NamedTuple):
    """A change, the slot of the tree that it goes into (an attribute, or a place in a list), and
    the line of the function around it (0: none, it acts on import).
    """

    change: Change
    holder: Any
    key: str | int
    scope: int


class Mutant(NamedTuple):
    """One mistake; ``site`` is its number among the sites of its module, ``scope`` the line of
    the function around it.
    """

    id: str
    module: str
    site: int
    line: int
    column: int
    change: str
    source: str
    scope: int

    @property
    def place(self) -> str:
        return f"minidiff/{self.module}.py:{self.line}:{self.column + 1}"


def variant(node: ast.AST, **fields: Any) -> Any:
    """Copy a node, with other fields."""
    twin = copy.copy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


def sign_at(lines: list[str], left: Any, right: Any, sign: str) -> tuple[int, int]:
    """Return line and column of the operator between two operands."""
    for number in range(left.end_lineno, right.lineno + 1):
        code = lines[number - 1].encode()  # ast counts bytes
        first = left.end_col_offset if number == left.end_lineno else 0
        last = right.col_offset if number == right.lineno else len(code)
        found = re.search(re.escape(sign), code[first:last].decode().partition("#")[0])
        if found:
            return number, len(code[:first].decode()) + found.start()
    return left.end_lineno, left.end_col_offset


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def operator_changes(node: ast.AST, lines: list[str]) -> Iterator[Change]:
    """Change an operator of an expression or of an augmented assignment."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for i, op in enumerate(node.ops):
            where = sign_at(lines, operands[i], operands[i + 1], SIGNS[type(op)])
            for other in INSTEAD[type(op)]:
                ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                text = f"`{SIGNS[type(op)]}` -> `{SIGNS[other]}`"
                yield Change(*where, text, variant(node, ops=ops))
        return
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
    elif isinstance(node, ast.AugAssign):
        left, right = node.target, node.value
    elif isinstance(node, ast.BoolOp):
        left, right = node.values[:2]
    else:
        return
    if is_text(left) or is_text(right):
        return
    for other in INSTEAD.get(type(node.op), ()):
        sign = SIGNS[type(node.op)]
        text = f"`{sign}` -> `{SIGNS[other]}`"
        yield Change(*sign_at(lines, left, right, sign), text, variant(node, op=other()))


def constant_changes(node: ast.Constant) -> Iterator[Change]:
    """Change a number or a truth value."""
    value = node.value
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, int):
        other = value + 1
    elif isinstance(value, float):
        other = float(f"{1.1 * value:.12g}") if value else 0.1
    else:
        return
    text = f"`{value}` -> `{other}`"
    yield Change(node.lineno, node.col_offset, text, variant(node, value=other))


def call_changes(node: ast.Call) -> Iterator[Change]:
    """Change which function is called, an argument's name, or the order of two arguments."""
    func = node.func
    name = func.id if isinstance(func, ast.Name) else getattr(func, "attr", "")
    end_line = func.end_lineno or node.lineno
    column = (func.end_col_offset or 0) - len(name)
    if name in NAMES:
        field = "id" if isinstance(func, ast.Name) else "attr"
        other = variant(node, func=variant(func, **{field: NAMES[name]}))
        yield Change(end_line, column, f"`{name}` -> `{NAMES[name]}`", other)
    if name == "sqrt" and isinstance(func, ast.Attribute) and not node.args:
        yield Change(end_line, column, "`.sqrt()` dropped", func.value)
    if name.startswith("clamp") and len(node.keywords) == 1 and node.keywords[0].arg in NAMES:
        word = node.keywords[0]
        text = f"`{word.arg}=` -> `{NAMES[word.arg or '']}=`"
        words = [variant(word, arg=NAMES[word.arg or ""])]
        yield Change(word.lineno, word.col_offset, text, variant(node, keywords=words))
    if name in SYMMETRIC:
        return
    for i, (a, b) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if isinstance(a, (ast.Name, ast.Attribute)) and type(a) is type(b):
            args = [*node.args[:i], b, a, *node.args[i + 2 :]]
            text = f"`{ast.unparse(a)}, {ast.unparse(b)}` -> `{ast.unparse(b)}, {ast.unparse(a)}`"
            yield Change(a.lineno, a.col_offset, text, variant(node, args=args))
            return


def changes(node: ast.AST, lines: list[str]) -> Iterator[Change]:
    """Return what may stand in place of this node."""
    yield from operator_changes(node, lines)
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        text = f"`{SIGNS[type(node.op)]}` dropped"
        yield Change(node.lineno, node.col_offset, text, node.operand)
    elif isinstance(node, ast.Constant):
        yield from constant_changes(node)
    elif isinstance(node, ast.Call):
        yield from call_changes(node)
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield Change(node.lineno, node.col_offset, "statement dropped", ast.Pass())


def untouched(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """Say whether a node and all below it are left alone."""
    if isinstance(node, (ast.Raise, ast.JoinedStr)) or field in {"annotation", "returns"}:
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Assign) and isinstance(parent, ast.Module):  # __all__, type aliases
        alias = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
        return alias or "__all__" in ast.unparse(node.targets[0])
    if isinstance(parent, ast.Call) and ast.unparse(parent.func) == "isinstance":
        return node is parent.args[-1]
    return isinstance(node, ast.keyword) and node.arg in {"strict", "stacklevel"}


def sites(parent: ast.AST, lines: list[str], scope: int = 0) -> Iterator[Site]:
    """Return every possible change below a node, in the order of the tree."""
    for field, value in ast.iter_fields(parent):
        listed = isinstance(value, list)
        here = scope
        if isinstance(parent, FUNCTIONS) and field == "body":  # defaults belong outside
            here = parent.lineno
        for key, node in enumerate(value) if listed else [(field, value)]:
            if isinstance(node, ast.AST) and not untouched(parent, field, node):
                holder = value if listed else parent
                yield from (Site(change, holder, key, here) for change in changes(node, lines))
                yield from sites(node, lines, here)


def mutants(module: str, text: str) -> list[Mutant]:
    """Return all mutants of a module. An id hangs on the line's text, not on its number."""
    lines, seen, found = text.splitlines(), Counter(), []
    for index, (change, _, _, scope) in enumerate(sites(ast.parse(text), lines)):
        line = lines[change.line - 1].strip()
        key = f"{module}|{line}|{change.column}|{change.text}"
        seen[key] += 1
        name = digest(f"{key}|{seen[key]}")
        where = change.line, change.column
        found.append(Mutant(name, module, index, *where, change.text, line, scope))
    return found


def mutated(mutant: Mutant, text: str) -> ast.Module:
    """Return the tree of the module with the mistake in it."""
    tree = ast.parse(text)
    site = list(sites(tree, text.splitlines()))[mutant.site]
    if isinstance(site.key, int):
        site.holder[site.key] = site.change.node
    else:
        setattr(site.holder, site.key, site.change.node)
    return ast.fix_missing_locations(tree)


def marked(module: str, text: str) -> ast.Module:
    """Return the tree of the module with a note at the head of each function: entered."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            note = ast.parse(f"_reached('{module}:{node.lineno}')").body[0]
            node.body.insert(ast.get_docstring(node) is not None, note)
    return ast.fix_missing_locations(tree)


def difference(mutant: Mutant, text: str) -> str:
    """Return the mistake as a diff of the module as Python prints it, without comments."""
    before, after = (ast.unparse(t).splitlines() for t in (ast.parse(text), mutated(mutant, text)))
    return "\n".join(list(difflib.unified_diff(before, after, n=2, lineterm=""))[3:])


def digest(text: str | bytes) -> str:
    return hashlib.sha1(text.encode() if isinstance(text, str) else text).hexdigest()[:10]


def sample(pool: dict[str, list[Mutant]], n: int, seed: int) -> list[Mutant]:
    """Draw n mutants, each module's share in proportion to its sites."""
    total = sum(map(len, pool.values()))
    exact = {m: min(n, total) * len(found) / max(total, 1) for m, found in pool.items()}
    share = {m: int(x) for m, x in exact.items()}
    left = sorted(pool, key=lambda m: share[m] - exact[m])[: min(n, total) - sum(share.values())]
    drawn = []
    for module, found in pool.items():
        lots = sorted(found, key=lambda m: random.Random(f"{seed} {m.id}").random())
        drawn += sorted(lots[: share[module] + (module in left)], key=lambda m: m.site)
    return drawn


# ---- trials --------------------------------------------------------------------------------


REACHED: set[str] = set()  # functions entered since the last look, "module:line"


def taken() -> set[str]:
    """Empty REACHED and return what was in it."""
    now = set(REACHED)
    REACHED.clear()
    return now


class Reach(NamedTuple):
    """Who enters what: the import of the package, then for each test file collection and fixtures
    (which count for the whole file) and each single test.
    """

    always: set[str]
    shared: dict[str, set[str]]
    tests: dict[str, dict[str, set[str]]]
    seconds: dict[str, float]
    failed: list[str]

    def plan(self, mutant: Mutant, every: bool) -> list[tuple[str, set[str]]]:
        """Return the files to run, in order, each with the tests to leave out."""
        name, chosen = f"{mutant.module}:{mutant.scope}", []
        every = every or mutant.scope == 0 or name in self.always
        for file, tests in self.tests.items():
            out = set() if every or name in self.shared[file] else tests.keys() - self.who(name)
            kept = tests.keys() - out - set(self.failed)
            if kept:
                cost = self.seconds[file] * len(kept) / len(tests)
                own = file == f"tests/test_{mutant.module}.py"
                chosen.append((not own, cost, file, out | set(self.failed)))
        return [(file, out) for _, _, file, out in sorted(chosen, key=lambda x: x[:3])]

    def who(self, name: str) -> set[str]:
        return {t for tests in self.tests.values() for t, names in tests.items() if name in names}


class Swapped(SourceFileLoader):
    """Finder and loader of one module from a tree that is not what its file says."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        path = str(Path("minidiff", f"{module}.py").resolve())
        super().__init__(f"minidiff.{module}", path)
        self.code = compile(tree, path, "exec", dont_inherit=True)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_code(self, fullname: str) -> types.CodeType:
        return self.code

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["_reached"] = REACHED.add
        super().exec_module(module)


class Watch:
    """Plugin of pytest: leaves tests out, remembers failures and what each test entered, and keeps
    hypothesis from shrinking.
    """

    def __init__(self, out: set[str]) -> None:
        self.out = out
        self.failed: list[str] = []
        self.shared: set[str] = set()
        self.tests: dict[str, set[str]] = {}

    def pytest_sessionstart(self) -> None:  # conftest has loaded its profile by now
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        suite = hypothesis.settings.get_profile("suite")
        hypothesis.settings.register_profile("mutants", suite, phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.out]
        self.shared |= taken()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        forget()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call":
            self.tests[report.nodeid] = taken()
        else:
            self.shared |= taken()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} (not collected)")


def forget() -> None:
    """Empty the caches of package and tests: a test must enter what it needs by itself."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "minidiff" or name.startswith("test_"):
            for value in list(vars(module).values()):
                if isinstance(value, type(functools.lru_cache(len))):
                    value.cache_clear()


def run_file(file: str, stop: bool, out: set[str]) -> tuple[Watch, float]:
    """Run one test file in this process, some tests left out; return its processor seconds too."""
    import pytest

    began, watch = time.process_time(), Watch(out)
    flags = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore", "--no-header"]
    code = pytest.main([*flags, *(["-x"] if stop else []), file], plugins=[watch])
    if code and not watch.failed:
        watch.failed.append(f"{file} (pytest: {pytest.ExitCode(code).name})")
    return watch, round(time.process_time() - began, 1)


def import_checked() -> None:
    """Import the package, and make sure that it is the copy."""
    spec = importlib.util.find_spec("minidiff")
    if not spec or Path.cwd() not in Path(spec.origin or "").resolve().parents:
        raise RuntimeError(f"minidiff would come from {spec}, not from the copy")
    importlib.import_module("minidiff")


def baseline(files: list[str], texts: dict[str, str]) -> dict[str, Any]:
    """In a child: run all tests without a mistake; return the fields of a Reach for JSON."""
    limit(MEMORY, resource.RLIMIT_AS)
    for module, text in texts.items():
        sys.meta_path.insert(0, Swapped(module, marked(module, text)))
    import_checked()
    found: dict[str, Any] = {"always": list(taken()), "shared": {}, "tests": {}, "seconds": {}}
    found["failed"] = []
    for file in files:
        watch, found["seconds"][file] = run_file(file, stop=False, out=set())
        found["shared"][file] = list(watch.shared)
        found["tests"][file] = {test: list(names) for test, names in watch.tests.items()}
        found["failed"] += watch.failed
    return found


def trial(mutant: Mutant, text: str, plan: list[tuple[str, set[str]]], cpu: int) -> dict[str, Any]:
    """In a child: import the package with the mistake, run test files until one fails."""
    limit(MEMORY, resource.RLIMIT_AS)
    limit(cpu, resource.RLIMIT_CPU)
    sys.meta_path.insert(0, Swapped(mutant.module, mutated(mutant, text)))
    try:
        import_checked()
    except Exception as error:
        if "not from the copy" in str(error):
            raise
        return {"verdict": "killed", "by": f"import: {type(error).__name__}: {error}"}
    for file, out in plan:
        failed = run_file(file, stop=True, out=out)[0].failed
        if failed:
            return {"verdict": "killed", "by": failed[0].removeprefix("tests/")}
    return {"verdict": "survived", "by": "" if plan else "no test enters it"}


def limit(most: int, what: int) -> None:
    """Bound the memory or the processor time of this process."""
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError, OSError):  # not every system takes it
        resource.setrlimit(what, (most, hard))


def guarded(work: Callable[[int], Any], cpu: int) -> dict[str, Any]:
    """Run something in a forked child with a process group of its own, which ends with its time,
    with its work or with this process. Time is that of the processor: other work on the machine
    must not kill a mutant. A child that sleeps ends after four times as long.
    """

    def leader() -> Any:
        os.setpgid(0, 0)
        return work(cpu)

    parent, began = os.getppid(), time.perf_counter()
    child, reader = forked(leader)
    result: dict[str, Any] = {"verdict": "timeout", "by": f"asleep for {4 * cpu} s"}
    try:
        while time.perf_counter() - began < 4 * cpu and os.getppid() == parent:
            if select.select([reader], [], [], 1.0)[0]:
                result = collect(child, reader)
                break
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    if result == {"error": "the trial died"}:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        late = used.ru_utime + used.ru_stime > 0.9 * cpu
        result = {"verdict": "killed", "by": "the process died"}
        if late:
            result = {"verdict": "timeout", "by": f"more than {cpu} s of processor time"}
    return {**result, "seconds": round(time.perf_counter() - began, 1)}


def preload(folder: Path) -> None:
    """Import once, before the forks, what package and tests import, but none of themselves."""
    import torch

    torch.set_num_threads(1)
    own = {"minidiff", "conftest", *(p.stem for p in folder.glob("[ts]*s/*.py"))}
    files = [folder / "tests" / f"test_{name}.py" for name in SUITE]
    files += [folder / "tests" / "conftest.py", *(folder / "minidiff").glob("*.py")]
    for path in filter(Path.is_file, files):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                if name.partition(".")[0] not in own:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(name)
    try:  # a failing comparison imports half of torch: once is enough
        torch.testing.assert_close(torch.ones(2), torch.zeros(2))
    except AssertionError:
        pass


# ---- records -------------------------------------------------------------------------------


class Book:
    """The verdicts in OUT, and which of them still hold."""

    def __init__(self, path: Path, texts: dict[str, str], suite: str) -> None:
        self.path, self.suite = path, suite
        self.of = {module: digest(text) for module, text in texts.items()}
        known = json.loads(path.read_text(encoding="utf-8"))["mutants"] if path.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in known}

    def holds(self, mutant: Mutant) -> bool:
        row = self.rows.get(mutant.id)
        if row is None or row["of"] != self.of[mutant.module]:
            return False
        return row["verdict"] != "survived" or row["against"] == self.suite

    def enter(self, mutant: Mutant, result: dict[str, Any]) -> None:
        reason = self.rows.get(mutant.id, {}).get("reason", "")
        fields = {k: v for k, v in mutant._asdict().items() if k not in {"site", "scope"}}
        row = {**fields, **result, "of": self.of[mutant.module], "against": self.suite}
        if row["verdict"] == "survived":
            row["reason"] = reason
        self.rows[mutant.id] = row

    def write(self, about: dict[str, Any]) -> None:
        order = {module: i for i, module in enumerate(MODULES)}
        rows = sorted(
            self.rows.values(),
            key=lambda r: (order.get(r["module"], 99), r["module"], r["line"], r["column"]),
        )
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        text = f'{{"about": {json.dumps(about)},\n"mutants": [\n{lines}\n]}}\n'
        aside = self.path.with_name(self.path.name + ".part")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.path)


def snapshot(folder: Path) -> str:
    """Copy what the tests need; return a hash of the package and the tests."""
    bare = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=bare)
        else:
            shutil.copy(ROOT / name, folder / name)
    files = [folder / "tests" / f"{x}.py" for x in ("conftest", *(f"test_{s}" for s in SUITE))]
    files += sorted((folder / "minidiff").rglob("*.py"))
    return digest(b"".join(path.read_bytes() for path in files if path.is_file()))


# ---- the whole -----------------------------------------------------------------------------


def healthy(files: list[str], texts: dict[str, str], aside: bool) -> Reach:
    """Run the tests without a mistake; print the processor seconds of each file. A test that fails
    ends the program, unless such tests are to be set aside.
    """
    began = time.perf_counter()
    result = collect(*forked(lambda: baseline(files, texts)))
    if "error" in result:
        raise SystemExit(f"no baseline: {result['error']}")
    tests = {f: {t: set(x) for t, x in row.items()} for f, row in result["tests"].items()}
    shared = {file: set(x) for file, x in result["shared"].items()}
    reach = Reach(set(result["always"]), shared, tests, result["seconds"], result["failed"])
    for file in sorted(files, key=lambda f: reach.seconds[f]):
        print(f"  {reach.seconds[file]:6.1f} s  {len(tests[file]):5d} tests  {file}")
    for name in reach.failed:
        print(f"  fails without a mistake: {name}")
    if reach.failed and not aside:
        raise SystemExit("no mutant can be judged: see --set-aside")
    print(f"baseline: {time.perf_counter() - began:.0f} s", flush=True)
    return reach


def judge(todo: list[Mutant], texts: dict[str, str], book: Book, args: Any, about: dict) -> None:
    """Try mutants, print a line for each, save after each."""
    files = [f"tests/test_{x}.py" for x in SUITE if Path(f"tests/test_{x}.py").is_file()]
    reach = healthy(files, texts, args.set_aside)
    cpu = int(max(args.timeout, 4 * sum(reach.seconds.values())))

    def job(mutant: Mutant) -> Callable[[], Any]:
        text, plan = texts[mutant.module], reach.plan(mutant, every=bool(args.only))
        return lambda: guarded(lambda cpu: trial(mutant, text, plan, cpu), cpu)

    for done, (index, result) in enumerate(all_of([job(m) for m in todo], args.jobs), 1):
        mutant = todo[index]
        said = result.get("by", result.get("error", ""))
        verdict = result.get("verdict", "ERROR").upper().replace("KILLED", "killed")
        print(
            f"[{done:3d}/{len(todo)}] {verdict:8} {result.get('seconds', 0):6.1f} s  "
            f"{mutant.id} {mutant.place}  {mutant.change}  {said[:100]}",
            flush=True,
        )
        if "verdict" in result:
            book.enter(mutant, result)
            book.write(about)


def report(drawn: list[Mutant], sizes: dict[str, int], rows: dict[str, dict[str, Any]]) -> bool:
    """Print the table and the survivors; return whether enough were killed and all were judged."""
    judged = [m for m in drawn if m.id in rows]
    print(f"\n{'module':12} sites sample judged killed timeout survived   share")
    for name in [*sizes, "all"]:
        mine = [m for m in drawn if name in {m.module, "all"}]
        count = Counter(rows[m.id]["verdict"] for m in judged if name in {m.module, "all"})
        known, lost = sum(count.values()), count["survived"]
        share = f"{(known - lost) / known:7.1%}" if known else "      -"
        size = sizes.get(name, sum(sizes.values()))
        print(
            f"{name:12} {size:5d} {len(mine):6d} {known:6d} {count['killed']:6d} "
            f"{count['timeout']:7d} {lost:8d} {share}"
        )
    alive = [m for m in judged if rows[m.id]["verdict"] == "survived"]
    for mutant in alive:
        reason = rows[mutant.id].get("reason") or "(no reason given)"
        print(f"\n{mutant.place}  {mutant.id}  {mutant.change}\n    {mutant.source}\n    {reason}")
    return len(judged) == len(drawn) and len(alive) <= (1 - LEAST) * len(judged)


def main(argv: list[str] | None = None) -> int:
    """Read the command line, judge, return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=300, help="mutants in the sample (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.add_argument("--modules", nargs="+", help="modules to change (default: the core)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default 2)")
    parser.add_argument("--timeout", type=float, default=150, help="processor seconds a trial")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "mutants.json")
    parser.add_argument("--only", nargs="+", metavar="ID", help="judge these mutants, known or not")
    parser.add_argument("--set-aside", action="store_true", help="leave out tests that fail now")
    parser.add_argument("--list", action="store_true", help="print the sample, run nothing")
    parser.add_argument("--show-survivors", action="store_true", help="print diffs, run nothing")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name).resolve()
        suite = snapshot(folder)
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        paths = {m: folder / "minidiff" / f"{m}.py" for m in args.modules or MODULES}
        missing = [m for m, path in paths.items() if not path.is_file()]
        if missing and args.modules:
            parser.error(f"no such module: {', '.join(missing)}")
        texts = {m: p.read_text(encoding="utf-8") for m, p in paths.items() if m not in missing}
        pool = {m: mutants(m, text) for m, text in texts.items()}
        drawn = sample(pool, args.n, args.seed)
        book = Book(args.out, texts, suite)
        every = {m.id: m for found in pool.values() for m in found}
        if args.only:
            if unknown := set(args.only) - set(every):
                parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
            drawn = [every[x] for x in dict.fromkeys(args.only)]
        todo = [m for m in drawn if args.only or not book.holds(m)]
        sizes = {m: len(found) for m, found in pool.items()}
        if args.list:
            for m in drawn:
                verdict = book.rows[m.id]["verdict"] if book.holds(m) else "-"
                print(f"{m.id}  {verdict:8}  {m.place:32} {m.change:28} {m.source}")
        elif args.show_survivors:
            for m in every.values():
                if book.rows.get(m.id, {}).get("verdict") == "survived":
                    old = "" if book.holds(m) else "  (modules or tests have changed since)"
                    diff = difference(m, texts[m.module])
                    print(f"{m.place}  {m.id}  {m.change}{old}\n{diff}\n")
        else:
            print(f"{len(drawn)} mutants of {len(every)}, {len(drawn) - len(todo)} judged before")
            about = {"n": args.n, "seed": args.seed, "suite": suite}
            if todo:
                preload(folder)
                judge(todo, texts, book, args, about)
            if not args.only and not args.modules:  # the whole sample, and nothing else
                book.rows = {m.id: book.rows[m.id] for m in drawn if m.id in book.rows}
                book.write(about)
            enough = report(drawn, sizes, book.rows)
            print(f"\n{time.perf_counter() - began:.0f} s")
            return 0 if enough or args.only else 1
        os.chdir(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
