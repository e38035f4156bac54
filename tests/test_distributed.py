"""Several processes: two of them, truly launched, train as one does; and what is cut and refused.

``accelerate launch`` runs twice in all (the fixture ``launched``), because a start costs seconds:
its processes run ``first``, at whose end one of them is killed, and then ``second``, which goes on.
They write down what they saw, and the tests look at that.
"""

import atexit
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import minidiff as md
from minidiff.training import loop as training
from minidiff.training.distributed import Processes, processes, share

D = torch.float64
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # sums in another order, 20 steps of Adam in float64


class Batch(NamedTuple):
    x0: torch.Tensor
    eps: torch.Tensor
    t: torch.Tensor


class Net(nn.Module):
    """A net with what processes may disagree on: dropout, a side branch, idle weights, buffers."""

    def __init__(self, seed, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(2, 8), nn.Dropout(dropout), nn.SiLU(), nn.Linear(8, 2)
            ).double()
            self.side = nn.Linear(2, 2, dtype=D)
            self.idle = nn.Parameter(torch.randn(3, dtype=D))
            self.register_buffer("center", torch.randn(2, dtype=D))
            self.register_buffer("flag", torch.arange(4) < seed)
            self.register_buffer("calls", torch.tensor(seed), persistent=False)

    def forward(self, x):
        if self.training:
            self.center.copy_(x.detach().mean(0))
            self.calls += 1
        return self.body(x + 0.1 * self.flag[:2])


def noisy(step):
    """A batch of eight that carries its noise: x0, eps, t."""
    rng = torch.Generator().manual_seed(step)
    x0, eps = torch.randn(2, 8, 2, generator=rng, dtype=D)
    return Batch(x0, eps, torch.rand(8, 1, generator=rng, dtype=D))


def plain(model):
    """The loss of a batch that carries its noise."""

    def loss(batch, rng):
        x = (1 - batch.t) * batch.x0 + batch.t * batch.eps
        return (model(x) - batch.eps).square().mean()

    return loss


def drawing(model):
    """A loss that draws its noise, with a branch that some parts of a batch take."""

    def loss(batch, rng):
        y = model(batch.x0 + torch.randn(batch.x0.shape, generator=rng, dtype=D))
        if batch.x0[0, 0] > 0:
            y = y + model.side(batch.x0)
        return (y - batch.eps).square().mean()

    return loss


