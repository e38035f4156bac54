"""Samples measured: every number against one written out by hand, and what is refused."""

import math

import pytest
import torch
from paths import D, data, vector

from minidiff import metrics
from minidiff.evaluation import SURE, Evaluation, Quality, accuracy


def distances(a, b):
    """Plain loops: rows of lists."""
    return [[math.dist(p, q) for q in b.flatten(1).tolist()] for p in a.flatten(1).tolist()]


# ---- precision and recall ------------------------------------------------------------------------


def test_precision_recall_by_hand():
    """eq:precision-recall on a line, k = 1: every distance can be read off.

    Real 0, 1, 10 have radii 1, 1, 9; fake 0.5, 3, 30 have 2.5, 2.5, 27. 0.5 and 3 lie within a real
    radius (3 within that of 10: 7 <= 9), 30 does not. 0 and 1 lie within 2.5 of 0.5; 10 lies within
    27 of 30.
    """
    real, fake = vector(0.0, 1.0, 10.0)[:, None], vector(0.5, 3.0, 30.0)[:, None]
    got = metrics.precision_recall(real, fake, k=1)
    assert got == (2 / 3, 1.0)
    far = metrics.precision_recall(real, fake + 1000, k=1)
    assert far == (0.0, 0.0)
    inside = metrics.precision_recall(real, vector(0.4, 0.5, 0.6)[:, None], k=1)
    assert inside == (1.0, 0.0)  # a collapse: all among the data, none of the data among them


@pytest.mark.parametrize("k", [1, 2, 3])
def test_precision_recall_by_loops(k):
    """The definition, with loops, on two clouds of unequal size in three dimensions."""
    real, fake = data(40, 3), 1.2 * data(25, 3, seed=1) + 0.8

    def radius(points):
        return [sorted(row)[k] for row in distances(points, points)]

    r, f, gaps = radius(real), radius(fake), distances(real, fake)
    precision = sum(any(gaps[n][m] <= r[n] for n in range(40)) for m in range(25)) / 25
    recall = sum(any(gaps[n][m] <= f[m] for m in range(25)) for n in range(40)) / 40
    assert 0 < precision < 1 and 0 < recall < 1
    assert metrics.precision_recall(real, fake, k=k) == (precision, recall)
    assert metrics.precision_recall(fake, real, k=k) == (recall, precision)  # the roles change


def test_a_set_against_itself_is_perfect():
    x = data(20, 1, 4, 4)
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    twice = torch.cat([x, x])  # copies have radius 0 for k = 1 and still cover themselves
    assert metrics.precision_recall(twice, x, k=1).precision == 1.0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: metrics.precision_recall(data(5, 2), data(5, 3)), "columns"),
        (lambda: metrics.precision_recall(data(5, 2), data(3, 2)), "k=3"),
        (lambda: metrics.precision_recall(data(5, 2), data(5, 2), k=0), "k=0"),
        (lambda: metrics.precision_recall(data(5, 2), data(5, 2), k=1.5), "k=1.5"),
        (lambda: metrics.precision_recall(data(5, 2) * math.nan, data(5, 2)), "real holds NaN"),
        (lambda: metrics.nearest(data(5, 2), data(5, 3)), "columns"),
        (lambda: metrics.nearest(data(5, 2), data(0, 2)), "at least one"),
        (lambda: metrics.memorisation(data(5, 2), data(3, 2) / 0, data(9, 2)), "NaN or infinite"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- neighbours ----------------------------------------------------------------------------------


def test_nearest_by_loops():
    """More points than one part of 256, so that the parts are put together in order."""
    points, others = data(300, 1, 2, 2), data(41, 1, 2, 2, seed=1)
    gaps = distances(points, others)
    value, which = metrics.nearest(points, others)
    assert value.dtype == D
    torch.testing.assert_close(value, vector(*(min(r) for r in gaps)), rtol=1e-12, atol=1e-12)
    assert which.tolist() == [r.index(min(r)) for r in gaps]


def test_nearest_of_a_copy_is_exactly_zero():
    """torch's fast distances would say about 1e-3 for a copy in float32."""
    x = data(300, 784, dtype=torch.float32)
    value, which = metrics.nearest(x[100:200], x)
    assert not bool(value.any()) and which.tolist() == list(range(100, 200))


def test_memorisation_by_hand():
    """eq:memorisation: train at 0 and 10; samples 1, 2, 7 away 1, 2, 3; held out 4 and 16, 6 and 4
    away. torch takes the lower of two middle values: the ratio is 2 / 4.
    """
    train, held = vector(0.0, 10.0)[:, None], vector(4.0, 16.0)[:, None]
    samples = vector(1.0, 2.0, 7.0)[:, None]
    assert metrics.memorisation(samples, held, train) == 2 / 4
    assert metrics.memorisation(train, held, train) == 0.0
    assert metrics.memorisation(held, held, train) == 1.0


def test_memorisation_refuses_a_split_that_is_none():
    train = data(9, 2)
    with pytest.raises(ValueError, match="overlaps"):
        metrics.memorisation(data(3, 2, seed=1), train[:4], train)


# ---- all together --------------------------------------------------------------------------------


def features(x):
    """Two numbers of a picture, without weights."""
    return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)


