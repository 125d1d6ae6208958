"""A training that was stopped ends with the weights that it would have had."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_cli import NET
from test_training import conv_net, scored, small
from torch import Tensor, nn

from fxprune import data
from fxprune.checkpoint import read_manifest, read_training
from fxprune.data import ImageData
from fxprune.errors import CheckpointError, ResumeError, TopologyError, TrainError
from fxprune.files import replacing
from fxprune.recipes import Recipe, run
from fxprune.stages import PruneJob, prune_stage, train_stage
from fxprune.topology import make
from fxprune.training import Callback, Run, TrainConfig, TrainingState, fit
from fxprune.training.logs import CsvLog
from fxprune.zoo import ModelSpec

CONFIG = TrainConfig(epochs=4, lr=0.05, batch_size=32)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return small(data.load("digits", (1, 8, 8)))


class Counter(Callback):
    """Counts the steps, and keeps copies of model and state after one epoch."""

    name = "counter"

    def __init__(self, at: int) -> None:
        self.at, self.count = at, torch.zeros(())

    def after_step(self, run: Run) -> None:
        self.count += 1

    def after_epoch(self, run: Run) -> None:
        if len(run.history) == self.at:
            state = TrainingState.of(run, [self])
            tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
            self.saved = TrainingState(tensors, json.loads(json.dumps(state.values)))
            self.model = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}

    def settings(self) -> Mapping[str, Any]:
        return {"at": self.at}

    def state(self) -> Mapping[str, Tensor]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.count = state["count"]


class Noisy(nn.Module):
    """Draws in training, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


def noisy() -> nn.Module:
    torch.manual_seed(0)
    return Noisy()


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_going_on_gives_the_same_weights(digits: ImageData, at: int, schedule: Any) -> None:
    config = replace(CONFIG, schedule=schedule)
    whole, counter = noisy(), Counter(at)
    history = fit(whole, digits, config, [counter])
    model, other = noisy(), Counter(at)
    model.load_state_dict(counter.model)
    torch.manual_seed(99)  # what was drawn in between does not matter
    again = fit(model, digits, config, [other], resume=counter.saved)
    assert [epoch.loss for epoch in again] == [epoch.loss for epoch in history]
    assert [epoch.epoch for epoch in again] == [1, 2, 3, 4]
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert other.count == counter.count == 8


def test_without_the_momentum_it_would_not(digits: ImageData) -> None:
    """The test above can fail."""
    whole, counter = noisy(), Counter(1)
    fit(whole, digits, CONFIG, [counter])
    model = noisy()
    model.load_state_dict(counter.model)
    state = {name: tensor for name, tensor in counter.saved.tensors.items() if "momentum" not in name}
    fit(model, digits, CONFIG, [Counter(1)], resume=TrainingState(state, counter.saved.values))
    assert not torch.equal(model.head.weight, whole.head.weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": replace(CONFIG, lr=0.1)}, "settings are not those of the run that was interrupted"),
        ({"at": 2}, "settings are not those of the run that was interrupted"),
        ({"train": 96}, "settings are not those of the run that was interrupted"),
        ({"name": "others"}, "settings are not those of the run that was interrupted"),
        ({"model": conv_net()}, "another model"),
    ],
)
def test_going_on_with_something_else_is_refused(change: dict[str, Any], says: str) -> None:
    digits = data.load("digits", (1, 8, 8))
    counter = Counter(1)
    fit(noisy(), small(digits), CONFIG, [counter])
    digits = replace(digits, name=change.get("name", digits.name))
    with pytest.raises(ResumeError, match=says):
        fit(
            change.get("model") or noisy(),
            small(digits, train=change.get("train", 64)),
            change.get("config", CONFIG),
            [Counter(change.get("at", 1))],
            resume=counter.saved,
        )


