"""The repository around the course: pins, addresses, sizes, workflows, and what make calls."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import build_book
import check
import colab_cell
import freeze
import mathlint
import nbformat
import numpy as np
import pytest
import run_notebooks
import set_repository
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
URL, TAG = set_repository.home()
LABS = sorted((ROOT / "notebooks").glob("*.py"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def repository_files() -> list[Path]:
    """Return what is or would be committed; without git, everything but caches and builds."""
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return build_book.sources()
    names = [n for n in done.stdout.split("\0") if n]
    return [ROOT / n for n in names if (ROOT / n).is_file()]


FILES = repository_files()


# ------------------------------------------------------------------------------------------ pins


def pins(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(x) for x in lines if x.strip() and not x.startswith("#")]
    return {canonicalize_name(r.name): r for r in found}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def test_every_constraint_is_one_exact_version():
    assert len(CONSTRAINTS) > 100
    for r in CONSTRAINTS.values():
        assert re.fullmatch(r"==[^*,]+", str(r.specifier)), r
    assert str(CONSTRAINTS["torch"].specifier) == "==2.12.1"
    assert str(CONSTRAINTS["torchvision"].specifier) == "==0.27.1"


def test_conda_environment_is_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "minidiff"
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert pip == [x for x in lines if not x.startswith("#")]


def test_constraints_are_complete_and_are_what_is_installed():
    needed = freeze.closure()  # of minidiff[dev], from the metadata of what is installed
    assert len(needed) > 100
    assert set(needed) <= set(CONSTRAINTS)
    wrong = {n: v for n, v in needed.items() if not CONSTRAINTS[n].specifier.contains(v)}
    assert not wrong, "installed otherwise than pinned: make setup, or scripts/freeze.py"
    # the other way round: nothing is pinned that nothing needs
    assert set(CONSTRAINTS) - set(needed) - set(freeze.ONLY) == set()


def test_ranges_admit_the_pins_and_leave_torch_alone():
    project = PYPROJECT["project"]
    runtime = [Requirement(r) for r in project["dependencies"]]
    extras = [Requirement(r) for e in project["optional-dependencies"].values() for r in e]
    for r in [*runtime, *extras]:
        if r.name != "minidiff":
            pin = next(iter(CONSTRAINTS[canonicalize_name(r.name)].specifier)).version
            assert r.specifier.contains(pin), f"{r} does not admit {pin}"
    # what Colab installs has no upper bound: pip would otherwise replace Colab's own packages
    colab = [*project["dependencies"], *(x for e in ("labs", "data") for x in
             project["optional-dependencies"][e])]  # fmt: skip
    for text in colab:
        assert {s.operator for s in Requirement(text).specifier} == {">="}, text
    assert {"data", "labs", "book", "dev"} <= set(project["optional-dependencies"])


def test_the_version_is_said_once():
    import minidiff

    tree = ast.parse((ROOT / "minidiff" / "__init__.py").read_text(encoding="utf-8"))
    literal = [
        n.value for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__"
    ]  # fmt: skip
    # a literal: setuptools reads it without importing torch
    assert [ast.literal_eval(v) for v in literal] == [minidiff.__version__]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == minidiff.__version__
    assert PYPROJECT["project"]["dynamic"] == ["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel of a copy, with the setuptools that is installed: no network, no litter."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "minidiff", source / "minidiff",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_carries_styles_and_weights(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in FILES:
        name = path.relative_to(ROOT)
        if name.parts[0] == "minidiff" and name.suffix in {".py", ".mplstyle", ".safetensors"}:
            assert name.as_posix() in inside
    assert not [n for n in inside if not n.startswith(("minidiff/", "minidiff-"))]


# ----------------------------------------------------------------------------- the address, once


def test_the_address_is_the_same_everywhere():
    assert set_repository.URL.fullmatch(URL)
    urls = PYPROJECT["project"]["urls"]
    assert urls["Homepage"] == URL and all(u.startswith(URL) for u in urls.values())
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == URL
    assert config["repository"]["branch"] == TAG
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == URL


def test_no_file_names_another_address():
    owner, name = URL.rsplit("/", 2)[1:]
    said = re.compile(
        r"(?:github\.com|github\.io|/gh|/github)/([\w.-]+)/" + re.escape(name) + r"\b"
    )
    for path in FILES:
        if path.suffix in set_repository.TEXT and path != Path(__file__).resolve():
            for other in said.findall(path.read_text(encoding="utf-8")):
                assert other in {owner, "you"}, path.relative_to(ROOT)  # `you`: examples of make


@pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
def test_a_lab_begins_with_the_bootstrap(lab):
    expected = colab_cell.colab_cell(URL, TAG)
    assert colab_cell.first_cell(lab.read_text(encoding="utf-8")) == expected
    notebook = lab.with_suffix(".ipynb")
    if notebook.exists():  # tests/test_notebooks.py holds that it does
        first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
        assert "".join(first["source"]) == expected.split("\n", 1)[1].rstrip()


class Pip:
    """Stands in for subprocess.run in the bootstrap cell."""

    def __init__(self):
        self.calls: list[list[str]] = []

    def __call__(self, command, check):
        assert check
        self.calls.append(command)


def bootstrap(monkeypatch, folder: Path, url: str, *, colab: bool, installed: bool = False):
    """Run the cell in `folder` and return (pip's calls, what was put on sys.path)."""
    pip, find = Pip(), importlib.util.find_spec
    hidden = lambda n, *a: None if n == "minidiff" and not installed else find(n, *a)  # noqa: E731
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", path := list(sys.path))
    path[:] = [p for p in path if p not in {"", str(ROOT)}]
    before = list(path)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    else:
        monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    exec(colab_cell.colab_cell(url, "v1"), {})
    return pip.calls, [p for p in path if p not in before]


def test_bootstrap_installs_in_colab_and_pins_its_torch(monkeypatch, tmp_path):
    import torch

    ((*_, source),), added = bootstrap(monkeypatch, tmp_path, "https://github.com/a/b", colab=True)
    assert source == "minidiff[labs,data] @ git+https://github.com/a/b@v1"
    held = (tmp_path / "colab-pins.txt").read_text().splitlines()
    assert f"torch=={metadata.version('torch')}" in held
    assert torch.__version__.startswith(metadata.version("torch"))
    assert not added


def test_bootstrap_never_installs_from_the_placeholder(monkeypatch, tmp_path, capsys):
    url = "https://github.com/" + "OWNER" + "/minidiff"
    assert bootstrap(monkeypatch, tmp_path, url, colab=True) == ([], [])
    assert "REPOSITORY" in capsys.readouterr().out


def test_bootstrap_elsewhere_finds_the_checkout_and_installs_nothing(monkeypatch, tmp_path):
    url = "https://github.com/a/b"
    folder = ROOT / "tests"
    assert bootstrap(monkeypatch, folder, url, colab=False) == ([], [str(ROOT)])
    monkeypatch.undo()
    assert bootstrap(monkeypatch, tmp_path, url, colab=False) == ([], [])
    monkeypatch.undo()
    assert bootstrap(monkeypatch, tmp_path, url, colab=True, installed=True) == ([], [])


def miniature(root: Path) -> None:
    """Write a small checkout that says the address in every way that the real one does."""
    cell = colab_cell.colab_cell(URL, TAG)
    slug = URL.removeprefix("https://github.com/")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "a.py").write_text(cell + "\n# %%\nprint(1)\n")
    source = {"cells": [{"source": cell.split("\n", 1)[1].splitlines(keepends=True)}]}
    (root / "notebooks" / "a.ipynb").write_text(json.dumps(source))
    digest = run_notebooks.sha256(root / "notebooks" / "a.py")
    (root / "notebooks" / "a.json").write_text(json.dumps({"source": digest, "numbers": {}}))
    (root / "notebooks" / "b.py").write_text(cell + "\n# %%\nprint(2)\n")
    (root / "notebooks" / "b.json").write_text(json.dumps({"source": "stale", "numbers": {}}))
    (root / "README.md").write_text(
        f"{URL}.git {URL}/blob/{TAG}/x.py\n[c](https://colab.research.google.com/github/{slug}/"
        f"blob/{TAG}/notebooks/a.ipynb) other/minidiff-data {URL}.\n"
    )
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "_config.yml", root)


