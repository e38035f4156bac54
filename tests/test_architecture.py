"""How the package is built: who imports whom, what is public, and that all of it is documented."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minidiff as md

PACKAGE = Path(md.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [f.relative_to(PACKAGE).as_posix() for f in FILES]

# module -> the modules of the package that it may import
CORE = {
    "tensors": set(),
    "tables": {"tensors"},
    "schedules": {"tensors", "tables"},
    "grids": {"tensors", "schedules"},
    "process": {"tensors", "schedules"},
    "predictions": {"tensors", "schedules"},
    "denoiser": {"tensors", "schedules", "grids", "process", "predictions"},
}
CORE["covariances"] = CORE["denoiser"] | {"denoiser"}
CORE["variance"] = CORE["covariances"] | {"covariances"}
BEHIND = CORE["variance"] | {"variance"}
CORE |= {
    "times": {"tensors", "schedules"},
    "losses": BEHIND | {"times"},
    "samplers": BEHIND,
    "solvers": BEHIND | {"samplers"},
    "stochastic": BEHIND | {"samplers"},
    "conditions": BEHIND,
    "guidance": BEHIND | {"conditions"},
    "bounds": BEHIND | {"times", "losses"},
    "likelihood": BEHIND | {"bounds"},
}
ORACLES = {"schedules", "tensors"}  # closed forms, computed apart from the core
ALLOWED = CORE | {
    "exact": ORACLES | {"exact"},
    "health": BEHIND | {"times", "samplers", "health"},
    "training": {"tensors", "training"},
    "scoring": {"tensors"},
    "metrics": {"tensors", "scoring"},
    "plots": {"tensors"},
    "classics": {"tensors", "classics"},
    "data": {"tensors", "data"},
    "nets": {"tensors", "nets"},
    "baselines": {"tensors", "exact"},
    "heads": {"denoiser", "nets"},
    "evaluation": {"metrics", "data", "checkpoints"},  # the shipped digits and classifier
}
TOP = ("apps", "checkpoints", "recipes")  # may import all
HEAVY = {"matplotlib", "torchvision", "sklearn", "scipy", "mlxtend", "tqdm", "diffusers", "PIL",
         "accelerate"}  # fmt: skip
OUTSIDE = {  # packages from elsewhere that a part may import at its top
    "plots": {"matplotlib", "numpy", "torch"},
    "data": {"numpy", "torch", "torchvision"},
    "training": {"accelerate", "safetensors", "torch"},
    "tensors": {"numpy", "torch"},
}
FLAT = """
    Level Schedule VP Cosine LinearPath VE BetaTable linear_betas cosine_betas quadratic_betas
    sqrt_betas scaled_linear_betas diffuse step_forward posterior Transition drift_diffusion
    prior_kl Prediction PREDICTIONS to_x0 from_x0 eps_from_x0 score_from_x0 velocity_from_x0
    Denoise Denoiser Branch Output count_calls Move ancestral ddim encode State last trajectory
    prior posterior_variance forward_variance cfg clip inpaint denoising_error denoising_loss
    uniform_times ddpm_steps train Step EMA exact Gaussian GaussianMixture Empirical
    sigmoid_betas zero_terminal_snr euler heun dpmpp_2m edm_heun reverse_sde predictor_corrector
    langevin consistency classifier energy replace
""".split()


def part(path):
    """The part of the package that a file belongs to: its folder, or its own name."""
    return Path(path).parts[0].removesuffix(".py")


def imports(path, *, top_only=False):
    """(packages from outside, modules of the package) that a file imports anywhere."""
    tree = ast.parse((PACKAGE / path).read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    here = ("minidiff", *Path(path).with_suffix("").parts)
    outside, inside = set(), set()
    for node in nodes:
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            full = [".".join(base)]
            if base in (["minidiff"], list(here[:-1])) and not node.module:
                full = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in full:
            head, *rest = name.split(".")
            if head == "minidiff":
                inside.add(rest[0] if rest else "minidiff")
            elif head not in sys.stdlib_module_names:
                outside.add(head)
    return outside, inside


@pytest.mark.parametrize("path", [n for n in NAMES if part(n) not in ("__init__", *TOP)])
def test_imports_point_one_way(path):
    """tensors <- schedules <- (grids, process, predictions) <- denoiser <- variance <- the rest."""
    outside, inside = imports(path)
    assert inside <= ALLOWED[part(path)], f"{path} may not import {inside - ALLOWED[part(path)]}"
    assert outside <= OUTSIDE.get(part(path), {"torch"}), f"{path} imports {outside}"


def test_every_part_is_in_the_table():
    """A new module says here what it may import."""
    parts = {part(n) for n in NAMES} - {"__init__", *TOP}
    assert parts == ALLOWED.keys()


def test_the_test_sees_imports():
    """The parser above resolves relative imports of every form that the package uses."""
    assert imports("samplers.py")[1] >= {"denoiser", "grids", "process", "schedules", "tensors"}
    assert imports("data/toys.py")[1] == {"tensors"}
    assert imports("data/__init__.py")[1] == {"data"}
    assert imports("nets/unet.py")[1] == {"nets"}
    assert {"data", "recipes", "training"} <= imports("checkpoints.py")[1]


def test_nothing_imports_checkpoints():
    """Apart from the package's lazy attribute, and what measures with a shipped classifier."""
    for path in NAMES:
        inside = imports(path)[1]
        assert "checkpoints" not in inside or path in ("__init__.py", "evaluation.py")
        assert "recipes" not in inside or path in ("__init__.py", "checkpoints.py")
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:  # the import for type checkers stands under an if
        if isinstance(node, ast.ImportFrom):
            assert not {"checkpoints", "data", "nets", "plots", "metrics"} & {
                a.name for a in node.names
            }


