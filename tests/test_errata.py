"""Each entry of book/errata.md evaluates the printed and the corrected form.

Nothing here imports minidiff: the truths are Bayes' rule, closed-form Gaussians, finite sums and
automatic differentiation, written out in float64. `says` ties the figures on the page to the values
computed here, so a figure on the page cannot differ from what its test measures. Tolerances of
1e-9 and below are rounding.
"""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, kl_divergence

PAGE = Path(__file__).resolve().parents[1] / "book" / "errata.md"
torch_double = {"dtype": torch.float64}

# The table of the lectures: T = 1000, beta from 1e-4 to 0.02. Entry t is step t; entry 0 is
# clean data.
T = 1000
BETA = torch.cat([torch.zeros(1, **torch_double), torch.linspace(1e-4, 0.02, T, **torch_double)])
ALPHA = 1 - BETA
ABAR = ALPHA.cumprod(0)
BETA_TILDE = torch.zeros_like(BETA)
BETA_TILDE[1:] = (1 - ABAR[:-1]) / (1 - ABAR[1:]) * BETA[1:]


def sections():
    """The page's entries, by label.

    The text from one `(slip-...)=` or `(loose-...)=` to the next heading's.
    """
    parts = re.split(r"^\(((?:slip|loose)-[a-z0-9-]+)\)=$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        name: re.split(r"^## ", text, flags=re.MULTILINE)[0]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def says(entry, *figures):
    """Each figure, as formatted by its test, stands as a number of its own in the page's entry."""
    text = sections()[entry]
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", text), (
            f"{entry}: the page does not say {figure}"
        )


def test_page_and_tests_are_the_same_set():
    """An entry without a test fails here, and so does a test without an entry."""
    entries = sections()
    tests = {name for name in globals() if name.startswith(("test_slip_", "test_loose_"))}
    assert {"test_" + name.replace("-", "_") for name in entries} == tests
    for name, text in entries.items():
        assert f"tests/test_errata.py::test_{name.replace('-', '_')}" in text, (
            f"{name} does not name its test"
        )
    slips = sum(name.startswith("slip") for name in entries)
    assert f"**{slips} slips**" in PAGE.read_text()
    assert f"**{len(entries) - slips} loose statements**" in PAGE.read_text()


def gaussian_bayes(t, s, x_t, x0):
    """Mean and variance of q(x_s | x_t, x0) in one dimension: a product of two Gaussians in x_s."""
    keep = (ABAR[t] / ABAR[s]).sqrt()
    forward = 1 - keep**2
    precision = keep**2 / forward + 1 / (1 - ABAR[s])
    mean = (keep * x_t / forward + ABAR[s].sqrt() * x0 / (1 - ABAR[s])) / precision
    return mean, 1 / precision


def exact_eps(t, std=1.0):
    """E[eps | x_t] = k x_t for data N(0, std^2); this returns k."""
    return (1 - ABAR[t]).sqrt() / (ABAR[t] * std**2 + 1 - ABAR[t])


def final_std(step_gain, step_var):
    """Std of x_0 when x_{t-1} = gain(t) x_t + sqrt(var(t)) z starts from N(0, 1).

    A linear chain, iterated exactly.
    """
    var = 1.0
    for t in range(T, 0, -1):
        var = float(step_gain(t)) ** 2 * var + float(step_var(t))
    return math.sqrt(var)


def normal_log_prob(x, mean, var):
    return -0.5 * math.log(2 * math.pi * var) - (x - mean) ** 2 / (2 * var)


# ------------------------------------------------------------------ All About Diffusion


def test_slip_beta_zero():
    """Steps 1..T need T betas; counting from beta_0 gives T + 1 and another alpha-bar_T."""
    printed = torch.linspace(1e-4, 0.02, T + 1, **torch_double)
    assert len(printed) == 1001 and len(BETA[1:]) == T
    wrong, right = (1 - printed[1:]).prod(), ABAR[T]
    assert abs(1 - wrong / right) > 0.009
    says("slip-beta-zero", "1001", f"{float(1 - wrong / right):.1%}".rstrip("%"))


def test_slip_bound_expectation():
    """The bound holds for each x0; with x0 averaged on the right only, x0 = 3 breaks it.

    One step, data and prior N(0, 1), the model the exact reversal: the bound is tight at every x0.
    """
    beta = 0.3
    keep = math.sqrt(1 - beta)

    def bound(x0):  # E over q(x1 | x0), by 40-point Gauss-Hermite quadrature: exact for a quadratic
        import numpy as np

        z, w = np.polynomial.hermite_e.hermegauss(40)
        x1 = keep * x0 + math.sqrt(beta) * z
        log_ratio = (
            normal_log_prob(x1, 0, 1)
            + normal_log_prob(x0, keep * x1, beta)
            - normal_log_prob(x1, keep * x0, beta)
        )
        return float(-(w * log_ratio).sum() / w.sum())

    nll = -normal_log_prob(3.0, 0, 1)
    average = 0.5 * math.log(
        2 * math.pi * math.e
    )  # E over q(x0) too: bound(x0) = 0.5 log 2 pi + x0^2 / 2
    assert nll > average + 3  # printed: the "bound" lies under what it bounds
    for x0 in (-1.0, 0.0, 3.0):
        assert bound(x0) == pytest.approx(-normal_log_prob(x0, 0, 1), abs=1e-12)
    says("slip-bound-expectation", f"{nll:.2f}", f"{average:.2f}")


def exact_chain_terms(betas, x0):
    """L_T, [L_1 .. L_{T-1}], L_0 at x0 for data N(0, 1) and the exact reversal N(sqrt(alpha)
    x_t, beta).
    """
    alphas = [1 - b for b in betas]
    abar = [1.0]
    for a in alphas:
        abar.append(abar[-1] * a)
    last = abar[-1]
    L_T = 0.5 * (last * x0**2 + (1 - last) - 1 - math.log(1 - last))
    middle = []
    for t in range(2, len(betas) + 1):
        a, b, at, as_ = alphas[t - 1], betas[t - 1], abar[t], abar[t - 1]
        var = (1 - as_) / (1 - at) * b
        on_x0, on_xt = math.sqrt(as_) * b / (1 - at), math.sqrt(a) * (1 - as_) / (1 - at)
        gap = on_xt - math.sqrt(a)
        second_moment = (on_x0 * x0 + gap * math.sqrt(at) * x0) ** 2 + gap**2 * (1 - at)
        middle.append(0.5 * (math.log(b / var) + (var + second_moment) / b - 1))
    b = betas[0]
    L_0 = 0.5 * math.log(2 * math.pi * b) + (b**2 * x0**2 + (1 - b) * b) / (2 * b)
    return L_T, middle, L_0


