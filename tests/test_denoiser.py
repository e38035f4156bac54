"""Denoiser: what a network is given, and what its output means."""

import math
import pickle

import pytest
import torch
from paths import Counting
from torch import nn

import minidiff as md

D = torch.float64


class Spy(nn.Module):
    """Returns sin(x) and remembers what it was given."""

    def forward(self, x, t, cond=None):
        self.x, self.t, self.cond = x, t, cond
        return torch.sin(x)


class TwoHeads(nn.Module):
    def forward(self, x, t, cond=None):
        return md.Output(torch.sin(x), torch.cos(x))


def data(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_denoiser_row():
    """eq:denoiser for eps: (x - sqrt(1 - bar) net) / sqrt(bar), at several steps, written out."""
    T, x = 1000, data(3, 4)
    bar = (1 - md.linear_betas(T)).cumprod(0)
    model = md.Denoiser(Spy(), md.BetaTable(md.linear_betas(T)), "eps")
    for step in (1, 2, 500, 999, 1000):
        want = (x - (1 - bar[step - 1]).sqrt() * torch.sin(x)) / bar[step - 1].sqrt()
        got = model(x, torch.tensor(step / T, dtype=D))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)  # 1 / sqrt(bar) up to 157
        got = model(x, torch.full((3,), step / T, dtype=D))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "score", "edm"])
def test_other_rows_written_out(prediction, t):
    """The other meanings of y on the linear path, s = 1 - t and n = t."""
    s, n, x = 1 - t, t, data(3, 4)
    r2 = n * n + 0.25 * s * s
    y = torch.sin(x / math.sqrt(r2)) if prediction == "edm" else torch.sin(x)
    want = {
        "x0": y,
        "v": (s * x - n * y) / (s * s + n * n),
        "flow": x - n * y,
        "score": (x + n * n * y) / s,
        "edm": 0.25 * s / r2 * x + n * 0.5 / math.sqrt(r2) * y,
    }[prediction]
    got = md.Denoiser(Spy(), md.LinearPath(), prediction)(x, torch.tensor(t, dtype=D))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", md.PREDICTIONS)
def test_scalar_times_equal_batches_of_times(prediction):
    """The remembered coefficients of a 0-dim t are those of t of shape (B,) and (B, 1, 1)."""
    model, x = md.Denoiser(Spy(), md.VP(), prediction), data(3, 2, 2)
    for t in (0.0, 0.2, 0.2, 0.9):
        scalar = model(x, torch.tensor(t, dtype=D))
        for many in (torch.full((3,), t, dtype=D), torch.full((3, 1, 1), t, dtype=D)):
            torch.testing.assert_close(model(x, many), scalar, rtol=1e-12, atol=1e-12)
        again = model(x, torch.tensor(t, dtype=D))
        assert torch.equal(again, scalar)


def test_the_memory_is_bounded_and_keyed_by_time(monkeypatch):
    from minidiff import denoiser

    monkeypatch.setattr(denoiser, "MEMORY", 3)
    model, x = md.Denoiser(Spy(), md.LinearPath(), "flow"), data(2, 2)
    for k in range(1, 11):
        t = torch.tensor(k / 11, dtype=D)
        torch.testing.assert_close(model(x, t), x - t * torch.sin(x))
    assert len(model._rows) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_what_a_net_receives(dtype):
    """t in x's dtype, of shape (B,) or per position; x itself unless the prediction scales it."""
    net, x = Spy(), data(3, 4, 2, dtype=dtype)
    model = md.Denoiser(net, md.Cosine(), "v")
    assert model(x, torch.tensor(0.25, dtype=D)).dtype == dtype
    assert net.x is x and net.cond is None
    assert net.t.dtype == dtype and net.t.tolist() == [0.25] * 3
    model(x, torch.full((3,), 0.5, dtype=D))
    assert net.t.dtype == dtype and net.t.shape == (3,)
    model(x, torch.full((3, 4, 1), 0.5, dtype=D))
    assert net.t.dtype == dtype and net.t.shape == (3, 4, 1)
    model = md.Denoiser(net, md.LinearPath(), "edm")
    model(x, torch.tensor(0.75, dtype=D))
    scale = 1 / math.sqrt(0.75**2 + 0.25 * 0.25**2)
    torch.testing.assert_close(net.x, scale * x)  # c_in
    assert net.t.tolist() == [0.75] * 3


def test_numbers_are_times_too():
    """model(x, 0.5) is what model(x, tensor(0.5)) is, as in exact denoisers and schedules."""
    model, x = md.Denoiser(Spy(), md.Cosine(), "v"), data(2, 2)
    assert torch.equal(model(x, 0.5), model(x, torch.tensor(0.5, dtype=D)))
    assert torch.equal(model.given(None)(x, 0.5), model(x, 0.5))
    assert torch.equal(model.raw(x, 0.5).y, torch.sin(x))
    assert torch.equal(model.raw(x, 1).y, model.raw(x, 1.0).y)  # schedules take whole numbers too


def test_raw_is_the_net():
    x, t = data(3, 2), torch.tensor(0.5, dtype=D)
    out = md.Denoiser(Spy(), md.VP(), "eps").raw(x, t)
    assert torch.equal(out.y, torch.sin(x)) and out.second is None
    out = md.Denoiser(TwoHeads(), md.VP(), "eps").raw(x, t)
    assert torch.equal(out.second, torch.cos(x))


