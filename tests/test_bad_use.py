"""Wrong calls, at the command line and in Python: what the message says, and that nothing is touched."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import NET, run  # noqa: F401  the fixture
from torch import nn

import fxprune
from fxprune import ModelSpec
from fxprune.onnx.verify import verify_onnx
from fxprune.training import TrainConfig

MORE = """
def asks(size): ...

def breaks():
    raise RuntimeError("no such luck")

def empty():
    return nn.Sequential(nn.Flatten(), nn.ReLU())

width = 8
"""
SETTING = """
[data]
name = "digits"
[networks.net]
model = "net.py:make_net"
input = "1x8x8"
[grid]
sparsities = [0.5]
seeds = [0]
"""
RECIPE = """
[model]
name = "net.py:make_net"
input = "1x8x8"
[data]
name = "digits"
[prune]
sparsity = 0.5
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of everything: code, checkpoints, an ONNX file, settings, rows, other things."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(NET + MORE)
    spec = ModelSpec(f"{folder / 'net.py'}:make_net", (1, 8, 8))
    pruned = prune(example())
    notes = {"data": "digits", "training": []}
    fxprune.save(pruned, folder / "out", model=spec, input_shape=(1, 8, 8), notes=notes)
    fxprune.save(pruned, folder / "no-data", model=spec, input_shape=(1, 8, 8))
    fxprune.save(pruned, folder / "by-hand")
    fxprune.export_onnx(pruned, folder / "net.onnx")
    (folder / "setting.toml").write_text(SETTING)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "recipes").mkdir()
    for name, (old, new) in RECIPES.items():
        assert old in RECIPE
        (folder / "recipes" / f"{name}.toml").write_text(RECIPE.replace(old, new).replace("net.py", "../net.py"))
    (folder / "empty.jsonl").touch()
    (folder / "rows.jsonl").write_text('{"model": "timm:a", "stage": "capture", "ok": true, "versions": {}}\n')
    (folder / "thesis.txt").write_text("the only copy")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("one")
    return folder


RECIPES = {
    "no-model": ('name = "net.py:make_net"\n', ""),
    "typo": ("sparsity", "sparsty"),
    "text": ("sparsity = 0.5", 'sparsity = "half"'),
    "channels": ("sparsity = 0.5", 'granularity = "channel"'),
    "topology": ("[prune]", '[topology]\nmethod = "st"\n[prune]'),
    "output": ("[prune]", "[run]\noutput = 3\n[prune]"),
    "no-data": ('[data]\nname = "digits"\n', ""),
}


def example() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    return scope["make_net"]()


def prune(model: nn.Module, **options: Any) -> fxprune.PrunedModel:
    return fxprune.prune(model, torch.zeros(2, 1, 8, 8), criterion="random", **{"sparsity": 0.5, **options})


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if "__pycache__" not in file.parts]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else "" for f in files}


NEW = "prune net.py:make_net --input 1x8x8 -o new "  # and then
PRUNE = f"{NEW} --sparsity 0.5 --criterion random "
TRAIN = "train out --model net.py:make_net --epochs 1 "
EXPORT = "export out --model net.py:make_net "
CHANNELS = f"{NEW} --criterion random --granularity channel "

