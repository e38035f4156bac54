"""Broadcasting, seeded noise and masked means."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from minidiff import tensors

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@given(shapes, st.data())
def test_bcast(shape, data):
    """(), (B,), and the rank of x with ones: value times x is what indexing by hand gives."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kind = data.draw(st.sampled_from(["scalar", "batch", "full"]))
    dims = {"scalar": (), "batch": shape[:1], "full": data.draw(
        st.tuples(*(st.sampled_from([1, n]) for n in shape)))}[kind]  # fmt: skip
    value = torch.randn(dims, generator=torch.Generator().manual_seed(1))
    out = tensors.bcast(value, x)
    assert (out * x).shape == shape
    assert out.ndim in (0, len(shape))
    if kind == "batch":
        for b in range(shape[0]):
            assert torch.equal((out * x)[b], value[b] * x[b])
    assert torch.equal(tensors.bcast(out, x), out)


@pytest.mark.parametrize(
    ("value", "x"),
    [((3,), (2, 3)), ((2,), (1, 2)), ((2, 3), (2, 3, 1)), ((2, 2), (2, 3)), ((1, 1, 1), (2, 3)),
     ((3,), ()), ((2, 3), (2,))],
)  # fmt: skip
def test_bcast_refuses(value, x):
    """Also what torch would broadcast, but along another axis than the batch: (3,) on (2, 3)."""
    with pytest.raises(ValueError, match="value has shape"):
        tensors.bcast(torch.zeros(value), torch.zeros(x))


def test_noise_is_the_generators(global_state_untouched):
    """Equal seeds, equal noise, in x's dtype; None is fresh; the global state is left alone."""
    x = torch.zeros(3, 4, dtype=torch.float64)
    a, b = (tensors.randn_like(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float64
    want = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(a, want)
    assert not torch.equal(tensors.randn_like(x), tensors.randn_like(x))
    assert tensors.randn((2, 3)).dtype == torch.float32
    rng = torch.Generator()
    assert tensors.generator(rng) is rng
    assert tensors.generator(None) is not tensors.generator(None)


def test_seeds_are_mixed_not_added():
    """Every key is a stream of its own, each repeatable; zeros at the end count too."""
    keys = [(0, 1), (1,), (1, 1), (2,), (0, 2), (0, 0, 1), (1, 0, 1), (0,)]
    keys += [(1, 0), (1, 0, 0), (0, 0), (0, 0, 0), (1, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0)]
    first = [torch.rand((), generator=tensors.seeded(*k)).item() for k in keys]
    again = [torch.rand((), generator=tensors.seeded(*k)).item() for k in keys]
    assert first == again and len(set(first)) == len(keys) == 14
    assert 0 <= tensors.mixed_seed(2**40, 7) < 2**63


@pytest.mark.parametrize("seed", [(-1,), (0, -5)])
def test_negative_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seeds"):
        tensors.seeded(*seed)


# ---- masks --------------------------------------------------------------------------------


@given(shapes, st.integers(0, 100))
def test_masked_mean_is_one_ratio(shape, seed):
    """The sum over True divided by their number, over all axes and over all but the first."""
    rng = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=rng, dtype=torch.float64)
    mask = torch.rand(shape, generator=rng) < 0.6
    mask.reshape(shape[0], -1)[:, 0] = True
    want = sum(value[mask].tolist()) / int(mask.sum())
    assert tensors.masked_mean(value, mask).item() == pytest.approx(want, rel=1e-12, abs=1e-14)
    rows = tensors.masked_mean(value, mask, dim=tuple(range(1, len(shape))))
    for b in range(shape[0]):
        want = sum(value[b][mask[b]].tolist()) / int(mask[b].sum())
        assert rows[b].item() == pytest.approx(want, rel=1e-12, abs=1e-14)


def test_masked_mean_selects_and_broadcasts():
    """NaN and inf outside the mask stay out, also of the gradient; a (L, 1) mask is enough."""
    value = torch.tensor([[1.0, math.nan], [3.0, math.inf]], requires_grad=True)
    got = tensors.masked_mean(value, torch.tensor([True, False]))
    got.backward()
    assert got.item() == 2 and value.grad.tolist() == [[0.5, 0.0], [0.5, 0.0]]
    rows = tensors.masked_mean(torch.ones(2, 3, 2), torch.tensor([[True], [False], [True]]), (1, 2))
    assert rows.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (torch.ones(2, 3), "float32"),
        (torch.ones(2, 3, dtype=torch.uint8), "uint8"),
        ([True], "list"),
        (torch.ones(3, 3, dtype=torch.bool), r"\(3, 3\).*\(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.bool), "no entry"),
        (torch.tensor([[True], [False]]), "no entry"),
    ],
)
def test_masked_mean_refuses(mask, word):
    with pytest.raises(ValueError, match=word):
        tensors.masked_mean(torch.zeros(2, 3), mask, (1,))


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.zeros(2, dtype=torch.long), "int64"),
        ([0.0], "list"),
        (torch.zeros(()), r"\(\)"),
        (torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.zeros(3, 0), r"\(3, 0\)"),
        (torch.tensor([math.nan]), "NaN"),
        (torch.tensor([math.inf]), "infinite"),
    ],
)
def test_check_data_refuses(x, word):
    with pytest.raises(ValueError, match=word) as error:
        tensors.check_data("my_x", x)
    assert "my_x" in str(error.value)


def test_check_data_returns_what_is_fine():
    x = torch.zeros(2, 3)
    assert tensors.check_data("x", x) is x


def test_check_same_shape():
    tensors.check_same_shape("a", torch.zeros(2), "b", torch.zeros(2))
    with pytest.raises(ValueError, match=r"a has shape \(2,\) and b \(2, 1\)"):
        tensors.check_same_shape("a", torch.zeros(2), "b", torch.zeros(2, 1))


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "2", None])
def test_check_count_takes_whole_numbers_from_1(value):
    assert tensors.check_count("n", 1) == 1 and tensors.check_count("n", 7) == 7
    with pytest.raises(ValueError, match=f"n={value!r}: give a whole number"):
        tensors.check_count("n", value)