def test_given_is_the_condition_and_none_is_without():
    net, x, t = Spy(), data(3, 2), torch.tensor(0.5, dtype=D)
    model = md.Denoiser(net, md.VP())
    cond = torch.arange(3)
    assert torch.equal(model.given(cond)(x, t), model(x, t, cond))
    assert net.cond is cond
    model.given(None)(x, t)
    assert net.cond is None
    assert isinstance(model.given(cond), md.Branch)


def test_seen_is_the_last_call():
    """seen holds input, level, prediction and both heads of the last call; None before it."""
    branch, x = md.Denoiser(TwoHeads(), md.LinearPath(), "flow").given(None), data(3, 2)
    assert branch.seen is None
    for t in (0.75, 0.25):
        x0 = branch(x, torch.tensor(t, dtype=D))
    seen = branch.seen
    assert seen.x is x and seen.x0 is x0 and float(seen.at.noise) == 0.25
    assert torch.equal(seen.y, torch.sin(x)) and torch.equal(seen.second, torch.cos(x))


def test_a_branch_asks_the_schedule_once_a_time():
    """The level of a scalar time is remembered with the row; one of a batch is not kept."""

    path = Counting()
    branch, x = md.Denoiser(TwoHeads(), path, "flow").given(None), data(3, 2)
    for _ in range(3):
        branch(x, torch.tensor(0.25, dtype=D))
    assert path.calls == 1 and float(branch.seen.at.noise) == 0.25
    branch(x, torch.full((3,), 0.25, dtype=D))
    assert path.calls == 2 and branch.seen.at.noise.tolist() == [0.25] * 3


def test_seen_serves_a_variance():
    """A variance that reads the second head costs no further network call."""

    class Counting(TwoHeads):
        calls = 0

        def forward(self, x, t, cond=None):
            self.calls += 1
            return super().forward(x, t, cond)

    net = Counting()
    branch = md.Denoiser(net, md.Cosine(), "v").given(None)

    def variance(move):
        return move.var + move.add**2 * branch.seen.second.square()

    states = md.ancestral(branch, md.Cosine(), data(2, 3), md.grids.uniform(5), variance=variance)
    assert bool(torch.isfinite(md.last(states)).all()) and net.calls == 5


def test_count_calls():
    counted = md.count_calls(lambda x, t: x)
    assert counted.calls == 0
    md.last(md.ddim(counted, md.VP(), data(2, 2), md.grids.uniform(7)))
    assert counted.calls == 7


def test_a_denoiser_is_a_module():
    """Parameters, state_dict, dtype and copies are those of the net; the memory is not saved."""
    import copy

    model = md.Denoiser(nn.Linear(2, 2), md.VP())
    assert set(model.state_dict()) == {"net.weight", "net.bias"}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 2)

        def forward(self, x, t, cond=None):
            return self.line(x)

    model = md.Denoiser(Net(), md.BetaTable(md.cosine_betas(10)))
    x = data(3, 2, dtype=torch.float32)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x, 0.5), model(x, 0.5))
    assert model.double()(x.double(), 0.5).dtype == D


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.Denoiser(Spy(), md.VP(), "epsilon"), "prediction='epsilon'.*eps"),
        (lambda: md.Denoiser(Spy(), md.Cosine(), "eps")(data(2, 2), 1.0), "signal=0"),
        (lambda: md.Denoiser(Spy(), md.VP())(data(2, 2), torch.full((3,), 0.5)), "shape"),
        (lambda: md.Denoiser(Spy(), md.VP())(data(2, 2), torch.tensor(1.5)), "1.5"),
        (lambda: md.Denoiser(Spy(), md.VP())(data(2, 2), torch.tensor([3, 4])), "int64"),
    ],
)
def test_denoisers_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_a_net_with_two_heads_in_one_tensor_is_refused():
    class Wide(nn.Module):
        def forward(self, x, t, cond=None):
            return torch.cat([x, x], 1)

    with pytest.raises(ValueError, match="Output"):
        md.Denoiser(Wide(), md.VP())(data(2, 2), torch.tensor(0.5))


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_raw_works_where_signal_is_zero(prediction):
    """A training time may land on signal 0: the native loss needs no x0 there, forward does."""

    class Echo(nn.Module):
        def forward(self, x, t, cond=None):
            return x

    model, x = md.Denoiser(Echo(), md.LinearPath(), prediction), torch.ones(2, 3)
    assert torch.equal(model.raw(x, torch.tensor([0.5, 1.0])).y, x)
    with pytest.raises(ValueError, match="signal=0"):
        model(x, torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="span"):
        model.raw(x, torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize("prediction", [*md.PREDICTIONS, md.predictions.edm(2.0)])
def test_a_denoiser_can_be_pickled(prediction):
    """So that it can be sent to another process; the copy says the same."""
    model, x = md.Denoiser(nn.Identity(), md.VP(), prediction), torch.ones(2, 3)
    other = pickle.loads(pickle.dumps(model))
    at = md.VP()(0.3)
    for a, b in zip(
        model.prediction.coefficients(at), other.prediction.coefficients(at), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(model.prediction.define(at, x, 2 * x), other.prediction.define(at, x, 2 * x))
