"""Files: a round trip, and everything that is no checkpoint refused without being unpickled."""

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import minidiff as md
from minidiff import checkpoints
from minidiff.apps.timegrad import Forecaster

SHIPPED = [n for n in checkpoints.RECIPES if (checkpoints.WEIGHTS / f"{n}.safetensors").exists()]
each_shipped = pytest.mark.parametrize("name", SHIPPED)


def model(width=16, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = md.nets.MLP(2, width=width, depth=1)
        for p in net.parameters():
            p.data.normal_()
    return md.Denoiser(net, md.BetaTable(md.cosine_betas(10)))


def bits(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- save and restore ---------------------------------------------------------------------


def test_round_trip(tmp_path):
    """The same bits in another instance; the note is kept; the memory of times is not weights."""
    path = tmp_path / "deep" / "model.safetensors"
    ours, theirs = model(), model(seed=1)
    x = torch.ones(3, 2)
    ours(x, 0.5)
    checkpoints.save(ours, path, note="a line")
    checkpoints.restore(theirs, path)
    assert same(bits(ours), bits(theirs)) and torch.equal(ours(x, 0.5), theirs(x, 0.5))
    assert md.training.read_tensors(path)[1] == {"format": checkpoints.FORMAT, "note": "a line"}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_half_is_half_the_size_and_float32_again(tmp_path):
    """float16 rounds to 11 bits: relative 2^-11; integers are kept as they are."""
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    net[1].num_batches_tracked += 70_000
    for name, half in (("full", False), ("half", True)):
        checkpoints.save(net, tmp_path / name, half=half)
    full, half = ((tmp_path / n).stat().st_size for n in ("full", "half"))
    assert half < 0.6 * full
    again = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    checkpoints.restore(again, tmp_path / "half")
    assert again[0].weight.dtype == torch.float32
    torch.testing.assert_close(again[0].weight, net[0].weight, rtol=2**-11, atol=1e-7)
    assert int(again[1].num_batches_tracked) == 70_000


def test_saving_replaces_only_by_a_whole_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    checkpoints.save(model(), path)
    before = path.read_bytes()
    from minidiff.training import files

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(model(seed=1), path)
    assert path.read_bytes() == before


# ---- refusals -----------------------------------------------------------------------------


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def pickled(path, flag):
    path.write_bytes(pickle.dumps(Trap(str(flag))))


def torch_saved(path, flag):
    torch.save({"weights": Trap(str(flag))}, path)


def text(path, flag):
    path.write_text("this is no checkpoint\n" * 100)


def empty(path, flag):
    path.write_bytes(b"")


def truncated(path, flag):
    checkpoints.save(model(), path)
    path.write_bytes(path.read_bytes()[:-100])


def header_only(path, flag):
    checkpoints.save(model(), path)
    path.write_bytes(path.read_bytes()[:50])


def foreign(path, flag):
    save_file(bits(model()), path)


def foreign_format(path, flag):
    save_file(bits(model()), path, metadata={"format": "pt"})


def training_file(path, flag):
    ours = model()
    list(
        md.train(
            lambda x, rng: md.denoising_loss(ours, x, rng=rng).mean(), ours,
            lambda k: torch.ones(4, 2), steps=1, lr=0.1, save=path,
        )
    )  # fmt: skip


def other_shapes(path, flag):
    checkpoints.save(model(width=32), path)


def other_names(path, flag):
    checkpoints.save(nn.Linear(2, 2), path)


def folder(path, flag):
    path.mkdir()


def nothing(path, flag):
    pass


WRONG = {
    pickled: "never unpickles",
    torch_saved: "never unpickles",
    text: "not a whole safetensors file",
    empty: "not a whole safetensors file",
    truncated: "truncated",
    header_only: "truncated",
    foreign: "another kind of data",
    foreign_format: "holds pt",
    training_file: "minidiff-training-1",
    other_shapes: "has shape .*build the model",
    other_names: "missing .*left over",
    folder: "not a whole safetensors file",
    nothing: "does not exist",
}


@pytest.mark.parametrize(("make", "word"), WRONG.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_wrong_files_are_refused(tmp_path, make, word):
    """A ValueError that names the file; nothing is unpickled, and the model is what it was."""
    path, flag = tmp_path / "wrong.safetensors", tmp_path / "flag"
    make(path, flag)
    ours = model(seed=5)
    before = bits(ours)
    with pytest.raises(ValueError, match=word) as error:
        checkpoints.restore(ours, path)
    assert str(path) in str(error.value)
    assert same(before, bits(ours)) and not flag.exists()


def test_the_trap_works(tmp_path):
    """The pickle above does act when it is unpickled: the test could fail."""
    pickled(tmp_path / "trap", tmp_path / "flag")
    pickle.loads((tmp_path / "trap").read_bytes())
    assert (tmp_path / "flag").exists()


# ---- shipped models -----------------------------------------------------------------------


@pytest.mark.parametrize("name", checkpoints.RECIPES)
def test_every_recipe_is_shipped(name):
    """File and card, small enough for a wheel, and a card that says how to make it again."""
    path = checkpoints.WEIGHTS / f"{name}.safetensors"
    assert path.exists() and path.stat().st_size < 3_000_000
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"train {name}" in card["command"] and card["about"] == checkpoints.RECIPES[name].about
    assert card["parameters"] > 0 and card["seconds"] > 0 and card["examples"] > 0
    assert {"seed", "loss", "torch", "machine"} <= card.keys()
    tensors, info = md.training.read_tensors(path)
    assert info["format"] == checkpoints.FORMAT
    assert all(v.dtype == torch.float16 for v in tensors.values() if v.is_floating_point())
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values())


def test_no_file_without_a_recipe():
    """What lies in weights/ is what the recipes name."""
    names = {f"{n}{end}" for n in checkpoints.RECIPES for end in (".safetensors", ".json")}
    assert {p.name for p in checkpoints.WEIGHTS.iterdir()} <= names


@each_shipped
def test_load(name, global_state_untouched):
    """Eval mode, float32, no gradients, the card's number of parameters; two loads are equal."""
    ours = checkpoints.load(name)
    card = json.loads((checkpoints.WEIGHTS / f"{name}.json").read_text())
    params, recipe = list(ours.parameters()), checkpoints.RECIPES[name]
    kinds = {"class": torch.nn.Module, "judge": torch.nn.Module, "timegrad": Forecaster}
    kind = next((k for part, k in kinds.items() if part in name), md.Denoiser)
    assert isinstance(ours, kind)
    assert not any(m.training for m in ours.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in params)
    assert sum(p.numel() for p in recipe.part(ours).parameters()) == card["parameters"]
    assert same(bits(ours), bits(checkpoints.load(name)))


def test_mnist_ddpm_denoises():
    """On held-out digits it beats the best linear guess at every tested level (the baseline).

    The baseline is E[x0 | x_t] were the pixels independent Gaussians with the training images'
    means and variances. Ratios far below 1, so that no seed matters.
    """
    if "mnist-ddpm" not in SHIPPED:
        pytest.fail("mnist-ddpm is not shipped: python -m minidiff.checkpoints train mnist-ddpm")
    ours = checkpoints.load("mnist-ddpm")
    images = md.data.mnist5k()[0]
    seen, held_out = images[:4000], images[4000:4064]
    baseline = md.Gaussian(seen.mean(0), seen.std(0) + 1e-3).denoiser(ours.schedule)
    eps = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    for step in (100, 300, 500):
        t = torch.tensor(step / 1000, dtype=torch.float64)
        x = md.diffuse(ours.schedule(t), held_out, eps)
        with torch.no_grad():
            errors = [(d(x, t) - held_out).square().mean() for d in (ours, baseline)]
        assert float(errors[0] / errors[1]) < 0.7


@each_shipped
@pytest.mark.parametrize("place", [100, -1])
def test_tampered_weights_are_noticed(tmp_path, monkeypatch, name, place):
    """One changed byte, in the header or in the weights, or a file that was cut short."""
    body = checkpoints.RECIPES[name].body  # a head needs its network
    for part in filter(None, (name, body)):
        for end in (".safetensors", ".json"):
            shutil.copy(checkpoints.WEIGHTS / f"{part}{end}", tmp_path)
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    checkpoints.load(name)
    path = tmp_path / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum|install"):
        checkpoints.load(name)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"checksum|install"):
        checkpoints.load(name)
    path.unlink()
    with pytest.raises(ValueError, match=name):
        checkpoints.load(name)


@pytest.mark.parametrize("name", ["mnist", "", "../secrets", None])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="mnist-ddpm"):
        checkpoints.load(name)


