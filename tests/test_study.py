"""Studies: what they do, that they go on, and that their pages show what was measured."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.analysis.ntk import real_losses, tangent_kernel
from fxprune.errors import ResultsError, StudyError
from fxprune.rows import read_rows
from fxprune.study import pages
from fxprune.study.claims import claims_page
from fxprune.study.experiment import Experiment, experiments, header, perform
from fxprune.study.lab import Lab
from fxprune.study.methods import CHANNELS, METHODS
from fxprune.study.runner import ROWS, run
from fxprune.study.setting import Kind, Setting
from fxprune.study.studies import STUDIES, ntk
from fxprune.study.tables import Spread, markdown

ROOT = Path(__file__).parent.parent
NET = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, num_classes),
    )
"""
SETTING = """
[data]
name = "digits"
limit = 100
test_limit = 20

[networks.tiny]
model = "net.py:net"
input = "1x8x8"

[train]
epochs = 2
batch_size = 25
lr = 0.05

[grid]
sparsities = [0.5, 0.9]
few_sparsities = [0.9]
seeds = [0, 1]
per_class = 2
per_classes = [1, 2]

[topology.rigl]
every = 2

[kernel]
per_class = 1
steps = 2
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("setting")
    (folder / "net.py").write_text(NET)
    (folder / "small.toml").write_text(SETTING)
    return folder / "small.toml"


@pytest.fixture(scope="module")
def setting(path: Path) -> Setting:
    return Setting.read(path)


@pytest.fixture(scope="module")
def lab(setting: Setting) -> Lab:
    return Lab(setting, "tiny")


# --- experiments


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_trained_network_of_each_sparsity(lab: Lab, name: str) -> None:
    wanted = (0.0,) if name == "dense" else (0.5, 0.9)
    rows = list(perform(lab, Experiment("train", "tiny", name, wanted, 0)))
    assert [row["sparsity"] for row in rows] == list(wanted)
    total = 8 * 9 + 64 * 9 + 1280
    for row in rows:
        assert row["prunable"] == total
        assert row["kept"] == total - math.floor(row["sparsity"] * total)
        assert 0 <= row["accuracy"] <= 1
        assert len(row["losses"]) == 2
        assert len(row["gradients"]) == 3
        assert all(math.isfinite(number) for number in row["losses"] + row["gradients"])


@pytest.mark.parametrize("name", CHANNELS)
def test_every_method_gives_a_trained_network_of_fewer_channels(lab: Lab, name: str) -> None:
    wanted = (0.0,) if name == "dense" else (0.5, 0.75)
    rows = list(perform(lab, Experiment("channels", "tiny", name, wanted, 0)))
    whole = 64 * 8 * 9 + 16 * 64 * 9 + 1280
    for row, sparsity in zip(rows, wanted, strict=True):
        assert row["sparsity"] == sparsity
        assert row["kept"] == row["prunable"]
        assert row["macs"] <= (1 - sparsity) * whole
        assert len(row["losses"]) == 2
        assert len(row["gradients"]) == 3
    assert [row["kept"] for row in rows] == sorted((row["kept"] for row in rows), reverse=True)


def test_the_page_of_channels(path: Path, tmp_path: Path) -> None:
    list(pages.conduct("channels", path, tmp_path, [], jobs=1))
    page = (tmp_path / "channels.md").read_text()
    numbers = json.loads((tmp_path / "channels.json").read_text())
    (thinner,) = [c for c in numbers["cells"] if c["method"] == "thinner" and c["share"] == 0.25]
    mean, std = (100 * thinner["accuracy"][name] for name in ("mean", "std"))
    (line,) = [line for line in page.splitlines() if line.startswith("| thinner |")]
    assert f"{mean:.1f} ± {std:.1f}" in line
    assert f"[{thinner['weights']['mean']:,.0f}]" in line
    assert "| 50% of the MACs | 25% of the MACs |" in page
    assert "    fxprune study channels small.toml" in (tmp_path / "README.md").read_text()


def test_the_same_seed_gives_the_same_result_whatever_came_before(lab: Lab) -> None:
    experiment = Experiment("train", "tiny", "grasp", (0.9,), 0)
    (first,) = perform(lab, experiment)
    list(perform(lab, Experiment("train", "tiny", "late-reset", (0.5,), 1)))  # changes weights in place
    (again,) = perform(lab, experiment)
    (other,) = perform(lab, replace(experiment, seed=1))
    assert first["losses"] == again["losses"]
    assert first["losses"] != other["losses"]


@pytest.mark.parametrize(
    "vary", [{"initialisation": "xavier"}, {"per_class": 1}, {"sanity": "shuffle"}, {"sanity": "invert"}]
)
def test_what_is_varied_changes_the_result(lab: Lab, vary: dict[str, Any]) -> None:
    plain, varied = (
        next(iter(perform(lab, Experiment("train", "tiny", "grasp", (0.9,), 0, own)))) for own in ({}, vary)
    )
    assert plain["losses"] != varied["losses"]
    assert varied["vary"] == vary


@pytest.mark.parametrize(
    ("name", "deviation"),
    [("kaiming", math.sqrt(2 / 128)), ("xavier", math.sqrt(2 / 138)), ("normal", 0.1)],
)
def test_initialisations(lab: Lab, name: Any, deviation: float) -> None:
    lab.start(0, name)
    weight = lab.captured.host.get_parameter("7.weight").detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.1)


def test_a_model_that_is_moved_is_noticed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a move to another device would: what is measured and pruned later would be the initialisation."""
    own = Lab(setting, "tiny")
    own.start(0)
    model = own.prune("random", 0.5, 0)
    moved = lambda device: model._apply(lambda tensor: tensor.clone())  # noqa: E731
    monkeypatch.setattr(model, "to", moved)
    with pytest.raises(AssertionError, match="the model was moved"):
        own.train(model, 0)