class Noisy(torch.optim.SGD):
    """An optimiser that adds noise from the global state, as Langevin dynamics does."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data += torch.randn_like(p)


def run(make, model, ema=None, steps=20, **kwargs):
    return list(
        md.train(make(model), model, noisy, steps=steps, **{"lr": 0.01, "ema": ema} | kwargs)
    )


def digest(*tensors):
    """The bits of tensors."""
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def bits(model):
    """The bits of all weights and buffers."""
    return digest(*model.parameters(), *model.buffers())


# ---- inside the processes -------------------------------------------------------------------


def work(part, folder):
    """What each process runs: the part "first" or "second"."""
    torch.set_num_threads(1)
    atexit.register(lambda: torch.distributed.is_initialized() and print("left a group behind"))
    folder, here, seen = Path(folder), processes(), {}
    written = []  # the files that this process writes
    writer = training.write_tensors
    training.write_tensors = lambda path, *rest: (written.append(path.name), writer(path, *rest))

    def report(name, model, ema, steps):
        averaged = None if ema is None else bits(ema.model)
        seen[name] = {"steps": steps, "model": bits(model), "ema": averaged}
        if here.rank == 0:
            save_file(model.state_dict(), folder / f"{name}.safetensors")

    @contextmanager
    def failing(name, model):
        try:
            yield
        except Exception as error:
            seen[name] = [type(error).__name__, str(error), digest(*model.parameters())]

    def flush():
        seen[f"{part}-written"] = written
        (folder / f"{part}-{here.rank}.json").write_text(json.dumps(seen))

    parts = {"first": first, "second": second}
    parts[part](folder, here, seen, report, failing, flush)
    flush()


def first(folder, here, seen, report, failing, flush):
    """Everything that goes well, then a run in which process 1 is killed."""
    model = Net(here.rank)  # other weights on each process: train makes them equal
    ema = md.EMA(model, 0.9)
    steps = run(plain, model, ema, save=folder / "whole-run.safetensors", save_every=7)
    report("whole", model, ema, steps)
    for accumulate in (1, 2):
        model = Net(here.rank, dropout=0.5)
        kwargs = {"accumulate": accumulate, "optimizer": torch.optim.AdamW}
        report(f"drawing{accumulate}", model, None, run(drawing, model, **kwargs))
    model = Net(here.rank)
    report("langevin", model, None, run(plain, model, steps=3, optimizer=Noisy))
    md.checkpoints.make("digits-classifier", folder / "made", steps=2)  # as the command line does
    flush()
    model = Net(here.rank)
    loss, ema = plain(model), md.EMA(model, 0.9)
    kwargs = {"steps": 20, "lr": 0.01, "ema": ema, "save": folder / "killed-run.safetensors"}
    for step in md.train(loss, model, noisy, save_every=4, **kwargs):
        if step.index == 10 and here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def second(folder, here, seen, report, failing, flush):
    """The killed run goes on; then everything that goes wrong."""
    model = Net(here.rank + 5)
    ema = md.EMA(model, 0.9)
    steps = run(plain, model, ema, save=folder / "killed-run.safetensors", save_every=4)
    report("resumed", model, ema, steps)

    def broken(name, change, **kwargs):
        """Train four steps, of which the last goes wrong on one process only."""
        model = Net(0)
        loss, count = plain(model), [0]

        def wrong(batch, rng):
            count[0] += 1
            value = loss(batch, rng)
            return change(value) if count[0] == 4 else value

        with failing(name, model):
            for step in md.train(wrong, model, noisy, steps=9, lr=0.01, **kwargs):
                seen[f"{name}-before"] = [digest(*model.parameters()), step.index]

    def raises(value):
        raise KeyError("label")

    mine = here.rank == 1
    broken("nan", lambda v: v * float("nan") if mine else v)
    broken("slope", lambda v: v + (v * 0).sqrt() if mine else v)
    broken("error", (lambda v: v) if mine else raises)
    broken("full", lambda v: v, save=folder / "whole-run.safetensors" / "run", save_every=1)
    with failing("arguments", Net(0)):
        run(plain, Net(0), steps=5 - here.rank)
    model = Net(0)
    with failing("places", model):  # process 0 finds a file of five steps, process 1 none
        run(plain, model, steps=5, save=folder / f"place-{here.rank}.safetensors")
    with failing("cut", model):
        run(plain, model, steps=1, accumulate=3)
    with failing("device", model):
        run(plain, nn.Linear(2, 2, device="meta"), steps=1)


# ---- the launch -----------------------------------------------------------------------------


def launch(part, folder):
    """Run ``work(part, folder)`` in two processes on the CPU and return (exit status, output)."""
    script = folder / "script.py"
    script.write_text("import sys\nfrom test_distributed import work\nwork(*sys.argv[1:])\n")
    paths = [str(Path(md.__file__).parents[1]), str(Path(__file__).parent)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # --multi_gpu without a GPU: several processes on the CPU
        "HF_HOME": str(folder),  # no settings of whoever runs the tests
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    flags += " --mixed_precision no --dynamo_backend no --monitor_interval 0.1"
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags.split()]
    command += [str(script), part, str(folder)]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, env=env, **both) as process:
        try:
            output, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.terminate()  # it then ends its processes; a kill would leave them behind
            output = process.communicate()[0] + "\nran out of time"
    return process.returncode, output


class Seen(NamedTuple):
    """What came out of the two launches."""

    folder: Path
    ranks: tuple[dict, dict]  # reports of process 0 and process 1
    ends: list[tuple[int, str]]  # exit status and output of each launch

    def weights(self, name):
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("launched")
    run(plain, Net(0), steps=5, save=folder / "place-0.safetensors", accumulate=2)
    ends = [launch(part, folder) for part in ("first", "second")]
    ranks = []
    for rank in (0, 1):
        files = [folder / f"{part}-{rank}.json" for part in ("first", "second")]
        assert all(f.exists() for f in files), "\n".join(output for _, output in ends)
        ranks.append(json.loads(files[0].read_text()) | json.loads(files[1].read_text()))
    return Seen(folder, tuple(ranks), ends)


def same_run(seen, name, steps, model):
    """Assert that two processes made the losses, norms and weights of one, to rounding."""
    got = torch.tensor(seen.ranks[0][name]["steps"], dtype=D)
    torch.testing.assert_close(got, torch.tensor(steps, dtype=D), **EXACT)
    weights = seen.weights(name)
    for key, value in model.named_parameters():
        torch.testing.assert_close(weights[key], value.detach(), **EXACT)


def test_two_processes_train_as_one_with_the_whole_batch(launched):
    """Losses, norms, weights and average of 20 steps agree with one process to rounding."""
    model = Net(0)
    ema = md.EMA(model, 0.9)
    steps = run(plain, model, ema)
    assert len(steps) == 20 and abs(steps[3].loss - steps[4].loss) > 0.01
    same_run(launched, "whole", steps, model)
    saved = load_file(launched.folder / "whole-run.safetensors")
    for key, value in ema.model.named_parameters():
        torch.testing.assert_close(saved[f"ema.{key}"], value, **EXACT)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_only_the_number_of_parts_matters(launched, accumulate):
    """Two processes with n parts each are one process with 2 n, drawn noise and dropout included.

    The side branch is taken by some parts only and has no gradient in the others.
    """
    model = Net(0, dropout=0.5)
    steps = run(drawing, model, accumulate=2 * accumulate, optimizer=torch.optim.AdamW)
    same_run(launched, f"drawing{accumulate}", steps, model)
    assert not torch.equal(model.side.weight, Net(0).side.weight)
    idle = launched.weights(f"drawing{accumulate}")["idle"]
    assert torch.equal(idle, Net(0).idle)  # AdamW would shrink it if it had a gradient of 0
    other = run(drawing, Net(0, dropout=0.5), accumulate=4 // accumulate)
    assert abs(other[0].loss - steps[0].loss) > 1e-3  # the parts do matter


def test_the_processes_agree_to_the_bit(launched):
    """Weights, buffers and average, from other beginnings; also if the optimiser draws noise."""
    zero, one = launched.ranks
    for name in ("whole", "drawing1", "drawing2", "langevin", "resumed"):
        assert zero[name] == one[name]
    assert zero["whole"]["ema"] != zero["whole"]["model"]


def test_a_killed_run_goes_on_to_the_same_bits(launched):
    """Process 1 was killed after step 10; the file holds step 8; steps 9 to 20 are made again.

    The losses are compared, and weights, buffers, average and optimiser in the last file.
    """
    status, output = launched.ends[0]
    assert status != 0 and "SIGKILL" in output
    whole, resumed = (launched.ranks[0][name] for name in ("whole", "resumed"))
    assert resumed["steps"] == whole["steps"][8:]
    files = [load_file(launched.folder / f"{name}-run.safetensors") for name in ("whole", "killed")]
    assert files[0].keys() == files[1].keys() and {"model.flag", "ema.center"} <= files[0].keys()
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_a_shipped_model_is_made_by_two_processes(launched, monkeypatch):
    """File and card, of one process, with a matching checksum; steps and batch are those asked."""
    made = launched.folder / "made"
    assert sorted(p.suffix for p in made.iterdir()) == [".json", ".safetensors"]
    card = json.loads((made / "digits-classifier.json").read_text())
    assert "2 x cpu" in card["machine"] and card["examples"] == 2 * 128
    monkeypatch.setattr(md.checkpoints, "WEIGHTS", made)
    fresh, model = md.nets.Classifier(10, 16), md.checkpoints.load("digits-classifier")
    assert [p.shape for p in model.parameters()] == [p.shape for p in fresh.parameters()]


def test_only_the_first_process_writes(launched):
    """And a launch that ends well prints nothing; the group of processes is undone at the end."""
    zero, one = launched.ranks
    run, made = zero["first-written"][:3], zero["first-written"][3:]
    assert run == ["whole-run.safetensors"] * 3  # steps 7, 14, 20
    assert {name.split(".")[0] for name in made} <= {"digits-classifier"}
    assert one["first-written"] == one["second-written"] == []
    assert not list(launched.folder.glob("*.partial"))
    status, output = launched.ends[1]
    nameless = "hostname of the client socket cannot be retrieved"  # torch, with the network cut
    assert status == 0 and [line for line in output.splitlines() if nameless not in line] == []


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("nan", "process 1 of 2 failed", "loss is nan at step 3"),
        ("slope", "gradient of loss has norm nan", "gradient of loss has norm nan"),
        ("error", "KeyError", "process 0 of 2 failed"),
    ],
)
def test_what_goes_wrong_on_one_process_stops_all(launched, name, first, second):
    """In step 3, with the weights of before that step on both."""
    for seen, word in zip(launched.ranks, (first, second), strict=True):
        kind, message, weights = seen[name]
        assert word in f"{kind} {message}" and kind in ("ValueError", word)
        assert seen[f"{name}-before"] == [weights, 3]
    assert launched.ranks[0][name][2] == launched.ranks[1][name][2]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("arguments", r"trains with .*'steps': [45],.*same arguments"),
        ("places", r"holds steps \[5, 0\].*folder that all of them see"),
        ("cut", "batch has 8 examples.* 6 equal parts"),
        ("device", r"model is on meta.*works on cpu.*processes\(\).device"),
    ],
)
def test_processes_refuse_together(launched, name, word):
    for seen in launched.ranks:
        assert seen[name][0] == "ValueError" and re.search(word, seen[name][1])


def test_a_file_that_cannot_be_written_stops_all(launched):
    """The folder of the file is a file: the first process says so, the other does not wait."""
    zero, one = (seen["full"] for seen in launched.ranks)
    assert zero[0] == "FileExistsError" and one[0] == "ValueError" and "process 0" in one[1]


# ---- one process ----------------------------------------------------------------------------


@pytest.fixture
def no_accelerate(monkeypatch):
    """Importing accelerate fails; no launcher has left its variables."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("size", [None, "", "1"])