def test_make_repository_moves_every_place_and_keeps_the_ties(tmp_path):
    miniature(tmp_path)
    set_repository.move(tmp_path, "https://github.com/ann/course", "v2.0")
    assert set_repository.home(tmp_path) == ("https://github.com/ann/course", "v2.0")
    cell = colab_cell.colab_cell("https://github.com/ann/course", "v2.0")
    lab = tmp_path / "notebooks" / "a.py"
    assert colab_cell.first_cell(lab.read_text()) == cell
    (first,) = json.loads(lab.with_suffix(".ipynb").read_text())["cells"]
    assert "".join(first["source"]) == cell.split("\n", 1)[1]
    # a hash that was right is right again; one that was stale stays stale
    assert json.loads(lab.with_suffix(".json").read_text())["source"] == run_notebooks.sha256(lab)
    assert json.loads((lab.parent / "b.json").read_text())["source"] == "stale"
    assert (tmp_path / "README.md").read_text() == (
        "https://github.com/ann/course.git https://github.com/ann/course/blob/v2.0/x.py\n"
        "[c](https://colab.research.google.com/github/ann/course/blob/v2.0/notebooks/a.ipynb) "
        "other/minidiff-data https://github.com/ann/course.\n"
    )
    config = yaml.safe_load((tmp_path / "_config.yml").read_text())["repository"]
    assert (config["url"], config["branch"]) == ("https://github.com/ann/course", "v2.0")
    assert set_repository.move(tmp_path, "https://github.com/ann/course", "v2.0") == []