def test_where_it_goes_on_does_not_matter(digits: ImageData) -> None:
    """Processes of one run have devices of their own, and a state that one of them saved."""
    whole, counter = noisy(), Counter(1)
    fit(whole, digits, CONFIG, [counter])
    values = json.loads(json.dumps(counter.saved.values))
    assert "device" not in values["settings"]
    model = noisy()
    model.load_state_dict(counter.model)
    fit(model, digits, replace(CONFIG, device="cpu:0"), [Counter(1)], resume=counter.saved)
    assert torch.equal(model.head.weight, whole.head.weight)


def test_decay_of_all_parameters_moves_biases(digits: ImageData) -> None:
    moved = []
    for decay_all in (False, True):
        model = noisy()
        with torch.no_grad():
            model.net[2].bias.fill_(1.0)
        fit(model, digits, replace(CONFIG, epochs=1, weight_decay=0.5, decay_all=decay_all))
        moved.append(float(model.net[2].bias.detach().mean()))
    assert moved[1] < moved[0] - 0.01


def test_a_callback_can_leave_the_step_out(digits: ImageData) -> None:
    class LeaveOut(Callback):
        def after_backward(self, run: Run) -> bool:
            return run.step % 2 == 1

    class Watch(Callback):
        moved: list[bool]

        def begin(self, run: Run) -> None:
            self.moved, self.last = [], run.model.head.weight.detach().clone()

        def after_step(self, run: Run) -> None:
            now = run.model.head.weight.detach().clone()
            self.moved.append(not torch.equal(now, self.last))
            self.last = now

    watch = Watch()
    fit(noisy(), digits, replace(CONFIG, epochs=2, schedule="constant"), [LeaveOut(), watch])
    assert watch.moved == [True, False, True, False]


def test_bfloat16_computes_in_it_and_keeps_parameters(digits: ImageData) -> None:
    seen: list[torch.dtype] = []
    model = noisy()
    model.head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    fit(model, digits, replace(CONFIG, epochs=1, precision="bf16"))
    assert seen[0] == torch.bfloat16
    assert seen[-1] == torch.float32  # tested as it will be used
    assert model.head.weight.dtype == torch.float32


def test_bfloat16_trains_a_pruned_model() -> None:
    digits = data.load("digits", (1, 8, 8))
    pruned = scored(digits)
    (*_, last) = fit(pruned, digits, TrainConfig(epochs=4, lr=0.05, batch_size=32, precision="bf16"))
    assert last.test_accuracy > 0.8


def test_the_table_of_epochs(digits: ImageData, tmp_path: Path) -> None:
    file = tmp_path / "log" / "epochs.csv"
    history = fit(noisy(), digits, CONFIG, [CsvLog(file)])
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in history]
    assert list(rows[0]) == ["epoch", "loss", "train_accuracy", "test_accuracy", "seconds"]


def test_a_table_that_cannot_be_written(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match="cannot write"):
        fit(noisy(), digits, CONFIG, [CsvLog(tmp_path / "file" / "epochs.csv")])


# --- checkpoints


