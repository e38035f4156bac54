"""Measure samplers with few steps: every variance, number of steps and seed, on one data set.

    python scripts/fewer_steps.py --data digits
    python scripts/fewer_steps.py --data mnist --seeds 0 1 2

writes `notebooks/07_fewer_steps_DATA.json` after each cell of the grid, and a second call goes on
where the first one stopped. A cell whose shipped weights are not there yet waits for the next call.

All runs walk `md.grids.linspaced(1000, K)` with one thread and batches of 250. The samples of MNIST
are drawn under bfloat16 autocast, as the network was trained, which halves the time: the network is
rounded, the state stays in float32. The cells `float32` are the same draws without it, and all else
is float32, too. The mean is clipped to [-1, 1]. The noise of the last noisy move is capped at one
grey value (`cap_last`), but for the arms called `-uncapped`. Bounds have no cap, and the inversion
no clip.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import minidiff as md
from minidiff import bounds, variance
from minidiff.evaluation import Evaluation

ROOT = Path(__file__).resolve().parents[1]
T, BATCH, LEARNT = 1000, 250, 500  # steps, examples a call, examples that Gamma is estimated on


class Arm(NamedTuple):
    """One way to choose the noise of a step: which model, which eta, which variance."""

    model: str
    eta: float
    variance: Callable[[Any, Any], Any]  # (branch, covariance) -> variance
    cap: bool = True


ARMS = {
    "ddim": Arm("ddpm", 0.0, lambda b, cov: md.posterior_variance),
    "beta-tilde": Arm("ddpm", 1.0, lambda b, cov: md.posterior_variance),
    "beta": Arm("ddpm", 1.0, lambda b, cov: md.forward_variance),
    "analytic": Arm("ddpm", 1.0, lambda b, cov: variance.analytic(cov, most=1.0)),
    "analytic-ddim": Arm("ddpm", 0.0, lambda b, cov: variance.analytic(cov, most=1.0)),
    "range": Arm("range", 1.0, lambda b, cov: variance.learned_range(b)),
    "sn": Arm("sn", 1.0, lambda b, cov: variance.sn(b, most=1.0)),
    "npr": Arm("npr", 1.0, lambda b, cov: variance.npr(b, most=1.0)),
    "hybrid": Arm("hybrid", 1.0, lambda b, cov: variance.learned_range(b)),
}
ARMS |= {f"{a}-uncapped": ARMS[a]._replace(cap=False) for a in ("beta", "analytic", "range")}
PLAIN = [a for a in ARMS if "uncapped" not in a]
LOOSE = [a for a in ARMS if "uncapped" in a]
WHOLE = ["ddim", "beta-tilde", "beta", "analytic", "analytic-ddim"]  # heads have no part in them
BOUNDED = [a for a in PLAIN if ARMS[a].eta > 0]
Cell = tuple[str, str, int, int]  # kind, arm, K, seed


def cells_of(data: str, seeds: list[int]) -> list[Cell]:
    """List the grid, what matters first.

    A chain of a thousand steps on MNIST takes a quarter of an hour, so few cells have as many; add
    to this list what you have the time for.
    """
    plain = [a for a in PLAIN if data == "digits" or a != "hybrid"]

    def sampled(arms: list[str], steps: tuple[int, ...], seeds: list[int]) -> list[Cell]:
        return [("sample", a, K, s) for K in steps for s in seeds for a in arms]

    few = [("floor", "data", 0, 0), *sampled(plain, (10, 20), seeds[:1])]
    if data == "digits":
        few += sampled([*plain, *LOOSE], (10, 20, 5, 50, 100), seeds)
        few += [("bound", "all", K, 0) for K in (10, 5, 20, 50, 100)]
        few += [("inversion", "ddim", K, 0) for K in (5, 10, 20, 50, 100, 200, 500, 1000)]
        few += sampled(["beta-tilde", "ddim"], (1000,), seeds[:1])
    else:
        few += [("float32", a, K, seeds[0]) for a in WHOLE for K in (10, 20)]
        few += [("part", "ddim", 10, 0)]
        few += [("inversion", "ddim", K, 0) for K in (5, 10, 20, 50, 100)]
        few += [("bound", "all", K, 0) for K in (10, 20, 50)]
        few += sampled(plain, (5, 50), seeds[:1])
        few += sampled(plain, (20, 10, 5, 50), seeds[1:]) + sampled(LOOSE, (10,), seeds)
        few += sampled(["ddim", "beta-tilde"], (100,), seeds[:1])
        few += sampled(["beta-tilde"], (1000,), seeds[:2])
    return list(dict.fromkeys(few))


class Bench:
    """One data set, its models as far as they are there, and what was measured so far."""

    def __init__(self, data: str, out: Path, count: int | None, untrained: bool) -> None:
        self.data, self.out, self.untrained = data, out, untrained
        images, held = {
            "digits": (md.data.digits8x8, 497),
            "mnist": (md.data.mnist5k, 1000),
        }[data]
        self.split = md.data.split(*images(), held)
        classifier: Any = md.checkpoints.load(f"{data}-classifier")
        x, held_x = self.split.x, self.split.held_x
        self.evaluation = Evaluation(classifier.features, classifier, x, held_x)
        self.count = count or {"digits": 500, "mnist": 1000}[data]
        self.models: dict[str, Any] = {}
        self.file = json.loads(out.read_text()) if out.exists() else {}
        self.file.setdefault("checkpoints", {})
        self.file.setdefault("covariance", {})
        self.file.setdefault("rows", [])
        self.file |= {
            "data": data, "T": T, "grid": "linspaced", "clip": [-1, 1], "cap": "1 grey value",
            "held_out": len(self.split.held_x), "torch": torch.__version__,
        }  # fmt: skip
        self.sum_of(f"{data}-classifier")

    def sum_of(self, name: str) -> None:
        """Note the checksum of a checkpoint; refuse to mix two versions of it in one file."""
        if self.untrained:
            return
        card = (md.checkpoints.WEIGHTS / f"{name}.json").read_text()
        now = json.loads(card)["sha256"]
        if self.file["checkpoints"].setdefault(name, now) != now:
            raise SystemExit(f"{name} changed since {self.out} was begun: delete that file first")

    def has(self, part: str) -> bool:
        """Say whether the weights of an arm's model are there."""
        names = {f"{self.data}-{part}", f"{self.data}-ddpm"}
        paths = [
            md.checkpoints.WEIGHTS / f"{n}{e}" for n in names for e in (".json", ".safetensors")
        ]
        return self.untrained or all(path.exists() for path in paths)

    def model(self, part: str) -> Any:
        """Load a model once."""
        if part not in self.models:
            name = f"{self.data}-{part}"
            if self.untrained:
                recipe = md.checkpoints.RECIPES[name]
                torch.manual_seed(0)
                body = [] if recipe.body is None else [self.model("ddpm")]
                self.models[part] = recipe.build(*body).eval().requires_grad_(False)
            else:
                self.models[part] = md.checkpoints.load(name)
            self.sum_of(name)
        return self.models[part]

    def covariance(self, K: int) -> Callable[[md.Level], float]:
        """Estimate the doubt about x0 on the grid of K steps, once."""
        model = self.model("ddpm")
        times = md.grids.linspaced(T, K)
        if str(K) not in self.file["covariance"]:
            x = self.split.x[: min(LEARNT, self.count)]
            parts = [
                variance.mean_covariance(
                    model, model.schedule, p, times, rng=md.tensors.seeded(3, i)
                )
                for i, p in enumerate(x.split(BATCH))
            ]
            levels = [model.schedule(t) for t in times[:-1]]
            found = [sum(part(at) for part in parts) / len(parts) for at in levels]
            self.file["covariance"][str(K)] = found
        known = self.file["covariance"][str(K)]
        at = [(float(model.schedule(t).log_snr), c) for t, c in zip(times[:-1], known, strict=True)]
        # a level computed alone and one computed in a grid may differ in the last bit
        return lambda level: min(at, key=lambda one: abs(one[0] - float(level.log_snr)))[1]

    def chain(self, name: str, K: int) -> tuple[Any, Any, Any, torch.Tensor]:
        """Return ``(branch, schedule, variance, times)`` of an arm, without its cap."""
        arm = ARMS[name]
        model = self.model(arm.model)
        branch = model.given(None)
        cov = self.covariance(K) if name.startswith("analytic") else None
        return branch, model.schedule, arm.variance(branch, cov), md.grids.linspaced(T, K)

    # ---- the kinds of cells ----------------------------------------------------------------------

    def sample(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Draw and measure, MNIST with a network in bfloat16."""
        yield from self.draw(name, K, seed, self.count, half=self.data == "mnist")

    def float32(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Draw and measure with a network in float32."""
        yield from self.draw(name, K, seed, self.count)

    def draw(
        self, name: str, K: int, seed: int, count: int, *, half: bool = False
    ) -> Iterator[dict]:
        """Draw and measure: the start from (seed, 1), the noise of all batches from (seed, 2)."""
        branch, schedule, var, times = self.chain(name, K)
        if ARMS[name].cap:
            var = variance.cap_last(var, schedule, times)
        start = md.prior(schedule, (count, *self.split.x.shape[1:]), rng=md.tensors.seeded(seed, 1))
        walk = partial(
            md.ddim, md.clip(branch, -1, 1), schedule, times=times, eta=ARMS[name].eta,
            variance=var, rng=md.tensors.seeded(seed, 2),
        )  # fmt: skip
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            x = torch.cat([md.last(walk(part)) for part in start.split(BATCH)])
        seconds = round(time.process_time() - begin, 1)
        yield self.evaluation.quality(x)._asdict() | {"seconds": seconds}

    def floor(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Measure training data as if they were samples."""
        yield self.evaluation.floor(self.count)._asdict()

    def part(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Draw fewer samples, for a lab to repeat."""
        yield from self.draw(name, K, seed, min(BATCH, self.count))

    def bound(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Bound the held-out data under every arm, with the same noise; in nats or bits an entry.

        The 8-bit images have probabilities, in bits. The grey values of the small digits are
        sixteenths: for them the density of the last step is taken, in nats.
        """
        eight_bits = self.data == "mnist"
        decoder = (
            md.likelihood.discretised_decoder if eight_bits else md.likelihood.gaussian_decoder
        )
        x0 = self.split.held_x[: min(500, self.count)]
        unit = x0[0].numel() * (torch.tensor(2.0).log().item() if eight_bits else 1)
        totals = {}
        for arm in [a for a in BOUNDED if self.data == "digits" or a != "hybrid"]:
            branch, schedule, var, times = self.chain(arm, K)
            found = [
                bounds.vlb(
                    md.clip(branch, -1, 1), schedule, part, times, variance=var, decoder=decoder,
                    rng=md.tensors.seeded(4, i),
                )
                for i, part in enumerate(x0.split(BATCH))
            ]  # fmt: skip
            totals[arm] = torch.cat([b.total for b in found]).double() / unit
            last = torch.cat([b.decoder for b in found]).double() / unit
            more = totals[arm] - totals["beta-tilde"]
            yield {
                "arm": arm, "samples": len(x0), "unit": "bits" if eight_bits else "nats",
                "bound": float(totals[arm].mean()), "se": _standard_error(totals[arm]),
                "decoder": float(last.mean()),
                "more_than_beta_tilde": float(more.mean()), "more_se": _standard_error(more),
            }  # fmt: skip

    def inversion(self, name: str, K: int, seed: int) -> Iterator[dict]:
        """Encode held-out data, decode with the same steps, and compare."""
        model, times = self.model("ddpm"), md.grids.linspaced(T, K)
        x0 = self.split.held_x[: min(100, self.count)]
        z = md.last(md.encode(model, model.schedule, x0, times.flip(0)))
        back = md.last(md.ddim(model, model.schedule, z, times))
        rmse = float((back - x0).square().mean().sqrt())
        yield {"samples": len(x0), "rmse": rmse, "latent_variance": float(z.var())}

    # ---- the walk through the grid ---------------------------------------------------------------

    def ready(self, cell: Cell) -> bool:
        """Say whether the weights that a cell needs are there."""
        kind, arm, _, _ = cell
        needed = {ARMS[arm].model} if arm in ARMS else {"ddpm"}
        if kind == "bound":
            needed = {ARMS[a].model for a in BOUNDED if self.data == "digits" or a != "hybrid"}
        return kind == "floor" or all(map(self.has, needed))

    def run(self, cells: list[Cell]) -> list[Cell]:
        """Measure what is missing and possible, save after each cell; return what is left."""
        done = {tuple(row["cell"]) for row in self.file["rows"]}
        left = [c for c in cells if c not in done]
        while (cell := next(filter(self.ready, left), None)) is not None:
            kind, arm, K, seed = cell
            begin = time.perf_counter()
            for row in getattr(self, kind)(arm, K, seed):
                self.file["rows"].append(
                    {
                        "cell": cell,
                        "kind": kind,
                        "data": self.data,
                        "arm": arm,
                        "K": K,
                        "seed": seed,
                    }
                    | row
                )
            self.save()
            left.remove(cell)
            last = {k: v for k, v in self.file["rows"][-1].items() if isinstance(v, float)}
            words = " ".join(f"{k} {v:.4g}" for k, v in last.items())
            print(
                f"{kind} {arm} {K} {seed}: {words} [{time.perf_counter() - begin:.0f} s]",
                flush=True,
            )
        return left

    def save(self) -> None:
        """Write the file under another name first, so that an interruption leaves the old one."""
        draft = self.out.with_suffix(".draft")
        rows = ",\n  ".join(json.dumps(row) for row in self.file["rows"])
        rest = json.dumps({k: v for k, v in self.file.items() if k != "rows"}, indent=1)
        draft.write_text(f'{rest[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')
        os.replace(draft, self.out)


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def main(argv: list[str] | None = None) -> int:
    """Run the grid; the exit status says how many cells still wait for weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=["digits", "mnist"], required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, help="samples a cell, for a trial")
    parser.add_argument("--most", type=int, default=T, help="no cell with more steps, for a trial")
    parser.add_argument("--untrained", action="store_true", help="random weights, for a trial")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    out = args.out or ROOT / "notebooks" / f"07_fewer_steps_{args.data}.json"
    bench = Bench(args.data, out, args.count, args.untrained)
    cells = [c for c in cells_of(args.data, args.seeds) if c[2] <= args.most]
    left = bench.run(cells)
    print(f"{len(cells) - len(left)} cells in {out}, {len(left)} wait for weights")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
