"""The U-Net's doors: any size, patches, conditions by class and by tokens, layouts and dtypes."""

import math

import pytest
import torch
import torch.nn.functional as F
from paths import D, data, perturbed, seeded

from minidiff import nets
from minidiff.nets.attention import SelfAttention, as_context, attend
from minidiff.nets.unet import ResBlock, act

SMALL = {"width": 8, "mults": (1, 2), "attention": (1,)}


def call(net, x, cond=None, t=0.5):
    return net(x, torch.full((len(x),), t, dtype=x.dtype), cond)


def labels(*which):
    return torch.tensor(which)


# ---- sizes and patches ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(28, 28), (27, 30), (8, 8), (5, 1), (1, 1), (13, 7)], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(size, patch, channels):
    """What goes in comes out, with gradients to every pixel."""
    net = perturbed(nets.UNet(channels, **SMALL, patch=patch))
    x = data(2, channels, *size).requires_grad_(True)
    y = call(net, x)
    assert y.shape == x.shape and y.is_contiguous() and bool(torch.isfinite(y).all())
    (slope,) = torch.autograd.grad((y * y).sum(), x)
    assert bool((slope != 0).all())


@pytest.mark.parametrize("mults", [(1,), (1, 1, 2), (1, 2, 2, 2)], ids=str)
def test_any_depth_on_odd_sizes(mults):
    net = perturbed(nets.UNet(1, width=8, mults=mults, blocks=2))
    x = data(1, 1, 11, 6)
    assert call(net, x).shape == x.shape


def test_patches_are_padded_with_zeros_below_and_to_the_right():
    """A 27 x 30 picture is the cut of what its 28 x 32 padded self gives."""
    for patch, want in ((2, (28, 30)), (4, (28, 32))):
        net = perturbed(nets.UNet(1, **SMALL, patch=patch))
        x = data(2, 1, 27, 30)
        whole = F.pad(x, (0, want[1] - 30, 0, want[0] - 27))
        assert whole.shape[2:] == want
        torch.testing.assert_close(
            call(net, x), call(net, whole)[:, :, :27, :30], rtol=1e-12, atol=1e-12
        )