# what is typed, and words of the answer: what was expected, what was got, what to do
WRONG_COMMANDS = [
    ("prun net.py:make_net", ["No such command 'prun'", "Did you mean 'prune'"]),
    ("prune net.py:make_net --sparsty 0.5", ["No such option: --sparsty", "--sparsity"]),
    ("prune net.py:make_net", ["Missing option '--output'"]),
    (f"{PRUNE} --sparsity many", ["Invalid value for '--sparsity'", " a valid "]),
    (f"{PRUNE} --sparsity nan", ["at least 0 and below 1", "got nan", "write 0.9 for 90%"]),
    (f"{PRUNE} --sparsity 90", ["at least 0 and below 1", "got 90", "write 0.9 for 90%"]),
    (f"{PRUNE} surplus", ["unexpected extra argument", "surplus"]),
    ("prune net.py -o new --sparsity 0.5", ["expected a factory", "got only 'net.py'", "write net.py:FACTORY"]),
    ("prune net.py:mak_net -o new --sparsity 0.5", ["'mak_net'", "got nothing of that name", "there are: asks"]),
    ("prune net.py:width -o new --sparsity 0.5 --input 1x8x8", ["a function or class", "got a int", "there are"]),
    ("prune net.py:asks -o new --sparsity 0.5 --input 1x8x8", ["missing 1 required", "check its arguments"]),
    ("prune net.py:breaks -o new --sparsity 0.5 --input 1x8x8", ["cannot build", "no such luck", "check"]),
    ("prune net.py:empty -o new --sparsity 0.5 --input 1x8x8", ["no prunable weight", "no parameter at all"]),
    ("prune no.such:net -o new --sparsity 0.5", ["expected timm:NAME", "got 'no.such:net'", "list_models"]),
    ("prune net.py:make_net -o new --sparsity 0.5", ["expected the shape", "got none", "say --input 3x32x32"]),
    (f"{PRUNE} --input 1x8", ["cannot capture Sequential", "Give inputs that the model runs on"]),
    (f"{PRUNE} --input 1x4x4", ["cannot capture Sequential", "Give inputs that the model runs on"]),
    (f"{PRUNE} --input 1by8", ["positive sizes joined by x", "got '1by8'", "3x32x32"]),
    (f"{PRUNE} --input 1x99999999x99999999", ["that memory holds", "got 1x99999999x", "smaller shape"]),
    (f"{PRUNE} --input 1x{'9' * 30}x8", ["that memory holds", "smaller shape"]),
    (f"{PRUNE} --num-classes 0", ["a positive number of classes", "got 0"]),
    (f"{PRUNE} --rounds -1", ["rounds: expected an integer of at least 1", "got -1"]),
    (f"{PRUNE} --floor nan", ["floor: expected a share", "got nan"]),
    (f"{PRUNE} --temperature nan", ["temperature: expected a positive number", "got nan"]),
    (f"{PRUNE} --memory inf", ["memory: expected a number of at least 0", "got inf"]),
    (f"{PRUNE} --seed {2**70}", ["seed: expected an integer of 64 bits", "use a smaller one"]),
    (f"{PRUNE} --score-batch 0 --data digits", ["expected a positive score_batch", "got 0", "use 1 or more"]),
    (f"{PRUNE} --per-class -1 --data digits", ["expected a positive per_class", "got -1", "use 1 or more"]),
    (f"{PRUNE} --data digit", ["expected a data set", "got 'digit'", "did you mean digits"]),
    (f"{PRUNE} --data imagefolder:thesis", ["class folder", "thesis"]),
    (f"{NEW} --sparsity 0.5", ["needs data", "--data"]),
    (f"{PRUNE} --criterion grap", ["unknown criterion 'grap'", "did you mean 'grasp'"]),
    (f"{PRUNE} --device meta", ["device: expected cpu, cuda", "got 'meta'"]),
    (f"{PRUNE} --include nosuch*", ["'nosuch*' matches no prunable weight", "there are 0.weight"]),
    (f"{PRUNE} --exclude '*'", ["leave no weight to prune", "loosen one of them"]),
    (f"{PRUNE} --budget macs=0.5", ["expected a sparsity", "or a budget", "granularity weight"]),
    (f"{PRUNE} --round-to 8", ["round_to: expected with granularity channel only", "got 8", "leave it out"]),
    (f"{PRUNE} --granularity channels", ["granularity: expected weight, channel or", "got 'channels'"]),
    (f"{CHANNELS}", ["or a budget, such as macs=0.5", "got sparsity None"]),
    (f"{CHANNELS} --budget flops=0.5", ["budget: expected one of macs, params", "got 'flops'"]),
    (f"{CHANNELS} --budget macs=50%", ["like macs=0.5", "got 'macs=50%'"]),
    (f"{CHANNELS} --budget macs=2", ["a share of the whole in (0, 1]", "got 2.0"]),
    (f"{CHANNELS} --budget macs=0.000001", ["at least", "got 1e-06", "fxprune groups says"]),
    (f"{CHANNELS} --budget macs=0.5 --rounds 3", ["rounds: expected with granularity weight", "leave it out"]),
    (
        f"{CHANNELS} --budget macs=0.5 --sanity invert",
        ["sanity: expected with granularity weight", "leave it out"],
    ),
    (f"{NEW} --criterion random --granularity 4:2", ["keeps some of M", "such as 2:4", "got 4:2"]),
    (f"{NEW} --criterion random --granularity 2:4 --sparsity 0.5", ["and neither", "got sparsity 0.5"]),
    (f"{PRUNE} -o out", ["out holds a checkpoint", "choose another output, or overwrite it with --force"]),
    (f"{PRUNE} -o thesis --force", ["an empty folder or a checkpoint", "something else", "choose another output"]),
    (f"{PRUNE} -o thesis.txt --force", ["a folder or nothing", "got a file", "choose another output"]),
    (f"{PRUNE} -o thesis.txt/new", ["cannot write thesis.txt/new", "choose another output"]),
    (f"{PRUNE} -o {'n' * 300}", ["cannot write nnn", "File name too long", "choose another output"]),
    ("train out", ["your own code", "name the model again", "--model"]),
    ("train no-data --model net.py:make_net", ["was pruned without data", "say what to train on with --data"]),
    ("train by-hand --model net.py:make_net", ["without an input shape", "use fxprune.load"]),
    ("train nosuch", ["expected a checkpoint", "got No such file", "fxprune prune makes one"]),
    ("train thesis", ["expected a checkpoint", "got a folder without fxprune.json", "fxprune prune makes one"]),
    ("train thesis.txt", ["expected a checkpoint", "got Not a directory", "fxprune prune makes one"]),
    (f"{TRAIN} --epochs 0", ["epochs: expected a positive integer", "got 0"]),
    (f"{TRAIN} --lr nan", ["lr: expected a number of at least 0", "got nan"]),
    (f"{TRAIN} --batch-size {10**30}", ["batch_size: expected a positive integer below 2^31"]),
    (f"{TRAIN} --lr 1e30", ["the loss became", "lower lr"]),
    (f"{TRAIN} --schedule cubic", ["schedule: expected cosine, step or constant", "got 'cubic'"]),
    (f"{TRAIN} --precision fp16", ["precision: expected float32 or bf16", "got 'fp16'"]),
    (f"{TRAIN} --topology rigle", ["unknown topology 'rigle'", "did you mean 'rigl'"]),
    (f"{TRAIN} --recipe nosuch.toml", ["nosuch.toml: expected a recipe", "No such file", "check the path"]),
    (f"{TRAIN} --log thesis", ["cannot write thesis", "Is a directory", "choose another log"]),
    (f"{TRAIN} --log thesis.txt/log.csv", ["cannot write thesis.txt/log.csv", "choose another log"]),
    (f"{TRAIN} --model timm:resnet18", ["masks for 3 weights", "was it saved from another model"]),
    (f"{EXPORT} --encoding zip", ["encoding: expected one of auto, bitmask", "got 'zip'"]),
    (f"{EXPORT} --values int8", ["values: expected one of fp16, fp32", "got 'int8'"]),
    (f"{EXPORT} -f thesis", ["expected a path for a file", "got a folder", "add a file name"]),
    (f"{EXPORT} --data imagefolder:nosuch", ["expected class folders", "got no such folder", "PATH/cat/1.jpg"]),
    ("verify net.onnx", ["Missing option '--against'"]),
    ("verify nosuch.onnx --against out --model net.py:make_net", ["expected an ONNX file", "No such file"]),
    ("verify thesis.txt --against out --model net.py:make_net", ["expected an ONNX file", "cannot be read"]),
    ("verify net.onnx --against thesis --model net.py:make_net", ["expected a checkpoint", "fxprune.json"]),
    ("report out --model net.py:make_net --html thesis", ["for an HTML file", "got a folder", "add a file name"]),
    (
        "report out --model net.py:make_net --html no/x.html",
        ["in a folder that exists", "got no folder", "make it"],
    ),
    ("shrink out -o out --model net.py:make_net", ["expected another folder", "got the same"]),
    ("shrink out -o no-data --model net.py:make_net", ["holds a checkpoint", "--force"]),
    ("shrink nosuch -o new", ["expected a checkpoint", "got No such file"]),
    ("groups net.py:make_net", ["expected the shape", "say --input"]),
    ("models nosuch*", ["no model", "matches 'nosuch*'"]),
    ("run nosuch.toml", ["nosuch.toml: expected a recipe", "No such file", "check the path"]),
    ("run thesis.txt", ["thesis.txt: expected a recipe in TOML", "got Expected '='"]),
    ("run recipes/no-model.toml", ["[model] lacks 'name'"]),
    ("run recipes/typo.toml", ["unknown 'sparsty' in [prune]", "there are"]),
    ("run recipes/text.toml", ["sparsity in [prune]: expected float", "got 'half'"]),
    ("run recipes/channels.toml", ["or a budget, such as macs=0.5", "got sparsity None"]),
    ("run recipes/topology.toml", ["unknown topology 'st'", "did you mean 'set'"]),
    ("run recipes/output.toml", ["output in [run]: expected text", "got 3"]),
    ("run recipes/no-data.toml -o new", ["a recipe needs [data]", "add it"]),
    ("run recipe.toml recipe.toml -o new", ["expected one recipe to change", "got several", "one by one"]),
    ("run recipe.toml -o thesis", ["an empty folder or a checkpoint", "something else", "choose another output"]),
    ("study nosuch setting.toml", ["study: expected one of accuracy", "got 'nosuch'"]),
    ("study sanity nosuch.toml", ["nosuch.toml: expected a setting", "No such file", "check the path"]),
    ("study sanity setting.toml --network other", ["network: expected one of net", "got 'other'"]),
    ("study sanity setting.toml -o thesis.txt", ["cannot write thesis.txt/rows.jsonl", "choose another file"]),
    ("study sanity setting.toml -o new --pages", ["expected results of sanity", "got none", "without --pages"]),
    ("compat timm:resnet18", ["Missing option '--output'"]),
    ("compat timm:resnet18 -o new.jsonl --stage train", ["stage: expected one of capture", "got 'train'"]),
    ("compat timm:resnet18 -o new.jsonl --library keras", ["library: expected one of timm", "got 'keras'"]),
    ("compat timm:resnet18 -o new.jsonl --shard 3/2", ["shard: expected i/n", "such as 2/4", "got '3/2'"]),
    ("compat timm:resnet18 -o thesis.txt --resume", ["expected rows", "the only copy", "choose another file"]),
    ("compat timm:resnet18 -o thesis", ["cannot write thesis", "Is a directory", "choose another file"]),
    ("compat timm:resnet18 -o rows.jsonl", ["rows.jsonl, line 1: expected a row", "got"]),
    ("compat table nosuch.jsonl", ["cannot read nosuch.jsonl", "check the path"]),
    ("compat table thesis.txt", ["expected rows of `fxprune compat`", "the only copy"]),
    ("compat table empty.jsonl --html thesis", ["cannot write thesis", "choose another file"]),
    ("compat table empty.jsonl --readme thesis.txt", ["expected the lines <!-- fxprune compat"]),
]


