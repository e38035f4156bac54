"""Nets: shapes, the zero start, symmetries, and refusals. They know nothing of diffusion."""

import math

import pytest
import torch

from minidiff import nets

D = torch.float64


def seeded(make, seed=0):
    """Build a net from a seed without touching the global state."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def data(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def awake(net, seed=0):
    """Replace every zero start by small noise, so that outputs show what inputs do."""
    rng = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if not bool(p.any()):
            p.data = 0.1 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return net


# ---- embeddings ---------------------------------------------------------------------------


def test_sinusoidal_written_out():
    """eq:sinusoidal: sin and cos of 1000 t / 10000^(j / (d/2 - 1)), all sines first."""
    for t in (0.0, 0.001, 0.25, 1.0):
        for dim in (4, 6, 64):
            half = dim // 2
            angle = [1000 * t / 10_000 ** (j / (half - 1)) for j in range(half)]
            want = [math.sin(a) for a in angle] + [math.cos(a) for a in angle]
            got = nets.sinusoidal(torch.tensor(t, dtype=D), dim)
            # angles up to 1000 round at 1e-13
            torch.testing.assert_close(got, torch.tensor(want, dtype=D), rtol=0, atol=1e-11)
    assert nets.sinusoidal(torch.zeros(2, 3, 1), 8).shape == (2, 3, 1, 8)
    assert nets.sinusoidal(torch.zeros(2), 8).dtype == torch.float32


def test_neighbouring_steps_are_told_apart():
    """In float32 the embeddings of i/1000 and (i+1)/1000 differ by much more than rounding."""
    t = torch.arange(1, 1001) / 1000
    gap = nets.sinusoidal(t, 64).diff(dim=0).norm(dim=1)
    assert float(gap.min()) > 0.5


@pytest.mark.parametrize("dim", [2, 7, 0])
def test_sinusoidal_refuses(dim):
    with pytest.raises(ValueError, match=f"dim={dim}"):
        nets.sinusoidal(torch.zeros(2), dim)


def test_label_embedding():
    """None is the null label, index ``classes``."""
    table = seeded(lambda: nets.LabelEmbedding(3, 5))
    assert torch.equal(table(None, 2), table(torch.tensor([3, 3]), 2))
    assert torch.equal(table(torch.tensor([0, 2]), 2), table.table.weight[[0, 2]])


@pytest.mark.parametrize(
    "cond",
    [torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(2, dtype=torch.long),
     torch.tensor([0, 1, 4]), torch.tensor([-1, 0, 0])],
)  # fmt: skip
def test_label_embedding_refuses(cond):
    with pytest.raises(ValueError, match="cond"):
        seeded(lambda: nets.LabelEmbedding(3, 5))(cond, 3)


# ---- MLP ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "t"),
    [
        ((5, 2), (5,)),
        ((5, 2), (5, 1)),
        ((5, 7, 2), (5,)),
        ((5, 7, 2), (5, 7, 1)),
        ((5, 7, 2), (5, 1, 1)),
        ((5, 3, 7, 2), (5, 1, 7, 1)),
    ],
)
@pytest.mark.parametrize("classes", [None, 3])
def test_mlp_shapes(x, t, classes):
    net = seeded(lambda: nets.MLP(2, width=16, depth=2, classes=classes))
    cond = None if classes is None else torch.tensor([0, 1, 2, 3, 0])
    out = net(data(*x), torch.rand(t, generator=torch.Generator().manual_seed(0)), cond)
    assert out.shape == x and not bool(out.any())  # the last layer starts at zero
    assert awake(net)(data(*x), torch.full(t, 0.5), cond).shape == x


def test_mlp_treats_positions_alike():
    """Each position of a sequence is what it is alone; each has its own time."""
    net = awake(seeded(lambda: nets.MLP(2, width=16)))
    x, t = data(3, 4, 2), torch.rand(3, 4, 1, generator=torch.Generator().manual_seed(0))
    whole = net(x, t)
    for i in range(4):
        torch.testing.assert_close(whole[:, i], net(x[:, i], t[:, i, 0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(x, t[:, 0, 0]), net(x, t[:, :1].expand(3, 4, 1)))


def test_mlp_depends_on_everything():
    net = awake(seeded(lambda: nets.MLP(2, width=16, classes=2)))
    x, t, c = data(3, 2), torch.full((3,), 0.5), torch.tensor([0, 0, 0])
    out = net(x, t, c)
    for other in (net(x + 0.1, t, c), net(x, t + 0.1, c), net(x, t, c + 1), net(x, t, None)):
        assert bool(((out - other) != 0).all())
    plain = awake(seeded(lambda: nets.MLP(2, width=16)))
    assert torch.equal(plain(x, t), plain(x, t, None))
    with pytest.raises(ValueError, match="cond is given"):  # it would be ignored in silence
        plain(x, t, c)


@pytest.mark.parametrize(
    ("x", "t"), [((5, 3), (5,)), ((5, 2), (4,)), ((5, 7, 2), (5, 7)), ((5, 2), (5, 3))]
)
def test_mlp_refuses(x, t):
    """Features that are not the net's, and times that fit no row."""
    with pytest.raises(ValueError, match=r"x has shape|t has shape"):
        nets.MLP(2, width=16)(torch.zeros(x), torch.zeros(t))


