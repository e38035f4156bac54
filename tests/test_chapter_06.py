"""Chapter 06: the derived equations of the U-Net and of its evaluation, both sides evaluated."""

import math

import pytest
import torch
import torch.nn.functional as F
from paths import D, data, perturbed, seeded, vector
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import minidiff as md
from minidiff import metrics, nets
from minidiff.nets import unet


def fresh(make, seed=0):
    """Build a module from a seed; the global state stays as it is."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


# ---- time ----------------------------------------------------------------------------------------


def test_encodings_depend_on_the_difference():
    """eq:time-inner: inner product, and squared distance, by the sum of cosines; and two pairs at
    the same distance agree. Angles reach 1000, where doubles round at 1e-13.
    """
    for d in (4, 32, 64):
        omega = vector(*(10_000 ** (-j / (d / 2 - 1)) for j in range(d // 2)))
        for t, s in ((0.3, 0.1), (0.9, 0.7), (1.0, 0.0), (0.5, 0.499)):
            a, b = nets.sinusoidal(vector(t, s), d)
            cosines = torch.cos(1000 * (t - s) * omega)
            assert float(a @ b) == pytest.approx(float(cosines.sum()), abs=1e-10)
            gap = float((a - b).square().sum())
            assert gap == pytest.approx(float(2 * (1 - cosines).sum()), abs=1e-10)


def test_a_shift_in_time_is_a_rotation():
    """eq:time-rotation: one matrix, made of the shift alone, moves every encoding, and it keeps
    lengths.
    """
    d, shift = 16, 0.037
    angle = 1000 * shift * vector(*(10_000 ** (-j / 7) for j in range(8)))
    c, s = torch.diag(angle.cos()), torch.diag(angle.sin())
    turn = torch.cat([torch.cat([c, s], 1), torch.cat([-s, c], 1)])
    torch.testing.assert_close(turn @ turn.T, torch.eye(d, dtype=D), rtol=0, atol=1e-12)
    t = vector(0.0, 0.2, 0.5, 0.9)
    want = nets.sinusoidal(t + shift, d)
    torch.testing.assert_close(nets.sinusoidal(t, d) @ turn.T, want, rtol=0, atol=1e-10)
    lengths = nets.sinusoidal(t, d).square().sum(1)
    torch.testing.assert_close(lengths, torch.full((4,), d / 2, dtype=D), rtol=0, atol=1e-10)


def test_similarity_falls_with_the_logarithm():
    """eq:time-log with 20,001 hands: within the three errors that the text names.

    The tail of the integral, at most 2 / gap; its other end, (gap / 1e4)^2 / 4, both over log 1e4;
    and the sum in place of the integral, which the trapezoidal rule bounds by one term.
    """
    hands = 20_001
    for gap in (30.0, 100.0, 300.0, 1000.0):
        a, b = nets.sinusoidal(vector(0.0, gap / 1000), 2 * hands)
        euler = 0.5772156649015329
        want = 1 - (math.log(gap) + euler) / math.log(1e4)
        bound = (2 / gap + (gap / 1e4) ** 2 / 4) / math.log(1e4) + 1 / hands
        assert abs(float(a @ b) / hands - want) < bound < 0.01


# ---- residual blocks -----------------------------------------------------------------------------


def test_group_norm_written_out():
    """eq:group-norm, group by group; and a picture times 3 gives the same (but for epsilon)."""
    norm = perturbed(unet._norm(32))
    h = data(2, 32, 5, 4)
    assert norm.num_groups == 2
    got, want = norm(h), torch.empty_like(h)
    for n in range(2):
        for part in (slice(0, 16), slice(16, 32)):
            group = h[n, part]
            mean = group.sum() / group.numel()
            var = (group - mean).square().sum() / group.numel()
            scaled = (group - mean) / (var + 1e-5).sqrt()
            want[n, part] = scaled * norm.weight[part, None, None] + norm.bias[part, None, None]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(norm(3 * h), got, rtol=0, atol=1e-4)  # epsilon = 1e-5
    alone = norm(h[:1])  # other pictures of the batch do not matter
    torch.testing.assert_close(alone, got[:1], rtol=1e-12, atol=1e-12)


def test_variances_of_a_residual_chain():
    """eq:residual-variance by random matrices: each branch has fresh weights with mean 0.

    1,000 chains of 8 layers; the tolerance is four standard errors of the mean over chains.
    """
    chains, width, layers, g = 1000, 24, 8, 0.7
    for normed in (True, False):
        rng = seeded(1)
        h = torch.randn(chains, width, generator=rng, dtype=D)
        h = h / h.square().mean(1, keepdim=True).sqrt()
        for _ in range(layers):
            w = torch.randn(chains, width, width, generator=rng, dtype=D) / math.sqrt(width)
            u = h / h.square().mean(1, keepdim=True).sqrt() if normed else h
            h = h + g * torch.einsum("nij,nj->ni", w, u)
        size = h.square().mean(1)
        want = 1 + layers * g**2 if normed else (1 + g**2) ** layers
        error = 4 * float(size.std()) / math.sqrt(chains)
        assert abs(float(size.mean()) - want) < error < 0.1 * want


def test_a_block_that_starts_at_zero():
    """eq:zero-start: the block is its shortcut; only conv2 has a gradient, the sum of products of
    the gradient above and the features below.
    """
    block = fresh(lambda: unet.ResBlock(16, 16, 8, 0.0)).double()
    h, e, up = data(2, 16, 6, 6), data(2, 8, seed=1), data(2, 16, 6, 6, seed=2)
    assert torch.equal(block(h, e), h)
    seen = []
    block.conv2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    (block(h, e) * up).sum().backward()
    for name, p in block.named_parameters():
        assert bool(p.grad.any()) == name.startswith("conv2"), name
    patches = F.unfold(seen[0].detach(), 3, padding=1)  # (B, 16 * 9, 36)
    want = torch.einsum("bop,bkp->ok", up.flatten(2), patches)
    torch.testing.assert_close(block.conv2.weight.grad.flatten(1), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.conv2.bias.grad, up.sum((0, 2, 3)), rtol=1e-10, atol=1e-10)


# ---- what it costs, what it sees -----------------------------------------------------------------


def products(net, *args) -> int:
    """Count multiplications by torch's counter; attention in plain matrices, so that it counts."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        net(*args)
    return counter.get_total_flops() // 2  # it counts a product and a sum as two