def test_slip_bound_brackets():
    """The sum of the terms is -log p(x0), exactly, only when -log p(x0 | x1) stands once."""
    betas, x0 = [0.1, 0.2, 0.3, 0.4], 1.0
    L_T, middle, L_0 = exact_chain_terms(betas, x0)
    truth = -normal_log_prob(x0, 0, 1)
    right = L_T + sum(middle) + L_0
    printed = L_T + sum(term + L_0 for term in middle)
    assert right == pytest.approx(truth, abs=1e-12)
    assert printed - truth == pytest.approx((len(betas) - 2) * L_0, abs=1e-12)
    assert abs(printed - truth) > 0.5
    says("slip-bound-brackets", f"{truth:.3f}", f"{printed:.3f}")


def test_slip_sigma_squared():
    """KL of two Gaussians with one covariance sigma^2 I is |difference|^2 / (2 sigma^2)."""
    var, shift = 0.02, torch.tensor([0.1, -0.2, 0.05], **torch_double)
    cov = var * torch.eye(3, **torch_double)
    truth = kl_divergence(MultivariateNormal(shift, cov), MultivariateNormal(0 * shift, cov))
    right = shift.square().sum() / (2 * var)
    assert torch.allclose(right, truth, rtol=1e-12)
    spectral = shift.square().sum() / (2 * torch.linalg.matrix_norm(cov, 2) ** 2)
    frobenius = shift.square().sum() / (2 * torch.linalg.matrix_norm(cov) ** 2)
    assert spectral / truth > 49 and frobenius / truth > 16
    says("slip-sigma-squared", f"{float(spectral / truth):.0f}", f"{float(frobenius / truth):.1f}")


def test_slip_error_weight():
    """The weight is what turns |eps - eps_theta|^2 into the KL of the two reverse Gaussians."""
    for t in (2, 500, T):
        x_t, eps, eps_model = 0.7, 0.3, -0.4

        def mean(e, t=t, x_t=x_t):
            x0 = (x_t - (1 - ABAR[t]).sqrt() * e) / ABAR[t].sqrt()
            return gaussian_bayes(t, t - 1, x_t, x0)[0]

        truth = (mean(eps) - mean(eps_model)) ** 2 / (2 * BETA_TILDE[t])
        error = (eps - eps_model) ** 2
        right = BETA[t] ** 2 / (2 * BETA_TILDE[t] * ALPHA[t] * (1 - ABAR[t])) * error
        printed = BETA[t] ** 2 / (2 * BETA_TILDE[t] * (1 - ABAR[t])) * error
        # 1e-8: the mean is a difference of numbers of the size of 1/sqrt(alpha-bar), 157 at t = T
        assert torch.allclose(right, truth, rtol=1e-8)
        assert not torch.allclose(printed, truth, rtol=1e-5)
    assert BETA.argmax() == T  # so the error, 1 - alpha_t, is largest at the last step
    says("slip-error-weight", f"{float(1 - printed / truth):.0%}".rstrip("%"))


def test_slip_sampler_alpha_bar():
    """With the exact noise for data N(0, std^2) the corrected box returns the data's std, the
    printed one does not.
    """

    def printed(std):
        return lambda t: (
            (1 - (1 - ABAR[t]) / (1 - ABAR[t]).sqrt() * exact_eps(t, std)) / ABAR[t].sqrt()
        )

    def right(std):
        return lambda t: (1 - BETA[t] / (1 - ABAR[t]).sqrt() * exact_eps(t, std)) / ALPHA[t].sqrt()

    got = {
        std: (
            final_std(printed(std), lambda t: BETA_TILDE[t]),
            final_std(right(std), lambda t: BETA_TILDE[t]),
        )
        for std in (0.5, 1.0, 2.0)
    }
    for std, (wrong, fine) in got.items():
        assert fine == pytest.approx(
            std, rel=0.01
        )  # the under-dispersion of 1000 ancestral steps is below 1 %
        assert wrong < 0.25 * std or wrong > 1e12 * std
    # and one step: the corrected mean is the posterior mean of Bayes' rule
    t, x_t, eps = 500, 0.4, -1.1
    x0 = (x_t - (1 - ABAR[t]).sqrt() * eps) / ABAR[t].sqrt()
    mean = (x_t - BETA[t] / (1 - ABAR[t]).sqrt() * eps) / ALPHA[t].sqrt()
    assert torch.allclose(mean, gaussian_bayes(t, t - 1, x_t, x0)[0], rtol=1e-10)
    mantissa, exponent = f"{got[2.0][0]:.1e}".split("e+")
    says(
        "slip-sampler-alpha-bar",
        f"{got[0.5][0]:.2f}",
        f"{got[1.0][0]:.2f}",
        f"{got[0.5][1]:.3f}",
        f"{got[1.0][1]:.3f}",
        rf"{mantissa}\cdot 10^{{{exponent}}}",
    )


def two_classes(x, t=None, gap=1.0):
    """log p(x, y=1), log p(x, y=2) of two equal classes N(+-gap, 1), diffused to step t (t=None.

    Clean).
    """
    signal2 = ABAR[t] if t is not None else torch.tensor(1.0, **torch_double)
    var = signal2 + (1 - signal2)
    means = torch.tensor([gap, -gap], **torch_double) * signal2.sqrt()
    return math.log(0.5) + normal_log_prob(x[..., None], means, float(var))


def grad(f, x):
    x = torch.as_tensor(x, **torch_double).requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def test_slip_guided_score():
    """Writing gamma into Bayes' rule changes its left side.

    The conditional score becomes the guided one.
    """

    def log_p(x):
        return two_classes(x).logsumexp(-1)

    def log_y(x):
        return two_classes(x).log_softmax(-1)[..., 0]

    def log_p_given_y(x):
        return two_classes(x)[..., 0] - math.log(0.5)

    gamma, x = 3.0, 0.0
    conditional, unconditional, classifier = grad(log_p_given_y, x), grad(log_p, x), grad(log_y, x)
    assert torch.allclose(conditional, unconditional + classifier, atol=1e-12)  # gamma = 1: Bayes
    guided = unconditional + gamma * classifier
    assert abs(guided - conditional) > 1.9  # printed as equal
    assert torch.allclose(guided, grad(lambda x: log_p(x) + gamma * log_y(x), x), atol=1e-12)
    assert torch.allclose(guided, gamma * conditional + (1 - gamma) * unconditional, atol=1e-12)
    # the boxed line of the second derivation: gamma * classifier = conditional - unconditional
    assert abs(gamma * classifier - (conditional - unconditional)) > 1.9
    says("slip-guided-score", f"{float(conditional):.0f}", f"{float(guided):.0f}")