COMMAND = [sys.executable, "-m", "fxprune"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return f"{file}:make_net"


@pytest.fixture(scope="module")
def fresh(net: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is not trained yet."""
    folder = tmp_path_factory.mktemp("fresh") / "out"
    job = PruneJob(ModelSpec(net, (1, 8, 8)), "digits", 0.8, score_batch=50)
    prune_stage(job, folder)
    return folder


def prepared(fresh: Path, folder: Path) -> None:
    shutil.copytree(fresh, folder)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / read_manifest(folder).weights_file)


class Stop(Callback):
    def after_epoch(self, run: Run) -> None:
        if len(run.history) == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_kill_9_and_on_again(net: str, fresh: Path, tmp_path: Path) -> None:
    """A real kill, and what else the checkpoint promises, on the way."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepared(fresh, whole)
    prepared(fresh, killed)
    train = ["--model", net, "--epochs", "6", "--batch-size", "32"]
    subprocess.run([*COMMAND, "train", whole, *train], check=True, capture_output=True, env=ENVIRONMENT)
    process = subprocess.Popen([*COMMAND, "train", killed, *train], stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(read_manifest(killed).notes["training"]) < 2:
        assert process.poll() is None, "the training was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = read_training(killed)
    assert state is not None
    done = len(state.history)
    assert 2 <= done < 6

    # other settings are refused, and say what to do
    with pytest.raises(ResumeError, match=r"in the middle of a training: .* --fresh trains on"):
        train_stage(killed, TrainConfig(epochs=7, batch_size=32), model=ModelSpec(net))

    again = subprocess.run([*COMMAND, "train", killed, *train, "--json"], capture_output=True, env=ENVIRONMENT)
    assert again.returncode == 0, again.stderr
    assert [epoch["epoch"] for epoch in json.loads(again.stdout)] == [1, 2, 3, 4, 5, 6]
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed).items())
    losses = [[epoch["loss"] for epoch in read_manifest(f).notes["training"]] for f in (whole, killed)]
    assert losses[0] == losses[1]
    # it is over: nothing is left of it
    assert read_training(killed) is None
    assert sorted(file.name.partition("-")[0] for file in killed.iterdir()) == ["fxprune.json", "weights"]


def test_fresh_begins_anew(net: str, fresh: Path, tmp_path: Path) -> None:
    prepared(fresh, tmp_path / "out")
    config, spec = TrainConfig(epochs=3, batch_size=64), ModelSpec(net)
    with pytest.raises(KeyboardInterrupt):
        train_stage(tmp_path / "out", config, [Stop()], model=spec)
    state = read_training(tmp_path / "out")
    assert state is not None
    assert len(state.history) == 2
    other = replace(config, epochs=2)
    with pytest.raises(ResumeError, match="middle of a training"):
        train_stage(tmp_path / "out", other, model=spec)
    assert len(train_stage(tmp_path / "out", other, model=spec, fresh=True)) == 2
    assert [epoch["epoch"] for epoch in read_manifest(tmp_path / "out").notes["training"]] == [1, 2, 1, 2]


def test_what_a_killed_save_left_goes_with_the_next(net: str, fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepared(fresh, folder)
    for left in (".weights-123.tmp", ".training-123.tmp", "training-0123456789ab.safetensors"):
        (folder / left).touch()
    train_stage(folder, TrainConfig(epochs=1, batch_size=64), model=ModelSpec(net))
    assert sorted(file.name.partition("-")[0] for file in folder.iterdir()) == ["fxprune.json", "weights"]


RECIPE = """
[model]
name = "{net}"
input = "1x8x8"
[data]
name = "digits"
[prune]
sparsity = 0.8
[train]
epochs = 2
momentum = 0.5
[topology]
method = "{method}"
"""


def test_a_recipe_trains_on_by_the_command_for_training(net: str, fresh: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    prepared(fresh, folder)
    recipe.write_text(RECIPE.format(net=net, method="set"))
    read = Recipe.read(recipe)
    assert (read.train.momentum, [type(callback).__name__ for callback in read.movement]) == (0.5, ["SET"])
    command = [*COMMAND, "train", folder, "--model", net, "--recipe", recipe, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
    recipe.write_text(RECIPE.format(net=net, method="sett"))
    with pytest.raises(TopologyError, match="unknown topology 'sett'"):
        Recipe.read(recipe)


@pytest.mark.slow
def test_a_run_of_a_recipe_goes_on(net: str, tmp_path: Path) -> None:
    """Interrupted after an epoch and before the export, it ends with what an undisturbed one ends with."""
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(net=net, method="set"))
    recipe = replace(Recipe.read(file), output=tmp_path / "whole")
    whole = run(recipe)
    recipe = replace(recipe, output=tmp_path / "parts")
    said: list[str] = []
    for stop in ("  epoch 1", "exporting", "nowhere"):

        def say(line: str, stop: str = stop) -> None:
            said.append(line)
            if line.startswith(stop):
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            parts = run(recipe, say=say)
    assert [line.partition(" ")[0] for line in said if "epoch" not in line] == [
        *("pruning", "going", "exporting", "going", "exporting", "measuring"),
    ]
    assert [line[:9] for line in said if line.startswith("  epoch")] == ["  epoch 1", "  epoch 2"]
    assert parts.pruned_accuracy == whole.pruned_accuracy
    assert parts.untrained_accuracy == whole.untrained_accuracy
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(recipe.output).items())
    with pytest.raises(CheckpointError, match="holds a checkpoint; choose another output"):
        run(recipe)  # it is over
    (recipe.output / "results.json").unlink()
    with pytest.raises(CheckpointError, match="holds a checkpoint; choose another output"):
        run(replace(recipe, train=replace(recipe.train, lr=0.5)))  # another recipe


def test_a_damaged_state_is_refused(net: str, fresh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepared(fresh, folder)
    with pytest.raises(KeyboardInterrupt):
        train_stage(folder, TrainConfig(epochs=3, batch_size=64), [Stop()], model=ModelSpec(net))
    (file,) = folder.glob("training-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="digest"):
        read_training(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="expected the tensors of a checkpoint"):
        read_training(folder)


@pytest.mark.parametrize("training", ["weights.txt", ["../x.safetensors", "0"], ["weights-0.safetensors"], [1, 2]])
def test_a_forged_name_is_refused(fresh: Path, tmp_path: Path, training: Any) -> None:
    prepared(fresh, tmp_path / "out")
    manifest = tmp_path / "out" / "fxprune.json"
    values = json.loads(manifest.read_text())
    with replacing(manifest) as temporary:
        temporary.write_text(json.dumps({**values, "training": training}))
    with pytest.raises(CheckpointError, match="training must name a file"):
        read_training(tmp_path / "out")


# --- several processes


@pytest.mark.slow
def test_torchrun_prunes_and_trains(net: str, fresh: Path, tmp_path: Path) -> None:
    """Two processes keep what one keeps, write once, speak once, and learn."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepared(fresh, alone)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fxprune"]

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [*launch, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    said = call(
        "prune", net, "--input", "1x8x8", "--sparsity", "0.8", "--data", "digits", "-o", together,
        "--score-batch", "50",
    )  # fmt: skip
    assert said.stderr.count("saved in") == 1
    one, two = weights(alone), weights(together)
    for name in one:
        if name.endswith("_mask"):
            assert torch.equal(one[name], two[name])
    refused = subprocess.run([*launch, "models"], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert refused.returncode != 0
    assert "models does not share its work among processes" in refused.stderr
    said = call("train", together, "--model", net, "--epochs", "4", "--batch-size", "32", "--json")
    history = json.loads(said.stdout)
    assert len(history) == 4
    assert history[-1]["test_accuracy"] > 0.6


def test_masks_that_move_go_on_from_a_checkpoint(net: str, fresh: Path, tmp_path: Path) -> None:
    """The command line's own topologies: interrupted, refused without them, and to the same end with them."""
    spec, config = ModelSpec(net), TrainConfig(epochs=3, batch_size=64)
    for folder in ("whole", "stopped"):
        prepared(fresh, tmp_path / folder)
    train_stage(tmp_path / "whole", config, [make("set")], model=spec)
    with pytest.raises(KeyboardInterrupt):
        train_stage(tmp_path / "stopped", config, [make("set"), Stop()], model=spec)
    for other in ([], [make("rigl")], [make("set", share=0.1)]):
        with pytest.raises(ResumeError, match="settings are not those of the run that was interrupted"):
            train_stage(tmp_path / "stopped", config, other, model=spec)
    train_stage(tmp_path / "stopped", config, [make("set")], model=spec)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
