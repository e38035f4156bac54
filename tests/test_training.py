"""Training: the average's recursion, the same bits after any number of kills, and refusals."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import minidiff as md
from minidiff.tensors import mixed_seed
from minidiff.training import read_tensors, update, write_tensors

D = torch.float64


def net(seed=0, dropout=0.0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(dropout), nn.SiLU(), nn.Linear(8, 2))


def batches(step):
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(step))


def setup(seed=0, dropout=0.0, decay=0.9):
    model = net(seed, dropout)
    ema = md.EMA(model, decay)

    def loss(x, rng):
        return (model(x + torch.randn(x.shape, generator=rng)) - x).square().mean()

    return model, ema, loss


def run(model, ema, loss, steps=20, **kwargs):
    kwargs = {"lr": 1e-2, "ema": ema} | kwargs
    return list(md.train(loss, model, batches, steps=steps, **kwargs))


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_ema_recursion():
    """eq:ema: mean <- d mean + (1 - d) theta with d = min(decay, (1 + n) / (10 + n)), n = 0, 1, ..

    Written out on a model of one number; for n < 8 the ramp is lower than .6, then decay rules.
    lerp in float64 rounds at 1e-16 a step.
    """
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(3.0)
    ema = md.EMA(model, 0.6)
    want, caps = 3.0, 0
    for n in range(30):
        theta = float(n * n)
        model.weight.data.fill_(theta)
        ema.update(model)
        d = min(0.6, (1 + n) / (10 + n))
        caps += d == 0.6
        want = d * want + (1 - d) * theta
        assert ema.model.weight.item() == pytest.approx(want, rel=1e-13)
        assert ema.updates == n + 1
    assert caps > 10 and model.weight.item() == 29**2


def test_ema_is_a_quiet_copy():
    """Eval mode, no gradients, buffers copied, the model untouched, and nothing shared."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = md.EMA(model, 0.0)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    model(torch.randn(8, 2))
    model[0].weight.data += 1
    ema.update(model)
    assert same(ema.model.state_dict(), model.state_dict())  # decay 0 is a copy
    model[0].weight.data += 1
    assert not torch.equal(ema.model[0].weight, model[0].weight)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_ema_refuses(decay):
    with pytest.raises(ValueError, match="decay"):
        md.EMA(net(), decay)


def test_a_step_is_adam_written_out():
    """Three steps of the default: clipped gradient, Adam, lr as a function of the step."""

    def rate(k):
        return 0.1 / (k + 1)

    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    steps = list(
        md.train(
            lambda x, rng: (5 * (model.weight - x)).square().sum(),
            model,
            lambda k: torch.tensor(float(k), dtype=D),
            steps=3,
            lr=rate,
            clip=1.0,
        )
    )
    w, m, v = 2.0, 0.0, 0.0
    for k in range(3):
        loss, grad = 25 * (w - k) ** 2, 50 * (w - k)
        assert steps[k].index == k + 1
        # clip_grad_norm_ divides by norm + 1e-6, which moves the weight by some 1e-6: hence 1e-4
        assert steps[k].loss == pytest.approx(loss, rel=1e-4)
        assert steps[k].grad_norm == pytest.approx(abs(grad), rel=1e-4)
        grad = max(-1.0, min(1.0, grad))
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        w -= rate(k) * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))) ** 0.5 + 1e-8)
    assert model.weight.item() == pytest.approx(w, rel=1e-5)


def test_clip_none_does_not_clip():
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    (step,) = md.train(
        lambda x, rng: (100 * model.weight).square().sum(), model, lambda k: None,
        steps=1, lr=1e-6, clip=None, optimizer=torch.optim.SGD,
    )  # fmt: skip
    assert step.grad_norm == pytest.approx(40_000)
    assert model.weight.item() == pytest.approx(2 - 0.04, rel=1e-12)


def test_steps_are_yielded_after_the_update():
    model, ema, loss = setup()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = md.train(loss, model, batches, steps=2, lr=0.01, ema=ema)
    assert same(before, model.state_dict())  # nothing happens before the first next
    step = next(states)
    assert step.index == 1 and not same(before, model.state_dict()) and ema.updates == 1


