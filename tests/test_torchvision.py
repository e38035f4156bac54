"""MNIST and Fashion-MNIST in full, through torchvision: files of a few digits, and no network."""

import gzip
import math
import struct
import sys
from dataclasses import replace

import pytest
import torch

import minidiff as md
from minidiff import data

LOADERS = {"MNIST": data.mnist, "FashionMNIST": data.fashion_mnist}
each = pytest.mark.parametrize("name", LOADERS)


def digits(n, seed):
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8, generator=rng)
    pictures[0, 0, :2] = torch.tensor([0, 255])
    return pictures, torch.randint(0, 10, (n,), dtype=torch.uint8, generator=rng)


def write(folder, part, pictures, labels):
    """Two files of the idx format: zero, zero, type (8: bytes), axes; sizes; bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBB3I", 0, 0, 8, 3, *pictures.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pictures.numpy().tobytes())
    head = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.numpy().tobytes())


@pytest.fixture
def no_network(monkeypatch):
    """Every way to the network fails at once."""

    def refuse(*args, **kwargs):
        raise OSError("no network in a test")

    from torchvision.datasets import utils

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


@each
def test_files_are_read(tmp_path, no_network, name):
    """Values 0..255 become -1..1, in the order of the file; the parts are not confused."""
    parts = {"train": digits(7, 0), "t10k": digits(4, 1)}
    for part, content in parts.items():
        write(tmp_path / name / "raw", part, *content)
    for part, flag in (("train", True), ("t10k", False)):
        pictures, labels = LOADERS[name](tmp_path, train=flag)
        raw, wanted = parts[part]
        assert pictures.shape == (*raw.shape[:1], 1, 28, 28)
        assert pictures.dtype == torch.float32 and labels.dtype == torch.long
        torch.testing.assert_close(pictures[:, 0], raw / 127.5 - 1, rtol=0, atol=1e-6)
        assert pictures[0, 0, 0, :2].tolist() == [-1.0, 1.0]
        assert float(pictures.min()) == -1 and float(pictures.max()) == 1
        assert labels.tolist() == wanted.tolist()
    assert len(LOADERS[name](str(tmp_path))[0]) == 7  # a string will do, and train is the default


@each
def test_one_part_is_not_enough(tmp_path, no_network, name):
    """Torchvision wants all four files; half of them is as good as none."""
    write(tmp_path / name / "raw", "train", *digits(3, 0))
    with pytest.raises(ConnectionError, match=name):
        LOADERS[name](tmp_path)


@each
def test_without_a_network_the_error_says_what_to_do(tmp_path, no_network, name):
    with pytest.raises(ConnectionError) as failure:
        LOADERS[name](tmp_path / "nothing")
    text = str(failure.value)
    assert name in text and "nothing" in text and "mnist5k()" in text and "network" in text
    assert failure.value.__cause__ is not None


@each
def test_a_download_is_used(tmp_path, monkeypatch, name):
    """What torchvision would fetch is fetched once, unpacked and read."""
    from torchvision.datasets import mnist

    content, fetched = {"train": digits(5, 2), "t10k": digits(2, 3)}, []

    def fetch(url, download_root, filename, md5, **kwargs):
        fetched.append(filename)
        part = filename.split("-")[0]
        write(tmp_path / "store", part, *content[part])
        plain = (tmp_path / "store" / filename.removesuffix(".gz")).read_bytes()
        out = tmp_path / name / "raw"
        (out / filename).write_bytes(gzip.compress(plain))
        (out / filename.removesuffix(".gz")).write_bytes(plain)

    monkeypatch.setattr(mnist, "download_and_extract_archive", fetch)
    pictures, labels = LOADERS[name](tmp_path)
    assert len(fetched) == 4 and len(pictures) == len(labels) == 5
    LOADERS[name](tmp_path, train=False)
    assert len(fetched) == 4


@each
def test_the_conditional_recipe_trains_on_them(tmp_path, no_network, name):
    """The lab's `gpu` branch at a tiny size: files, loader, batches, recipe, training, samples."""
    for part in ("train", "t10k"):
        write(tmp_path / name / "raw", part, *digits(8, 0))
    recipe = replace(md.recipes.RECIPES["mnist-ddpm-conditional"], steps=3, warmup=1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = md.nets.UNet(1, width=8, mults=(1, 2), attention=(1,), patch=2, classes=10)
    model = md.Denoiser(net, md.BetaTable(md.cosine_betas(1000)), "v")
    ema = md.EMA(model, recipe.decay)
    run = md.train(
        lambda batch, rng: recipe.loss(model, batch, rng),
        model, data.batches(LOADERS[name](tmp_path), 4, seed=0), steps=3, lr=recipe.rate, ema=ema,
    )  # fmt: skip
    losses = [step.loss for step in run]
    # a fresh net answers 0, so its loss is the mean square of v, near 1 for noise and pictures
    assert 0.3 < losses[0] < 2 and all(map(math.isfinite, losses))
    taught = md.clip(ema.model.given(torch.arange(4)), -1, 1)
    x = md.prior(model.schedule, (4, 1, 28, 28), rng=md.tensors.seeded(0))
    drawn = md.last(md.ddim(taught, model.schedule, x, md.grids.strided(1000, 2)))
    assert drawn.shape == (4, 1, 28, 28) and float(drawn.abs().max()) <= 1


def test_a_missing_torchvision_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        data.mnist(tmp_path)