# ------------------------------------------------------------------------- what may be committed


def test_no_path_of_a_machine_and_no_registry_is_named():
    # written in pieces, or this file would find itself
    # a name must follow the folder: a test may search for the bare folder, as this one does
    machine = re.compile("/(?:wo" + "rk|ro" + r"ot|opt/py" + r"pi[\w-]*)/[\w.]")
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "debian." + "org"]
    notes = re.compile(r"\bshared/" + r"(DESIGN|toolchain|facts|seeds|examples|hooks)")
    for path in FILES:
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert not machine.search(text), f"{path.relative_to(ROOT)} names a path of a machine"
        for host in hosts:
            assert host not in text, f"{path.relative_to(ROOT)} names {host}"
        assert not notes.search(text), f"{path.relative_to(ROOT)} points outside the repository"


def test_sizes():
    assert len(FILES) > 20
    size = {p: p.stat().st_size for p in FILES}
    for path, n in size.items():
        limit = {".ipynb": 600_000, ".safetensors": 3_000_000}.get(path.suffix, 5_000_000)
        assert n < limit, f"{path.relative_to(ROOT)} has {n} bytes"
    assert sum(size.values()) < 60_000_000


def test_nothing_made_by_a_command_would_be_committed():
    made = {".venv", "_build", "node_modules", "__pycache__", ".ipynb_checkpoints", ".pytest_cache"}
    assert not [p for p in FILES if made & set(p.relative_to(ROOT).parts)]


# ------------------------------------------------------------------------------------- workflows

# What a workflow may do beyond reading the repository, and in which job.
GRANTED = {
    ("book", "publish"): {"pages": "write", "id-token": "write"},
    ("colab", "report"): {"issues": "write"},
}


def test_the_four_workflows_exist():
    assert [p.stem for p in WORKFLOWS] == ["book", "ci", "colab", "gpu"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_is_bounded_and_asks_for_little(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert True in workflow  # YAML 1.1 reads the key `on` as true
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) == GRANTED.get((path.stem, name), {}), name
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            # an address or title from outside must not be pasted into a shell
            assert "${{" not in step.get("run", "")
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/checkout@v5"))
    # what a step calls exists
    for script in re.findall(r"(?:scripts|\.ci)/[\w.]+", text):
        assert (ROOT / script).is_file(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"run: make ([\w-]+)", text):
        assert re.search(rf"(?m)^{target}:", makefile)


def test_ci_covers_the_pythons_that_are_promised():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    assert matrix["strategy"]["matrix"]["python"] == promised == list(freeze.PYTHONS)


# ---------------------------------------------------------------------------------- the Makefile


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    # without the outer make's variables, when the tests themselves run under make
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *args], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", text)
    listed = re.findall(r"(?m)^  make ([a-z-]+)", make(ROOT, "help").stdout)
    assert sorted(listed) == sorted(phony.split())
    wanted = {
        "book",
        "test",
        "labs",
        "ledger-check",
        "serve",
        "clean",
        "help",
        "repository",
        "audit",
    }
    assert wanted <= set(listed)