# ---- attention ----------------------------------------------------------------------------


def test_attention_starts_as_the_identity_and_is_equivariant():
    """Permuting pixels permutes the output; float64, so that 1e-12 is rounding."""
    block = seeded(lambda: nets.SelfAttention(8)).double()
    h = data(2, 8, 3, 4, dtype=D)
    assert torch.equal(block(h), h)
    awake(block)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = h.flatten(2)[:, :, order].reshape(h.shape)
    want = block(h).flatten(2)[:, :, order].reshape(h.shape)
    torch.testing.assert_close(block(mixed), want, rtol=1e-12, atol=1e-12)
    assert (block(h) - h).abs().max().item() > 1e-3


def test_attention_written_out():
    """eq:attention with one head: h + W softmax(Q K^T / sqrt d) V, by plain matrices."""
    block = awake(seeded(lambda: nets.SelfAttention(4, heads=1)).double())
    h = data(1, 4, 2, 3, dtype=D)
    tokens = block.norm(h).flatten(2)[0].T
    q, k, v = (tokens @ w.T + b for w, b in zip(
        block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True))  # fmt: skip
    weights = (q @ k.T / math.sqrt(4)).softmax(1)
    want = h[0].flatten(1) + (weights @ v @ block.out.weight.T + block.out.bias).T
    torch.testing.assert_close(block(h)[0].flatten(1), want, rtol=1e-12, atol=1e-12)


def test_attention_refuses():
    with pytest.raises(ValueError, match=r"channels=6.*heads=4"):
        nets.SelfAttention(6)


# ---- U-Net --------------------------------------------------------------------------------

UNETS = {
    "small": ({"width": 8, "mults": (1, 2)}, (2, 1, 8, 8)),
    "one level": ({"width": 8, "mults": (1,)}, (2, 1, 5, 7)),
    "three levels, colour, wide image": ({"width": 8, "mults": (1, 2, 2)}, (1, 3, 8, 12)),
    "patches": ({"width": 8, "mults": (1, 2), "patch": 2}, (2, 1, 28, 28)),
    "attention and blocks": (
        {"width": 8, "mults": (1, 2), "attention": (0, 1), "blocks": 2, "dropout": 0.1},
        (2, 2, 4, 4),
    ),
    "odd width": ({"width": 12, "mults": (1, 3)}, (1, 1, 4, 4)),
    "classes": ({"width": 8, "mults": (1, 2), "classes": 10}, (2, 1, 8, 8)),
}


