"""The assignments: the checks accept what is right and name what is wrong; the notebooks hold.

A wrong answer is the published solution with one piece of text replaced, as a student would have
written it. For each stand here the check that must reject it and a word of the message.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "assignments"
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/source.py"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build, grade = script("build"), script("grade")
checks, hidden = grade.load("05_ddpm")
EVERY = {c.name: c for c in [*checks.CHECKS, *hidden.HIDDEN]}
SOURCES = {
    re.search(r"^def (\w+)", s, re.MULTILINE)[1]: s
    for s in grade.cells_of(FOLDER / "05_ddpm" / "instructor.ipynb")
    if re.search(r"^def (\w+)", s, re.MULTILINE)
}


def answers(**replaced):
    """Return the solution's functions, with the source of some of them replaced."""
    space = {"torch": torch}
    for name in checks.TASKS:
        exec(replaced.get(name, SOURCES[name]), space)
    return space


# ---- the checks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_solution_passes(name):
    check = EVERY[name]
    check.test(answers()[check.function])


# Right answers written in another way: a check may not prescribe the way.
OTHERWISE = {
    "alpha_bars with logarithms": """
def alpha_bars(betas):
    return torch.log1p(-betas).cumsum(0).exp()
""",
    "jump with gather": """
def jump(x0, step, bars, eps):
    bar = torch.gather(bars, 0, step - 1)
    while bar.ndim < x0.ndim:
        bar = bar.unsqueeze(-1)
    return torch.sqrt(bar) * x0 + torch.sqrt(1 - bar) * eps
""",
    "posterior with the variance in full, by precisions": """
def posterior(x_t, x0, step, betas, bars):
    shape = [-1] + [1] * (x_t.ndim - 1)
    beta, bar = betas[step - 1].view(shape), bars[step - 1].view(shape)
    before = bar / (1 - beta)
    before = torch.where(step.view(shape) == 1, torch.ones_like(before), before)
    mean = ((1 - beta) ** 0.5 * (1 - before) * x_t + before**0.5 * beta * x0) / (1 - bar)
    return mean, (beta * (1 - before) / (1 - bar)).expand_as(x_t)
""",
    "simple_loss counting entries from 0": """
def simple_loss(net, x0, bars, rng):
    eps = torch.empty_like(x0).normal_(generator=rng)
    entry = torch.randint(len(bars), x0.shape[:1], generator=rng)
    x = jump(x0, entry + 1, bars, eps)
    return torch.nn.functional.mse_loss(net(x, (entry + 1).float() / len(bars)), eps)
""",
    "sample by the posterior of the implied x0, noise drawn in every step": """
@torch.no_grad()
def sample(net, shape, betas, bars, variances, rng):
    x = torch.randn(shape, generator=rng)
    for k in reversed(range(len(betas))):
        step = torch.full((shape[0],), k + 1)
        eps = net(x, step / len(betas))
        x0 = (x - (1 - bars[k]) ** 0.5 * eps) / bars[k] ** 0.5
        mean, _ = posterior(x, x0, step, betas, bars)
        x = mean + (k > 0) * variances[k] ** 0.5 * torch.randn(shape, generator=rng)
    return x
""",
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_right_way_passes(name):
    function = name.split()[0]
    space = answers(**{function: OTHERWISE[name]})
    for check in EVERY.values():
        if check.function == function:
            check.test(space[function])


BAR = "bars[step - 1].reshape(-1, *[1] * (x0.ndim - 1))"
ONE = "torch.cat([bars[:1], bars[1:] / bars[:-1]])"  # alpha of each step
STEP = "step = torch.randint(1, T + 1, (len(x0),), generator=rng)"
NOISE = "torch.randn(x0.shape, generator=rng)"
JUMP = "net(jump(x0, step, bars, eps), step / T)"
SQUARE = "(eps - net(jump(x0, step, bars, eps), step / T)).square().mean()"
START = "x = torch.randn(shape, generator=rng)"
MEAN = "x = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()"
STIR = "variances[i - 1].sqrt() * torch.randn(shape, generator=rng)"

# name: (function, text, its replacement, the check that must reject it, a word of its message)
WRONG = {
    # (a)
    "alphas, not multiplied up": (
        "alpha_bars", "torch.cumprod(1 - betas, 0)", "1 - betas",
        "alpha_bars_are_running_products", "multiply them up"),
    "product of the betas": (
        "alpha_bars", "1 - betas", "betas", "alpha_bars_are_running_products", "1 - beta"),
    "product a step late": (
        "alpha_bars", "torch.cumprod(1 - betas, 0)",
        "torch.cat([torch.ones(1), torch.cumprod(1 - betas[:-1], 0)])",
        "alpha_bars_are_running_products", "late"),
    "exp of the sum": (
        "alpha_bars", "torch.cumprod(1 - betas, 0)", "torch.exp(-torch.cumsum(betas, 0))",
        "alpha_bars_are_running_products", "small betas"),
    "argument changed": (
        "alpha_bars", "1 - betas", "betas.neg_().add_(1)",
        "alpha_bars_of_other_tables", "argument"),
    # (b)
    "root of the signal forgotten": (
        "jump", "bar.sqrt() * x0", "bar * x0", "jump_scales_the_data", "root of alpha-bar"),
    "root of the noise forgotten": (
        "jump", "(1 - bar).sqrt()", "(1 - bar)", "jump_adds_the_right_noise",
        "x_t has variance 0.75"),
    "alpha for alpha-bar": (
        "jump", BAR, BAR.replace("bars", ONE), "jump_scales_the_data", "alpha of one step"),
    "one minus the root": (
        "jump", "(1 - bar).sqrt()", "(1 - bar.sqrt())", "jump_adds_the_right_noise", "1 minus"),
    "signal and noise swapped": (
        "jump", "bar.sqrt() * x0 + (1 - bar).sqrt() * eps",
        "(1 - bar).sqrt() * x0 + bar.sqrt() * eps", "jump_scales_the_data", "swapped"),
    "entry i for step i": ("jump", "step - 1", "step", "jump_scales_the_data", "entry i - 1"),
    "the step before": (
        "jump", "bars[step - 1]", "torch.cat([torch.ones_like(bars[:1]), bars])[step - 1]",
        "jump_scales_the_data", "step before"),
    "factors that fit only points": (
        "jump", BAR, "bars[step - 1][:, None]", "jump_of_images", "RuntimeError"),
    # (c)
    "variance with the bars swapped": (
        "posterior", "(1 - before) / (1 - bar) * beta", "(1 - bar) / (1 - before) * beta",
        "posterior_variance", "swapped"),
    "variance of the forward step": (
        "posterior", "(1 - before) / (1 - bar) * beta", "beta", "posterior_variance",
        "forward step"),
    "standard deviation": (
        "posterior", "(1 - before) / (1 - bar) * beta", "((1 - before) / (1 - bar) * beta).sqrt()",
        "posterior_variance", "standard deviation"),
    "root of alpha forgotten": (
        "posterior", "(1 - beta).sqrt() * (1 - before)", "(1 - beta) * (1 - before)",
        "posterior_mean", "root of alpha"),
    "root of alpha-bar forgotten": (
        "posterior", "before.sqrt() * beta", "before * beta", "posterior_mean",
        "root of alpha-bar"),
    "alpha-bar of t for that of the step before": (
        "posterior", "before.sqrt() * beta", "bar.sqrt() * beta", "posterior_mean",
        "in place of that"),
    "factors of the mean swapped": (
        "posterior", "keep * x_t + add * x0", "keep * x0 + add * x_t", "posterior_mean",
        "swapped"),
    "index -1 at step 1": (
        "posterior", "torch.cat([torch.ones_like(bars[:1]), bars[:-1]])",
        "torch.cat([bars[-1:], bars[:-1]])", "posterior_at_the_ends", "index of -1"),
    # (d)
    "rand for randn": (
        "simple_loss", NOISE, "torch.rand(x0.shape, generator=rng)",
        "loss_diffuses_with_normal_noise", "torch.rand is uniform"),
    "uniform noise of variance 1": (
        "simple_loss", NOISE, "12**0.5 * (torch.rand(x0.shape, generator=rng) - 0.5)",
        "loss_diffuses_with_normal_noise", "lies beyond 2"),
    "compared with x0": (
        "simple_loss", "(eps - net", "(x0 - net", "loss_compares_with_the_noise", "x0"),
    "the same noise for the batch": (
        "simple_loss", NOISE, "torch.randn(1, 2, generator=rng).expand(x0.shape)",
        "loss_diffuses_with_normal_noise", "same noise"),
    "the same step for the batch": (
        "simple_loss", STEP, "step = torch.randint(1, T + 1, (1,), generator=rng).expand(len(x0))",
        "loss_draws_a_step_for_each_sample", "one step for each"),
    "steps 0..T-1": (
        "simple_loss", SQUARE,
        "(eps - net(jump(x0, step, bars, eps), (step - 1) / T)).square().mean()",
        "loss_draws_a_step_for_each_sample", "not 0..T-1"),
    "step T left out": (
        "simple_loss", "T + 1", "T", "loss_draws_a_step_for_each_sample", "upper end"),
    "time not divided by T": (
        "simple_loss", "step / T", "step", "loss_draws_a_step_for_each_sample", "i / T"),
    "the net is told another step": (
        "simple_loss", "jump(x0, step,", "jump(x0, (step - 1).clamp(min=1),",
        "loss_diffuses_with_normal_noise", "step before"),
    "walks without roots": (
        "simple_loss", "jump(x0, step, bars, eps)",
        "(bars[step - 1][:, None] * x0 + (1 - bars[step - 1][:, None]) * eps)",
        "loss_diffuses_with_normal_noise", "not the jump"),
    "sum for mean": (
        "simple_loss", ".mean()", ".sum(1).mean()", "loss_compares_with_the_noise",
        "over the coordinates"),
    "one loss a sample": (
        "simple_loss", ".mean()", ".mean(1)", "loss_compares_with_the_noise", "shape"),
    "a seed set inside": (
        "simple_loss", STEP, f"torch.manual_seed(0); {STEP}", "loss_draws_from_rng_alone",
        "global random state"),
    "the generator reset inside": (
        "simple_loss", STEP, f"rng = torch.Generator().manual_seed(0); {STEP}",
        "loss_draws_from_rng_alone", "seed is set inside"),
    "noise from the global state": (
        "simple_loss", NOISE, "torch.randn(x0.shape)", "loss_draws_from_rng_alone",
        "global random state"),
    "steps that favour small ones": (
        "simple_loss", STEP, "step = (torch.rand(len(x0), generator=rng) ** 1.3 * T).long() + 1",
        "loss_draws_from_rng_alone", "not uniform"),
    "no gradient": (
        "simple_loss", ".mean()", ".mean().detach()", "loss_has_the_right_gradient",
        "no gradient"),
    # (e)
    "1 / sqrt(alpha) forgotten": (
        "sample", " / (1 - beta).sqrt()", "", "sample_moves_to_the_mean", "is missing"),
    "wrong sign of the noise": (
        "sample", "(x - beta", "(x + beta", "sample_moves_to_the_mean", "sign"),
    "1 / sqrt(alpha) on one term": (
        "sample", MEAN, "x = x / (1 - beta).sqrt() - beta / (1 - bar).sqrt() * eps",
        "sample_moves_to_the_mean", "both terms"),
    "root of 1 - alpha-bar forgotten": (
        "sample", "beta / (1 - bar).sqrt()", "beta / (1 - bar)", "sample_moves_to_the_mean",
        "root of 1 - alpha-bar"),
    "alpha under the root": (
        "sample", "beta / (1 - bar).sqrt()", "beta / beta.sqrt()", "sample_moves_to_the_mean",
        "in place of alpha-bar"),
    "variance for standard deviation": (
        "sample", "variances[i - 1].sqrt()", "variances[i - 1]", "sample_adds_the_given_variance",
        "forget the root"),
    "noise in the last step": (
        "sample", "if i > 1:", "if True:", "sample_ends_without_noise", "without noise"),
    "no noise at all": (
        "sample", "if i > 1:", "if False:", "sample_adds_the_given_variance", "adds no noise"),
    "variances not used": (
        "sample", "variances[i - 1]", "beta", "sample_moves_to_the_mean", "argument variances"),
    "variance of the step before": (
        "sample", "variances[i - 1]", "variances[i - 2]", "sample_adds_the_given_variance",
        "step before"),
    "start from rand": (
        "sample", START, "x = torch.rand(shape, generator=rng)",
        "sample_walks_from_noise_down_the_steps", "torch.rand is uniform"),
    "start from zeros": (
        "sample", START, "x = torch.zeros(shape)", "sample_walks_from_noise_down_the_steps",
        "same point"),
    "noise from rand": (
        "sample", STIR, STIR.replace("randn", "rand"), "sample_adds_the_given_variance",
        "torch.rand is uniform"),
    "time a step early": (
        "sample", "i / T", "(i - 1) / T", "sample_walks_from_noise_down_the_steps", "10/10"),
    "step T left out of the walk": (
        "sample", "range(T, 0, -1)", "range(T - 1, 0, -1)",
        "sample_walks_from_noise_down_the_steps", "9 times"),
    "steps upwards": (
        "sample", "range(T, 0, -1)", "range(1, T + 1)", "sample_walks_from_noise_down_the_steps",
        "from T down"),
    "the same noise for all samples": (
        "sample", STIR, "variances[i - 1].sqrt() * torch.randn(shape[1:], generator=rng)",
        "sample_adds_the_given_variance", "all samples get the same"),
    "one noise for all steps": (
        "sample", "x = x + " + STIR,
        "z = torch.randn(shape, generator=rng) if i == T else z\n"
        "            x = x + variances[i - 1].sqrt() * z",
        "sample_draws_fresh_noise_from_rng", "every step"),
    "a seed set in the sampler": (
        "sample", START, f"torch.manual_seed(0); {START}", "sample_draws_fresh_noise_from_rng",
        "global random state"),
    "a graph kept": (
        "sample", "@torch.no_grad()\n", "", "sample_has_the_exact_moments", "no_grad"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_rejected_and_named(name):
    function, text, replacement, must_reject, word = WRONG[name]
    assert SOURCES[function].count(text) >= 1, "the solution changed: change the wrong answer too"
    source = SOURCES[function].replace(text, replacement)
    space = answers(**{function: source})
    with pytest.raises(Exception) as caught:  # explain() words whatever is raised
        EVERY[must_reject].test(space[function])
    assert word in checks.explain(caught.value)


def test_public_checks_find_the_common_mistakes():
    public = {c.name for c in checks.CHECKS}
    found = [name for name, row in WRONG.items() if row[3] in public]
    assert len(found) >= 40 and len(WRONG) - len(found) >= 8


def test_the_checks_are_fast_and_leave_the_random_state():
    import time

    before, start = torch.get_rng_state(), time.thread_time()
    space = answers()
    for check in EVERY.values():
        check.test(space[check.function])
    assert time.thread_time() - start < 10  # measured: about 0.3 s
    assert torch.equal(before, torch.get_rng_state())


def test_run_names_the_task_and_every_failure(capsys):
    checks.run(answers()["jump"])
    assert "task (b): 2 of 2" in capsys.readouterr().out
    wrong = answers(jump=SOURCES["jump"].replace(".sqrt()", ""))["jump"]
    with pytest.raises(checks.Wrong, match=r"task \(b\)(?s:.*)jump_scales(?s:.*)jump_adds"):
        checks.run(wrong)
    with pytest.raises(ValueError, match="no check for"):
        checks.run(lambda: None)


# ---- the notebooks -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", build.VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_those_of_the_source(name, version):
    """If this fails: python assignments/build.py."""
    path = FOLDER / name / f"{version}.ipynb"
    assert path.read_text(encoding="utf-8") == build.build(path.with_name("source.py"), version)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_holds_no_solution(name):
    stub = (FOLDER / name / "student.ipynb").read_text(encoding="utf-8")
    source = (FOLDER / name / "source.py").read_text(encoding="utf-8")
    for mark in ("SOLUTION", "ANSWER", "**Answer.**", "hidden_checks", "Teaching note"):
        assert mark not in stub
    bodies = [m["body"] for m in build.CODE.finditer(source)]
    assert bodies and stub.count("raise NotImplementedError") == len(bodies)
    for line in (line.strip() for body in bodies for line in body.splitlines()):
        assert len(line) < 12 or json.dumps(line)[1:-1] not in stub


def test_a_mark_without_its_partner_is_refused(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("# %%\ndef f():\n    ### BEGIN SOLUTION\n    return 1\n")
    with pytest.raises(SystemExit, match="partner"):
        build.build(source, "student")


RUN = """
import json, os, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
space, raised = {"__name__": "__main__"}, []
for k, cell in enumerate(c for c in cells if c["cell_type"] == "code"):
    try:
        exec(compile("".join(cell["source"]), f"code cell {k}", "exec"), space)
    except Exception as error:
        raised.append([k, type(error).__name__, str(error)])
print(json.dumps(raised))
"""


def raised_by(path):
    """Execute a notebook's code cells in order, in a new process; return what they raised."""
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)], cwd=path.parent, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_runs_up_to_what_is_to_do(name):
    path = FOLDER / name / "student.ipynb"
    raised = raised_by(path)
    assert {kind for _, kind, _ in raised} == {"NotImplementedError"}
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    first = next(k for k, source in enumerate(cells) if "checks.run(" in source)
    assert raised[0][0] == first  # all before it ran


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_instructors_notebook_runs(name):
    assert raised_by(FOLDER / name / "instructor.ipynb") == []


def test_the_checks_file_stands_alone(tmp_path):
    """Colab fetches checks.py and nothing else, and students may get it by mail."""
    text = (FOLDER / "05_ddpm" / "checks.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"(?m)^(?:import|from) (\w+)", text))
    assert imported <= {"torch", *sys.stdlib_module_names}


# ---- points and the grader -----------------------------------------------------------------------


def points(function=None, of=None):
    return sum(c.points for c in of or EVERY.values() if function in (None, c.function))


def test_the_printed_points_are_those_of_the_checks():
    source = (FOLDER / "05_ddpm" / "source.py").read_text(encoding="utf-8")
    for function, task in checks.TASKS.items():
        here, later = points(function, checks.CHECKS), points(function, hidden.HIDDEN)
        assert f"| ({task}) | `{function}` | {here} | {later} | {here + later} |" in source
    written, everything = sum(checks.WRITTEN.values()), points() + sum(checks.WRITTEN.values())
    assert f"| (f) | three answers in words | | | {written} |" in source
    row = f"| | | {points(of=checks.CHECKS)} | {points(of=hidden.HIDDEN)} | {everything} |"
    assert row in source
    for question, worth in checks.WRITTEN.items():
        assert f"**({question})** ({worth} point" in source


@pytest.mark.slow
def test_the_grader_gives_points_and_survives_bad_submissions(tmp_path):
    """A wrong jump, an alpha_bars that ends the process, a cell that hangs, and one that exits."""
    nb = nbformat.read(FOLDER / "05_ddpm" / "instructor.ipynb", 4)
    for cell in nb.cells:
        cell.source = cell.source.replace("torch.cumprod(1 - betas, 0)", "os._exit(3)")
        cell.source = cell.source.replace("bar.sqrt() * x0", "bar * x0")
    extra = [
        "%matplotlib inline\nimport os",
        "while True: pass",
        "exit()",
        "1 / 0",
        "print('noise')",
    ]
    nb.cells = [nbformat.v4.new_code_cell(source) for source in extra] + nb.cells
    path = tmp_path / "a student's.ipynb"
    nbformat.write(nb, path)
    result = grade.grade("05_ddpm", path, seconds=8)
    got = {f: sum(r.points for r in result.results if r.function == f) for f in checks.TASKS}
    want = {f: points(f) for f in checks.TASKS} | {"alpha_bars": 0, "jump": 1}
    # a wrong jump is also seen in the loss that calls it
    assert {f: got[f] for f in ("alpha_bars", "jump", "posterior", "sample")} == {
        f: want[f] for f in ("alpha_bars", "jump", "posterior", "sample")
    }
    assert result.of == points() and result.points == sum(got.values())
    text = grade.table(result)
    for word in ("ended the process", "cell 2", "SystemExit", "ZeroDivisionError", "alpha-bar"):
        assert word in text
    assert json.loads(json.dumps(result.as_json()))["written"] == checks.WRITTEN


def test_the_command_line_grades_and_writes_json(tmp_path):
    out = tmp_path / "grades.json"
    stub = FOLDER / "05_ddpm" / "student.ipynb"
    bad = tmp_path / "no notebook.ipynb"
    bad.write_text("{}")
    command = [sys.executable, str(FOLDER / "grade.py"), "05_ddpm", str(stub), str(bad)]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True)
    assert done.returncode == 1 and "not graded" in done.stderr
    (only,) = json.loads(out.read_text())
    assert only["points"] == 0 and only["of"] == points()
    assert {r["message"] for r in only["results"]} == {"not done"}
    assert "0 of 20" in done.stdout