def test_the_gradient_that_is_watched_is_that_of_the_masked_network(lab: Lab) -> None:
    """By plain autograd on the pruned model, where training ends; the scoring copy must follow the weights."""
    lab.start(0)
    model = lab.prune("grasp", 0.9, 0)
    trained = lab.train(model, 0)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, labels = lab.measured
    parameters = [dict(model.named_parameters())[weight.name] for weight in model.weights]
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)
    model.load_state_dict(before, strict=False)
    assert trained.gradients[-1] == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-4)
    assert trained.gradients[0] != trained.gradients[-1]


# --- the tangent kernel


def linear_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False))


def test_the_kernel_of_a_linear_model_is_that_of_its_inputs() -> None:
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = tangent_kernel(linear_net(), inputs)
    gram = (inputs @ inputs.T).double()
    assert torch.allclose(found.matrix, torch.kron(gram, torch.eye(3, dtype=torch.float64)), atol=1e-5)


def test_a_linear_model_trains_as_its_kernel_foretells() -> None:
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0])
    model = linear_net()
    predicted = tangent_kernel(model, inputs).losses(labels, 0.1, 5)
    assert real_losses(model, inputs, labels, 0.1, 5) == pytest.approx(predicted, rel=1e-4)
    assert predicted[-1] < predicted[0]