# ---- recipes ------------------------------------------------------------------------------


def test_a_recipe_is_made_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Two steps of a small recipe: file, card with checksum, and no training file left."""
    tiny = checkpoints.Recipe(
        "two steps", model, lambda: md.data.ring(64, rng=torch.Generator().manual_seed(0)),
        lambda m, x, rng: md.denoising_loss(m, x, rng=rng).mean(),
        steps=5, batch=8, lr=1e-3, warmup=2, autocast=None,
    )  # fmt: skip
    monkeypatch.setitem(checkpoints.RECIPES, "tiny", tiny)
    checkpoints.main(["train", "tiny", "--folder", str(tmp_path), "--steps", "2", "--seed", "3"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]
    card = json.loads((tmp_path / "tiny.json").read_text())
    content = (tmp_path / "tiny.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["examples"] == 16 and card["steps"] == card["steps_timed"] == 2
    assert card["seed"] == 3 and "--seed 3" in card["command"]
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    assert not checkpoints.load("tiny").training
    checkpoints.main(["list"])
    assert "two steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        checkpoints.main(["train"])


def test_a_head_is_made_on_a_body(tmp_path, monkeypatch):
    """The file holds the head alone; loading joins it to the body's file, which does not change."""

    def body():
        net = md.nets.UNet(1, width=16, mults=(1,))
        return md.Denoiser(net, md.BetaTable(md.cosine_betas(10)), "v")

    def loss(m, x, rng):
        return md.losses.npr_loss(m, x, rng=rng).mean()

    common = {"data": lambda: torch.zeros(8, 1, 6, 6), "steps": 2, "batch": 4, "warmup": 1}
    plain = checkpoints.Recipe(
        "", body, loss=lambda m, x, rng: md.denoising_loss(m, x, rng=rng).mean(), **common
    )
    head = checkpoints.Recipe("", md.heads.add_head, loss=loss, body="body", **common)
    for name, recipe in (("body", plain), ("head", head)):
        monkeypatch.setitem(checkpoints.RECIPES, name, recipe)
    with pytest.raises(ValueError, match="train body"):
        checkpoints.make("head", tmp_path)
    checkpoints.make("body", tmp_path)
    before = (tmp_path / "body.safetensors").read_bytes()
    checkpoints.make("head", tmp_path)
    assert (tmp_path / "body.safetensors").read_bytes() == before
    tensors, _ = md.training.read_tensors(tmp_path / "head.safetensors")
    assert {k.split(".")[0] for k in tensors} == {"0", "1"}
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    with_head, without = checkpoints.load("head"), checkpoints.load("body")
    x, t = (
        torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
        torch.full((3,), 0.5),
    )
    y, second = with_head.raw(x, t)
    assert torch.equal(y, without.raw(x, t).y) and second.shape == x.shape
    assert float(second.abs().max()) > 0