# what an app may take from the core; schedules, posteriors and loops over steps are not in it
METHOD = {
    "tensors": None,
    "nets": None,
    "data": None,
    "apps": None,
    "conditions": None,
    "variance": None,  # how much noise a step adds, as an argument of the sampler
    "denoiser": {"Denoise", "Denoiser"},
    "losses": {"Times", "denoising_error", "uniform_times"},
    "samplers": {"ancestral", "last", "prior"},
    "schedules": {"Schedule"},  # to name the type of what a model carries
}
APPS = [n for n in NAMES if part(n) == "apps" and n != "apps/weather.py"]


OF_A_PATH = {"signal", "noise", "betas", "alpha_bars", "log_snr", "T"}
OF_A_STEP = {"diffuse", "posterior", "moves", "step_forward"}


def own_diffusion(source):
    """What an app computes by itself although the core has it: a list of words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            head = (node.module or "").split(".")[0]
            names = {alias.name for alias in node.names}
            if head not in METHOD or not (METHOD[head] is None or names <= METHOD[head]):
                found.append(f"imports {sorted(names)} from {head}")
        elif isinstance(node, ast.Attribute) and node.attr in OF_A_PATH | OF_A_STEP:
            found.append(f"reads .{node.attr}")
        elif isinstance(node, ast.While):
            found.append("loops")
        elif isinstance(node, ast.For):
            over = ast.unparse(node.iter)
            if any(word in over for word in ("times", "steps", "schedule")):
                found.append(f"loops over {over}")
    return found


@pytest.mark.parametrize("path", APPS)
def test_apps_hold_no_diffusion_of_their_own(path):
    """A net, a map to (x0, known, cond), prediction, loss terms: no schedule, posterior or loop.

    apps/weather.py is no method: it puts the parts of the course's experiments together.
    """
    assert own_diffusion((PACKAGE / path).read_text()) == []


@pytest.mark.parametrize("source", [
    "from ..schedules import BetaTable",
    "from ..process import posterior",
    "from ..samplers import ancestral, State",
    "x = at.signal * x0 + at.noise * eps",
    "x = process.posterior(a, b, x, x0).mean",
    "for t, s in zip(times[:-1], times[1:]): pass",
    "while t > 0: t -= 1",
])  # fmt: skip
def test_the_rule_for_apps_sees_what_it_forbids(source):
    assert own_diffusion(source) and {"apps/csdi.py", "apps/heads.py"} <= set(APPS)


def test_heavy_packages_are_imported_late():
    for path in NAMES:
        late = HEAVY & imports(path, top_only=True)[0]
        assert not late or (path == "plots.py" and late == {"matplotlib"})


def test_import_is_light():
    """`import minidiff` loads no plotting, no data package; its lazy modules come when asked."""
    code = (
        "import sys, json, minidiff as md; a = set(sys.modules); md.nets, md.data, md.metrics;"
        "b = set(sys.modules); print(json.dumps([sorted(a), sorted(b)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, then = ({m.split(".")[0] for m in mods} - {"tqdm"} for mods in json.loads(done.stdout))
    # torch itself loads tqdm
    assert sorted(first & HEAVY) == sorted(then & HEAVY) == []


# ---- names --------------------------------------------------------------------------------


def test_all_is_sorted_and_complete():
    """__all__ is what the package binds without an underscore, and the lazy modules."""
    assert md.__all__ == sorted(md.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert len(set(md.__all__)) == len(md.__all__)
    bound = {
        name
        for name, value in vars(md).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) or getattr(value, "__name__", "")).startswith(
            "minidiff"
        )
    }
    assert bound - set(md.__all__) == set()
    for name in md.__all__:
        assert getattr(md, name) is not None


@pytest.mark.parametrize("name", FLAT)
def test_flat_names(name):
    assert hasattr(md, name) and name in md.__all__


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = md.nonsense


def test_no_prediction_is_named_elsewhere():
    """PREDICTIONS is the one registry of names that turn into code in the core."""
    for name in CORE:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        for node in tree.body:
            value = getattr(node, "value", None)
            if isinstance(value, ast.Dict) and value.keys:
                strings = [isinstance(k, ast.Constant) for k in value.keys]
                assert not any(strings) or name == "predictions", f"{name}: a registry of strings"


def test_no_kwargs_are_passed_on():
    """No function of the package takes **kwargs, but for the two that write a run into a file."""
    for path in NAMES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node.args.kwarg:
                assert path == "training/loop.py" and node.name in ("_save", "_resume"), path


# ---- pages --------------------------------------------------------------------------------

LONGEST = {"schedules.py": 370}  # five paths are one idea


@pytest.mark.parametrize("path", NAMES)
def test_files_are_pages(path):
    """A file that needs more asks to be two ideas."""
    assert len((PACKAGE / path).read_text().splitlines()) <= LONGEST.get(path, 350)


def public(path):
    """Public functions, classes and methods of a file: (qualified name, node, is a method)."""
    for node in ast.parse((PACKAGE / path).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
                continue  # a signature; the function itself follows
            yield node.name, node, False
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner, True


@pytest.mark.parametrize("path", NAMES)
def test_everything_public_is_documented(path):
    """Every file, function and class says what it is; methods too, but for overrides."""
    tree = ast.parse((PACKAGE / path).read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for name, node, method in public(path):
        inherited = method and name.split(".")[1] in ("level", "time", "forward")
        assert ast.get_docstring(node) or inherited, f"{path}: {name} has no docstring"


EXPLAINED = {"Args:", "those of", "Source:"}


@pytest.mark.parametrize("name", [n for n in md.__all__ if inspect.isfunction(getattr(md, n))])
def test_public_functions_explain_their_arguments(name):
    """Args that name every parameter, a reference to a function that does, or one equation.

    Functions of a level, data and noise whose whole meaning is the displayed formula (x, x0, at)
    and one-liners (last, trajectory) need no table of arguments.
    """
    function = getattr(md, name)
    text, parameters = inspect.getdoc(function), list(inspect.signature(function).parameters)
    elsewhere = re.search("rguments (and errors )?are those of", text)
    if "Args:" in text:
        table = text.split("Args:")[1].split("\n\n")[0]
        missing = [p for p in parameters if f"{p}:" not in table]
        assert not missing or elsewhere, f"{name}: {missing}"
    elif elsewhere:
        return
    else:
        plain = {"x", "x0", "at", "t", "T", "y", "move", "states", "denoise", "low", "high",
                 "prediction", "offset", "first", "last"}  # fmt: skip
        assert set(parameters) <= plain, f"{name} has no Args for {set(parameters) - plain}"


def test_docstrings_name_errors_that_exist():
    """A public function whose body raises says so: under Raises, or in its first line."""
    silent = []
    for path in NAMES:
        for name, node, method in public(path):
            if isinstance(node, ast.ClassDef) or method or path == "plots.py":
                continue  # a plot refuses another shape than the one its first line names
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            text = ast.get_docstring(node) or ""
            if raises and not any(
                w in text
                for w in ("Raises:", "or raise", "Raise ", "raise ", "errors are those of")
            ):
                silent.append(f"{path}: {name}")
    assert not silent, ", ".join(silent)


def test_equations_in_docstrings_are_labels_of_the_book():
    """:eq:`eq:name` in a docstring is a row of the ledger, so it is somewhere in the book."""
    claims = PACKAGE.parent / "book" / "claims"
    if not claims.exists():
        pytest.skip("an installed package has no book")
    known = set(re.findall(r"^(eq:[\w-]+):", "\n".join(
        f.read_text() for f in claims.glob("*.yml")), re.MULTILINE))  # fmt: skip
    used = {
        (path, label)
        for path in NAMES
        for label in re.findall(r":eq:`(eq:[\w-]+)`", (PACKAGE / path).read_text())
    }
    assert used and {u for u in used if u[1] not in known} == set()


def test_the_package_imports_under_its_own_name_only():
    """No module needs the working directory: every file imports by its dotted name."""
    for path in NAMES:
        if path != "checkpoints.py":
            dotted = "minidiff." + path.removesuffix(".py").replace("/", ".")
            importlib.import_module(dotted.removesuffix(".__init__"))
