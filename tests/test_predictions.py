"""What a network may predict: targets written out, and conversions that invert each other.

The targets are the definitions in the papers; s is signal, n is noise.
"""

import math

import pytest
import torch
from paths import PATHS, D, data, each_path

import minidiff as md
from minidiff import predictions


@each_path
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_targets_written_out(path, t):
    """from_x0 at x_t = s x0 + n eps gives each definition; 1e-9: eps is read off by division."""
    at, x0, eps = path(t), data(3, 2), data(3, 2, seed=1)
    s, n = float(at.signal), float(at.noise)
    x = s * x0 + n * eps
    r = math.sqrt(n * n + 0.25 * s * s)
    want = {
        "eps": eps,
        "x0": x0,
        "v": s * eps - n * x0,
        "score": -eps / n,
        "flow": float(at.d_signal) * x0 + float(at.d_noise) * eps,
        # Karras et al.: (x0 - c_skip x) / c_out with sigma = n / s and input x / s
        "edm": (x0 - 0.25 * s / r**2 * x) / (n * 0.5 / r),
    }
    assert want.keys() == md.PREDICTIONS.keys()
    for name, y in want.items():
        got = md.from_x0(name, x0, x, at)
        torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(md.to_x0(name, y, x, at), x0, rtol=1e-8, atol=1e-8)


def test_edm_is_the_table_of_karras():
    """At sigma = n / s: c_skip, c_out and c_in of table 1, for data of any spread."""
    for sigma, spread in [(0.3, 0.5), (5.0, 1.7)]:
        path = md.VE(1e-3, 1e3)
        at = path(path.t_of(-2 * math.log(sigma)))
        row = predictions.edm(spread)
        skip, out = row.coefficients(at)
        total = sigma**2 + spread**2
        assert float(skip) == pytest.approx(spread**2 / total, rel=1e-9)
        assert float(out) == pytest.approx(sigma * spread / total**0.5, rel=1e-9)
        assert float(row.c_in(at)) == pytest.approx(total**-0.5, rel=1e-9)


def test_edm_targets_have_unit_variance():
    """The preconditioning's purpose: for data of that spread, target and input have variance 1."""
    x0, eps = 1.7 * data(200_000), data(200_000, seed=1)
    row, path = predictions.edm(1.7), md.LinearPath()
    for t in (0.1, 0.5, 0.9):
        at = path(t)
        y = row.define(at, x0, eps)
        x = row.c_in(at) * md.diffuse(at, x0, eps)
        for v in (y, x):  # 5 standard errors of a variance
            assert float(v.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 200_000))


@each_path
def test_readings_written_out(path):
    """eps, score and velocity that a prediction of x0 implies."""
    at, x, x0 = path(0.4), data(3, 2), data(3, 2, seed=1)
    s, n = float(at.signal), float(at.noise)
    eps = (x - s * x0) / n
    torch.testing.assert_close(md.eps_from_x0(x0, x, at), eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(md.score_from_x0(x0, x, at), -eps / n, rtol=1e-11, atol=1e-11)
    want = float(at.d_signal) * x0 + float(at.d_noise) * eps
    torch.testing.assert_close(md.velocity_from_x0(x0, x, at), want, rtol=1e-11, atol=1e-11)


def test_velocity_is_the_slope_of_the_path():
    """d/dt of s(t) x0 + n(t) eps by central differences of 1e-5: error 1e-10 relative to t^2."""
    x0, eps, h = data(3, 2), data(3, 2, seed=1), 1e-5
    for path in PATHS.values():
        if isinstance(path, md.BetaTable):
            continue  # its slope is constant only inside a step
        x = md.diffuse(path(0.4), x0, eps)
        slope = (md.diffuse(path(0.4 + h), x0, eps) - md.diffuse(path(0.4 - h), x0, eps)) / (2 * h)
        got = md.velocity_from_x0(x0, x, path(0.4))
        torch.testing.assert_close(got, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", md.PREDICTIONS)
@each_path
def test_clean_data_stays_what_it_is(path, name):
    """At t = 0 the row gives back x_t, whatever the net says; only "x0" trusts the net."""
    x = data(3, 2)
    got = md.to_x0(name, data(3, 2, seed=1), x, path(0.0))
    want = data(3, 2, seed=1) if name == "x0" else x
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
def test_no_signal_is_no_obstacle_to_these(name):
    """At t = 1 of a path that ends in pure noise x0 is still read off."""
    x, y = data(3, 2), data(3, 2, seed=1)
    for path in (md.Cosine(), md.LinearPath()):
        assert bool(torch.isfinite(md.to_x0(name, y, x, path(1.0))).all())


@pytest.mark.parametrize("name", ["eps", "score"])
@pytest.mark.parametrize("path", [md.Cosine(), md.LinearPath()])
def test_no_signal_is_refused_for_these(name, path):
    x = data(3, 2)
    with pytest.raises(ValueError, match="signal=0"):
        md.to_x0(name, x, x, path(1.0))
    with pytest.raises(ValueError, match="signal="):
        md.to_x0(name, x, x, path(torch.tensor([0.5, 1.0 - 1e-8, 0.1], dtype=D)))


def test_a_prediction_of_your_own():
    """Any row with its definition works everywhere: here twice the noise."""
    twice = md.Prediction(
        lambda at, x0, eps: 2 * eps, lambda at: (1 / at.signal, -at.noise / (2 * at.signal))
    )
    at, x0, eps = md.VP()(0.3), data(3, 2), data(3, 2, seed=1)
    x = md.diffuse(at, x0, eps)
    torch.testing.assert_close(md.from_x0(twice, x0, x, at), 2 * eps)
    torch.testing.assert_close(md.to_x0(twice, 2 * eps, x, at), x0)
    assert predictions.as_prediction(twice) is twice


X = torch.zeros(2, 3)
AT = md.VP()(0.5)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.to_x0("noise", X, X, AT), "prediction='noise'.*eps, x0, v"),
        (lambda: md.to_x0("v", X[:, :1], X, AT), r"y has shape \(2, 1\)"),
        (lambda: md.from_x0("v", X[:, :1], X, AT), r"x0 has shape \(2, 1\)"),
        (lambda: md.eps_from_x0(X[:1], X, AT), r"x0 has shape \(1, 3\)"),
        (lambda: md.score_from_x0(X[:1], X, AT), r"x0 has shape \(1, 3\)"),
        (lambda: md.velocity_from_x0(X[:1], X, AT), r"x0 has shape \(1, 3\)"),
        (lambda: md.eps_from_x0(X, X, md.VP()(0.0)), "noise 0"),
        (lambda: md.score_from_x0(X, X, md.VP()(0.0)), "noise 0"),
        (lambda: md.from_x0("v", X, X, md.VP()(0.0)), "noise 0"),
        (lambda: predictions.edm(0.0), "sigma_data=0.0"),
        (lambda: predictions.edm(-1.0), "sigma_data=-1.0"),
        (lambda: predictions.edm(math.nan), "sigma_data=nan"),
    ],
)
def test_predictions_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