FAKE_PYTHON = """#!/bin/sh
# python for the Makefile's set-up: `-m venv` makes .venv, whose python is this file again
case "$*" in
  *version_info*3,\\ 11*) exit $OLD ;;
  --version) echo "Python 3.9.2" ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip install"*) echo installing; touch .venv/package; exit $BROKEN ;;
esac
"""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A folder with a space in its name, the real Makefile and a python that only pretends."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    fake = tmp_path / "a python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)

    def run(*, old: int = 0, broken: int = 0):
        monkeypatch.setenv("OLD", str(old))
        monkeypatch.setenv("BROKEN", str(broken))
        return make(folder, "setup", f"PYTHON={fake}")

    return folder, run


def test_setup_refuses_an_old_python_and_says_which(setup):
    folder, run = setup
    done = run(old=1)
    assert done.returncode and not (folder / ".venv").exists()
    assert "3.11 or newer" in done.stdout and "Python 3.9.2" in done.stdout


def test_setup_is_done_once_and_a_broken_one_is_not_taken_for_done(setup):
    folder, run = setup
    ready = folder / ".venv" / ".ready"
    assert run(broken=1).returncode and not ready.exists()
    half = folder / ".venv" / "half"  # as a package that was half written
    half.touch()
    assert run().returncode == 0 and ready.exists()
    assert not half.exists(), "a broken install is started anew"
    assert "installing" not in run().stdout
    # a change of the pins makes it due again, in the environment that is there
    later = ready.stat().st_mtime + 10
    os.utime(folder / "constraints.txt", (later, later))
    kept = folder / ".venv" / "kept"
    kept.touch()
    assert "installing" in run(broken=1).stdout and not ready.exists()


# --------------------------------------------------------------------------------------- scripts


@pytest.fixture
def book(tmp_path, monkeypatch):
    """build_book.py on a checkout of one page, with a builder whose exit code the test chooses."""
    site = tmp_path / "_build"
    (tmp_path / "page.md").write_text("one")
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "BUILD", site)
    monkeypatch.setattr(build_book, "INDEX", site / "html" / "index.html")
    monkeypatch.setattr(build_book, "STAMP", site / "book.sha256")
    builds: list[bool] = []

    def run(code: int = 0, *options: str) -> tuple[int, list[bool]]:
        def build(*, scratch: bool) -> int:
            builds.append(scratch)
            (site / "html").mkdir(parents=True, exist_ok=True)
            (site / "html" / "index.html").touch()  # --keep-going writes pages of a failed build
            return code

        builds.clear()
        monkeypatch.setattr(build_book, "build", build)
        monkeypatch.setattr(sys, "argv", ["build_book.py", *options])
        return build_book.main(), list(builds)

    return tmp_path / "page.md", run


def test_a_book_is_built_once_and_again_when_a_source_changes(book):
    page, run = book
    assert run() == (0, [True])
    assert run() == (0, [])  # up to date
    page.write_text("two")
    assert run() == (0, [True])
    assert run(0, "--force") == (0, [True])


def test_a_book_that_failed_stays_failed(book):
    page, run = book
    assert run(1) == (1, [True])
    assert run(1) == (1, [True])  # read whole again, not taken for done
    assert run() == (0, [True])
    page.write_text("two")
    assert run(1) == (1, [True])
    page.write_text("one")  # back to what was once good: its pages are gone
    assert run(1) == (1, [True])
    # a draft checks less, so it does not count as a build
    assert run(0, "--draft") == (0, [False])
    assert run() == (0, [True])


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"value": 1.5, "band": [1, 2]}, None),
        ({"value": 2, "band": [2, 2], "seeds": [0, 1]}, None),
        ({"value": 2.1, "band": [1, 2]}, "outside"),
        ({"value": float("nan"), "band": [1, 2]}, "outside"),
        ({"value": 1.0, "band": [2, 1]}, "empty"),
        ({"value": 1.0}, "is not"),
        ({"value": "1 %", "band": [1, 2]}, "is not"),
        (3.0, "is not"),
    ],
)
def test_numbers_must_lie_in_their_bands(entry, complaint):
    found = run_notebooks.check_numbers({"key": entry})
    assert len(found) == (complaint is not None)
    assert all("key" in c and complaint in c for c in found)


