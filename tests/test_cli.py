"""The command line, in this process: what is printed, what is written, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fxprune import cli, console, stages
from fxprune.pipeline import DEFAULT_FLOOR
from fxprune.stages import PruneJob
from fxprune.zoo import ModelSpec

ROOT = Path(__file__).parent.parent
NET = """
from torch import nn

def make_net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 3 * 3, num_classes),
    )
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make_net"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `fxprune ARGUMENTS`; returns (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fxprune", *arguments])
        monkeypatch.setattr(console.out, "width", 120)
        monkeypatch.setattr(console.err, "width", 400)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def pruned(run, net: str, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    code, _, err = run(
        "prune", net, "--input", "1x8x8", "--sparsity", "0.8", "--data", "digits", "-o", str(folder)
    )
    assert code == 0, err
    return folder


def test_prune_train_export_report(run, net: str, pruned: Path) -> None:
    code, out, _ = run("report", str(pruned), "--model", net, "--json")
    before = json.loads(out)
    assert code == 0
    assert before["totals"]["kept"] == before["totals"]["prunable"] - int(0.8 * before["totals"]["prunable"])
    assert before["record"]["criterion"] == "grasp"
    code, out, _ = run("train", str(pruned), "--model", net, "--epochs", "8", "--json")
    history = json.loads(out)
    assert code == 0
    assert len(history) == 8
    assert history[-1]["test_accuracy"] > 0.5
    code, out, _ = run("export", str(pruned), "--model", net, "--json")
    assert code == 0
    assert json.loads(out)["passed"]
    onnx.checker.check_model(onnx.load(pruned / "model.onnx"))
    page = pruned / "report.html"
    code, out, err = run("report", str(pruned), "--model", net, "--html", str(page))
    assert code == 0
    assert f"{(pruned / 'model.onnx').stat().st_size:,} in the ONNX file" in " ".join(out.split())
    assert "latency: dense" in out
    assert "gradient norm: squared" in out
    assert f"wrote {page}" in err
    assert page.read_text().startswith("<!doctype html>")
    code, out, _ = run("report", str(pruned), "--model", net, "--no-latency", "--no-gradient", "--json")
    after = json.loads(out)
    assert (after["dense"], after["gradient"]) == (None, None)
    # training moves the weights: the norm is that of the initialisation all the same
    code, out, _ = run("report", str(pruned), "--model", net, "--no-latency", "--json")
    assert json.loads(out)["gradient"] == before["gradient"]


@pytest.mark.parametrize(
    ("page", "says"), [("", "got a folder"), ("nosuch/report.html", "expected a file in a folder that exists")]
)
def test_a_page_that_cannot_be_written(run, net: str, pruned: Path, page: str, says: str) -> None:
    before = sorted(pruned.rglob("*"))
    code, out, err = run("report", str(pruned), "--model", net, "--html", str(pruned / page))
    assert (code, out) == (2, "")
    assert says in err
    assert sorted(pruned.rglob("*")) == before


@pytest.fixture
def exported(run, net: str, pruned: Path) -> Path:
    code, _, err = run("export", str(pruned), "--model", net, "--encoding", "gaps")
    assert code == 0, err
    return pruned / "model.onnx"


def test_verify(run, net: str, pruned: Path, exported: Path) -> None:
    code, out, err = run("verify", str(exported), "--against", str(pruned), "--model", net)
    assert code == 0, err
    assert "FAILED" not in out
    code, out, _ = run("verify", str(exported), "--against", str(pruned), "--model", net, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["passed"]
    assert result["bytes"] == exported.stat().st_size
    assert result["agreement"] == 1
    details = {check["name"]: check["detail"] for check in result["checks"]}
    assert details["top-1"] == "the same class for 46 of 46 images"  # of digits, which it was pruned on


def flip(model: onnx.ModelProto) -> None:
    values = next(tensor for tensor in model.graph.initializer if tensor.name == "0.weight/values")
    array = numpy_helper.to_array(values).copy()
    array[np.flatnonzero(array)[0]] *= -1
    values.CopyFrom(numpy_helper.from_array(array, values.name))


def fill(model: onnx.ModelProto) -> None:
    steps = next(tensor for tensor in model.graph.initializer if tensor.name == "6.weight/steps")
    array = numpy_helper.to_array(steps).copy()
    array[-1] ^= 1
    steps.CopyFrom(numpy_helper.from_array(array, steps.name))


def drop(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Identity"


def age(model: onnx.ModelProto) -> None:
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        for entry in imports:
            entry.version = 17 if entry.domain == "" else entry.version


def forge(model: onnx.ModelProto) -> None:
    (entry,) = [entry for entry in model.metadata_props if entry.key == "fxprune"]
    entry.value = json.dumps({**json.loads(entry.value), "kept": 1})


def change_decoder(model: onnx.ModelProto) -> None:
    """Every position one further: no tensor has changed, and the graph has not."""
    (cast,) = [node for node in model.functions[0].node if node.op_type == "Expand"]
    (one,) = [node for node in model.functions[0].node if node.output[0] == cast.input[0]]
    assert one.op_type == "Cast"
    model.functions[0].node.remove(one)
    model.functions[0].node.insert(0, onnx.helper.make_node("Constant", [], one.output, value_floats=[1e-9]))


@pytest.mark.parametrize(
    ("break_it", "wrong"),
    [
        (flip, "weights, outputs"),
        (fill, "zero pattern, outputs"),
        (drop, "outputs, outputs unoptimised"),
        (age, "format"),
        (forge, "source"),
        (change_decoder, "zero pattern"),
    ],
)
def test_verify_finds_a_fault(run, net: str, pruned: Path, exported: Path, break_it, wrong: str) -> None:
    model = onnx.load(exported)
    break_it(model)
    onnx.save(model, exported)
    code, out, err = run("verify", str(exported), "--against", str(pruned), "--model", net)
    assert code == 1
    assert "FAILED" in out
    assert f"model.onnx is not what {pruned} is: {wrong}" in " ".join(err.split())


def test_verify_against_another_checkpoint(run, net: str, tmp_path: Path, pruned: Path, exported: Path) -> None:
    run("train", str(pruned), "--model", net, "--epochs", "1")
    code, _, err = run("verify", str(exported), "--against", str(pruned), "--model", net)
    assert code == 1
    assert "source, weights, outputs" in err


@pytest.mark.parametrize("content", ["half", "nothing like it", "missing"])
def test_verify_refuses_what_is_no_onnx_file(run, net: str, pruned: Path, exported: Path, content: str) -> None:
    whole = exported.read_bytes()
    exported.write_bytes(whole[: len(whole) // 2] if content == "half" else content.encode())
    if content == "missing":
        exported.unlink()
    code, out, err = run("verify", str(exported), "--against", str(pruned), "--model", net)
    assert (code, out) == (2, "")
    assert "expected an ONNX file" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--encoding", "zip"), "encoding: expected one of auto, bitmask, coo, dense, gaps, got 'zip'"),
        (("--values", "int8"), "values: expected one of fp16, fp32, got 'int8'"),
        (("--data", "nosuch"), "expected a data set"),
    ],
)
def test_export_with_a_mistake_overwrites_nothing(
    run, net: str, pruned: Path, options: tuple[str, ...], says: str
) -> None:
    (pruned / "model.onnx").write_text("before")
    code, _, err = run("export", str(pruned), "--model", net, *options)
    assert code == 2
    assert says in err
    assert (pruned / "model.onnx").read_text() == "before"


def test_training_goes_on_where_it_stopped_and_forgets_the_file_exported_before(run, net, pruned: Path) -> None:
    run("train", str(pruned), "--model", net, "--epochs", "1")
    run("export", str(pruned), "--model", net)
    run("train", str(pruned), "--model", net, "--epochs", "1")
    notes = json.loads((pruned / "fxprune.json").read_text())["notes"]
    assert len(notes["training"]) == 2
    assert "export" not in notes


def test_code_of_the_user_runs_only_when_it_is_named_again(run, pruned: Path) -> None:
    for command in ("report", "train", "export"):
        code, _, err = run(command, str(pruned))
        assert code == 2
        assert "name the model again" in err


def test_a_standing_checkpoint_is_replaced_by_force_only(run, net: str, pruned: Path) -> None:
    again = ("prune", net, "--input", "1x8x8", "--sparsity", "0.5", "--data", "digits", "-o", str(pruned))
    manifest = (pruned / "fxprune.json").read_text()
    code, _, err = run(*again)
    assert code == 2
    assert "--force" in err
    assert (pruned / "fxprune.json").read_text() == manifest
    (pruned / "model.onnx").write_text("of the checkpoint that is replaced")
    code, _, _ = run(*again, "--force")
    assert code == 0
    assert not (pruned / "model.onnx").exists()
    assert (pruned / "fxprune.json").read_text() != manifest


def test_the_same_seed_gives_the_same_bytes(run, net: str, tmp_path: Path) -> None:
    def digest(folder: str, seed: str) -> str:
        target = str(tmp_path / folder)
        run(
            "prune", net, "--input", "1x8x8", "--sparsity", "0.8", "--data", "digits", "-o", target, "--seed", seed
        )
        return str(json.loads((tmp_path / folder / "fxprune.json").read_text())["sha256"])

    assert digest("a", "1") == digest("b", "1") != digest("c", "2")


def test_memory_is_told_in_gib(run, net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def noting(*arguments: object, **options: object) -> object:
        told.append(options["memory"])
        return prune(*arguments, **options)

    prune = stages.prune
    monkeypatch.setattr(stages, "prune", noting)
    for memory in ([], ["--memory", "0"], ["--memory", "0.5"]):
        arguments = ["--input", "1x8x8", "--sparsity", "0.8", "--data", "digits", *memory]
        code, _, err = run("prune", net, *arguments, "-o", str(tmp_path / "out"), "--force")
        assert code == 0, err
    assert told == [None, 0, 2**29]


def test_models_lists_names_and_fails_where_nothing_matches(run) -> None:
    code, out, _ = run("models", "*:resnet18")
    assert (code, out.split()) == (0, ["timm:resnet18", "torchvision:resnet18"])
    code, out, _ = run("models", "nosuchmodel*", "--json")
    assert (code, json.loads(out)) == (2, [])


def test_version_and_help(run) -> None:
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, "0.1.0")
    code, out, _ = run("--help")
    assert code in (0, 2)
    assert "prune" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "timm:resnet81"}, "resnet18"),
        ({"model": "resnet18"}, "timm:resnet18"),
        ({"model": "nosuch.py:make"}, "nosuch.py"),
        ({"--sparsity": "1"}, "below 1, got 1"),
        ({"--sparsity": "-0.1"}, "at least 0"),
        ({"--criterion": "grap"}, "did you mean 'grasp'"),
        ({"--ranking": "channel"}, "expected one of global, layer, erk, got 'channel'"),
        ({"--floor": "2"}, "floor: expected"),
        ({"--data": "digit"}, "digits"),
        ({"--data": "imagefolder:/nosuch"}, "/nosuch"),
        ({"--input": "8by8"}, "8by8"),
        ({"--input": "3x8x8"}, "channels"),
        ({"--num-classes": "5"}, "expected classes 0 to 4"),
        ({"--exclude": "nosuch*"}, "matches no prunable weight"),
        ({"--per-class": "1000"}, "1000"),
        ({"--device": "gpu"}, "expected cpu, cuda"),
        ({"--rounds": "0"}, "rounds: expected an integer of at least 1"),
        ({"--schedule": "cubic"}, "expected one of exponential, linear"),
        ({"--temperature": "0"}, "temperature: expected a positive number"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(run, net: str, tmp_path: Path, change: dict[str, str], says: str):
    options = {"--input": "1x8x8", "--sparsity": "0.8", "--data": "digits", "-o": str(tmp_path / "out")}
    options |= {key: value for key, value in change.items() if key != "model"}
    code, out, err = run("prune", change.get("model", net), *(part for pair in options.items() for part in pair))
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["report", "train", "export"])
def test_what_is_no_checkpoint_is_refused(run, tmp_path: Path, command: str) -> None:
    code, _, err = run(command, str(tmp_path))
    assert code == 2
    assert "expected a checkpoint" in err


def test_a_folder_that_holds_something_else_is_left_alone(run, net: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear to me")
    code, _, err = run("prune", net, "--input", "1x8x8", "--sparsity", "0.8", "-o", str(tmp_path), "--force")
    assert code == 2
    assert "holds something else" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.py", "thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run, net: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    target = str(tmp_path / "locked" / "out")
    code, _, err = run(
        "prune", net, "--input", "1x8x8", "--sparsity", "0.8", "--criterion", "random", "-o", target
    )
    assert code == 2
    assert "cannot write" in err


def test_an_output_below_a_file_is_refused(run, net: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "out")
    code, _, err = run(
        "prune", net, "--input", "1x8x8", "--sparsity", "0.8", "--criterion", "random", "-o", target
    )
    assert code == 2
    assert "cannot write" in err


RECIPE = """
[model]
name = "net.py:make_net"
input = "1x8x8"
[data]
name = "digits"
[prune]
sparsity = 0.8
per_class = 5
[train]
epochs = 1
[run]
dense_baseline = true
"""


def test_a_recipe_goes_all_the_way(run, net: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out_folder = tmp_path / "run"
    code, out, err = run("run", str(tmp_path / "recipe.toml"), "-o", str(out_folder))
    assert code == 0, err
    results = json.loads((out_folder / "results.json").read_text())
    assert 0 < results["dense_accuracy"] <= 1
    assert 0 < results["pruned_accuracy"] <= 1
    assert results["verification"]["passed"]
    assert f"test accuracy, dense network: {results['dense_accuracy']:.2%}" in out
    assert (out_folder / "model.onnx").is_file()
    assert results["report"]["gradient"]["after"] > 0
    assert results["report"]["dense"]["runs"] > 0
    assert (out_folder / "report.html").is_file()


def test_two_recipes_end_side_by_side(run, net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thin = RECIPE.replace("sparsity = 0.8", 'granularity = "channel"\nbudget = "macs=0.5"')
    paths = []
    for name, text in (("sparse", RECIPE), ("thin", thin.replace("dense_baseline = true", ""))):
        paths.append(str(tmp_path / f"{name}.toml"))
        Path(paths[-1]).write_text(text + f'output = "{name}"\n')
    code, out, err = run("run", *paths)
    assert code == 0, err
    sparse, cut = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("sparse", "thin"))
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    rows = {cells[0]: cells[1:] for cells in table if len(cells) == 3}
    assert rows["test accuracy"] == [f"{found['pruned_accuracy']:.2%}" for found in (sparse, cut)]
    whole = cut["report"]["record"]["whole"]["macs"]
    assert whole == sparse["report"]["totals"]["macs"]
    shares = ["100.0% of the dense", f"{cut['report']['totals']['macs'] / whole:.1%} of the dense"]
    assert rows["MACs that a dense runtime executes"] == shares
    assert rows["of the dense network"] == [f"{sparse['dense_accuracy']:.2%}", ""]
    sizes = [found["report"]["dense"]["bytes"] for found in (sparse, cut)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)  # of the whole one
    code, _, err = run("run", *paths, "-o", str(tmp_path / "other"))
    assert code == 2
    assert "expected one recipe to change, got several" in err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("sparsity = 0.8", "", "[prune] lacks 'sparsity'"),
        ("epochs = 1", "epoch = 1", "unknown training setting 'epoch'"),
        ("epochs = 1", "epochs = 0", "epochs: expected a positive integer"),
        ("[data]", "[date]", "unknown 'date' in tables"),
        ("per_class", "perclass", "unknown 'perclass' in [prune]"),
        ("[model]", "[model", "expected a recipe in TOML"),
        ("per_class = 5", 'per_class = "5"', "per_class in [prune]: expected int"),
        ("per_class = 5", 'live = "false"', "live in [prune]: expected bool"),
        ('name = "digits"', "", "needs [data]"),
        ('input = "1x8x8"', 'input = "many"', "many"),
    ],
)
def test_a_recipe_with_a_mistake(run, net: str, tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new, 1))
    code, _, err = run("run", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "run"))
    assert code == 2
    assert says in err
    assert not (tmp_path / "run").exists()


def test_the_command_line_and_python_share_their_defaults() -> None:
    job = PruneJob(ModelSpec("timm:resnet18"), None, 0.5)
    defaults = {name: p.default for name, p in __import__("inspect").signature(cli.prune).parameters.items()}
    assert defaults["floor"] == job.floor == DEFAULT_FLOOR
    for name in (
        "criterion",
        "ranking",
        "rounds",
        "schedule",
        "per_class",
        "temperature",
        "live",
        "seed",
        "device",
    ):
        assert defaults[name] == getattr(job, name), name


def test_the_readme_names_only_options_that_exist(run) -> None:
    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^fxprune .*", text, re.MULTILINE):
        _, command, *rest = line.partition("#")[0].split()
        _, out, _ = run(command, "--help")
        for option in (part for part in rest if part.startswith("-")):
            assert option in out, f"{option} of `{line}`"