def test_the_kernel_against_one_derivative_after_the_other(lab: Lab) -> None:
    """With batch statistics and masks; by as many backward passes as there are outputs."""
    lab.start(0)
    model = lab.prune("grasp", 0.5, 0).train()
    images = lab.measured[0][:3]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = tangent_kernel(model, images, chunk=7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    parameters = list(model.parameters())
    rows = []
    for output in model(images).flatten():
        gradients = torch.autograd.grad(output, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    jacobian = torch.stack(rows)
    assert torch.allclose(found.matrix, jacobian @ jacobian.T, rtol=1e-4, atol=1e-4)


def test_alignment_sums_to_one_and_eigenvalues_descend(lab: Lab) -> None:
    lab.start(0)
    images, labels = lab.measured
    found = tangent_kernel(lab.dense().train(), images[:5])
    values, vectors = found.eigen()
    assert bool((values[:-1] >= values[1:]).all())
    assert torch.allclose(vectors @ torch.diag(values) @ vectors.T, found.matrix, atol=1e-6 * float(values[0]))
    assert float(found.alignment(labels[:5]).sum()) == pytest.approx(1.0)


# --- running


def some(setting: Setting) -> list[Experiment]:
    return experiments(["tiny"], ["random", "magnitude"], setting.sparsities, [0])


def test_what_is_done_is_not_done_again(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = run(setting, some(setting), file)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("random", 0.5),
        ("random", 0.9),
        ("magnitude", 0.5),
        ("magnitude", 0.9),
    ]
    size = file.stat().st_size
    assert run(setting, some(setting), file) == rows
    assert file.stat().st_size == size
    # an experiment whose last row is missing is done again as a whole, to the same end
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    again = run(setting, some(setting), file)
    assert len(read_rows([file], ROWS)) == 5
    timeless = ("seconds", "at")
    for old, new in zip(rows, again, strict=True):
        assert {k: v for k, v in old.items() if k not in timeless} == {
            k: v for k, v in new.items() if k not in timeless
        }


def test_an_experiment_that_diverges_is_a_row(path: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    file = tmp_path / "small.toml"
    file.write_text(SETTING.replace("lr = 0.05", "lr = 1e30\nclip = inf\nwarmup = 0.0").replace("[0, 1]", "[0]"))
    setting = Setting.read(file)
    (row,) = run(setting, some(setting)[:1], tmp_path / "rows.jsonl")
    assert "lower lr (1e+30)" in row["failed"]
    assert run(setting, some(setting)[:1], tmp_path / "rows.jsonl") == [row]  # it would diverge again
    with pytest.raises(StudyError, match="expected results of accuracy, got none"):
        list(pages.conduct("accuracy", file, tmp_path, [], measure=False))


def test_results_of_another_setting_are_refused(setting: Setting, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    run(setting, some(setting)[:1], file)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(SETTING.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(ResultsError, match="results of another setting"):
        run(Setting.read(tmp_path / "small.toml"), some(setting), file)
    (tmp_path / "small.toml").write_text(SETTING.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    assert Setting.read(tmp_path / "small.toml").digests == setting.digests  # more of the same
    (tmp_path / "net.py").write_text(NET + "\n# changed\n")
    assert not set(Setting.read(tmp_path / "small.toml").digests.values()) & set(setting.digests.values())


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("epochs = 2", "epochs = 3", ["train", "channels"]),
        ("every = 2", "every = 3", ["train"]),
        ("steps = 2", "steps = 4", ["kernel"]),
    ],
)
def test_results_depend_on_what_their_kind_uses(
    setting: Setting, tmp_path: Path, old: str, new: str, kinds: list[Kind]
) -> None:
    assert old in SETTING
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(SETTING.replace(old, new))
    digests = Setting.read(tmp_path / "small.toml").digests
    assert [each for each in digests if digests[each] != setting.digests[each]] == kinds


@pytest.mark.slow
def test_a_kill_and_on_again_several_at_a_time(path: Path, tmp_path: Path) -> None:
    """From the command line, which is killed in the middle and goes on."""
    command = [sys.executable, "-m", "fxprune", "study", "initialisation", path, "-o", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, start_new_session=True)
    file = tmp_path / "out" / "rows.jsonl"
    deadline = time.monotonic() + 240
    while not (file.exists() and file.read_text().count("\n") >= 2):
        assert process.poll() is None, "the study was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(read_rows([file], ROWS))
    assert 2 <= done < 24
    again = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    rows = read_rows([file], ROWS)
    assert len({row["experiment"] for row in rows}) == len(rows) == 24  # 3 methods, 4 initialisations, 2 seeds
    page = (tmp_path / "out" / "initialisation.md").read_text()
    assert "not run" not in page
    assert (tmp_path / "out" / "initialisation.png").read_bytes().startswith(b"\x89PNG")


KILLED = """
import multiprocessing, os, signal
if multiprocessing.parent_process():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    (tmp_path / "net.py").write_text(NET + KILLED)
    (tmp_path / "small.toml").write_text(SETTING)
    setting = Setting.read(tmp_path / "small.toml")
    with pytest.raises(StudyError, match="was killed, for want of memory most likely; give fewer --jobs"):
        run(setting, some(setting), tmp_path / "rows.jsonl", jobs=2)


# --- pages


@pytest.fixture(scope="module")
def studied(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all studies, from rows that are made up: pages do not depend on how rows came about."""
    folder = tmp_path_factory.mktemp("studied")
    setting = Setting.read(path)
    lines = []
    for study in STUDIES.values():
        for experiment in study.experiments(setting, ["tiny"]):
            lines += [made_up(setting, experiment, sparsity) for sparsity in experiment.sparsities]
    unique = {(row["experiment"], row["sparsity"]): row for row in lines}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unique.values()))
    for name in ("all", "channels"):
        list(pages.conduct(name, path, folder, [], measure=False))
    return folder


def made_up(setting: Setting, experiment: Experiment, sparsity: float) -> dict[str, Any]:
    better = {"grasp": 0.1, "snip": 0.05}.get(experiment.method, 0.0)
    row = header(experiment, sparsity) | {
        "setting": setting.digests[experiment.kind],
        "versions": {"torch": "1"},
        "at": "1",
        "kept": 10,
        "prunable": 100,
        "macs": 1000 * (1 - sparsity),
    }
    if experiment.kind == "kernel":
        own = {
            "eigenvalues": [2.0, 1.0],
            "trace": 3.0,
            "alignment": 0.5,
            "predicted": [2.0, 1.0],
            "real": [2.0, 1.5],
        }
        return row | own
    accuracy = 0.8 + better - 0.1 * sparsity + 0.01 * experiment.seed
    return row | {"emptied": 0, "accuracy": accuracy, "losses": [2.0, 1.0], "gradients": [5.0 + better, 1.0]}


def test_every_study_has_its_page(studied: Path) -> None:
    for name in STUDIES:
        page = (studied / f"{name}.md").read_text()
        assert f"fxprune study {name} " in page
        assert (studied / f"{name}.png").stat().st_size > 5000
        json.loads((studied / f"{name}.json").read_text())
    index = (studied / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in STUDIES)
    assert "What the paper says" in index


def test_the_page_of_accuracies_shows_means_and_the_best(studied: Path) -> None:
    page = (studied / "accuracy.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| grasp ")]
    # seeds 0 and 1: 0.85 and 0.86 at 50%, 0.81 and 0.82 at 90%
    assert "**85.5 ± 0.7**" in line
    assert "**81.5 ± 0.7**" in line
    (snip,) = [line for line in page.splitlines() if line.startswith("| snip ")]
    assert "80.5 ± 0.7" in snip
    assert "**" not in snip
    assert "dense: 80.5 ± 0.7" in page


def test_the_same_rows_give_the_same_bytes(path: Path, studied: Path) -> None:
    before = {file.name: file.read_bytes() for file in studied.iterdir()}
    list(pages.conduct("all", path, studied, [], measure=False))
    assert {file.name: file.read_bytes() for file in studied.iterdir()} == before


def accuracies(**cells: tuple[float, float]) -> dict[str, Any]:
    methods = {name: {"0.98": {"mean": mean, "std": std, "seeds": 3}} for name, (mean, std) in cells.items()}
    return {"accuracy": {"networks": {"net": {"methods": methods}}}}


@pytest.mark.parametrize(
    ("grasp", "rival", "better", "as_good"),
    [
        ((0.9, 0.01), (0.8, 0.01), "holds", "holds"),
        ((0.8, 0.01), (0.9, 0.01), "**does not hold**", "**does not hold**"),
        ((0.81, 0.01), (0.8, 0.01), "undecided", "holds"),
        ((0.795, 0.005), (0.8, 0.005), "undecided", "holds"),
        ((0.6, 0.2), (0.85, 0.06), "undecided", "undecided"),  # noise shows no equality
        ((0.85, 0.2), (0.85, 0.06), "undecided", "undecided"),
    ],
)
def test_claims_of_accuracy(grasp: Any, rival: Any, better: str, as_good: str) -> None:
    page = claims_page(accuracies(grasp=grasp, snip=rival, magnitude=rival))
    verdicts = {line.split(" | ")[0][2:]: line.split(" | ")[-1][:-2] for line in page.splitlines()}
    assert verdicts["At extreme sparsity, GraSP trains to a higher accuracy than SNIP"] == better
    assert verdicts["GraSP is about as good as magnitude pruning after training"] == as_good
    assert f"net, 98.0%: GraSP {100 * grasp[0]:.1f} ± {100 * grasp[1]:.1f}, snip" in page


def test_a_single_seed_decides_nothing() -> None:
    numbers = accuracies(grasp=(0.9, 0.0), snip=(0.8, 0.0))
    numbers["accuracy"]["networks"]["net"]["methods"]["snip"]["0.98"]["seeds"] = 1
    assert claims_page(numbers) == claims_page({}) == ""


def spread(mean: float, std: float = 0.01) -> dict[str, Any]:
    return {"mean": mean, "std": std, "seeds": 3}


@pytest.mark.parametrize(
    ("study", "names"), [("initialisation", ("own", "xavier")), ("sanity", ("shuffle", "as scored"))]
)
@pytest.mark.parametrize(("low", "verdict"), [(0.9, "holds"), (0.5, "**does not hold**")])
def test_claims_of_what_is_varied(study: str, names: tuple[str, str], low: float, verdict: str) -> None:
    cells = [
        {"network": "net", "sparsity": 0.9, "method": "grasp", "varied": name, "accuracy": spread(mean)}
        for name, mean in zip(names, (low, 0.9), strict=True)
    ]
    assert claims_page({study: {"cells": cells}}).rstrip().endswith(f"| {verdict} |")


@pytest.mark.parametrize(
    ("predicted", "real", "verdict"),
    [
        ((1.0, 0.5), (1.0, 0.5), "holds"),
        ((-5.0, 1.0), (1.0, 0.5), "**does not hold**"),
        ((0.51, 0.5), (1.0, 0.5), "undecided"),
    ],
)
def test_the_claim_of_the_kernel(predicted: Any, real: Any, verdict: str) -> None:
    cells = [
        {"network": "net", "sparsity": 0.9, "method": method}
        | {"predicted_decrease": spread(predicted[i]), "real_decrease": spread(real[i])}
        for i, method in enumerate(("grasp", "snip"))
    ]
    assert claims_page({"ntk": {"cells": cells}}).rstrip().endswith(f"| {verdict} |")


def test_pages_do_not_depend_on_the_order_of_rows(path: Path, studied: Path, tmp_path: Path) -> None:
    lines = (studied / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    for name in STUDIES:
        list(pages.conduct(name, path, tmp_path, [], measure=False))
        assert (tmp_path / f"{name}.md").read_text() == (studied / f"{name}.md").read_text()


def test_pages_of_another_setting_are_refused(path: Path, studied: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(SETTING.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(ResultsError, match="results of another setting"):
        list(pages.conduct("accuracy", tmp_path / "small.toml", studied, [], measure=False))


def test_spread() -> None:
    assert Spread.of([0.5, 0.7]).percent() == "60.0 ± 14.1"
    assert Spread.of([0.5]).percent(3) == "50.0 ± 0.0 (1 of 3 seeds)"
    assert markdown(["a"], [["b|c"]]).splitlines()[-1] == "| b\\|c |"


# --- mistakes


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[grid]", "[grit]", "unknown 'grit'"),
        ("limit = 100", "limits = 100", r"unknown 'limits' in \[data\]"),
        ("sparsities = [0.5, 0.9]", "sparsities = [0.5, 1.0]", "sparsity: expected"),
        ("few_sparsities = [0.9]", "few_sparsities = [0.8]", "few_sparsities: expected some of"),
        ("epochs = 2", "epochs = 0", "epochs: expected"),
        ("[data]", "data", "expected a setting in TOML"),
        ("limit = 100", "limit = -3", "limit: expected a positive integer"),
        ("seeds = [0, 1]", "seeds = []", "seeds: expected at least one"),
        ("[topology.rigl]", "[topology.rigel]", "unknown topology 'rigel'"),
        ("every = 2", "evry = 2", "unknown setting 'evry'"),
        ('model = "net.py:net"', 'model = "none.py:net"', "expected the code of a network"),
        ('model = "net.py:net"', "", r"\[networks.tiny\] lacks 'model'"),
        ('model = "net.py:net"', 'modle = "net.py:net"', r"unknown 'modle' in \[networks.tiny\]"),
        ("steps = 2", "steps = 0", "steps: expected a positive integer"),
        ("steps = 2", "steps = 2\nlr = -1.0", r"lr of \[kernel\]: expected a positive number, got -1.0"),
        (
            "[topology.rigl]",
            "[tickets]\nrate = 1\n[topology.rigl]",
            r"rate: expected a share of the weights in \(0, 1\), got 1",
        ),
    ],
)
def test_a_setting_with_a_mistake(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in SETTING
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(SETTING.replace(old, new, 1))
    with pytest.raises(Exception, match=says) as error:
        Setting.read(tmp_path / "small.toml")
    assert type(error.value).__module__ == "fxprune.errors"


def test_what_does_not_exist_is_named(path: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (("accuracies", path), "study: expected one of accuracy"),
        (("accuracy", tmp_path / "none.toml"), "expected a setting in TOML"),
        (("accuracy", path), "expected results of accuracy, got none"),
    ):
        with pytest.raises(StudyError, match=says):
            list(pages.conduct(*arguments, tmp_path / "out", [], measure=False))
    with pytest.raises(StudyError, match="network: expected one of tiny, got 'large'"):
        list(pages.conduct("accuracy", path, tmp_path / "out", ["large"], measure=False))


@pytest.mark.parametrize("file", sorted((ROOT / "model_zoo/studies").glob("*.toml")), ids=lambda file: file.stem)
def test_the_settings_of_the_zoo_are_read(file: Path) -> None:
    setting = Setting.read(file)
    assert len(setting.seeds) >= 3
    assert all(study.experiments(setting, list(setting.networks)) for study in STUDIES.values())


# --- figures


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (12.345, 3.4, "12.3 ± 3.4"),
        (112, 170, "112 ± 170"),
        (0.0405, 0.033, "0.0405 ± 0.0330"),
        (568000, 55000, "(5.68 ± 0.55)e+05"),
        (-0.454, 1.5, "-0.45 ± 1.50"),
        (2.5e-7, 0, "(2.50 ± 0.00)e-07"),
        (0, 0, "0.00 ± 0.00"),
    ],
)
def test_a_mean_and_its_spread_have_the_same_decimals(mean: float, deviation: float, text: str) -> None:
    assert Spread(mean, deviation, 3).number() == text


def test_a_kernel_of_zeros_is_not_drawn() -> None:
    cell = {"network": "net", "sparsity": 0.98, "seeds": 3}
    cells = [
        {**cell, "method": "grasp", "eigenvalues": [1e3, 1.0, 1e-9]},
        {**cell, "method": "random", "eigenvalues": [0.0, 0.0, 0.0]},
    ]
    (axes,) = ntk._plot({"cells": cells}).axes
    (line,) = axes.get_lines()
    assert list(line.get_ydata()) == [1e3, 1.0]
