"""A small run's files of each kind, and what users do with them, for `hostile.py`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hostile_damage import DAMAGES, Draw

import fxprune
from fxprune.checkpoint import read_training
from fxprune.compat import table
from fxprune.compat.results import ROWS
from fxprune.onnx.verify import verify_onnx
from fxprune.recipes import Recipe
from fxprune.rows import RowFile, read_rows
from fxprune.stages import PruneJob, prune_stage, report_stage, train_stage
from fxprune.study.experiment import header
from fxprune.study.pages import conduct
from fxprune.study.setting import Setting
from fxprune.study.studies import study
from fxprune.training import Callback, TrainConfig

NET = """
from torch import nn

def make_net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 3 * 3, num_classes),
    )
"""
RECIPE = """
[model]
name = "net.py:make_net"
input = "1x8x8"
num_classes = 10
[data]
name = "digits"
[prune]
sparsity = 0.8
criterion = "grasp"
include = ["0.*"]
per_class = 5
[train]
epochs = 1
lr = 0.1
schedule = "cosine"
[topology]
method = "set"
share = 0.3
[run]
dense_baseline = true
output = "out"
"""
SETTING = """
[data]
name = "digits"
limit = 100
[networks.net]
model = "net.py:make_net"
input = "1x8x8"
train = {epochs = 2}
[grid]
sparsities = [0.5, 0.9]
few_sparsities = [0.9]
seeds = [0, 1]
methods = ["grasp", "random"]
[train]
batch_size = 64
[tickets]
rewind = 0.1
[kernel]
per_class = 2
[topology.set]
share = 0.3
"""
CANARY = "import pathlib; pathlib.Path({path!r}).touch()\n\ndef make_net(num_classes=10): raise SystemExit\n"


class _StopAfterOne(Callback):
    """Interrupts training, so that there is something to resume."""

    def after_epoch(self, run: Any) -> None:
        if len(run.history) == 1:
            raise KeyboardInterrupt


class Target:
    """A folder with a file of each kind, and how each kind is read.

    Attributes:
        folder: everything is in it; what lies beside it is nobody's business.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "net.py").write_text(NET)
        (folder / "evil.py").write_text(CANARY.format(path=str(folder / "ran")))
        (folder.parent / "secret.bin").write_bytes(bytes(4096))
        self.spec = fxprune.ModelSpec("net.py:make_net", (1, 8, 8))  # from the folder, where its processes are
        job = PruneJob(self.spec, "digits", 0.8, criterion="random")
        prune_stage(job, self.out)
        # no seconds of this run in the files: a case is the same file each time
        with contextlib.suppress(KeyboardInterrupt), mock.patch("time.monotonic", return_value=0.0):
            train_stage(self.out, TrainConfig(epochs=2, batch_size=512), [_StopAfterOne()], model=self.spec)
        thin = PruneJob(self.spec, "digits", criterion="random", granularity="channel", budget="macs=0.5")
        prune_stage(thin, folder / "thin")
        self.pruned = fxprune.load(self.out, self.spec)
        fxprune.export_onnx(self.pruned, folder / "net.onnx", encoding="auto")
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "setting.toml").write_text(SETTING)
        (folder / "compat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _compat_rows()))
        (folder / "study.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self._study_rows()))
        self.whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.readers: dict[str, tuple[Callable[[Draw], Path], Callable[[Path], Any]]] = {
            "weights": (self._checkpoint("weights"), self._load),
            "training": (lambda _: self._file(self.out, "training"), self._resume),
            "manifest": (lambda draw: draw.choice([self.out, folder / "thin"]) / "fxprune.json", self._load),
            "recipe": (lambda _: folder / "recipe.toml", self._recipe),
            "setting": (lambda _: folder / "setting.toml", self._setting),
            "onnx": (lambda _: folder / "net.onnx", self._verify),
            "compat": (lambda _: folder / "compat.jsonl", self._compat),
            "study": (lambda _: folder / "study.jsonl", self._study),
        }

    def try_case(self, number: int, kinds: list[str]) -> dict[str, Any]:
        """Damage a file, read it, put everything back; what came of it."""
        draw = random.Random(number)
        kind = draw.choice(kinds)
        choose, read = self.readers[kind]
        path = choose(draw)
        how = draw.choice(list(DAMAGES[kind]))
        path.write_bytes(DAMAGES[kind][how](draw, self.whole[path]))
        if kind in ("weights", "training") and draw.random() < 0.9:
            self._forge_digest(path)
        try:
            outcome, said = "accepted", str(read(path) or "")
        except Exception as error:
            fine = isinstance(error, fxprune.FxpruneError) and len(str(error)) > 10
            outcome, said = ("refused" if fine else "failed"), f"{type(error).__name__}: {error}"
            if not fine:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                said += f" ({Path(frame.filename).name}:{frame.lineno})"
        if (self.folder / "ran").exists():
            outcome, said = "failed", "the canary's code ran"
        self.restore()
        return {"case": number, "kind": kind, "damage": how, "outcome": outcome, "said": said[:500]}

    def restore(self) -> None:
        """Put every file back as it was, and remove what was added."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.whole:
                path.unlink()
        for path, content in self.whole.items():
            path.write_bytes(content)

    def _file(self, folder: Path, kind: str) -> Path:
        return next(path for path in self.whole if path.parent == folder and path.name.startswith(kind))

    def _checkpoint(self, kind: str) -> Callable[[Draw], Path]:
        return lambda draw: self._file(draw.choice([self.out, self.folder / "thin"]), kind)

    def _forge_digest(self, path: Path) -> None:
        """Make the manifest name the damaged file's digest."""
        manifest = path.parent / "fxprune.json"
        values = json.loads(manifest.read_text())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name.startswith("weights"):
            values["sha256"] = digest
        else:
            values["training"][1] = digest
        manifest.write_text(json.dumps(values))

    # what users do with each

    def _load(self, path: Path) -> None:

        with contextlib.suppress(fxprune.FxpruneError):
            fxprune.load(path.parent)  # without the user's word, no code of a file may run
        fxprune.load(path.parent, self.spec)
        read_training(path.parent)
        report_stage(path.parent, model=self.spec, gradient=True)

    def _resume(self, path: Path) -> None:

        train_stage(path.parent, TrainConfig(epochs=2, batch_size=512), model=self.spec)

    def _recipe(self, path: Path) -> None:

        Recipe.read(path)

    def _setting(self, path: Path) -> None:

        Setting.read(path)

    def _verify(self, path: Path) -> str:

        checks = verify_onnx(path, self.pruned, batches=(1, 2)).checks
        failed = [check.name for check in checks if not check.passed]
        with contextlib.suppress(fxprune.FxpruneError):  # it reports on any file of this model, verified or not
            fxprune.report(self.pruned, path)
        return ", ".join(failed) and f"found: {', '.join(failed)}"

    def _compat(self, path: Path) -> None:

        found = table.entries(read_rows([path], ROWS))
        table.html(found), table.markdown(found)
        with RowFile(path, ROWS, resume=True):
            pass

    def _study(self, path: Path) -> None:

        out = self.folder / "pages"
        out.mkdir(exist_ok=True)
        shutil.copy(path, out / "rows.jsonl")
        for _ in conduct("accuracy", self.folder / "setting.toml", out, [], measure=False):
            pass

    def _study_rows(self) -> Iterator[dict[str, Any]]:

        setting = Setting.read(self.folder / "setting.toml")
        for experiment in study("accuracy").experiments(setting, ["net"]):
            for sparsity in experiment.sparsities:
                yield header(experiment, sparsity) | {
                    "kept": 100, "prunable": 1000, "emptied": 0, "macs": 100, "accuracy": 0.5, "seconds": 1.0,
                    "losses": [2.0, 1.0], "gradients": [1.0, 2.0], "versions": {"torch": "2"},
                    "setting": setting.digests[experiment.kind], "at": "2026-11-23T00:00:00.000+00:00",
                }  # fmt: skip


def _compat_rows() -> Iterator[dict[str, Any]]:
    versions, limits = {"fxprune": "0.1.0", "torch": "2", "timm": "1"}, {"seconds": 60, "gib": 2.0}
    capture = {"parameters": 1000, "regions": 1, "dynamic_batch": True, "seconds": 1.0, "peak_gib": 0.5}
    for number, stage in enumerate(("capture", "prune", "onnx", "shrink")):
        row = {"model": f"timm:net{number}", "stage": stage, "ok": True, "failed": None, "seconds": 1.0}
        row |= {"peak_gib": 0.5, "seed": 0, "limits": limits, "capture": capture, "versions": versions}
        row |= {"prune": {"prunable": 0.9, "plain_zero": 0.1, "zero": 0.0, "plain_empty": 1, "empty": 0}}
        row |= {"onnx": {"difference": 1e-6}, "shrink": {"macs": 0.5, "stays": {"a reason": 0.1}}}
        yield {**row, "at": f"2026-11-23T00:00:0{number}.000+00:00"}
    failed = {"stage": "capture", "kind": "CaptureError", "reason": "it cannot", "traceback": []}
    yield {**row, "model": "torchvision:b", "ok": False, "failed": failed, "at": "2026-11-24T00:00:00.000+00:00"}