@pytest.mark.parametrize(("command", "says"), WRONG_COMMANDS, ids=[command for command, _ in WRONG_COMMANDS])
def test_a_wrong_command(
    run,  # noqa: F811
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    says: list[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "300")  # typer's own messages are not wrapped
    before = contents(place)
    code, out, err = run(*shlex.split(command))
    said = " ".join(err.split())
    assert (code, out) == (2, ""), said
    assert [words for words in says if words not in said] == [], said
    assert "Traceback" not in said
    assert contents(place) == before


IMAGES, LABELS = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
BATCHES, COLOURS = [(IMAGES, LABELS)], torch.zeros(2, 3, 8, 8)

# what is called on (a module, a pruned model, the folder), the error's class, words of its message
WRONG_CALLS: list[tuple[str, Callable[[nn.Module, fxprune.PrunedModel, Path], Any], str, list[str]]] = [
    ("prune a name", lambda m, p, f: fxprune.prune("timm:resnet18", data=BATCHES, sparsity=0.5), "CaptureError",
     ["expected a torch.nn.Module", "got 'timm:resnet18'", "fxprune.zoo.build"]),
    ("prune a class", lambda m, p, f: fxprune.prune(nn.Linear, data=BATCHES, sparsity=0.5), "CaptureError",
     ["expected a torch.nn.Module", "got <class", "make one"]),
    ("prune without values", lambda m, p, f: prune(m.to("meta")), "CaptureError",
     ["expected a model with values", "got one on the device meta", "load a state"]),
    ("prune again", lambda m, p, f: prune(p), "MaskError", ["already has", "can be pruned once"]),
    ("no data", lambda m, p, f: fxprune.prune(m, sparsity=0.5), "CaptureError",
     ["expected example_inputs or data", "got neither", "give example_inputs=(x,)"]),
    ("no sparsity", lambda m, p, f: fxprune.prune(m, data=BATCHES), "MaskError",
     ["expected a sparsity, such as 0.9", "got sparsity None"]),
    ("sparsity 90", lambda m, p, f: prune(m, sparsity=90), "MaskError", ["below 1", "got 90", "write 0.9"]),
    ("sparsity text", lambda m, p, f: prune(m, sparsity="0.9"), "MaskError", ["below 1", "got '0.9'"]),
    ("pattern", lambda m, p, f: prune(m, sparsity=None, pattern=24), "MaskError", ["such as 2:4", "got '24'"]),
    ("criterion", lambda m, p, f: fxprune.prune(m, data=BATCHES, sparsity=0.5, criterion="snap"), "ScoreError",
     ["unknown criterion 'snap'", "did you mean 'snip'"]),
    ("criterion's result", lambda m, p, f: fxprune.prune(m, data=BATCHES, sparsity=0.5, criterion=lambda s: 3),
     "ScoreError", ["expected a dict of one tensor a weight", "got int"]),
    ("include", lambda m, p, f: prune(m, include=3), "WeightError", ["include: expected one glob", "got 3"]),
    ("memory", lambda m, p, f: prune(m, memory="1GB"), "ScoreError", ["expected a number", "got '1GB'"]),
    ("seed", lambda m, p, f: prune(m, seed=1.5), "ScoreError", ["expected an integer of 64 bits", "got 1.5"]),
    ("rounds", lambda m, p, f: prune(m, rounds=1.5), "MaskError", ["an integer of at least 1", "got 1.5"]),
    ("loss", lambda m, p, f: prune(m, loss_fn=3), "ScoreError", ["expected a function of output", "got 3"]),
    ("loss of many numbers", lambda m, p, f: scored(m, lambda o, t: o), "ScoreError",
     ["expected one number", "got a tensor of shape (4, 10)"]),
    ("loss without gradient", lambda m, p, f: scored(m, lambda o, t: o.detach().sum()), "ScoreError",
     ["expected a loss with a gradient", "got one that was detached", "differentiable operations"]),
    ("a tensor for data", lambda m, p, f: fxprune.prune(m, data=IMAGES, sparsity=0.5), "DataError",
     ["expected an iterable of batches", "got one tensor of shape (4, 1, 8, 8)", "put it in a list"]),
    ("no batch", lambda m, p, f: fxprune.prune(m, data=[], sparsity=0.5), "DataError",
     ["expected at least one batch", "got none", "check that the iterator"]),
    ("labels", lambda m, p, f: fxprune.prune(m, data=[(IMAGES, LABELS + 10)], sparsity=0.5), "DataError",
     ["expected classes 0 to 9", "got 10", "build the model with num_classes"]),
    ("few labels", lambda m, p, f: fxprune.prune(m, data=[(IMAGES, LABELS[:2])], sparsity=0.5), "DataError",
     ["expected one for each of 4 samples", "got 2"]),
    ("images of another size", lambda m, p, f: p(COLOURS), "CaptureError",
     ["captured for shape *x1x8x8", "got 2x3x8x8", "capture the model again"]),
    ("no images", lambda m, p, f: p(), "CaptureError", ["missing a required argument", "give what forward takes"]),
    ("budget", lambda m, p, f: fxprune.prune_channels(m, data=BATCHES, budget=0.5), "ShrinkError",
     ["budget: expected", "macs", "got '0.5'"]),
    ("capture", lambda m, p, f: fxprune.capture("net", (IMAGES,)), "CaptureError",
     ["torch.nn.Module", "got 'net'"]),
    ("weights of a module", lambda m, p, f: fxprune.find_weights(m), "CaptureError",
     ["expected a captured model", "got Sequential", "fxprune.capture makes one"]),
    ("an unknown weight", lambda m, p, f: p.effective_weight("conv"), "WeightError",
     ["no prunable weight 'conv'", "there are 0.weight"]),
    ("no masks", lambda m, p, f: p.set_masks({}), "MaskError",
     ["expected one mask for each of 3 weights", "got 0"]),
    ("save a module", lambda m, p, f: fxprune.save(m, f / "new"), "CheckpointError",
     ["expected a pruned model", "got Sequential", "prune it first"]),
    ("save notes", lambda m, p, f: fxprune.save(p, f / "new", notes={"x": IMAGES}), "CheckpointError",
     ["notes: expected JSON values", "Tensor"]),
    ("save a shape", lambda m, p, f: fxprune.save(p, f / "new", input_shape="1x8x8"), "CheckpointError",
     ["expected positive integers, such as (3, 32, 32)", "got '1x8x8'"]),
    ("save over other things", lambda m, p, f: fxprune.save(p, f / "thesis"), "CheckpointError",
     ["an empty folder or a checkpoint", "something else", "choose another output"]),
    ("load nothing", lambda m, p, f: fxprune.load(f / "nosuch"), "CheckpointError",
     ["expected a checkpoint of fxprune", "got No such file", "fxprune prune makes one"]),
    ("load by name", lambda m, p, f: fxprune.load(f / "by-hand", "net.py:make_net"), "CheckpointError",
     ["expected a module or a fxprune.ModelSpec", "got 'net.py:make_net'"]),
    ("load without model", lambda m, p, f: fxprune.load(f / "by-hand"), "CheckpointError",
     ["was saved from a module without a spec", "give that module again"]),
    ("load without shape", lambda m, p, f: fxprune.load(f / "by-hand", m), "CheckpointError",
     ["records no input shape", "give example_inputs=(x,)"]),
    ("load into another model", lambda m, p, f: fxprune.load(f / "by-hand", nn.Linear(3, 3), (torch.zeros(2, 3),)),
     "CheckpointError", ["masks for 3 weights", "was it saved from another model"]),
    ("export a module", lambda m, p, f: fxprune.export_onnx(m, f / "new.onnx"), "ExportError",
     ["expected a pruned model", "got Sequential", "prune it first"]),
    ("opset", lambda m, p, f: fxprune.export_onnx(p, f / "new.onnx", opset=9), "ExportError",
     ["opset: expected 18 to", "got 9"]),
    ("tolerance", lambda m, p, f: fxprune.export_onnx(p, f / "new.onnx", tolerance="small"), "ExportError",
     ["tolerance: expected a positive number", "got 'small'"]),
    ("metadata", lambda m, p, f: fxprune.export_onnx(p, f / "new.onnx", metadata={"year": 2020}), "ExportError",
     ["metadata: expected strings", "got {'year': 2020}", "write numbers as strings"]),
    ("images of another model", lambda m, p, f: fxprune.export_onnx(p, f / "net.onnx", images=COLOURS),
     "CaptureError", ["captured for shape *x1x8x8", "got 2x3x8x8"]),
    ("verify nothing", lambda m, p, f: verify_onnx(f / "nosuch.onnx", p), "ExportError",
     ["expected an ONNX file"]),
    ("report a module", lambda m, p, f: fxprune.report(m), "ReportError",
     ["expected a pruned model", "got Sequential"]),
    ("report of other things", lambda m, p, f: fxprune.report(p, f / "thesis.txt"), "ExportError",
     ["expected an ONNX file that fxprune exported", "got"]),
    ("cut a module", lambda m, p, f: fxprune.cut_dead(m), "ShrinkError",
     ["expected a pruned model", "got Sequential"]),
    ("too few images", lambda m, p, f: fxprune.score_batches([*zip(IMAGES, [0, 1, 2, 3], strict=True)], classes=4),
     "DataError", ["expected 10 images of each of 4 classes", "got 1 of class 0", "lower per_class"]),
    ("a spec's shape", lambda m, p, f: ModelSpec("timm:resnet18", (0, 1)), "ModelSpecError",
     ["expected an input shape of positive integers", "got (0, 1)"]),
    ("trained weights", lambda m, p, f: ModelSpec("timm:resnet18", kwargs={"pretrained": True}), "ModelSpecError",
     ["expected a model with random weights", "'pretrained'", "build it without"]),
    ("settings of training", lambda m, p, f: TrainConfig(epochs="ten"), "TrainError",
     ["epochs: expected a positive integer", "got 'ten'"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def pruned() -> fxprune.PrunedModel:
    return prune(example())


def scored(model: nn.Module, loss: Any) -> fxprune.PrunedModel:
    return fxprune.prune(model, data=BATCHES, sparsity=0.5, loss_fn=loss)


@pytest.mark.parametrize(("what", "call", "error", "says"), WRONG_CALLS, ids=[what for what, *_ in WRONG_CALLS])
def test_a_wrong_call(
    place: Path, pruned: fxprune.PrunedModel, what: str, call: Callable[..., Any], error: str, says: list[str]
) -> None:
    before = contents(place)
    with pytest.raises(fxprune.FxpruneError) as caught:
        call(example(), pruned, place)
    assert type(caught.value).__name__ == error
    assert [words for words in says if words not in str(caught.value)] == [], str(caught.value)
    assert contents(place) == before