def test_equal_seeds_equal_bits(global_state_untouched):
    """Also with dropout, whose draws come from (seed, step); another seed differs."""
    a, b, c = (setup(dropout=0.5) for _ in range(3))
    steps = [run(*a), run(*b), run(*c, seed=1)]
    assert steps[0] == steps[1] != steps[2]
    assert same(a[0].state_dict(), b[0].state_dict())
    assert not same(a[0].state_dict(), c[0].state_dict())


def test_training_ignores_the_global_state():
    """Whatever the user draws between two steps, the run is the same; and the user's draws too."""
    a, b = setup(dropout=0.5), setup(dropout=0.5)
    run(*a)
    torch.manual_seed(99)
    want = [torch.rand(()) for _ in range(20)]
    torch.manual_seed(99)
    got = []
    for _ in md.train(b[2], b[0], batches, steps=20, lr=1e-2, ema=b[1]):
        got.append(torch.rand(()))
    assert got == want
    assert same(a[0].state_dict(), b[0].state_dict())


def test_sampling_between_steps_changes_nothing():
    """A model put to eval mode by the user is back in training mode at the next step."""
    a, b = setup(dropout=0.5), setup(dropout=0.5)
    run(*a)
    for _ in md.train(b[2], b[0], batches, steps=20, lr=1e-2, ema=b[1]):
        b[0].eval()
    assert same(a[0].state_dict(), b[0].state_dict())
    assert not b[1].model.training


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.SGD,
        lambda p: torch.optim.SGD(p, momentum=0.9),
        torch.optim.RMSprop,
    ],
)
def test_a_broken_off_run_goes_on_to_the_same_bits(tmp_path, optimizer):
    """Stopped after 7 and 13 of 20 steps: weights, average and optimiser as in an unbroken run."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    run(*setup(dropout=0.5), save=whole, save_every=3, optimizer=optimizer)
    indices = []
    for stop in (7, 13, 20):
        model, ema, loss = setup(dropout=0.5)
        kwargs = {"lr": 1e-2, "ema": ema, "save": parts, "save_every": 3, "optimizer": optimizer}
        for step in md.train(loss, model, batches, steps=20, **kwargs):
            indices.append(step.index)
            if step.index == stop:
                break
    assert indices == [*range(1, 8), *range(7, 14), *range(13, 21)]
    assert same(load_file(whole), load_file(parts))
    assert read_tensors(whole)[1] == read_tensors(parts)[1]


def test_a_finished_run_is_not_trained_further(tmp_path):
    """Calling it again loads the weights and yields nothing."""
    path = tmp_path / "run.safetensors"
    model, ema, loss = setup()
    run(model, ema, loss, save=path)
    again = setup(seed=7)
    assert run(*again, save=path) == []
    assert same(again[0].state_dict(), model.state_dict())
    assert same(again[1].model.state_dict(), ema.model.state_dict()) and again[1].updates == 20


def test_save_makes_folders_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "deep" / "run.safetensors"
    run(*setup(), save=path, save_every=4)
    assert os.listdir(path.parent) == ["run.safetensors"]


# ---- parts and mixed precision ---------------------------------------------------------------


def regression():
    """Twelve examples x, y and a line w x to fit; the gradient of (w x - y)^2 is 2 (w x - y) x."""
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 12, generator=rng, dtype=D)
    model = nn.Linear(1, 1, bias=False, dtype=D)
    model.weight.data.fill_(0.7)
    return model, x, y, 2 * (0.7 * x - y) * x


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_the_gradients_of_parts_average_to_that_of_the_batch(parts):
    """eq:accumulate: both sides written out, and what train makes of them, to rounding (1e-14)."""
    model, x, y, slopes = regression()
    whole = slopes.sum() / 12
    average = sum(slopes[12 // parts * j :][: 12 // parts].mean() for j in range(parts)) / parts
    assert average.item() == pytest.approx(whole.item(), rel=1e-14)

    def loss(batch, rng):
        assert len(batch[0]) == 12 // parts
        return (model.weight[0] * batch[0] - batch[1]).square().mean()

    kwargs = {"steps": 1, "lr": 0.1, "clip": None, "optimizer": torch.optim.SGD}
    (step,) = md.train(loss, model, lambda k: (x, y), accumulate=parts, **kwargs)
    assert model.weight.item() == pytest.approx(0.7 - 0.1 * average.item(), rel=1e-14)
    assert step.grad_norm == pytest.approx(abs(average.item()), rel=1e-14)
    assert step.loss == pytest.approx((0.7 * x - y).square().mean().item(), rel=1e-14)


def noisy(step):
    """A batch that carries its noise: x0, eps, t."""
    rng = torch.Generator().manual_seed(step)
    return (*torch.randn(2, 12, 2, generator=rng), torch.rand(12, 1, generator=rng))


def noise_of(model):
    """The loss of a batch that carries its noise: the mean square of what is wrong about eps."""

    def loss(batch, rng):
        x0, eps, t = batch
        return (model((1 - t) * x0 + t * eps) - eps).square().mean()

    return loss


def test_parts_of_a_batch_with_its_noise_make_the_same_run():
    """Adam, clipping and the average included; in float32, 20 steps keep five digits."""
    curves = []
    for parts in (1, 2, 6):
        model = net()
        ema = md.EMA(model, 0.9)
        kwargs = {"steps": 20, "lr": 0.01, "ema": ema, "accumulate": parts}
        steps = [*md.train(noise_of(model), model, noisy, **kwargs)]
        curves.append((torch.tensor(steps), *model.parameters(), *ema.model.parameters()))
    for curve in curves[1:]:
        for got, want in zip(curve, curves[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_every_part_has_streams_of_its_own():
    """Part j of step k: noise from (seed, k, 2 j), dropout from (seed, k, 2 j + 1); none twice."""
    seen, model = [], net()

    def loss(batch, rng):
        seen.append((rng.initial_seed(), torch.initial_seed()))
        return model(batch).square().mean()

    for parts in (1, 4):
        seen.clear()
        list(md.train(loss, model, batches, steps=3, lr=0.1, seed=9, accumulate=parts))
        want = [(k, j) for k in range(3) for j in range(parts)]
        assert seen == [(mixed_seed(9, k, 2 * j), mixed_seed(9, k, 2 * j + 1)) for k, j in want]
        assert len({s for pair in seen for s in pair}) == 2 * len(want)


def test_a_feed_that_draws_from_the_global_state_goes_on_in_its_stream():
    """Not what a feed should do; but it has always drawn before dropout, from one stream."""
    state, model = [], net()

    def feed(step):
        return torch.randn(16, 2)

    def loss(x, rng):
        state.append((x, torch.rand(3)))
        return model(x).square().mean()

    list(md.train(loss, model, feed, steps=1, lr=0.1, seed=9))
    rng = torch.Generator().manual_seed(mixed_seed(9, 0, 1))
    want = torch.randn(16, 2, generator=rng), torch.rand(3, generator=rng)
    assert all(torch.equal(a, b) for a, b in zip(state[0], want, strict=True))


def test_a_part_may_fail():
    """Sixteen examples do not make three parts; a part that is no number stops the step."""
    model, _, loss = setup()
    with pytest.raises(ValueError, match=r"16 examples.* 3 equal parts.*accumulate"):
        list(md.train(loss, model, batches, steps=1, lr=0.1, accumulate=3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls = iter([1.0, float("nan")])
    with pytest.raises(ValueError, match="loss is nan at step 0"):
        list(md.train(lambda x, rng: model(x).mean() * next(calls), model, batches, steps=1,
                      lr=0.1, accumulate=2))  # fmt: skip
    assert same(before, model.state_dict())


def test_bfloat16_follows_float32():
    """The loss falls along the curve of float32, computed in bfloat16; weights stay float32.

    bfloat16 rounds each of about four products and activations by up to 2^-9 relative: together
    at most 1 % of an output, and the loss is its square: 2 %. The mean of 24 numbers has less.
    """
    curves = []
    for autocast in (None, torch.bfloat16):
        model, kinds = net(), set()
        ema, loss = md.EMA(model), noise_of(model)
        model[3].register_forward_hook(lambda m, x, y, kinds=kinds: kinds.add(y.dtype))
        kwargs = {"steps": 150, "lr": 0.01, "ema": ema, "autocast": autocast}
        curves.append(torch.tensor([s.loss for s in md.train(loss, model, noisy, **kwargs)]))
        assert kinds == {torch.float32 if autocast is None else autocast}
        assert not torch.is_autocast_enabled("cpu")
        kept = [*model.parameters(), *ema.model.parameters()]
        assert {p.dtype for p in kept} == {torch.float32}
    torch.testing.assert_close(curves[1], curves[0], rtol=0.02, atol=0)
    assert not torch.equal(*curves) and curves[1][-20:].mean() < 0.8 * curves[1][:20].mean()


@pytest.fixture
def half_on_cpu(monkeypatch):
    """Let float16 run on the CPU, so that the scaling of its loss is tested without a GPU."""
    monkeypatch.setattr(update, "NO_FLOAT16", set())


def test_float16_skips_steps_that_overflow(half_on_cpu):
    """The scale begins at 2^16, and a gradient of 1 per weight then overflows 65504 once.

    That step changes nothing and is no error; the next, at half the scale, makes its update.
    """
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)

    def loss(x, rng):
        return model(x).float().mean()

    kwargs = {"steps": 2, "lr": 0.25, "optimizer": torch.optim.SGD, "clip": None}
    states = md.train(loss, model, lambda k: torch.ones(1, 1), autocast=torch.float16, **kwargs)
    assert not math.isfinite(next(states).grad_norm) and model.weight.item() == 1.0
    assert next(states) == (2, 1.0, 1.0) and model.weight.item() == 0.75


def test_float16_follows_float32(half_on_cpu):
    """Rounding of 2^-11 in place of 2^-9: a quarter of the tolerance of bfloat16, and clipping.

    Only steps that no overflow delayed can be compared: data small enough for the first scale.
    """
    curves = []
    for autocast in (None, torch.float16):
        model = net()
        loss = noise_of(model)
        kwargs = {"steps": 100, "lr": 0.01, "autocast": autocast, "accumulate": 2}
        curves.append([*md.train(loss, model, noisy, **kwargs)])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    got, want = (torch.tensor([s.loss for s in curve]) for curve in curves)
    torch.testing.assert_close(got, want, rtol=0.005, atol=0)
    norms = [[s.grad_norm for s in curve] for curve in curves]
    torch.testing.assert_close(*map(torch.tensor, norms), rtol=0.02, atol=0)  # of the true loss


def test_the_scale_is_resumed(tmp_path, half_on_cpu):
    """Broken off after the overflow of the first step: the rest is as in an unbroken run."""
    ends = []
    for stops in ((9,), (1, 4, 9)):
        path = tmp_path / f"{len(stops)}.safetensors"
        for stop in stops:
            model = net()
            loss = noise_of(model)
            kwargs = {"steps": 9, "lr": 0.01, "save": path, "save_every": 1}
            for step in md.train(
                lambda x, rng, f=loss: 300 * f(x, rng), model, noisy, autocast=torch.float16,
                **kwargs,
            ):  # fmt: skip
                if step.index == stop:
                    break
        ends.append(read_tensors(path))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    scale = json.loads(ends[0][1]["run"])["scaler"]
    assert scale["scale"] < 2**16 and 0 < scale["_growth_tracker"] < 9


def test_float16_without_any_gradient_is_refused(half_on_cpu):
    """An infinite slope at every scale is no overflow: after 41 halvings of 2^16 train says so."""
    model = nn.Linear(1, 1)
    seen = []
    with pytest.raises(ValueError, match="gradient of loss has norm nan at step 40"):
        for step in md.train(lambda x, rng: (0 * model(x)).sqrt().mean(), model,
                             lambda k: torch.ones(2, 1), steps=99, lr=0.1,
                             autocast=torch.float16):  # fmt: skip
            seen.append(step)
    assert len(seen) == 40
    with pytest.raises(ValueError, match="loss is nan"):  # and this is an error at once
        next(md.train(lambda x, rng: model(x).mean() * float("nan"), model,
                      lambda k: torch.ones(2, 1), steps=9, lr=0.1,
                      autocast=torch.float16))  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("autocast", "rtol"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_mixed_precision_on_a_gpu(autocast, rtol):
    """As on the CPU, with the tolerances of above."""
    curves = []
    for kind in (None, autocast):
        model = net().cuda()
        loss = noise_of(model)
        steps = md.train(loss, model, lambda k: tuple(v.cuda() for v in noisy(k)), steps=100,
                         lr=0.01, autocast=kind)  # fmt: skip
        curves.append(torch.tensor([s.loss for s in steps]))
    torch.testing.assert_close(curves[1], curves[0], rtol=rtol, atol=0)
    assert not torch.equal(*curves)


# ---- SIGKILL --------------------------------------------------------------------------------

DRIVER = """
import json, os, signal, sys, time, torch
import minidiff as md
torch.set_num_threads(1)