def test_one_process_needs_no_accelerate(no_accelerate, monkeypatch, size):
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")  # of independent runs, not of a launch
    assert processes() == Processes(0, 1)
    assert len(run(plain, Net(0), steps=2)) == 2


@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": "2"}, {"ACCELERATE_USE_CPU": "True", "OMPI_COMM_WORLD_SIZE": "2"}],
)
def test_several_processes_need_accelerate(no_accelerate, monkeypatch, variables):
    """As a launcher of torch leaves them, and accelerate launch --cpu through MPI."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModuleNotFoundError, match=r"2 processes.*pip install accelerate"):
        run(plain, Net(0), steps=2)


def test_a_stray_world_size_is_refused(monkeypatch):
    """Two processes are announced, but accelerate finds itself alone: better to say so."""
    alone = types.SimpleNamespace(num_processes=1, process_index=0)
    fake = types.SimpleNamespace(PartialState=lambda cpu: alone)
    monkeypatch.setitem(sys.modules, "accelerate", fake)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2.*sees 1 processes"):
        processes()


def test_alone_every_meeting_is_free():
    here = Processes()
    w = nn.Parameter(torch.ones(2))
    here.average_gradients([w])
    here.copy_from_first([w])
    here.check_same(object())
    here.check_device([torch.empty(1, device="meta")])
    assert w.grad is None and here.each(lambda: 2.5) == [2.5]
    assert here.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(KeyError):
        here.each(lambda: {}["missing"])


# ---- cutting a batch ------------------------------------------------------------------------


def test_shares_are_the_batch_in_order():
    """Every container, every tensor with axes; the rest is passed on."""
    x, y = torch.arange(24.0).reshape(12, 2), torch.arange(12)
    batch = {"a": Batch(x, [y, "words"], (x[:, :1], None)), "n": torch.tensor(7.0), "k": 3}
    parts = [share(batch, i, 3) for i in range(3)]
    for i, part in enumerate(parts):
        rows = slice(4 * i, 4 * i + 4)
        assert type(part["a"]) is Batch and type(part["a"].t) is tuple
        assert torch.equal(part["a"].x0, x[rows])
        assert torch.equal(part["a"].eps[0], y[rows]) and part["a"].eps[1] == "words"
        assert torch.equal(part["a"].t[0], x[rows, :1]) and part["a"].t[1] is None
        assert part["n"] is batch["n"] and part["k"] == 3
    assert share(batch, 0, 1) is batch
    assert share(None, 1, 2) is None


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        (torch.zeros(9, 2), "batch has 9 examples.* 2 equal parts.*multiple"),
        (torch.zeros(0, 2), "batch has 0 examples"),
        ((torch.zeros(8, 2), torch.zeros(4)), r"lengths \[4, 8\]"),
    ],
)
def test_what_cannot_be_shared_is_refused(batch, word):
    with pytest.raises(ValueError, match=word):
        share(batch, 0, 2)