def test_cost_of_attention():
    """eq:attention-cost: whole numbers, so equality."""
    for c, side in ((16, 4), (32, 8), (32, 14)):
        n = side * side
        h = torch.zeros(1, c, side, side)
        assert products(nets.SelfAttention(c), h) == 4 * n * c**2 + 2 * n**2 * c
        tokens = torch.zeros(1, 5, 7)
        context = nets.Context(tokens, torch.ones(1, 5, dtype=torch.bool))
        count = 2 * n * c**2 + 2 * 5 * c * 7 + 2 * n * 5 * c
        assert products(nets.CrossAttention(c, 7), h, context) == count


def test_cost_of_patches():
    """eq:patch-cost: what first and last layer and the time cost stays, pixelwise layers fall with
    p^2, pairs of pixels with p^4. Whole numbers again.
    """
    w, e, side = 8, 32, 16
    count = {}
    for p in (1, 2, 4):
        net = nets.UNet(1, width=w, mults=(1, 2), attention=(1,), patch=p)
        count[p] = products(net, torch.zeros(1, 1, side, side), torch.zeros(1))
    blocks = [8, 16, 16, 16, 16, 16, 8, 8]  # output channels of the eight residual blocks
    doors = 2 * 9 * w * side**2
    time = 64 * e + e * e + sum(2 * c * e for c in blocks)
    attentions = 4  # down, middle, and twice on the way up, all at level 1 with 16 channels
    pairs = attentions * 2 * (side // 2) ** 4 * 16
    rest = count[1] - doors - time - pairs
    for p in (2, 4):
        assert count[p] == doors + time + rest / p**2 + pairs / p**4
    assert 3.5 < count[1] / count[2] < 4.5


def test_sizes_of_the_levels():
    """eq:odd-size: the stride-2 convolution of the net rounds up, for every size; patches, too."""
    shrink = nets.UNet(1, width=4, mults=(1, 1)).shrink[0]
    for size in range(1, 41):
        out = shrink(torch.zeros(1, 4, size, 1)).shape[2]
        assert out == (size + 1) // 2
        for p in (1, 2, 3, 4):
            padded = F.pad(torch.zeros(1, 1, size, p), (0, 0, 0, -size % p))
            assert F.pixel_unshuffle(padded, p).shape[2] == math.ceil(size / p)


def bare(levels, blocks, patch=1):
    """The convolutions of a U-Net with positive weights: no norm and no attention."""
    net = nets.UNet(1, width=4, mults=(1,) * levels, blocks=blocks, patch=patch).double()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    net.enter.attend = None
    for i, p in enumerate(net.parameters()):
        scale = p[0].numel() if p.ndim == 4 else 10
        p.data = torch.rand(p.shape, generator=seeded(i), dtype=D) / scale
    return net


def reach(net, side):
    """Rows of the input on which one row of the middle map depends, by its gradient."""
    kept = []
    net.leave.register_forward_hook(lambda module, inputs, output: kept.append(output))
    x = torch.rand(1, 1, side, 8, generator=seeded(), dtype=D, requires_grad=True)
    net(x, torch.full((1,), 0.5, dtype=D))
    (slope,) = torch.autograd.grad(kept[0][0, :, kept[0].shape[2] // 2].sum(), x)
    rows = slope[0, 0].abs().sum(1).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_receptive_field_by_gradients(levels, blocks):
    """eq:receptive-field as a sum over the layers on the way, eq:receptive-unet in closed form;
    and the gradient of the middle map reaches as many rows of the input.
    """
    layers = [(3, 1)] + [(3, 1)] * 2 * blocks
    for _ in range(1, levels):
        layers += [(3, 2)] + [(3, 1)] * 2 * blocks
    layers += [(3, 1)] * 4
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    assert field == 1 + 4 * blocks * (2**levels - 1) + 5 * 2**levels
    assert reach(bare(levels, blocks), 2 * field) == field


def test_receptive_field_of_patches():
    """With patches of p the field is p times as many pixels."""
    assert reach(bare(2, 1, patch=2), 136) == 2 * 33


def block_weights(i, o, e):
    return 9 * i * o + 9 * o * o + 2 * e * o + 2 * i + 6 * o + (i * o + o if i != o else 0)


@pytest.mark.parametrize(
    ("w", "mults", "blocks", "attention", "classes", "context", "patch", "channels"),
    [
        (40, (1, 2), 1, (1,), None, None, 2, 1),
        (40, (1, 2), 1, (1,), 10, None, 2, 1),
        (8, (1, 2, 2), 2, (0, 2), None, 5, 1, 3),
        (16, (1,), 1, (), 4, None, 3, 2),
    ],
)
def test_number_of_weights(w, mults, blocks, attention, classes, context, patch, channels):
    """eq:weights-block, eq:weights-attention: added up over the net, they are its weights."""
    net = nets.UNet(
        channels, width=w, mults=mults, blocks=blocks, attention=attention, classes=classes,
        context=context, patch=patch,
    )  # fmt: skip
    e, pixel = 4 * w, channels * patch**2
    look = (lambda c: 2 * c * c + 2 * c * context + 6 * c) if context else (lambda c: 0)

    def attend(c):
        return 4 * c * c + 6 * c + look(c)

    total = e * e + 66 * e + (0 if classes is None else (classes + 1) * e)
    total += 9 * pixel * w + w
    now, shortcuts = w, [w]
    for level, m in enumerate(mults):
        if level:
            total += 9 * now * now + now
            shortcuts.append(now)
        for _ in range(blocks):
            total += block_weights(now, w * m, e) + (attend(w * m) if level in attention else 0)
            now = w * m
            shortcuts.append(now)
    total += 2 * block_weights(now, now, e) + attend(now)
    for level, m in reversed(list(enumerate(mults))):
        for _ in range(blocks + 1):
            total += block_weights(now + shortcuts.pop(), w * m, e)
            total += attend(w * m) if level in attention else 0
            now = w * m
        total += 9 * now * now + now if level else 0
    total += 2 * now + 9 * now * pixel + pixel
    assert sum(p.numel() for p in net.parameters()) == total


# ---- conditions ----------------------------------------------------------------------------------


def test_zero_tokens_add_one_value():
    """eq:zero-tokens: whatever their number, tokens of zeros add W b_V + b to every pixel."""
    block = perturbed(nets.CrossAttention(8, 3, heads=2))
    h = data(2, 8, 3, 4)
    value = block.key_value.bias[8:]
    want = h + (block.out.weight @ value + block.out.bias)[:, None, None]
    for count in (1, 2, 7):
        context = nets.Context(torch.zeros(2, count, 3, dtype=D), torch.ones(2, count).bool())
        torch.testing.assert_close(block(h, context), want, rtol=1e-12, atol=1e-12)


def test_the_null_class_learns_the_mixture():
    """eq:null-class: least squares with dropped labels, solved exactly on a table of five points.

    The unknowns are the outputs for every pair (state of x_t, label or null); the solution for the
    null label is the mean over the classes, and the share that is dropped does not matter.
    """
    rng = seeded(3)
    joint = torch.rand(5, 2, 4, generator=rng, dtype=D)  # x_t, class, x_0
    joint = joint / joint.sum()
    x0 = vector(-1.0, 0.0, 0.5, 2.0)
    for p in (0.1, 0.5):
        rows, weights, targets = [], [], []
        for x in range(5):
            for c in range(2):
                for k in range(4):
                    for label, share in ((c, 1 - p), (2, p)):
                        rows.append(F.one_hot(torch.tensor(3 * x + label), 15).to(D))
                        weights.append(joint[x, c, k] * share)
                        targets.append(x0[k])
        a, root, b = torch.stack(rows), torch.stack(weights).sqrt(), torch.stack(targets)
        solved = torch.linalg.lstsq(a * root[:, None], b * root).solution.reshape(5, 3)
        given = (joint * x0).sum(2) / joint.sum(2)  # E[x_0 | x_t, c]
        share = joint.sum(2) / joint.sum((1, 2))[:, None]  # p(c | x_t)
        torch.testing.assert_close(solved[:, :2], given, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(solved[:, 2], (share * given).sum(1), rtol=1e-9, atol=1e-9)


# ---- what is predicted ---------------------------------------------------------------------------


def test_three_errors_of_one_guess():
    """eq:v-error: one guess has errors in v, in eps and in x0; the ratios are the level's."""
    x0, eps, guess = data(5, 3), data(5, 3, seed=1), data(5, 3, seed=2)  # a guess of v
    for turn in (0.05, 0.6, 1.5):
        s, n = math.cos(turn), math.sin(turn)
        x, v = s * x0 + n * eps, s * eps - n * x0
        at = md.Level(*vector(s, n, 0.0, 0.0))
        guess_x0 = md.to_x0("v", guess, x, at)
        guess_eps = (x - s * guess_x0) / n
        off_v = (guess - v).square()
        torch.testing.assert_close((guess_x0 - x0).square(), n**2 * off_v, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close((guess_eps - eps).square(), s**2 * off_v, rtol=1e-9, atol=1e-11)


def test_the_floor_of_v():
    """eq:v-floor: the variance of v that x_t leaves, for Gaussian data, by the joint covariance;
    and the loss of the oracle, to four standard errors of 200,000 squares.
    """
    for c in (0.3, 0.7, 1.0):
        prior = torch.diag(vector(c**2, 1.0))  # of x0 and eps
        for turn in (0.0, 0.4, 1.2, math.pi / 2):
            s, n = math.cos(turn), math.sin(turn)
            rows = torch.tensor([[s, n], [-n, s]], dtype=D)  # x_t and v
            cov = rows @ prior @ rows.T
            left = float(cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0])
            floor = c**2 / (s**2 * c**2 + n**2)
            assert left == pytest.approx(floor, rel=1e-12)
    c, t, path = 0.7, 0.4, md.Cosine()
    gauss = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(c, dtype=D))
    at, rng = path(torch.tensor(t, dtype=D)), seeded(5)
    x0 = gauss.sample(200_000, rng=rng)
    eps = md.tensors.randn_like(x0, rng)
    x = md.diffuse(at, x0, eps)
    best = md.from_x0("v", gauss.denoiser(path)(x, t), x, at)
    off = (best - (at.signal * eps - at.noise * x0)).square()
    floor = c**2 / float(at.signal**2 * c**2 + at.noise**2)
    assert abs(float(off.mean()) - floor) < 4 * float(off.std()) / math.sqrt(200_000) < 0.02


# ---- measuring -----------------------------------------------------------------------------------


def exactly(cov, n, seed):
    """Points with mean 0 and exactly this covariance."""
    x = data(n, len(cov), seed=seed)
    x = x - x.mean(0)
    own = x.T @ x / (n - 1)
    return x @ torch.linalg.inv(torch.linalg.cholesky(own)).T @ torch.linalg.cholesky(cov).T


def test_frechet_of_nearly_equal_covariances():
    """eq:fd-second-order: what it leaves out is of third order, so the relative error halves."""
    a, b = data(5, 5), data(5, 5, seed=1)
    a, b, root = a + a.T, b + b.T, vector(4.0, 2.0, 1.0, 0.7, 0.5)
    off = []
    for size in (1e-3, 5e-4):
        first, second = (exactly(torch.diag(root) + size * e, 40, 2) for e in (a, b))
        exact = metrics.frechet_distance(first, second)
        short = (size * (a - b)).square() / (2 * (root[:, None] + root))
        off.append(exact / float(short.sum()) - 1)
    assert abs(off[0]) < 0.005 and off[0] / off[1] == pytest.approx(2, rel=0.1)


def test_frechet_of_two_samples_of_one_gaussian():
    """eq:fd-bias for four features with unequal variances and unequal counts, 1,500 pairs of sets.

    Four standard errors of the mean are about 5 %; what the expansion leaves out is of the order
    1 / N of the value, well below.
    """
    n, m, repeats = 600, 1200, 1500
    root = vector(4.0, 1.0, 0.5, 0.1)
    rng, found = seeded(7), []
    for _ in range(repeats):
        a = torch.randn(n, 4, generator=rng, dtype=D) * root.sqrt()
        b = torch.randn(m, 4, generator=rng, dtype=D) * root.sqrt()
        found.append(metrics.frechet_distance(a, b))
    found = vector(*found)
    both = root[:, None] * root / (root[:, None] + root)
    want = (1.25 * float(root.sum()) + 0.5 * float(both.sum())) * (1 / n + 1 / m)
    error = 4 * float(found.std()) / math.sqrt(repeats)
    assert abs(float(found.mean()) - want) < error < 0.1 * want
    alone = (4 + 4 * 5 / 4) * (1 / n + 1 / m)  # eigenvalues 1: D + D (D + 1) / 4
    ones = torch.full((4, 4), 0.5, dtype=D)
    assert (1.25 * 4 + 0.5 * float(ones.sum())) * (1 / n + 1 / m) == pytest.approx(alone)