def launch(path, seed, every):
    reader, writer = os.pipe()
    child = os.fork()  # a process of its own; torch is imported once for all of them
    if child:
        os.close(writer)
        return child, os.fdopen(reader)
    os.close(reader)
    out = os.fdopen(writer, "w")
    torch.manual_seed(0)
    table = md.BetaTable(md.linear_betas(100))
    model = md.Denoiser(md.nets.MLP(2, width=64, depth=2, dropout=0.3), table, "eps")
    ema = md.EMA(model, 0.99)
    points = md.data.swiss_roll(512, rng=torch.Generator().manual_seed(1))
    feed = md.data.batches(points, 64, seed=2)
    loss = lambda x, rng: md.denoising_loss(model, x, rng=rng).mean()
    torch.manual_seed(seed)  # the global state is none of train's business
    for step in md.train(loss, model, feed, steps=120, lr=lambda k: 1e-3 / (1 + k), ema=ema,
                         save=path, save_every=every):
        print(step.index, step.loss.hex(), file=out, flush=True)
    os._exit(0)

def run(path, seed, every, kill_after=None, delay=0.0):
    child, lines = launch(path, seed, every)
    seen = []
    for line in lines:
        seen.append(line.split())
        if len(seen) == kill_after:
            time.sleep(delay)  # anywhere inside a step, also while it writes
            os.kill(child, signal.SIGKILL)
            break
    lines.close()
    status = os.waitpid(child, 0)[1]
    return seen, os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