def test_pixels_of_a_patch_stay_in_their_place():
    """Features are a patch apart; channel 2 r + c of the last layer is row r, column c."""
    net = perturbed(nets.UNet(1, width=8, mults=(1,), patch=2))
    x, t = data(2, 1, 6, 4), torch.full((2,), 0.5, dtype=D)
    assert net.features(x, t).shape == (2, 8, 3, 2)
    h = data(2, 8, 3, 2, seed=1)
    y, raw = net.image(net.last, h, x), net.last(h)
    for row in range(6):
        for column in range(4):
            which = 2 * (row % 2) + column % 2
            assert torch.equal(y[:, 0, row, column], raw[:, which, row // 2, column // 2])


def test_out_channels():
    net = perturbed(nets.UNet(1, **SMALL, out=2, patch=2))
    assert call(net, data(2, 1, 9, 9)).shape == (2, 2, 9, 9)


@pytest.mark.parametrize("patch", [1, 2])
def test_starts_at_zero(patch):
    """Fresh weights give exactly 0, and each block its shortcut."""
    net = nets.UNet(1, **SMALL, patch=patch).double()
    assert not bool(call(net, data(2, 1, 9, 8)).any())
    h, emb = data(2, 8, 5, 5), data(2, 32)
    block = net.down[0][0].block
    assert torch.equal(block(h, emb), h)
    assert torch.equal(net.enter.attend(data(2, 16, 3, 3)), data(2, 16, 3, 3))


def test_channels_last_input_is_the_same_picture():
    net = perturbed(nets.UNet(3, **SMALL, patch=2))
    x = data(2, 3, 10, 10)
    turned = x.contiguous(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    torch.testing.assert_close(call(net, turned), call(net, x), rtol=1e-12, atol=1e-12)
    assert call(net, turned).is_contiguous()
    assert net.first.weight.is_contiguous(memory_format=torch.channels_last)


def test_examples_do_not_mix():
    net = perturbed(nets.UNet(1, **SMALL, patch=2))
    x = data(3, 1, 9, 9)
    torch.testing.assert_close(call(net, x[1:2]), call(net, x)[1:2], rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only():
    net = perturbed(nets.UNet(1, **SMALL, dropout=0.5))
    x = data(1, 1, 8, 8)
    assert torch.equal(call(net.eval(), x), call(net, x))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        assert not torch.equal(call(net.train(), x), call(net, x))


# ---- conditions ----------------------------------------------------------------------------------


def test_null_class_is_no_class():
    """None and the null class are one; a class is another; each example has its own."""
    net = perturbed(nets.UNet(1, **SMALL, classes=3))
    x = data(3, 1, 8, 8)
    none = call(net, x)
    assert torch.equal(none, call(net, x, labels(3, 3, 3)))
    mixed = call(net, x, labels(0, 3, 2))
    torch.testing.assert_close(mixed[1], none[1], rtol=1e-12, atol=1e-12)
    assert (mixed - none)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-6


def test_class_or_context_but_not_both():
    with pytest.raises(ValueError, match=r"classes=3.*context=4"):
        nets.UNet(1, **SMALL, classes=3, context=4)
    with pytest.raises(ValueError, match="cond is given"):
        call(nets.UNet(1, **SMALL), torch.zeros(2, 1, 8, 8), labels(0, 1))


def test_cross_attention_written_out():
    """eq:cross-attention by loops over images, heads, pixels and tokens; gaps count for nothing."""
    heads, d, width = 2, 4, 5
    block = perturbed(nets.CrossAttention(8, width, heads=heads)).requires_grad_(False)
    h, tokens = data(2, 8, 2, 3), data(2, 4, width, seed=1)
    valid = torch.tensor([[True, True, False, True], [True, False, False, False]])
    got = block(h, nets.Context(tokens, valid))
    for n in range(2):
        group = (h[n] - h[n].mean()) / (h[n].var(correction=0) + 1e-5).sqrt()
        group = group * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
        pixels = group.reshape(8, 6).T
        q = pixels @ block.query.weight.T + block.query.bias
        k, v = (tokens[n] @ block.key_value.weight.T + block.key_value.bias).split(8, dim=1)
        found = torch.zeros(6, 8, dtype=D)
        for j in range(heads):
            part = slice(j * d, (j + 1) * d)
            for i in range(6):
                total = 0.0
                for token in range(4):
                    if valid[n, token]:
                        fit = math.exp(float(q[i, part] @ k[token, part]) / math.sqrt(d))
                        found[i, part] += fit * v[token, part]
                        total += fit
                found[i, part] /= total
        want = h[n] + (found @ block.out.weight.T + block.out.bias).T.reshape(8, 2, 3)
        torch.testing.assert_close(got[n], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_zero_tokens_are_no_condition(count):
    net = perturbed(nets.UNet(1, **SMALL, context=5))
    x = data(2, 1, 8, 8)
    none = call(net, x)
    zeros = call(net, x, torch.zeros(2, count, 5, dtype=D))
    torch.testing.assert_close(zeros, none, rtol=1e-10, atol=1e-12)
    assert (call(net, x, data(2, count, 5, seed=3)) - none).abs().max() > 1e-6


def test_what_is_not_valid_is_not_seen():
    """Masked tokens may hold anything; the rest is as if they were not there, in any order."""
    net = perturbed(nets.UNet(1, **SMALL, context=5))
    x, tokens = data(2, 1, 8, 8), data(2, 3, 5, seed=1)
    padded = torch.cat([tokens, 1e6 * torch.ones(2, 2, 5, dtype=D)], 1)
    valid = torch.tensor([[True] * 3 + [False] * 2] * 2)
    want = call(net, x, tokens)
    torch.testing.assert_close(
        call(net, x, nets.Context(padded, valid)), want, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(call(net, x, tokens[:, [2, 0, 1]]), want, rtol=1e-10, atol=1e-12)
    one = torch.tensor([[True, False, False], [True, True, True]])
    mixed = call(net, x, nets.Context(tokens, one))
    torch.testing.assert_close(mixed[1], want[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed[:1], call(net, x[:1], tokens[:1, :1]), rtol=1e-10, atol=1e-12)


def test_context_is_looked_at_wherever_there_is_attention():
    net = nets.UNet(1, **SMALL, context=5)
    stages = [m for m in net.modules() if getattr(m, "attend", "none") != "none"]
    assert len(stages) == 8
    assert all((s.attend is None) == (s.look is None) for s in stages)
    assert sum(s.look is not None for s in stages) == 4  # down, middle, and twice on the way up


@pytest.mark.parametrize(
    ("cond", "word"),
    [
        (torch.zeros(2, 5), r"shape \(2, 5\)"),
        (torch.zeros(3, 1, 5), r"give \(2, L, 5\)"),
        (torch.zeros(2, 1, 4), r"give \(2, L, 5\)"),
        (nets.Context(torch.zeros(2, 3, 5), torch.ones(2, 3)), "dtype torch.float32"),
        (nets.Context(torch.zeros(2, 3, 5), torch.ones(2, 2).bool()), r"shape \(2, 2\)"),
        (nets.Context(torch.zeros(2, 2, 5), torch.tensor([[True] * 2, [False] * 2])), "False ever"),
        (torch.zeros(2, 0, 5), "False everywhere"),
    ],
)  # fmt: skip
def test_as_context_refuses(cond, word):
    with pytest.raises(ValueError, match=word):
        call(nets.UNet(1, **SMALL, context=5), torch.zeros(2, 1, 8, 8), cond)


def test_as_context_fills_in():
    like = torch.zeros(2, 1, dtype=D)
    none = as_context(None, 2, 5, like)
    assert none.tokens.shape == (2, 1, 5) and none.tokens.dtype == D and not bool(none.tokens.any())
    tokens = data(2, 3, 5)
    full = as_context(tokens, 2, 5, like)
    assert full.tokens is tokens and bool(full.valid.all()) and full.valid.shape == (2, 3)
    given = nets.Context(tokens, torch.tensor([[True, False, True]] * 2))
    assert as_context(given, 2, 5, like).valid is given.valid


def test_cross_attention_refuses_heads():
    with pytest.raises(ValueError, match=r"channels=6.*heads=4"):
        nets.CrossAttention(6, 3)


# ---- arithmetic ----------------------------------------------------------------------------------


def test_act_is_gelu():
    """z times the normal distribution function, entry by entry, in any layout; shape and layout of
    the memory stay.
    """
    h = data(2, 3, 4, 5)
    want = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    for given in (h, h.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(act(given), want, rtol=1e-12, atol=1e-12)
    last = h.contiguous(memory_format=torch.channels_last)
    assert act(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_the_formula(masked):
    """The written-out path agrees with the fused one in float32 to the rounding of bfloat16: eight
    bits, so 2^-8 relative on numbers near 1, in three products.
    """
    q, k, v = (data(2, n, 16, seed=i, dtype=torch.float32) for i, n in ((0, 6), (1, 4), (2, 4)))
    valid = torch.tensor([[[[True, True, False, True]]]] * 2) if masked else None
    want = attend(q, k, v, 4, valid)
    got = attend(*(p.bfloat16() for p in (q, k, v)), 4, valid)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0, atol=4 * 2**-8)
    assert (got.float() - want).abs().max() > 0  # it is another path


def test_net_under_autocast():
    """bfloat16 changes the output by about its rounding, not by more."""
    net = perturbed(nets.UNet(1, **SMALL, patch=2, context=5), size=0.1).float()
    x, tokens = data(4, 1, 12, 12, dtype=torch.float32), data(4, 2, 5, seed=1, dtype=torch.float32)
    full = call(net, x, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        short = call(net, x, tokens)
    assert short.dtype == torch.bfloat16
    off = (short.float() - full).detach().norm() / full.detach().norm()
    assert 0 < off.item() < 0.03  # a dozen layers, each rounds at 2^-9 = 0.002


def test_self_attention_is_one_pass_for_all_heads():
    """With heads that see nothing of each other: two heads are two blocks of half the channels."""
    block = perturbed(SelfAttention(8, heads=2))
    h = data(1, 8, 2, 2)
    normed = block.norm(h).flatten(2).transpose(1, 2)
    q, k, v = block.qkv(normed).chunk(3, 2)
    halves = [attend(q[..., p], k[..., p], v[..., p], 1) for p in (slice(0, 4), slice(4, 8))]
    want = h + block.out(torch.cat(halves, 2)).transpose(1, 2).reshape(h.shape)
    torch.testing.assert_close(block(h), want, rtol=1e-12, atol=1e-12)


def test_res_block_keeps_the_layout():
    """A block keeps channels-last, so that no layer of the net pays for a turn."""
    block = ResBlock(8, 16, 4, 0.0)
    h = torch.randn(2, 8, 6, 6, generator=seeded()).contiguous(memory_format=torch.channels_last)
    out = block.to(memory_format=torch.channels_last)(h, torch.zeros(2, 4))
    assert out.is_contiguous(memory_format=torch.channels_last)