def test_resblock_written_out():
    """eq:resblock: skip(h) + conv2(gelu((1 + a) norm2(conv1(gelu(norm1 h))) + b)).

    (a, b) = W silu(emb).

    Convolutions and norms are torch's; the order, the "1 +" and the activations are what counts.
    """
    from minidiff.nets.unet import ResBlock

    block = awake(seeded(lambda: ResBlock(4, 8, 6, 0.0))).double()
    h, emb = data(2, 4, 5, 5, dtype=D), data(2, 6, seed=1, dtype=D)

    def silu(v):
        return v / (1 + torch.exp(-v))

    def gelu(v):
        return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))

    both = silu(emb) @ block.emb.weight.T + block.emb.bias
    a, b = both[:, :8, None, None], both[:, 8:, None, None]
    inner = block.norm2(block.conv1(gelu(block.norm1(h))))
    want = block.skip(h) + block.conv2(gelu((1 + a) * inner + b))
    torch.testing.assert_close(block(h, emb), want, rtol=1e-11, atol=1e-11)
    for group in (block.norm1, block.norm2):
        assert group.num_channels % group.num_groups == 0


@pytest.mark.parametrize(("kwargs", "shape"), UNETS.values(), ids=UNETS.keys())
def test_unet_shapes_and_zero_start(kwargs, shape):
    net = seeded(lambda: nets.UNet(shape[1], **kwargs))
    x, t = data(*shape), torch.full((shape[0],), 0.5)
    out = net(x, t)
    assert out.shape == shape and out.is_contiguous() and not bool(out.any())
    assert awake(net)(x, t).shape == shape and bool(net(x, t).any())


@pytest.mark.parametrize("make", [
    lambda: nets.UNet(1, width=8, mults=(1, 2), attention=(1,), classes=3, patch=2),
    lambda: nets.MLP(2, width=16, classes=3),
], ids=["unet", "mlp"])  # fmt: skip
def test_gradients_reach_every_parameter(make):
    """After a few steps of descent no parameter is without one (zero starts open in turn)."""
    net = seeded(make)
    x = data(6, 2) if isinstance(net, nets.MLP) else data(6, 1, 8, 8)
    t, cond = torch.linspace(0.1, 1, 6), torch.tensor([0, 1, 2, 3, 0, 1])
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(4):
        opt.zero_grad()
        (net(x, t, cond) - x).square().mean().backward()
        opt.step()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # a key's bias shifts all scores of a softmax alike: its gradient is 0, but for rounding
    assert dead == []


def test_unet_depends_on_everything_and_mixes_no_examples():
    net = awake(seeded(lambda: nets.UNet(1, width=8, mults=(1, 2), classes=2))).double().eval()
    x, t, c = data(3, 1, 8, 8, dtype=D), torch.full((3,), 0.5, dtype=D), torch.tensor([0, 0, 0])
    out = net(x, t, c)
    for other in (net(x, t + 0.1, c), net(x, t, c + 1), net(x, t, None)):
        assert (out - other).abs().max().item() > 1e-6
    torch.testing.assert_close(net(x[1:2], t[:1], c[:1]), out[1:2], rtol=1e-10, atol=1e-12)
    # one corner pixel is felt in the opposite corner: the middle sees the whole image
    bumped = x.clone()
    bumped[0, 0, 0, 0] += 1
    assert (net(bumped, t, c) - out)[0, 0, 7, 7].abs().item() > 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: nets.UNet(1, mults=()), "mults"),
        (lambda: nets.UNet(1, width=8)(torch.zeros(1, 8, 8), torch.zeros(1)), "x has shape"),
        (lambda: nets.UNet(1, width=8)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), r"1 channel"),
        (lambda: nets.UNet(1, width=8)(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 1, 1)),
         "t has shape"),
        (lambda: nets.UNet(1, width=8)(torch.zeros(2, 1, 8, 8), torch.zeros(3)), "t has shape"),
        (lambda: nets.UNet(1, width=10, mults=(1,)), "channels=10"),
        (lambda: nets.UNet(1, width=8)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1)),
         "cond is given"),
    ],
)  # fmt: skip
def test_unet_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()