def test_slip_partial_noise():
    """Noising the source loses the condition; noising the target keeps it bit for bit."""
    z0 = torch.linspace(-2, 2, 6, **torch_double)
    source = torch.tensor([True, True, True, False, False, False])
    eps = torch.linspace(1, -1, 6, **torch_double)
    noised = ABAR[T].sqrt() * z0 + (1 - ABAR[T]).sqrt() * eps
    printed, right = torch.where(source, noised, z0), torch.where(source, z0, noised)
    assert torch.equal(right[source], z0[source])
    assert torch.equal(printed[~source], z0[~source])  # the answer stands in the input
    assert ABAR[T].sqrt() < 0.01
    says("slip-partial-noise", f"{float(ABAR[T].sqrt()):.4f}")


def test_slip_csdi_variance():
    """CSDI's sigma is a standard deviation, so the covariance is sigma^2 I.

    Data N(0, 1), exact noise.
    """

    def gain(t):
        return (1 - BETA[t] / (1 - ABAR[t]).sqrt() * exact_eps(t)) / ALPHA[t].sqrt()

    printed, right = (
        final_std(gain, lambda t: BETA_TILDE[t].sqrt()),
        final_std(gain, lambda t: BETA_TILDE[t]),
    )
    assert right == pytest.approx(1, rel=0.01) and printed > 2
    says("slip-csdi-variance", f"{right:.3f}", f"{printed:.1f}")


def forward_diffusion_sample(x_0, t, noise):
    """The lecture's function, with its noise handed in; t counts from 0, so row t is step t + 1."""
    return ABAR[t + 1].sqrt() * x_0 + (1 - ABAR[t + 1]).sqrt() * noise, noise


def test_slip_mean_plus_variance():
    """The factor of the noise is the standard deviation.

    The variance in its place leaves too little noise.
    """
    t = 100
    std, var = (1 - ABAR[t]).sqrt(), 1 - ABAR[t]
    eps = torch.tensor([1.0, -1.0], **torch_double)  # mean 0, variance 1
    assert torch.allclose((std * eps).square().mean(), var, rtol=1e-12)
    assert (var * eps).square().mean() < 0.2 * var
    says("slip-mean-plus-variance", f"{float(var):.3f}", f"{float(var**2):.3f}")