def scores(x):
    """Sure exactly where the mean is far from 0: logits (0, 6 mean)."""
    return torch.stack([torch.zeros(len(x)), 6 * x.mean((1, 2, 3))], 1)


def pictures(n, seed, shift=0.0):
    return data(n, 1, 3, 3, seed=seed, dtype=torch.float32) + shift


def test_evaluation_written_out():
    """Each field of Quality by its own definition; batches of 7 change nothing."""
    train, held, samples = pictures(30, 0), pictures(20, 1), pictures(25, 2, shift=0.2)
    found = Evaluation(features, scores, train, held, batch=7).quality(samples)
    f, h = features(samples).double(), features(held).double()
    cf, ch = torch.cov(f.T), torch.cov(h.T)
    cross = torch.linalg.eigvals(cf @ ch).real.clamp(min=0).sqrt().sum()  # same eigenvalues
    fd = float((f.mean(0) - h.mean(0)).square().sum() + cf.trace() + ch.trace() - 2 * cross)
    share = 1 / (1 + torch.exp(-6 * samples.mean((1, 2, 3)).abs()))  # the larger of the two
    near = [min(r) for r in distances(samples, train)]
    below = [min(r) for r in distances(held, train)]
    middle = sorted(near)[12] / sorted(below)[9]
    assert isinstance(found, Quality) and found.samples == 25
    assert found.fd == pytest.approx(fd, rel=1e-6)
    assert (found.precision, found.recall) == metrics.precision_recall(h, f)
    assert 0.1 < found.confident < 0.9
    assert found.confident == pytest.approx(float((share > SURE).double().mean()), abs=1e-12)
    assert found.memorisation == pytest.approx(middle, rel=1e-6)


def test_features_of_held_out_data_are_computed_once():
    calls = []

    def counted(x):
        calls.append(len(x))
        return features(x)

    judge = Evaluation(counted, scores, pictures(30, 0), pictures(20, 1), batch=8)
    assert calls == [8, 8, 4]
    judge.quality(pictures(9, 2))
    assert calls == [8, 8, 4, 8, 1]
    assert not judge.features(pictures(2, 3).requires_grad_(True)).requires_grad


def test_floor_is_the_first_training_examples():
    train = pictures(30, 0)
    judge = Evaluation(features, scores, train, pictures(20, 1))
    floor = judge.floor(12)
    assert floor == judge.quality(train[:12]) and floor.memorisation == 0 and floor.samples == 12
    assert judge.floor(30).samples == 30


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda judge: judge.quality(pictures(3, 0)), "at least 4"),
        (lambda judge: judge.quality(torch.zeros(9, 1, 3, 4)), r"\(1, 3, 3\)"),
        (lambda judge: judge.quality(pictures(9, 0) / 0), "NaN"),
        (lambda judge: judge.floor(3), "count=3"),
        (lambda judge: judge.floor(31), "4 to 30"),
    ],
)
def test_evaluation_refuses(call, word):
    judge = Evaluation(features, scores, pictures(30, 0), pictures(20, 1))
    with pytest.raises(ValueError, match=word):
        call(judge)


def test_accuracy_by_hand():
    """Three of four, over more than one part of 250; labels of another count are refused."""
    x = pictures(4, 0)
    right = (x.mean((1, 2, 3)) > 0).long()
    right[2] = 1 - right[2]
    assert accuracy(scores, x, right) == 3 / 4
    assert accuracy(scores, x.repeat(100, 1, 1, 1), right.repeat(100)) == 3 / 4
    with pytest.raises(ValueError, match=r"\(3,\): give \(4,\)"):
        accuracy(scores, x, right[:3])
