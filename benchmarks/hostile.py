"""Files that somebody has damaged or forged: each is refused with a message, or read for what it still is.

    python benchmarks/hostile.py                                  # 5,000 files, about an hour
    python benchmarks/hostile.py --count 300 --kind onnx
    python benchmarks/hostile.py --first 1234 --count 1 --show    # one of them again

A case is a number: it draws a file of a small run (tensors, manifest, recipe, setting, ONNX file, rows), damages
it as chance has it (bytes, truncation, forged sizes and names, values of other types) and reads it in the way that
users do. fxprune reads no CSV: its table of epochs is only written. Digests are forged along, so that they keep
nothing away. What may come of a case: an `FxpruneError` with a message, a verification that names what does not
hold, or success, where the damage is none (another float). Anything else is a failure: another exception, a crash,
more than `SECONDS`, more than `MEMORY` on top of what the process held before, a look at a file outside the
folder, a process started, or the canary's code run.

Cases run in processes with a limit on their address space; one that dies is named, and the next case goes on in
another process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import record

SECONDS = 30
MEMORY = 2 * 2**30

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

Draw = random.Random
Damage = Callable[[Draw, bytes], bytes]


# --- what there is to be damaged


class Target:
    """A folder with a file of each kind, and how each kind is read.

    Attributes:
        folder: everything is in it; what lies beside it is nobody's business.
    """

    def __init__(self, folder: Path) -> None:
        import fxprune
        from fxprune.stages import PruneJob, prune_stage, train_stage
        from fxprune.training import Callback, TrainConfig

        class Stop(Callback):
            def after_epoch(self, run: Any) -> None:
                if len(run.history) == 1:
                    raise KeyboardInterrupt

        self.folder, self.out = folder, folder / "out"
        (folder / "net.py").write_text(NET)
        (folder / "evil.py").write_text(CANARY.format(path=str(folder / "ran")))
        (folder.parent / "secret.bin").write_bytes(bytes(4096))
        self.spec = fxprune.ModelSpec("net.py:make_net", (1, 8, 8))  # from the folder, where its processes are
        job = PruneJob(self.spec, "digits", 0.8, criterion="random")
        prune_stage(job, self.out)
        # no seconds of this run in the files: a case is the same file each time
        with contextlib.suppress(KeyboardInterrupt), mock.patch("time.monotonic", return_value=0.0):
            train_stage(self.out, TrainConfig(epochs=2, batch_size=512), [Stop()], model=self.spec)
        thin = PruneJob(self.spec, "digits", criterion="random", granularity="channel", budget="macs=0.5")
        prune_stage(thin, folder / "thin")
        self.pruned = fxprune.load(self.out, self.spec)
        fxprune.export_onnx(self.pruned, folder / "net.onnx", encoding="auto")
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "setting.toml").write_text(SETTING)
        (folder / "compat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _compat_rows()))
        (folder / "study.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self._study_rows()))
        self.whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.readers: dict[str, tuple[Callable[[Draw], Path], Mapping[str, Damage], Callable[[Path], Any]]] = {
            "weights": (self._checkpoint("weights"), _SAFETENSORS, self._load),
            "training": (lambda _: self._file(self.out, "training"), _SAFETENSORS, self._resume),
            "manifest": (
                lambda draw: draw.choice([self.out, folder / "thin"]) / "fxprune.json",
                _JSON,
                self._load,
            ),
            "recipe": (lambda _: folder / "recipe.toml", _TOML, self._recipe),
            "setting": (lambda _: folder / "setting.toml", _TOML, self._setting),
            "onnx": (lambda _: folder / "net.onnx", _ONNX, self._verify),
            "compat": (lambda _: folder / "compat.jsonl", _ROWS, self._compat),
            "study": (lambda _: folder / "study.jsonl", _ROWS, self._study),
        }

    def try_case(self, number: int, kinds: list[str]) -> dict[str, Any]:
        """Damage a file, read it, put everything back; what came of it."""
        draw = random.Random(number)
        kind = draw.choice(kinds)
        choose, damages, read = self.readers[kind]
        path = choose(draw)
        how = draw.choice(list(damages))
        path.write_bytes(damages[how](draw, self.whole[path]))
        if kind in ("weights", "training") and draw.random() < 0.9:
            self._forge_digest(path)
        try:
            outcome, said = "accepted", str(read(path) or "")
        except Exception as error:
            from fxprune import FxpruneError

            fine = isinstance(error, FxpruneError) and len(str(error)) > 10
            outcome, said = ("refused" if fine else "failed"), f"{type(error).__name__}: {error}"
            if not fine:
                import traceback

                frame = traceback.extract_tb(error.__traceback__)[-1]
                said += f" ({Path(frame.filename).name}:{frame.lineno})"
        if (self.folder / "ran").exists():
            outcome, said = "failed", "the canary's code ran"
        self._restore()
        return {"case": number, "kind": kind, "damage": how, "outcome": outcome, "said": said[:500]}

    def _restore(self) -> None:
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
        import fxprune
        from fxprune.checkpoint import read_training
        from fxprune.stages import report_stage

        with contextlib.suppress(fxprune.FxpruneError):
            fxprune.load(path.parent)  # without the user's word, no code of a file may run
        fxprune.load(path.parent, self.spec)
        read_training(path.parent)
        report_stage(path.parent, model=self.spec, gradient=True)

    def _resume(self, path: Path) -> None:
        from fxprune.stages import train_stage
        from fxprune.training import TrainConfig

        train_stage(path.parent, TrainConfig(epochs=2, batch_size=512), model=self.spec)

    def _recipe(self, path: Path) -> None:
        from fxprune.recipes import Recipe

        Recipe.read(path)

    def _setting(self, path: Path) -> None:
        from fxprune.study.setting import Setting

        Setting.read(path)

    def _verify(self, path: Path) -> str:
        import fxprune
        from fxprune.onnx.verify import verify_onnx

        checks = verify_onnx(path, self.pruned, batches=(1, 2)).checks
        failed = [check.name for check in checks if not check.passed]
        with contextlib.suppress(fxprune.FxpruneError):  # it reports on any file of this model, verified or not
            fxprune.report(self.pruned, path)
        return ", ".join(failed) and f"found: {', '.join(failed)}"

    def _compat(self, path: Path) -> None:
        from fxprune.compat import table
        from fxprune.compat.results import ROWS
        from fxprune.rows import RowFile, read_rows

        found = table.entries(read_rows([path], ROWS))
        table.html(found), table.markdown(found)
        with RowFile(path, ROWS, resume=True):
            pass

    def _study(self, path: Path) -> None:
        from fxprune.study.pages import conduct

        out = self.folder / "pages"
        out.mkdir(exist_ok=True)
        shutil.copy(path, out / "rows.jsonl")
        for _ in conduct("accuracy", self.folder / "setting.toml", out, [], measure=False):
            pass

    def _study_rows(self) -> Iterator[dict[str, Any]]:
        from fxprune.study.experiment import header
        from fxprune.study.setting import Setting
        from fxprune.study.studies import study

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


# --- damage

_SIZES = [0, 1, -1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64, 10**30]
_NAMES = ["", ".", "..", "../secret.bin", "/etc/passwd", "weights-000000000000.safetensors", "a" * 5000, "\x00"]
_NAMES += [
    "evil.py:make_net",
    "evil:make_net",
    "timm:resnet18",
    "torchvision:nosuch",
    "imagefolder:..",
    "<script>",
]
_NAMES += ["${HOME}", "ё\u202e"]
_VALUES: list[Any] = [*_SIZES, *_NAMES, None, True, False, [], {}, [[]], [1, "x"], 0.5, -0.5, 1e308, float("nan")]
_VALUES += [float("inf"), {"a": 1}, ["../secret.bin"], [10**9] * 3, [2**62, 2**62]]


def flip_bits(draw: Draw, content: bytes) -> bytes:
    """A few bits."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 2, 8, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw: Draw, content: bytes) -> bytes:
    """The beginning, down to nothing."""
    return content[: draw.choice([0, 1, 8, len(content) // 2, len(content) - 1, draw.randrange(len(content))])]


def overwrite(draw: Draw, content: bytes) -> bytes:
    """A stretch of noise, zeros or ones."""
    start, length = draw.randrange(len(content)), draw.choice([1, 8, 100])
    noise = draw.choice([draw.randbytes(length), bytes(length), b"\xff" * length])
    return content[:start] + noise + content[start + length :]


def splice(draw: Draw, content: bytes) -> bytes:
    """A piece of the file once more in another place, or cut out."""
    start, length = draw.randrange(len(content)), draw.choice([1, 16, 200])
    piece, place = content[start : start + length], draw.randrange(len(content))
    if draw.random() < 0.5:
        return content[:place] + piece + content[place:]
    return content[:start] + content[start + length :]


def number_in_text(draw: Draw, content: bytes) -> bytes:
    """A number becomes another."""
    found = list(re.finditer(rb"\d+", content))
    at = draw.choice(found)
    return content[: at.start()] + str(draw.choice(_SIZES)).encode() + content[at.end() :]


def _value_somewhere(draw: Draw, tree: Any) -> Any:
    """A value of a tree of JSON becomes another, or goes, or comes twice."""
    places = [*_places(tree)]
    for _ in range(draw.choice([1, 1, 1, 3])):
        holder, key = draw.choice(places)
        action = draw.random()
        with contextlib.suppress(KeyError, IndexError, TypeError):  # it went with another
            if action < 0.15:
                del holder[key]
            elif action < 0.25 and isinstance(holder, list):
                holder.append(holder[key])
            elif action < 0.35 and isinstance(holder, dict):
                holder[draw.choice([str(key) + "x", "", "__class__", "name"])] = holder[key]
            else:
                holder[key] = draw.choice(_VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def json_value(draw: Draw, content: bytes) -> bytes:
    """Somewhere another value."""
    return json.dumps(_value_somewhere(draw, json.loads(content))).encode()


def nested(draw: Draw, content: bytes) -> bytes:
    """Brackets without end."""
    depth = draw.choice([100, 10_000, 1_000_000])
    text = draw.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])
    return draw.choice([text, content[:-2] + b',"x":' + text + b"}"])


def row_value(draw: Draw, content: bytes) -> bytes:
    """In one row another value."""
    lines = content.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    lines[place] = json_value(draw, lines[place]) + b"\n"
    return b"".join(lines)


def toml_value(draw: Draw, content: bytes) -> bytes:
    """An entry gets another value."""
    lines = content.decode().splitlines()
    place = draw.choice([i for i, line in enumerate(lines) if "=" in line])
    name = lines[place].partition(" =")[0]
    values = [
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[1]]",
        "true",
        '"../../etc"',
        "2026-11-23",
    ]
    values += [*map(str, _SIZES), *map(json.dumps, _NAMES), '["x", 1]', "{a = 1}", "[" * 3000]
    lines[place] = f"{name} = {draw.choice(values)}"
    return "\n".join(lines).encode()


def toml_line(draw: Draw, content: bytes) -> bytes:
    """A line is gone, or comes twice, or a table gets another name."""
    lines = content.decode().splitlines()
    place, action = draw.randrange(len(lines)), draw.randrange(3)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(draw.randrange(len(lines)), lines[place])
    else:
        lines[place] = draw.choice(
            ["[x]", "[[model]]", "[model.name]", "x = 1", "a.b.c = 1", "[networks.'']", "\x00"]
        )
    return "\n".join(lines).encode()


def tensors_header(draw: Draw, content: bytes) -> bytes:
    """The JSON in front of tensors says something else of them: shapes, types, places, names."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json_value(draw, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def tensors_length(draw: Draw, content: bytes) -> bytes:
    """The header's length is another."""
    return struct.pack("<Q", draw.choice([size for size in _SIZES if 0 <= size < 2**64])) + content[8:]


def tensors_shape(draw: Draw, content: bytes) -> bytes:
    """A consistent file, in which a tensor has another shape or type."""
    import torch
    from safetensors.torch import load, save

    tensors = load(content)
    name = draw.choice(sorted(tensors))
    other: list[Callable[[Any], Any]] = [
        lambda t: t[:0], lambda t: t.flatten(), lambda t: t.double(), lambda t: t.bool(), lambda t: t[None],
        lambda t: t * float("nan"), lambda _: torch.zeros(3), lambda t: t.half(), lambda t: t.repeat(2),
    ]  # fmt: skip
    with contextlib.suppress(Exception):
        tensors[name] = draw.choice(other)(tensors[name]).contiguous()
    if draw.random() < 0.3:
        tensors[draw.choice(["x", "0.weight_mask_mask", "optimizer.99.momentum_buffer"])] = tensors.pop(name)
    (length,) = struct.unpack("<Q", content[:8])
    return save(tensors, json.loads(content[8 : 8 + length]).get("__metadata__"))


def onnx_part(draw: Draw, content: bytes) -> bytes:
    """A part of the model says something else: sizes, types, names, places of data, operators."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(content)
    graph = model.graph
    tensor = draw.choice(graph.initializer)
    node = draw.choice(graph.node)
    function = draw.choice(model.functions)
    size = draw.choice([size for size in _SIZES if -(2**63) <= size < 2**63])

    def outside() -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = draw.choice(["../secret.bin", "/etc/passwd", "out/../../secret.bin", "net.py", "", "x" * 5000])
        tensor.external_data.add(key="location", value=place)
        if draw.random() < 0.5:
            tensor.external_data.add(key="length", value=str(size))
        if draw.random() < 0.5:
            tensor.external_data.add(key="offset", value=str(size))

    def constant() -> None:
        inner = draw.choice([each for each in function.node if each.attribute])
        attribute = draw.choice(inner.attribute)
        if attribute.ints:
            attribute.ints[0] = size
        else:
            attribute.i, attribute.type = size, onnx.AttributeProto.INT

    def endless() -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["going"], ["on"])],
            "body",
            [helper.make_tensor_value_info(*of) for of in (("count", 7, []), ("going", 9, []))],
            [helper.make_tensor_value_info("on", 9, [])],
        )
        steps = helper.make_tensor("steps", 7, [], [2**62])
        true = helper.make_tensor("true", 9, [], [True])
        graph.initializer.extend([steps, true])
        graph.node.insert(0, helper.make_node("Loop", ["steps", "true"], [], body=body))

    def calls_itself() -> None:
        call = helper.make_node(function.name, list(function.input), list(function.output), domain=function.domain)
        del function.node[:]
        function.node.append(call)

    def change(holder: Any, name: str, value: Any) -> Callable[[], None]:
        return lambda: setattr(holder, name, value)

    actions: list[Callable[[], Any]] = [
        outside, constant, endless, calls_itself,
        lambda: tensor.dims.append(size),
        lambda: tensor.dims.__setitem__(0, size) if tensor.dims else None,
        change(tensor, "data_type", draw.randrange(30)),
        change(tensor, "name", draw.choice([other.name for other in graph.initializer])),
        change(tensor, "raw_data", tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]),
        lambda: graph.initializer.remove(tensor),
        change(node, "op_type", draw.choice(["Nosuch", "Loop", "Tile", "Expand", "Identity", ""])),
        change(node, "domain", draw.choice(["nosuch", "com.microsoft", "fxprune"])),
        lambda: node.input.append(draw.choice(["nosuch", *node.output])),
        lambda: graph.node.remove(node),
        lambda: node.input.pop() if node.input else None,
        lambda: graph.node.append(node),
        lambda: graph.ClearField(draw.choice(["input", "output", "node", "initializer"])),
        lambda: model.ClearField(draw.choice(["opset_import", "functions", "ir_version", "metadata_props"])),
        lambda: setattr(model.opset_import[0], "version", size),
        lambda: setattr(model, "ir_version", size),
        change(model.metadata_props[0], "value", draw.choice(["", "{", "[]", '{"source": 3}', "[" * 100_000])),
        lambda: [setattr(a, "i", size) if a.type == 2 else a.ints.append(size) for a in node.attribute],
        lambda: graph.input[0].type.tensor_type.shape.dim.add(dim_value=size),
        lambda: setattr(graph.input[0].type.tensor_type, "elem_type", draw.randrange(30)),
    ]  # fmt: skip
    with contextlib.suppress(IndexError, ValueError):
        draw.choice(actions)()
    return model.SerializeToString()


_BYTES: dict[str, Damage] = {"bits": flip_bits, "truncated": truncate, "noise": overwrite, "spliced": splice}
_SAFETENSORS = {**_BYTES, "header": tensors_header, "length": tensors_length, "tensor": tensors_shape}
_TEXT: dict[str, Damage] = {**_BYTES, "number": number_in_text}
_JSON = {**_TEXT, "value": json_value, "value ": json_value, "value  ": json_value, "nested": nested}
_ROWS = {**_TEXT, "value": row_value, "value ": row_value, "value  ": row_value, "nested": nested}
_TOML = {**_TEXT, "value": toml_value, "value ": toml_value, "line": toml_line}
_ONNX = {**_BYTES, "part": onnx_part, "part ": onnx_part, "part  ": onnx_part}
KINDS = ("weights", "training", "manifest", "recipe", "setting", "onnx", "compat", "study")


# --- processes


def work(first: int, count: int, kinds: list[str]) -> None:
    """Try cases one after the other; a line of JSON for each, and one before it."""
    import logging
    import warnings

    import torch

    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inside").mkdir()
        os.chdir(Path(folder) / "inside")
        target = Target(Path(folder) / "inside")
        for kind in KINDS:  # imports, and the folder's own spirit: what is whole is accepted
            target.readers[kind][2](target.readers[kind][0](random.Random(0)))
        target._restore()
        looked: list[str] = []
        sys.addaudithook(_watch(Path(folder), looked))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        for number in range(first, first + count):
            print(json.dumps({"begin": number}), file=answers)
            looked.clear()
            start = time.monotonic()
            found = target.try_case(number, kinds)
            if looked and found["outcome"] != "failed":
                found |= {"outcome": "failed", "said": f"looked at {looked[0]}"}
            print(json.dumps({**found, "seconds": round(time.monotonic() - start, 2)}), file=answers)
    os._exit(0)  # threads of damaged sessions are not waited for


def _watch(folder: Path, looked: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes files opened beside the folder's `inside`, and processes that are started."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            looked.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]).partition("\0")[0])
            if path == "/etc/passwd" or (path.startswith(str(folder)) and not path.startswith(f"{folder}/inside")):
                looked.append(path)

    return hook


def attempts(first: int, count: int, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """What came of each case; a process that dies or hangs is a failure, and another goes on."""
    number, end = first, first + count
    while number < end:
        command = [sys.executable, __file__, "--work", "--first", str(number), "--count", str(end - number)]
        command += [part for kind in kinds for part in ("--kind", kind)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            for answer in _lines(process):
                if "begin" in answer:
                    number = answer["begin"]
                elif "failed" in answer:
                    yield {
                        "case": number,
                        "kind": "?",
                        "damage": "?",
                        "outcome": "failed",
                        "said": answer["failed"],
                    }
                    number += 1
                else:
                    yield answer
                    number = answer["case"] + 1


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    stream, patience = process.stdout, 300.0  # until the first: imports, training
    assert stream is not None
    rest, ended = b"", False
    while True:
        ready, _, _ = select.select([stream], [], [], patience)
        part = os.read(stream.fileno(), 65536) if ready else b""
        if not part:
            break
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield json.loads(line)
            ended = b'"begin"' not in line
        patience = SECONDS
    process.kill()
    code = process.wait()
    if not ready:
        yield {"failed": f"more than {patience:g} seconds"}
    elif code or not ended:
        yield {"failed": f"the process died: {signal.Signals(-code).name if code < 0 else code}"}


def main() -> None:
    """Parse the command line, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; all by default")
    parser.add_argument("--show", action="store_true", help="print each case")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if options.work:
        work(options.first, options.count, kinds)
        return
    found = []
    for each in attempts(options.first, options.count, kinds):
        found.append(each)
        if options.show or each["outcome"] == "failed":
            print(each, flush=True)
    rows = summary(found)
    print(json.dumps(rows, indent=1))
    record.write(options.json, rows, "onnx", "onnxruntime", "safetensors")


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind: how many were refused, accepted, failed; and every failure."""
    rows = []
    for kind in sorted({each["kind"] for each in found}):
        mine = [each for each in found if each["kind"] == kind]
        counts = Counter(each["outcome"] for each in mine)
        found_wrong = sum(each["said"].startswith("found") for each in mine)
        row = {"kind": kind, "cases": len(mine), "refused": counts["refused"] + found_wrong}
        row |= {"accepted": counts["accepted"] - found_wrong, "failed": counts["failed"]}
        rows.append(row | {"slowest_seconds": max(each.get("seconds", 0.0) for each in mine)})
    return [*rows, *({"failure": each} for each in found if each["outcome"] == "failed")]


if __name__ == "__main__":
    main()