def test_slip_demo_renoise():
    """The loop run as printed and as meant, without noise.

    What is left of the picture in each panel.
    """
    image = original = torch.ones((), **torch_double)
    printed, right = [], []
    for idx in range(0, T, T // 10):
        image, _ = forward_diffusion_sample(image, idx, torch.zeros_like(image))
        printed.append(float(image))
        right.append(float(forward_diffusion_sample(original, idx, torch.zeros_like(image))[0]))
    for idx, meant in zip(range(0, T, T // 10), right, strict=True):
        assert meant == pytest.approx(float(ABAR[idx + 1].sqrt()), rel=1e-12)
    assert printed[0] == right[0] and all(
        p < r for p, r in zip(printed[2:], right[2:], strict=True)
    )
    says(
        "slip-demo-renoise",
        f"{right[4]:.2f}",
        f"{printed[4]:.2f}",
        f"{right[5]:.2f}",
        f"{printed[5]:.2f}",
    )


def test_slip_subplot_index():
    """Matplotlib wants an integer position; a true division gives a float."""
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plt.figure()
    idx, stepsize, num_images = 0, 30, 10
    with pytest.raises((ValueError, TypeError)):
        plt.subplot(1, num_images + 1, (idx / stepsize) + 1)
    plt.subplot(1, num_images + 1, idx // stepsize + 1)
    plt.close(figure)


def test_slip_l1_loss():
    """The L1 minimiser is the median of eps given x_t, not its mean.

    x0 is +1 (probability 0.7) or -1, alpha-bar = 1/2, x_t = 0: then eps = -x0, same weights.
    """
    eps, weight = (
        torch.tensor([-1.0, 1.0], **torch_double),
        torch.tensor([0.7, 0.3], **torch_double),
    )
    grid = torch.linspace(-1.2, 1.2, 2401, **torch_double)
    l1 = grid[((grid[:, None] - eps).abs() * weight).sum(-1).argmin()]
    l2 = grid[((grid[:, None] - eps).square() * weight).sum(-1).argmin()]
    x = torch.zeros((), **torch_double)
    root = math.sqrt(0.5)

    def log_q(x):
        means = torch.tensor([root, -root], **torch_double)
        return (weight.log() + normal_log_prob(x[..., None], means, 0.5)).logsumexp(-1)

    score = grad(log_q, x)
    assert torch.allclose(-l2 / root, score, atol=1e-3)  # the grid's pitch
    assert abs(-l1 / root - score) > 0.8
    says("slip-l1-loss", f"{float(l2):.1f}", f"{float(l1):.0f}", f"{float(-l1 / root / score):.1f}")


# ------------------------------------------------------------------ Diffusion Models for Generation


def test_slip_posterior_without_x0():
    """q(x_{t-1} | x_t), without x0, for data N(0, 1), by conditioning the joint Gaussian."""
    for t in (1, 2, 500):
        # x_{t-1} ~ N(0, 1), x_t = sqrt(alpha) x_{t-1} + sqrt(beta) z: both variances 1,
        # covariance sqrt(alpha)
        true_var = 1 - ALPHA[t]
        assert torch.allclose(true_var, BETA[t], atol=1e-15)
        assert BETA_TILDE[t] < true_var * (1 - 1e-4)
    assert BETA_TILDE[1] == 0  # printed: no uncertainty at all about x0 once x1 is seen
    # with x0 given, the printed numbers are Bayes' rule
    t, x_t, x0 = 2, 0.3, -0.8
    mean, var = gaussian_bayes(t, t - 1, x_t, x0)
    assert torch.allclose(var, BETA_TILDE[t], rtol=1e-10)
    printed_mean = (
        ABAR[t - 1].sqrt() * BETA[t] * x0 + ALPHA[t].sqrt() * (1 - ABAR[t - 1]) * x_t
    ) / (1 - ABAR[t])
    assert torch.allclose(mean, printed_mean, rtol=1e-10)
    says("slip-posterior-without-x0", f"{float(BETA_TILDE[2] / BETA[2]):.2f}")


def test_slip_mean_sees_x0():
    """mu_theta(x_t, t) is one number.

    Mu-tilde takes another value for another x0. Its mean is at x0 = E[x0 | x_t].
    """
    t, x_t = 500, 0.3
    means = [float(gaussian_bayes(t, t - 1, x_t, x0)[0]) for x0 in (-1.0, 1.0)]
    assert means[1] - means[0] > 1e-3  # printed: both equal mu_theta(x_t, t)
    x0_given_xt = ABAR[t].sqrt() * x_t  # E[x0 | x_t] for data N(0, 1)
    right = gaussian_bayes(t, t - 1, x_t, x0_given_xt)[0]
    assert torch.allclose(
        right, ALPHA[t].sqrt() * x_t, rtol=1e-10
    )  # E[x_{t-1} | x_t] of the joint Gaussian
    says("slip-mean-sees-x0", f"{means[1] - means[0]:.4f}")


# ------------------------------------------------------------------ Introduction to Diffusion


def test_slip_conjugate():
    """min over x of lambda x - f(x), f the line itself, is -b whatever b.

    With log x it is 1 + log lambda.
    """
    lam = 0.5
    x = torch.linspace(0.01, 20, 200_001, **torch_double)
    for b in (-3.0, 0.0, 5.0):
        assert float((lam * x - (lam * x + b)).min()) == pytest.approx(-b, abs=1e-12)
    conjugate = float((lam * x - x.log()).min())
    assert conjugate == pytest.approx(1 + math.log(lam), abs=1e-8)
    gap = lam * x - conjugate - x.log()
    assert gap.min() > -1e-12 and gap.min() < 1e-8  # an upper bound that touches
    assert float((lam * x + 5.0 - x.log()).min()) > 5  # b = 5: above, never tight
    assert float((lam * x - 3.0 - x.log()).min()) < -2  # b = -3: not even a bound
    says("slip-conjugate", f"{conjugate:.3f}")


def test_slip_elbo_numerator():
    """A two-state latent, every term a finite sum.

    The missing factor is the entropy of q(z | x).
    """
    prior, likelihood = (
        torch.tensor([0.6, 0.4], **torch_double),
        torch.tensor([0.2, 0.9], **torch_double),
    )
    q = torch.tensor([0.5, 0.5], **torch_double)
    joint = prior * likelihood
    evidence, posterior = joint.sum(), joint / joint.sum()
    truth = -evidence.log()
    printed = -(q * (joint / (q * posterior)).log()).sum()
    right = -(q * (joint * q / (q * posterior)).log()).sum()
    split = -(q * (joint / q).log()).sum() - (q * (q / posterior).log()).sum()
    assert torch.allclose(right, truth, rtol=1e-12) and torch.allclose(split, truth, rtol=1e-12)
    entropy = -(q * q.log()).sum()
    assert torch.allclose(truth - printed, entropy, rtol=1e-12)
    says(
        "slip-elbo-numerator",
        f"{float(truth):.3f}",
        f"{float(printed):.3f}",
        f"{float(entropy):.3f}",
    )


def test_slip_prior_subscript():
    """KL(q(x_t | x0) || N(0, 1)) is the bound's first term at t = T only; x0 = 1."""

    def kl(t):
        return 0.5 * (ABAR[t] - (1 - ABAR[t]).log() + (1 - ABAR[t]) - 1)

    betas, x0 = [0.1, 0.2, 0.3, 0.4], 1.0
    L_T, middle, L_0 = exact_chain_terms(betas, x0)
    truth = -normal_log_prob(x0, 0, 1)
    assert L_T + sum(middle) + L_0 == pytest.approx(truth, abs=1e-12)
    L_1 = exact_chain_terms(betas[:1], x0)[0]  # the first term with t = 1 instead of T
    assert abs(L_1 + sum(middle) + L_0 - truth) > 0.5
    assert kl(1) > 1e5 * kl(T)
    mantissa, exponent = f"{float(kl(T)):.0e}".split("e-0")
    says("slip-prior-subscript", f"{float(kl(1)):.1f}", rf"{mantissa}\cdot 10^{{-{exponent}}}")


def test_slip_exponent_sign():
    """Bayes' rule divides by q(x_t | x0), so its square enters with a minus."""
    t, x_t, x0 = 500, 0.9, -0.5
    at, as_ = ABAR[t], ABAR[t - 1]
    x_s = torch.tensor([-1.0, 0.2, 1.7], **torch_double)
    mean, var = gaussian_bayes(t, t - 1, x_t, x0)
    truth = -0.5 * (x_s - mean) ** 2 / var
    kept = (x_t - ALPHA[t].sqrt() * x_s) ** 2 / BETA[t] + (x_s - as_.sqrt() * x0) ** 2 / (1 - as_)
    last = (x_t - at.sqrt() * x0) ** 2 / (1 - at)
    right, printed = -0.5 * (kept - last), -0.5 * (kept + last)
    assert torch.allclose(right, truth, rtol=1e-10, atol=1e-10)
    gap = printed - truth
    assert (gap.abs() > 1).all()
    assert torch.allclose(
        gap, gap[0].expand(3), atol=1e-9
    )  # constant in x_{t-1}: the conclusion survives
    assert torch.allclose(gap[0], -last, atol=1e-9)
    says("slip-exponent-sign", f"{float(last):.2f}")


def test_slip_mean_in_eps():
    """From mu-tilde(x_t, x0) to mu-tilde(x_t, eps).

    Each line of the appendix against Bayes' rule.
    """
    t, x0, eps = 500, -0.5, 0.8
    x_t = ABAR[t].sqrt() * x0 + (1 - ABAR[t]).sqrt() * eps
    truth = gaussian_bayes(t, t - 1, x_t, x0)[0]
    a, b, at, as_ = ALPHA[t], BETA[t], ABAR[t], ABAR[t - 1]
    on_eps = b / ((1 - at).sqrt() * a.sqrt())
    line_printed = (a.sqrt() * (1 - as_) / (1 - at) + b / (1 - at)) * x_t - on_eps * eps
    line_right = (a.sqrt() * (1 - as_) / (1 - at) + b / ((1 - at) * a.sqrt())) * x_t - on_eps * eps
    share = (a - at + b) / (1 - at)  # 1: what the next line uses
    assert torch.allclose(share, torch.ones_like(share), rtol=1e-12)
    second_printed = share / at.sqrt() * x_t - on_eps * eps
    assert torch.allclose(share / a.sqrt() * x_t - on_eps * eps, truth, rtol=1e-10)
    last_printed = (x_t - b / (1 - at).sqrt() * eps) / at.sqrt()
    last_right = (x_t - b / (1 - at).sqrt() * eps) / a.sqrt()
    assert torch.allclose(line_right, truth, rtol=1e-10) and torch.allclose(
        last_right, truth, rtol=1e-10
    )
    assert abs(line_printed - truth) > 1e-5
    assert abs(second_printed - truth) > 1 and abs(last_printed - truth) > 1
    says(
        "slip-mean-in-eps",
        f"{float(last_printed):.2f}",
        f"{float(second_printed):.2f}",
        f"{float(truth):.2f}",
        f"{float((a / at).sqrt()):.1f}",
    )


def p_sample_mean(x_t, model, t, printed):
    """The mean of the lecture's p_sample, as printed and with the bracket where the algorithm
    has it.
    """
    c = BETA[t] / (1 - ABAR[t]).sqrt()
    if printed:
        return 1 / ALPHA[t].sqrt() * (x_t - c) * model(x_t)
    return 1 / ALPHA[t].sqrt() * (x_t - c * model(x_t))


def test_slip_p_sample_bracket():
    """Data N(0, 1), exact noise.

    The mean of q(x_{t-1} | x_t) is sqrt(alpha_t) x_t. Printed: even in x_t, nearly.
    """
    t = 500
    x = torch.tensor([-1.0, 1.0], **torch_double)
    printed, right = (
        p_sample_mean(x, lambda x: exact_eps(t) * x, t, flag) for flag in (True, False)
    )
    assert torch.allclose(right, ALPHA[t].sqrt() * x, rtol=1e-12)
    assert (printed > 0).all()  # a negative x_t is thrown to the other side
    says("slip-p-sample-bracket", f"{float(printed[0]):.2f}", f"{float(right[0]):.3f}".lstrip("-"))


def test_slip_last_step_noise():
    """clamp_min(t - 1, 0) reads alpha-bar_1 where alpha-bar_0 = 1 is meant.

    The last step is noisy.
    """
    abars = ABAR[1:]  # the lecture's arrays count from 0
    for t_minus_1 in (0, 1, 499):
        previous = abars[max(t_minus_1 - 1, 0)]
        printed = ((1 - previous) / (1 - abars[t_minus_1]) * BETA[t_minus_1 + 1]).sqrt()
        right = BETA_TILDE[t_minus_1 + 1].sqrt()
        if t_minus_1 > 0:
            assert torch.allclose(printed, right, rtol=1e-12)
        else:
            assert right == 0
            assert torch.allclose(printed, BETA[1].sqrt(), rtol=1e-12)
            says("slip-last-step-noise", f"{float(printed):.2f}")


@pytest.mark.parametrize("left_over", [3, 1])
def test_slip_last_batch(left_over):
    """t is drawn for a full batch.

    Three examples left: an error. One left: broadcast in silence to a full batch.
    """
    BATCH_SIZE = 8
    x_0 = torch.zeros(BATCH_SIZE + left_over, 2, **torch_double)
    batch = x_0[BATCH_SIZE : 2 * BATCH_SIZE]
    t = torch.full((BATCH_SIZE,), 5)
    abars = ABAR[1:]
    if left_over == 3:
        with pytest.raises(RuntimeError):
            abars[t - 1].sqrt().view(-1, 1) * batch
    else:
        assert (abars[t - 1].sqrt().view(-1, 1) * batch).shape == (BATCH_SIZE, 2)
    t = torch.full((len(batch),), 5)
    assert (abars[t - 1].sqrt().view(-1, 1) * batch).shape == batch.shape


# ---------------------------------------------------------- Some Applications of Diffusion Models


def test_slip_score_scale():
    """E[eps | x, y] = E[eps | x] - sqrt(1 - alpha-bar) grad log p(y | x), exactly.

    Two classes N(+-1, 1).
    """
    for t in (1, 500):
        x = torch.tensor(0.3, **torch_double)
        root = (1 - ABAR[t]).sqrt()
        eps = -root * grad(lambda x: two_classes(x, t).logsumexp(-1), x)  # noqa: B023
        eps_y = -root * grad(lambda x: two_classes(x, t)[..., 0], x)  # noqa: B023
        pull = grad(lambda x: two_classes(x, t).log_softmax(-1)[..., 0], x)  # noqa: B023
        # a check of eps_y that needs no score: regression of eps on x in class 1, x =
        # sqrt(abar) x0 + root eps
        assert torch.allclose(eps_y, root * (x - ABAR[t].sqrt()), atol=1e-12)
        right, printed = eps - root * pull, eps - pull
        assert torch.allclose(right, eps_y, atol=1e-12)
        assert abs(printed - eps_y) > (0.5 if t == 1 else 0.01)
        if t == 1:
            says(
                "slip-score-scale",
                f"{float(1 / root):.0f}",
                f"{float(eps_y):.4f}",
                f"{float(printed):.2f}",
            )


# ------------------------------------------------------------------ Theory and Applications


def test_slip_beta_bar():
    """The mean (x + beta score)/sqrt(alpha) with score = -eps / sqrt(1 - alpha-bar).

    Data N(0, 1).
    """
    ratios = {}
    for t in (2, 500, T):
        x = 0.7
        score, eps = -x, float(exact_eps(t)) * x
        truth = (x + BETA[t] * score) / ALPHA[t].sqrt()
        right = (x - BETA[t] / (1 - ABAR[t]).sqrt() * eps) / ALPHA[t].sqrt()
        printed = (x - BETA[t] / BETA[t].sqrt() * eps) / ALPHA[t].sqrt()
        assert torch.allclose(right, truth, rtol=1e-12)
        start = x / ALPHA[t].sqrt()
        ratios[t] = float(
            (printed - start) / (truth - start)
        )  # size of the correction, printed to true
        assert ratios[t] > 1.3
    says("slip-beta-bar", f"{ratios[T]:.1f}", f"{ratios[500]:.1f}")


# ------------------------------------------------------------------ Loose statements


def test_loose_large_t():
    """Many small steps do not make pure noise unless the betas' sum is large."""
    steps = torch.arange(1, 100_001, **torch_double)
    left = (1 - 1 / (steps + 1) ** 2).prod()
    assert left == pytest.approx(0.5, abs=1e-5)  # (T + 2) / (2 (T + 1))
    short = (1 - torch.linspace(1e-4, 0.02, 100, **torch_double)).prod()
    assert short > 0.3
    scaled = (1 - 10 * torch.linspace(1e-4, 0.02, 100, **torch_double)).prod()
    assert scaled < 1e-4  # the same sum of betas as 1000 steps
    says("loose-large-t", f"{float(short):.2f}", "0.5")


def test_loose_classifier_forms():
    """E[x_{t-1} | x_t, y] moves by beta / sqrt(alpha) grad log p(y | x_t), exactly.

    Sigma in its place is near, or 0.
    """
    for t in (2, 500):
        x = torch.tensor(0.3, **torch_double)
        pull = grad(lambda x: two_classes(x, t).log_softmax(-1)[..., 0], x)  # noqa: B023
        # class 1 is N(1, 1), so x_{t-1} and x_t have variance 1 and covariance sqrt(alpha)
        # within it
        given_y = ABAR[t - 1].sqrt() + ALPHA[t].sqrt() * (x - ABAR[t].sqrt())
        score = grad(lambda x: two_classes(x, t).logsumexp(-1), x)  # noqa: B023
        mean = (x + BETA[t] * score) / ALPHA[t].sqrt()
        exact = (given_y - mean).detach()
        assert torch.allclose(exact, BETA[t] / ALPHA[t].sqrt() * pull, rtol=1e-9, atol=1e-14)
        if t == 2:
            assert BETA_TILDE[t] * pull / exact < 0.5
            says("loose-classifier-forms", f"{float(BETA_TILDE[t] * pull / exact):.2f}")
        else:
            assert abs(BETA[t] * pull / exact - 1) < 0.01
    assert BETA_TILDE[1] == 0


def test_loose_guidance_scale():
    """w times a classifier on the unconditional noise is w - 1 in the classifier-free
    formula, not w.
    """
    t, x, w = 500, torch.tensor(0.3, **torch_double), 2.0
    root = (1 - ABAR[t]).sqrt()
    eps = -root * grad(lambda x: two_classes(x, t).logsumexp(-1), x)
    eps_y = -root * grad(lambda x: two_classes(x, t)[..., 0], x)
    pull = grad(lambda x: two_classes(x, t).log_softmax(-1)[..., 0], x)
    by_classifier = eps - root * w * pull

    def free(w):
        return (1 + w) * eps_y - w * eps

    assert torch.allclose(free(w - 1), by_classifier, atol=1e-12)
    assert abs(free(w) - by_classifier) > 0.1
    assert torch.allclose(
        eps_y - root * w * pull, free(w), atol=1e-12
    )  # a classifier on the conditional noise


def test_loose_reconstruction_term():
    """L_0 in bits of one 8-bit pixel.

    Data N(0, 0.5^2) on [-1, 1], bins 2/255, the exact reversal.
    """
    std, width = 0.5, 2 / 255
    var = 1 / (1 / std**2 + ABAR[1] / (1 - ABAR[1]))  # Var[x0 | x1]
    L_0 = 0.5 * math.log2(2 * math.pi * math.e * float(var)) - math.log2(width)
    total = 0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(width)
    assert 0.2 < L_0 / total < 0.4
    says("loose-reconstruction-term", f"{L_0:.1f}", f"{total:.1f}")


def test_loose_gaussian_convolution():
    """Variance of x_t for data of variance 4: the kernel acts on the shrunk data."""
    t, var0 = 500, 4.0
    truth = ABAR[t] * var0 + 1 - ABAR[t]
    unscaled = var0 + 1 - ABAR[t]
    x0 = torch.tensor([-2.0, 2.0], **torch_double)  # variance 4
    eps = torch.tensor(
        [[-1.0], [1.0]], **torch_double
    )  # every pair of the two: independent by construction
    x_t = ABAR[t].sqrt() * x0 + (1 - ABAR[t]).sqrt() * eps
    assert torch.allclose(x_t.square().mean(), truth, rtol=1e-12)
    assert unscaled > 3 * truth
    says("loose-gaussian-convolution", f"{float(truth):.2f}", f"{float(unscaled):.2f}")


def test_loose_annealed_langevin():
    """A Langevin step leaves N(0, 1) in place to second order in beta.

    TimeGrad's step at a fixed level does not.
    """
    for beta in (0.02, 0.002):
        # x -> gain x + sqrt(beta) z with score -x; the stationary variance is beta / (1 - gain^2)
        langevin, ancestral = 1 - beta / 2, (1 - beta) / math.sqrt(1 - beta)
        assert beta / (1 - langevin**2) == pytest.approx(1, abs=beta)
        drift_l, drift_a = (1 - langevin) / beta, (1 / math.sqrt(1 - beta) - ancestral) / beta
        assert drift_a / drift_l == pytest.approx(2, abs=2 * beta)
    beta, std2 = 0.02, 0.25  # a level whose marginal is N(0, 1/4): score -4 x
    gain = (1 - beta / std2) / math.sqrt(1 - beta)
    stays = beta / (1 - gain**2)
    assert beta / (1 - (1 - beta / (2 * std2)) ** 2) == pytest.approx(std2, rel=0.05)
    assert stays < 0.65 * std2
    says("loose-annealed-langevin", f"{stays:.2f}", f"{std2:.2f}")


def test_loose_first_skip():
    """The lecture's loop, with blocks that record.

    The first skip is the bottleneck itself, the full size is lost.
    """

    def net(x, append_first):
        pairs, skips = [], []
        for _ in range(3):  # down: halve
            if append_first:
                skips.append(x)
            x = x[..., ::2, ::2]
            if not append_first:
                skips.append(x)
        for _ in range(3):  # up: double
            skip = skips.pop()
            if append_first:
                x = F.interpolate(x, scale_factor=2)
            pairs.append((x, skip))
            if not append_first:
                x = F.interpolate(x, scale_factor=2)
        return pairs

    x = torch.arange(256.0).view(1, 1, 16, 16)
    printed, right = net(x, False), net(x, True)
    assert printed[0][0] is printed[0][1]
    assert max(skip.shape[-1] for _, skip in printed) == 8
    assert all(a is not b for a, b in right) and max(skip.shape[-1] for _, skip in right) == 16


def test_loose_embedding():
    """The formula's slowest frequency is n^-(d-2)/d, the code's is 1/n.

    The order of the columns differs too.
    """
    d, n = 32, 10_000
    formula = torch.tensor([n ** (-2 * i / d) for i in range(d // 2)], **torch_double)
    code = torch.exp(torch.arange(d // 2, **torch_double) * (-math.log(n) / (d // 2 - 1)))
    assert formula[0] == code[0] == 1
    assert 1 / code[-1] == pytest.approx(n, rel=1e-9)
    assert 1 / formula[-1] < 0.6 * n
    with pytest.raises(ZeroDivisionError):
        math.log(n) / (2 // 2 - 1)  # dim = 2
    says("loose-embedding", f"{float(1 / formula[-1]):.0f}", "10000")


def test_loose_batch_of_one():
    """`if t == 0` needs one number; a batch of times has no single truth value."""
    assert bool(torch.tensor([0]) == 0)
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(torch.tensor([0, 0]) == 0)


def test_loose_original_data():
    """Noise to step t, then the exact reversal for data N(0, 1): the covariance of start and end.

    The reversal is x_{t-1} = sqrt(alpha) x_t + sqrt(beta) z, iterated from the exact x_t.
    """
    figures = []
    for turn in (100, 500, T):
        var, cov = 1.0, float(ABAR[turn].sqrt())  # of x_t; of x_t with the x_0 it came from
        for t in range(turn, 0, -1):
            var = float(ALPHA[t]) * var + float(BETA[t])
            cov = float(ALPHA[t].sqrt()) * cov
        assert var == pytest.approx(1, abs=1e-12)  # a sample of the data
        assert cov == pytest.approx(float(ABAR[turn]), rel=1e-9)
        gap = 2 * var - 2 * cov  # printed: the data themselves, so 0; independent samples have 2
        assert gap > 0.2
        figures.append(cov)
    assert gap == pytest.approx(2, abs=1e-4)
    mantissa, exponent = f"{figures[2]:.0e}".split("e-0")
    says(
        "loose-original-data",
        f"{figures[0]:.2f}",
        f"{figures[1]:.2f}",
        rf"{mantissa}\cdot 10^{{-{exponent}}}",
    )


def test_loose_terms_average():
    """The terms at given x_1 .. x_T, and their average over q(x_t | x_0), for a tight chain."""
    betas, x0 = [0.1, 0.2, 0.3, 0.4], 1.0
    alphas = [1 - b for b in betas]
    abar = [math.prod(alphas[:t]) for t in range(len(betas) + 1)]
    L_T, middle, L_0 = exact_chain_terms(betas, x0)

    def terms(xs):  # -log p(x0 | x1), then each divergence given its x_t
        found = [-normal_log_prob(x0, math.sqrt(alphas[0]) * xs[0], betas[0])]
        for t in range(2, len(betas) + 1):
            a, b, at, as_, x_t = alphas[t - 1], betas[t - 1], abar[t], abar[t - 1], xs[t - 1]
            var = (1 - as_) / (1 - at) * b
            mean = (math.sqrt(as_) * b * x0 + math.sqrt(a) * (1 - as_) * x_t) / (1 - at)
            gap = mean - math.sqrt(a) * x_t
            found.append(0.5 * (math.log(b / var) + (var + gap**2) / b - 1))
        return found

    def path(eps):
        return [math.sqrt(at) * x0 + math.sqrt(1 - at) * eps for at in abar[1:]]

    # each term is quadratic in its own x_t, so the mean over eps = -1 and eps = 1 is its average
    average = [(a + b) / 2 for a, b in zip(terms(path(-1)), terms(path(1)), strict=True)]
    assert average == pytest.approx([L_0, *middle], abs=1e-12)
    truth = -normal_log_prob(x0, 0, 1)
    assert L_T + sum(average) == pytest.approx(truth, abs=1e-12)
    at_means, at_zero = L_T + sum(terms(path(0))), L_T + sum(terms([0.0] * len(betas)))
    assert truth - at_means > 0.5 and at_zero - truth > 5
    says("loose-terms-average", f"{truth:.3f}", f"{at_means:.3f}", f"{at_zero:.2f}")


def test_loose_first_weight():
    """lambda_t with both variances, and what stands at t = 1: -log p(x0 | x1), no divergence."""

    def weight(t, var):
        return BETA[t] ** 2 / (2 * var * ALPHA[t] * (1 - ABAR[t]))

    with_beta = torch.stack([weight(t, BETA[t]) for t in range(1, T + 1)])
    assert with_beta.argmax() == 0 and with_beta.max() < 0.51
    assert BETA_TILDE[1] == 0 and torch.isinf(weight(1, BETA_TILDE[1]))
    with_tilde = torch.stack([weight(t, BETA_TILDE[t]) for t in range(2, T + 1)])
    assert with_tilde.argmax() == 0 and torch.isfinite(with_tilde).all()
    # t = 1 by hand: the log-density of the x0 that gave x1, with two noise predictions
    x0, eps = 0.4, -1.3
    x1 = ABAR[1].sqrt() * x0 + (1 - ABAR[1]).sqrt() * eps

    def loss(predicted):
        mean = (x1 - BETA[1] / (1 - ABAR[1]).sqrt() * predicted) / ALPHA[1].sqrt()
        return -normal_log_prob(x0, mean, float(BETA[1]))

    assert torch.allclose(loss(0.2) - loss(eps), with_beta[0] * (eps - 0.2) ** 2, rtol=1e-9)
    as_data = with_beta * (ABAR / (1 - ABAR))[1:]
    assert round(float(as_data[0])) in range(4995, 5006)  # 5000
    assert 1.15e10 < float(as_data[0] / as_data[-1]) < 1.25e10
    says(
        "loose-first-weight",
        f"{float(with_beta[0]):.2f}",
        f"{float(with_beta[499]):.4f}",
        f"{float(with_beta[-1]):.4f}",
        f"{float(with_tilde[0]):.2f}",
    )


def test_loose_cross_attention():
    """Q = W phi with tokens as rows, as columns, and Q = phi W^T. The result is checked by hand."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, **torch_double)

    d, d_image, d_text, n = 4, 6, 7, 5
    W_Q, W_K, W_V = draw(d, d_image), draw(d, d_text), draw(d, d_text)

    def attend(Q, K, V):
        weights = (Q @ K.T / math.sqrt(d)).softmax(-1)
        return weights, weights @ V

    def printed(phi, tau):
        return attend(W_Q @ phi, W_K @ tau, W_V @ tau)

    for m in (3, n):  # tokens of the text; the image has n
        phi, tau = draw(n, d_image), draw(m, d_text)
        weights, right = attend(phi @ W_Q.T, tau @ W_K.T, tau @ W_V.T)
        assert weights.shape == (n, m)
        # one token at a time, as the columns of the printed lines
        q = W_Q @ phi[2]
        scores = torch.stack([q @ (W_K @ word) / math.sqrt(d) for word in tau]).exp()
        by_hand = sum(s * (W_V @ word) for s, word in zip(scores, tau, strict=True)) / scores.sum()
        assert torch.allclose(right[2], by_hand, rtol=1e-12)
        with pytest.raises(RuntimeError, match="shape"):
            printed(phi, tau)  # tokens as rows
        if m != n:
            with pytest.raises(RuntimeError, match="shape"):
                printed(phi.T, tau.T)  # tokens as columns
        else:
            channels, wrong = printed(phi.T, tau.T)
            assert channels.shape == (d, d) and not torch.allclose(wrong.T, right, atol=0.1)
            says("loose-cross-attention", f"{d} by {d}", f"{n} by {n}")


def test_loose_clip_scale():
    """Two captions at +-45 degrees, an image at an angle between.

    The gradients, per radian, of the cosine and of the log-softmax with CLIP's temperature.
    """
    temperature = 0.01
    captions = torch.tensor([math.pi / 4, -math.pi / 4], **torch_double)

    def cosine(angle):
        return (angle[..., None] - captions).cos()[..., 0]

    def log_p(angle):
        return ((angle[..., None] - captions).cos() / temperature).log_softmax(-1)[..., 0]

    half, near = 0.0, math.pi / 8  # 45 and 22.5 degrees from the caption
    printed, true = grad(cosine, half), grad(log_p, half)
    assert torch.allclose(true, printed / temperature, rtol=1e-12)  # the scale that is missing
    content, scaled = grad(log_p, near), grad(cosine, near) / temperature
    assert content.abs() < 1e-10 and scaled > 30
    says(
        "loose-clip-scale",
        f"{float(printed):.3f}",
        f"{float(true):.1f}",
        f"{float(content):.3f}",
        f"{float(scaled):.1f}",
    )


def test_loose_glide_parameters():
    """The weights of a transformer block counted on a small one: 12 width^2, to first order."""
    width = 64
    block = torch.nn.TransformerEncoderLayer(width, 4, dim_feedforward=4 * width)
    matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    assert matrices == 12 * width**2
    text = 24 * 12 * 2048**2 / 1e9
    printed, right = 2.3, 2.3 + text
    assert right / printed > 1.5
    says("loose-glide-parameters", f"{printed}", f"{text:.1f}", f"{right:.1f}")


def test_loose_flow_architecture():
    """A velocity of rank 1 has no inverse, but following it has: there and back, and its volume."""
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(3, 1, generator=rng, **torch_double)
    u = torch.randn(1, 3, generator=rng, **torch_double)

    def velocity(x):
        return (torch.tanh(x @ w) @ u).squeeze(0) if x.ndim == 1 else torch.tanh(x @ w) @ u

    def follow(x, h, steps=400):
        for _ in range(steps):
            k1 = velocity(x)
            k2 = velocity(x + h / 2 * k1)
            k3 = velocity(x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3))
        return x

    x = torch.tensor([0.3, -0.8, 0.5], **torch_double)
    jacobian = torch.autograd.functional.jacobian(velocity, x)
    assert abs(float(torch.linalg.det(jacobian))) < 1e-12  # v itself cannot be inverted
    end = follow(x, 1 / 400)
    assert float((follow(end, -1 / 400) - x).abs().max()) < 1e-9
    assert float((end - x).norm()) > 0.1
    log_det = float(
        torch.linalg.slogdet(
            torch.autograd.functional.jacobian(lambda v: follow(v, 1 / 400), x)
        ).logabsdet
    )
    # the trace is (1 - tanh^2(w'x)) u'w along the path, by Simpson's rule on the same steps
    track = [x]
    for _ in range(400):
        track.append(follow(track[-1], 1 / 400, 1))
    trace = (1 - torch.tanh(torch.stack(track) @ w).square()).squeeze(1) * (u @ w).squeeze()
    weight = torch.ones(401, **torch_double)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    integral = float((weight * trace).sum() / 3 / 400)
    assert abs(integral - log_det) < 1e-9 and abs(log_det) > 0.05


def test_loose_less_diversity():
    """Discrete modes: the divergence as a sum, for 7 of 8 and for all 8; KL is infinite."""
    p = torch.full((8,), 1 / 8, **torch_double)
    q = torch.tensor([1 / 7] * 7 + [0.0], **torch_double)
    m = (p + q) / 2
    jsd = float((torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum() / 2)
    says("loose-less-diversity", f"{jsd:.3f}", f"{math.log(2):.3f}")
    assert float((p * (p / q).log()).sum()) == math.inf


def test_loose_close_region():
    """Close is not Gaussian: two narrow bells, a tenth of the step, and a far larger divergence.

    q(x_s | x_t) is q(x_s) N(x_t; sqrt(1 - beta) x_s, beta), normalised on a grid.
    """
    u = torch.linspace(-4, 4, 800_001, **torch_double)
    step = float(u[1] - u[0])

    def bell(x, mean, var):
        return torch.exp(-((x - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)

    def reverse(bar, means, std, weights, beta, x_t):
        var = bar * std**2 + 1 - bar
        q = sum(w * bell(u, math.sqrt(bar) * m, var) for w, m in zip(weights, means, strict=True))
        q = q * bell(torch.tensor(x_t, **torch_double), math.sqrt(1 - beta) * u, beta)
        q = q / (q.sum() * step)
        mean = float((q * u).sum() * step)
        var = float((q * (u - mean) ** 2).sum() * step)
        log_g = -((u - mean) ** 2) / (2 * var) - math.log(2 * math.pi * var) / 2
        gap = torch.where(q > 0, q * (q.clamp(min=1e-300).log() - log_g), 0.0).sum() * step
        return math.sqrt(var), float(gap)

    wide = reverse(0.7, (-1.2, 0.8), 0.2, (0.4, 0.6), 0.01, -0.1)
    near = reverse(0.9999, (-0.03, 0.03), 0.004, (0.5, 0.5), 0.001, 0.001)
    assert abs(wide[1] - 7.4e-6) < 5e-8
    says("loose-close-region", f"{wide[0]:.3f}", f"{near[0]:.3f}", f"{near[1]:.2f}")