whole, broken = sys.argv[1:]
print(json.dumps(run(whole, 0, 120)), flush=True)
for k, (count, delay) in enumerate([(17, 0.0), (31, 0.002), (1, 0.006), (23, 0.004)]):
    print(json.dumps(run(broken, k + 1, 1, count, delay)), flush=True)
    # a kill never leaves a broken file
    tensors, info = md.training.read_tensors(broken)
    assert info["format"] == md.training.FORMAT and len(tensors) > 30
print(json.dumps(run(broken, 9, 1)), flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_random_steps_resumes_to_the_same_bits(tmp_path):
    """Killed four times, saving after every step: the end is that of an unbroken run, bit for bit.

    Weights, average, optimiser state and every loss that was printed are compared. Dropout is on.
    """
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(whole), str(broken)],
        capture_output=True, text=True, env=env, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (want, ended), *parts = (json.loads(line) for line in done.stdout.splitlines())
    assert [int(i) for i, _ in want] == list(range(1, 121)) and ended == 0
    assert [end for _, end in parts] == [signal.SIGKILL] * 4 + [0]
    for seen, _ in parts:
        assert seen == want[int(seen[0][0]) - 1 :][: len(seen)]  # the same losses, to the bit
    assert same(load_file(whole), load_file(broken))
    assert read_tensors(whole)[1] == read_tensors(broken)[1]


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 21}, "steps=21.*steps=20"),
        ({"seed": 3}, "seed=3.*seed=0"),
        ({"ema": None}, "ema"),
        ({"optimizer": torch.optim.SGD}, "optimizer.*Adam"),
        ({"accumulate": 2}, r"accumulate=2.*accumulate=1"),
        ({"autocast": torch.bfloat16}, "autocast=torch.bfloat16.*autocast=None"),
    ],
)
def test_another_runs_file_is_refused(tmp_path, change, word):
    path = tmp_path / "run.safetensors"
    run(*setup(), save=path)
    model, ema, loss = setup()
    with pytest.raises(ValueError, match=word):
        kwargs = {"steps": 20, "lr": 0.1, "ema": ema, "save": path} | change
        md.train(loss, model, batches, **kwargs)