def test_a_recipe_that_starts_from_another(tmp_path, monkeypatch):
    """With a learning rate of 0 the conditional net is the other one, whatever the class."""

    def build(classes=None):
        net = md.nets.UNet(1, width=16, mults=(1,), classes=classes)
        return md.Denoiser(net, md.BetaTable(md.cosine_betas(10)), "v")

    def loss(m, x, rng):
        return md.denoising_loss(m, x, rng=rng).mean()

    common = {"data": lambda: torch.ones(8, 1, 6, 6), "loss": loss, "batch": 4, "warmup": 1}
    plain = checkpoints.Recipe("", build, steps=2, **common)
    given = checkpoints.Recipe("", lambda: build(3), steps=1, lr=0.0, start="plain", **common)
    for name, recipe in (("plain", plain), ("given", given)):
        monkeypatch.setitem(checkpoints.RECIPES, name, recipe)
        checkpoints.make(name, tmp_path, seed=len(name))
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    x, t = (
        torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
        torch.full((3,), 0.5),
    )
    ours = checkpoints.load("given").raw(x, t, torch.tensor([0, 2, 3])).y
    assert float(ours.abs().max()) > 0
    assert torch.equal(ours, checkpoints.load("plain").raw(x, t).y)
    assert json.loads((tmp_path / "given.json").read_text())["start"] == "plain"


def test_the_learning_rate_of_a_recipe():
    """A linear warm-up to lr, then half a cosine to nearly 0."""
    recipe = checkpoints.Recipe(
        "", model, lambda: None, lambda *_: None, steps=1000, batch=1, lr=2.0, warmup=100
    )
    assert recipe.rate(0) == pytest.approx(0.02)
    assert recipe.rate(49) == pytest.approx(1.0)
    assert recipe.rate(100) == pytest.approx(2.0)
    assert recipe.rate(550) == pytest.approx(1.0)
    assert recipe.rate(999) < 1e-4
