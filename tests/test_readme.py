"""The README's code runs as printed."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_ten_lines(capsys):
    """The first block has ten lines of code, runs, and ends with sixteen digits in [-1, 1]."""
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 10
    scope: dict = {}
    exec(BLOCKS[0], scope)
    x = scope["x"]
    assert x.shape == (16, 1, 28, 28) and -1 <= x.min() and x.max() <= 1
    assert (x > 0).float().mean() > 0.03  # there is ink: a blank page would have none
    assert "16, 1, 28, 28" in capsys.readouterr().out


def test_recipe(tmp_path, monkeypatch):
    """The recipe runs whole with 4 steps for 3000; what is restored is what was saved."""
    monkeypatch.chdir(tmp_path)
    code = (
        BLOCKS[1]
        .replace("steps=3000", "steps=4")
        .replace("ddpm_steps(200)", "grids.strided(200, 4)")
    )
    assert code.count("steps=4") == 2 and "strided(200, 4)" in code
    head, tail = code.split("start = md.prior")
    scope: dict = {}
    exec(head, scope)
    saved, loaded = scope["ema"].model.state_dict(), scope["model"].state_dict()
    assert all(torch.equal(saved[k], loaded[k]) for k in saved)
    exec("start = md.prior" + tail, scope)
    assert scope["samples"].shape == (16, 1, 8, 8) and scope["step"].index == 4
    assert any(not torch.equal(saved[k], v) for k, v in scope["model"].state_dict().items())