def test_a_file_from_before_parts_and_precision_goes_on(tmp_path):
    """It says nothing of them, which means one part and no autocast."""
    path, whole = tmp_path / "run.safetensors", setup()
    run(*whole)
    model, ema, loss = setup()
    for step in md.train(loss, model, batches, steps=20, lr=1e-2, ema=ema, save=path, save_every=8):
        if step.index == 8:
            break
    tensors, info = read_tensors(path)
    older = json.loads(info["run"])
    for name in ("processes*accumulate", "autocast", "scaler"):
        del older[name]
    write_tensors(path, tensors, info | {"run": json.dumps(older)})
    with pytest.raises(ValueError, match=r"accumulate=2.*accumulate=1"):
        md.train(loss, model, batches, steps=20, lr=1e-2, ema=ema, save=path, accumulate=2)
    again = setup(seed=3)
    assert len(run(*again, save=path)) == 12
    assert same(again[0].state_dict(), whole[0].state_dict())


def test_a_file_without_an_average_is_refused_with_one(tmp_path):
    path = tmp_path / "run.safetensors"
    model, ema, loss = setup()
    run(model, None, loss, save=path)
    with pytest.raises(ValueError, match="without ema"):
        md.train(loss, model, batches, steps=20, lr=0.1, ema=ema, save=path)