def test_a_lab_without_numbers_is_refused():
    assert run_notebooks.check_numbers({}) and run_notebooks.check_numbers([1])


def test_pictures_are_stored_with_few_colours():
    """A grey picture becomes smaller and stays the same; where colours would change, all stays."""
    rows, columns = np.mgrid[:90, :120]
    noise = np.random.default_rng(0).integers(0, 256, rows.shape)
    grey = np.stack([noise] * 3, -1).astype(np.uint8)
    slope = np.stack([2 * rows, 2 * columns, rows + columns], -1).astype(np.uint8)
    stored = {}
    for name, picture in (("grey", grey), ("slope", slope)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        png = base64.b64encode(file.getvalue()).decode()
        output = nbformat.v4.new_output("display_data", {"image/png": png})
        cell = nbformat.v4.new_code_cell(outputs=[output])
        nb = run_notebooks.palette(nbformat.v4.new_notebook(cells=[cell]))
        stored[name] = base64.b64decode(nb.cells[0].outputs[0].data["image/png"])
        again = np.asarray(Image.open(io.BytesIO(stored[name])).convert("RGB"))
        assert (again == picture).all()
        assert len(stored[name]) < len(file.getvalue()) or name == "slope"
    assert Image.open(io.BytesIO(stored["grey"])).mode == "P"


PAGE = '<span class="math notranslate">\\({}\\)</span>'


@pytest.mark.parametrize(
    ("tex", "code", "said"),
    [
        (r"\frac{1}{2} \boldsymbol{x} \E", 0, "1 formulas, 0 errors"),
        (r"\nosuchmacro x", 1, r"Undefined control sequence \nosuchmacro"),
        (r"\frac{1}", 1, r"Missing argument for \frac"),
    ],
)
def test_mathlint_finds_what_the_page_would_hide(tmp_path, monkeypatch, capfd, tex, code, said):
    (tmp_path / "page.html").write_text(PAGE.format(tex))
    monkeypatch.setattr(sys, "argv", ["mathlint.py", str(tmp_path)])
    assert mathlint.main() == code
    assert said in capfd.readouterr().out


def test_mathlint_reads_display_formulas_without_their_number(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<div class="math" id="equation-a"><span class="eqno">(1)<a href="#equation-a">#</a></span>'
        "\\[a &lt; b\\]</div>"
    )
    assert mathlint.formulas(page, "p") == [{"where": "p", "tex": "a < b", "display": True}]


def test_a_stage_that_fails_fails_the_run_and_the_later_ones_still_run(monkeypatch, capsys):
    good, bad = [[sys.executable, "-c", ""]], [[sys.executable, "-c", f"raise SystemExit({n})"]
                                               for n in (5, 0)]  # fmt: skip
    stages = {"one": ({}, good), "two": ({}, bad), "three": ({}, good)}
    monkeypatch.setattr(check, "stages", lambda: stages)
    assert check.main([]) == 1
    out = capsys.readouterr().out
    assert out.rstrip().endswith("stages: 2 passed, 1 failed")
    rows = re.findall(r"(?m)^(\w+) +[\d.]+  (passed|FAILED)$", out)
    assert rows == [("one", "passed"), ("two", "FAILED"), ("three", "passed")]
    assert check.main(["one", "three"]) == 0
    with pytest.raises(SystemExit, match="no stage named 'four'"):
        check.main(["four"])


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_offline_leaves_the_loopback_and_nothing_else():
    look = "print(sorted(l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l))"
    listen = "import socket as s; a = s.create_server(('127.0.0.1', 0))"
    code = f"{listen}; s.create_connection(a.getsockname(), 5); {look}"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "offline.py"), sys.executable, "-c", code],
        env={**os.environ, "OFFLINE": "require"}, capture_output=True, text=True,
    )  # fmt: skip
    if "could not be cut" in done.stderr:
        pytest.skip("no network namespace allowed here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['lo']"