def test_another_models_file_is_refused_and_the_model_unchanged(tmp_path):
    path = tmp_path / "run.safetensors"
    run(*setup(), save=path)
    wide = nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.Linear(9, 2))
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    with pytest.raises(ValueError, match="model"):
        md.train(lambda x, rng: wide(x).mean(), wide, batches, steps=20, lr=0.1, save=path,
                 ema=md.EMA(wide))  # fmt: skip
    deep = nn.Sequential(nn.Linear(2, 9), nn.Dropout(), nn.SiLU(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match="shape"):
        md.train(lambda x, rng: deep(x).mean(), deep, batches, steps=20, lr=0.1, save=path,
                 ema=md.EMA(deep))  # fmt: skip
    assert same(before, wide.state_dict())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04N."])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    model, ema, loss = setup()
    with pytest.raises(ValueError, match="safetensors"):
        md.train(loss, model, batches, steps=20, lr=0.1, ema=ema, save=path)
    assert path.read_bytes() == content


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    run(*setup(), save=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        run(*setup(), save=path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by train"):
        run(*setup(), save=path)
    write_tensors(path, {"weight": torch.zeros(2)}, {"format": "minidiff-weights-1"})
    with pytest.raises(ValueError, match="not written by train"):
        run(*setup(), save=path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"seed": -1}, "seed"),
        ({"save_every": 0}, "save_every=0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": 2.0}, "accumulate=2.0"),
        ({"autocast": torch.float32}, "autocast=torch.float32"),
        ({"autocast": "bf16"}, "autocast='bf16'"),
        ({"autocast": torch.float16}, "autocast=torch.float16.*cpu.*bfloat16"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(change, word):
    model, _, loss = setup()
    with pytest.raises(ValueError, match=word):
        md.train(loss, model, batches, **({"steps": 2, "lr": 0.1} | change))


def test_mixed_precision_wants_float32_weights():
    """float64 would silently stay float64."""
    model = net().double()
    with pytest.raises(ValueError, match=r"autocast=torch.bfloat16 .*float64: model.float"):
        md.train(lambda x, rng: model(x).mean(), model, batches, steps=1, lr=0.1,
                 autocast=torch.bfloat16)  # fmt: skip


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        md.train(lambda x, rng: x.mean(), nn.Identity(), batches, steps=1, lr=0.1)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda y: y * float("nan"), "loss is nan at step 0"),
        (lambda y: y / 0, "loss is inf at step 0"),
        (lambda y: y.expand(3), "scalar"),
        (lambda y: (y * 0).sqrt(), "gradient"),  # finite loss, infinite slope
    ],
)
def test_a_loss_that_is_no_number_is_refused(wrong, word):
    """And the weights are those of before the step."""
    model, _, _ = setup()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = md.train(
        lambda x, rng: wrong(model(x).square().mean()), model, batches, steps=2, lr=0.1
    )
    with pytest.raises(ValueError, match=word):
        next(states)
    assert same(before, model.state_dict())


def test_frozen_parameters_stay(tmp_path):
    """Only what requires a gradient is trained, saved and resumed in order."""
    model, ema, loss = setup()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(model, ema, loss, save=tmp_path / "run.safetensors")
    assert torch.equal(model[0].weight, before)
    again = setup(seed=4)
    again[0][0].requires_grad_(False)
    assert run(*again, save=tmp_path / "run.safetensors") == []
    assert same(again[0].state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="optimiser"):  # all parameters are not these two
        run(*setup(), save=tmp_path / "run.safetensors")


def test_write_tensors_is_atomic(tmp_path, monkeypatch):
    """An error while writing leaves the older file whole."""
    from minidiff.training import files

    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(3)}, {"note": "old"})
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_tensors(path, {"x": torch.zeros(3)}, {"note": "new"})
    tensors, info = read_tensors(path)
    assert info["note"] == "old" and torch.equal(tensors["x"], torch.ones(3))
