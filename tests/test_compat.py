"""The compatibility matrix: the runner with stages that misbehave, the results file, the table, real stages."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compat_fakes
import psutil
import pytest
import torch
from torch import nn

from fxprune.compat import plan, results, stages, table
from fxprune.compat.child import GIB, Task, described
from fxprune.compat.results import ROWS, Tally
from fxprune.compat.runner import Limits, run
from fxprune.coupling import rules
from fxprune.errors import CompatError, ShrinkError
from fxprune.examples import example
from fxprune.rows import read_rows
from fxprune.zoo import ModelSpec

ROOT = Path(__file__).parent.parent
NAMES = ("pass", "chatter", "raise", "interrupt", "exit", "abort", "vanish", "hang")
SECONDS = 8


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes without the libraries, which the stages here do not need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxprune.compat.child"])
    return context


@pytest.fixture(scope="module")
def rows(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    tasks = [Task(f"timm:{name}", "capture", threads=2) for name in NAMES]
    found = list(run(compat_fakes.behave, tasks, Limits(SECONDS, 3 * GIB), jobs=3, context=server))
    assert len(found) == len(NAMES)
    found += run(compat_fakes.behave, [Task("timm:hog", "capture")], Limits(120, GIB), context=server)
    return {row["model"].partition(":")[2]: row for row in found}


@pytest.mark.parametrize("name", ["pass", "chatter"])
def test_a_model_that_passes(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert (row["ok"], row["failed"], row["stage"]) == (True, None, "capture")
    facts = row["capture"]
    assert (facts["parameters"], facts["threads"]) == (7, 2)
    assert 0 <= facts["seconds"] <= row["seconds"] < SECONDS
    assert 0 < facts["peak_gib"] <= row["peak_gib"]
    assert row["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert row["limits"] == {"seconds": 8, "gib": 3.0}
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("raise", "RuntimeError", "it broke"),
        ("interrupt", "KeyboardInterrupt", "no message"),
        ("exit", "SystemExit", "a library gave up"),
        ("abort", "Crash", "the process was killed by SIGABRT; it said: last words"),
        ("vanish", "Crash", "the process was ended with exit code 3"),
        ("hog", "MemoryLimit", "over the memory limit of 1 GiB"),
        ("hang", "TimeLimit", "over the time limit of 8 s"),
    ],
)
def test_whatever_becomes_of_a_model_is_a_row(
    rows: dict[str, dict[str, Any]], name: str, kind: str, reason: str
) -> None:
    row = rows[name]
    assert not row["ok"]
    assert row["failed"]["stage"] == "capture"
    assert (row["failed"]["kind"], row["failed"]["reason"]) == (kind, reason)
    assert row["capture"]["parameters"] == 7  # what was found before it went wrong
    assert (row["peak_gib"] >= 1) == (name == "hog")
    if name == "hang":
        assert SECONDS < row["seconds"] < SECONDS + 5


def test_traceback_is_of_the_cause_and_names_no_machine(rows: dict[str, dict[str, Any]]) -> None:
    (line,) = rows["raise"]["failed"]["traceback"]
    assert line.endswith("behave")
    assert line.startswith("tests/compat_fakes.py:")


def test_stages_passed_before_a_failure_are_kept(server: Any) -> None:
    (row,) = run(compat_fakes.behave, [Task("timm:pass", "prune")], Limits(60, 4 * GIB), context=server)
    assert row["failed"]["stage"] == "prune"
    assert row["prune"]["weights"] == 3
    (entry,) = table.entries([row])
    assert entry.status == {"capture": table.PASSED, "prune": table.FAILED}


def test_closing_the_run_ends_its_processes(server: Any) -> None:
    tasks = [Task(f"timm:{name}", "capture") for name in ("pass", "hang", "hang")]
    running = run(compat_fakes.behave, tasks, Limits(600, 4 * GIB), jobs=3, context=server)
    next(running)
    children = _descendants(os.getpid())
    running.close()
    assert not [child for child in children if "compat_fakes" in " ".join(_command(child))]
    assert not multiprocessing.active_children()


def test_a_model_is_tried_again_when_the_server_dies(server: Any, tmp_path: Path) -> None:
    mark = tmp_path / "tried"
    (row,) = run(compat_fakes.behave, [Task(f"timm:{mark}", "capture")], Limits(120, 4 * GIB), context=server)
    assert mark.exists()
    assert row["ok"]


SCRIPT = """
import multiprocessing, signal, sys
from fxprune import cli
from fxprune.compat.child import GIB, Task
from fxprune.compat.runner import Limits, run
import compat_fakes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, cli._interrupted)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxprune.compat.child"])
    tasks = [Task(f"timm:{name}", "capture") for name in ("pass", "hang", "hang")]
    for row in run(compat_fakes.behave, tasks, Limits(600, 4 * GIB), jobs=3, context=context):
        print(row["model"], flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_run(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "timm:pass\n"
    children = _descendants(process.pid)
    assert len(children) >= 3  # the server and two that hang
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


# --- which models


KNOWN = [f"{library}:net{i}" for library in ("timm", "torchvision") for i in range(7)]


def test_shards_are_a_partition() -> None:
    shards = [plan.select(KNOWN, shard=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(name for shard in shards for name in shard) == KNOWN
    assert {len(shard) for shard in shards} == {4, 5}


def test_patterns_keep_their_order_and_name_a_model_once() -> None:
    assert plan.select(KNOWN, ["timm:net3", "net3", "*:net0"], "timm") == ["timm:net3", "timm:net0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": ["resnet*"]}, "no model matches 'resnet\\*'"),
        ({"library": "tim"}, "expected one of timm, torchvision, transformers, got 'tim'"),
        ({"shard": "0/3"}, "expected i/n"),
        ({"shard": "4/3"}, "expected i/n"),
        ({"shard": "half"}, "expected i/n"),
    ],
)
def test_mistakes_in_the_choice_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CompatError, match=message):
        plan.select(KNOWN, **arguments)


def row_of(model: str, stage: str = "capture", ok: bool = True, at: str = "1", **more: Any) -> dict[str, Any]:
    failed = None if ok else {"stage": stage, "kind": "SomeError", "reason": "a|b </script>", "traceback": []}
    return {
        "model": model,
        "stage": stage,
        "ok": ok,
        "failed": failed,
        "seconds": 2.0,
        "peak_gib": 0.5,
        "versions": results.versions(model, stage),
        "at": at,
        **more,
    }


def test_resume_leaves_out_what_is_done_with_these_versions() -> None:
    old = {**row_of("timm:net1"), "versions": {"fxprune": "0.0"}}
    rows = [row_of("timm:net0"), old, row_of("timm:net2", ok=False), row_of("timm:net3", "prune")]
    tasks = plan.plan(KNOWN[:5], "capture", rows, memory=1)
    assert [task.model for task in tasks] == ["timm:net1", "timm:net3", "timm:net4"]


def test_what_another_version_of_fxprune_tried_counts_where_that_is_asked_for() -> None:
    versions = results.versions("timm:net0", "capture")
    rows = [
        {**row_of("timm:net0"), "versions": {**versions, "fxprune": "0.0"}},
        {**row_of("timm:net1"), "versions": {**versions, "torch": "0.0"}},
    ]
    tasks = plan.plan(KNOWN[:2], "capture", rows, older=True, memory=1)
    assert [task.model for task in tasks] == ["timm:net1"]


def test_failed_tries_again_what_failed_last() -> None:
    rows = [
        row_of("timm:net0", ok=False),
        row_of("timm:net1", ok=False),
        row_of("timm:net1"),
        row_of("timm:net2", "prune", ok=False),
    ]
    tasks = plan.plan(KNOWN, "capture", rows, failed=True, memory=1)
    assert [task.model for task in tasks] == ["timm:net0"]


def test_smallest_first_where_sizes_are_known() -> None:
    rows = [row_of(f"timm:net{i}", "prune", capture={"parameters": 10 - i}) for i in range(3)]
    tasks = plan.plan(KNOWN[:3], "capture", rows, memory=5, threads=3, seed=4)
    assert [task.model for task in tasks] == ["timm:net2", "timm:net1", "timm:net0"]
    assert tasks[0] == Task("timm:net2", "capture", seed=4, memory=5, threads=3)
    with pytest.raises(CompatError, match="expected one of capture, prune, onnx, shrink, got 'train'"):
        plan.plan(KNOWN, "train", rows, memory=1)


# --- the tally


def test_tally() -> None:
    tally = Tally("prune")
    assert str(tally) == "prune: 0 of 0 passed"
    for ok in (True, True, False):
        tally.add(row_of("timm:net0", ok=ok))
    assert str(tally) == "prune: 2 of 3 passed (66.7%)"
    assert not tally.all_passed


# --- the table


FACTS = {
    "capture": {"parameters": 1200, "regions": 1, "dynamic_batch": True, "seconds": 1.0},
    "prune": {"prunable": 0.9, "plain_zero": 0.88, "zero": 0.0, "plain_empty": 4, "empty": 0, "seconds": 2.0},
    "onnx": {"difference": 2e-7, "seconds": 3.0},
}


def some_rows() -> list[dict[str, Any]]:
    capture = FACTS["capture"]
    return [
        row_of("timm:b", "onnx", **FACTS),
        row_of("timm:a", "onnx", ok=False, at="2", **FACTS),
        row_of("timm:big", "onnx", at="3", capture={**capture, "too_large": "no room"}),
        row_of("timm:c", ok=False, at="4", capture={}),
        row_of("torchvision:r", at="5", capture={**capture, "regions": 4, "dynamic_batch": False}),
        row_of("torchvision:r", "onnx", ok=False, at="6", capture=capture, prune={}, onnx={}),
        row_of("torchvision:r", "onnx", at="7", **FACTS),
    ]


def test_the_last_row_of_each_stage_counts() -> None:
    found = {entry.model: entry for entry in table.entries(some_rows())}
    assert list(found) == ["timm:a", "timm:b", "timm:big", "timm:c", "torchvision:r"]
    assert found["timm:a"].status == {"capture": "passed", "prune": "passed", "onnx": "failed"}
    assert found["timm:big"].status == {"capture": "passed", "prune": "too large"}
    assert found["timm:c"].status == {"capture": "failed"}
    assert found["torchvision:r"].status == dict.fromkeys(FACTS, "passed")
    assert found["timm:b"].seconds == 6.0
    again = table.entries([*some_rows(), row_of("timm:a", "onnx", ok=False, at="8") | {
        "failed": {"stage": "capture", "kind": "Crash", "reason": "gone", "traceback": []}, "capture": {}
    }])  # fmt: skip
    assert again[0].status == {"capture": "failed"}  # what an older row said of later stages holds no more


def test_smaller_images_on_the_way_do_not_replace_a_capture() -> None:
    """Rows of later stages say something of the capture only where it was not looked at for itself, or failed."""
    own = {**FACTS["capture"], "inputs": ["2x3x224x224"]}
    later = {**FACTS, "capture": {**FACTS["capture"], "inputs": ["2x3x64x64"]}}
    rows = [row_of("timm:a", at="1", capture=own), row_of("timm:a", "onnx", at="2", **later)]
    (entry,) = table.entries(rows)
    assert entry.fact("capture", "inputs") == ["2x3x224x224"]
    assert entry.status == dict.fromkeys(FACTS, "passed")
    (entry,) = table.entries([*rows, row_of("timm:a", "shrink", at="3", capture=later["capture"], shrink={})])
    assert entry.status == dict.fromkeys((*FACTS, "shrink"), "passed")


def test_rates_are_counted() -> None:
    found = table.entries(some_rows())
    assert [str(rate) for rate in table.rates(found)] == [
        "3 of 4 (75%)",
        "2 of 2 (100%); 1 too large",
        "1 of 2 (50%)",
        "1 of 1 (100%)",
        "1 of 1 (100%)",
        "1 of 1 (100%)",
    ]
    nearly = [
        table.Entry(f"timm:{i}", {"capture": "passed" if i else "failed"}, {}, {}, {}, 0, 0) for i in range(5000)
    ]
    assert str(table.rates(nearly)[0]) == "4,999 of 5,000 (99.9%)"


def test_markdown() -> None:
    text = table.markdown(table.entries(some_rows()))
    assert "| timm | 3 of 4 (75%) | 2 of 2 (100%); 1 too large | 1 of 2 (50%) |" in text
    assert "| timm:a | onnx | SomeError: a\\|b </script> |" in text
    assert "| timm:b | 1,200 | passed | passed | passed |  | 90.0% | 88.0% → 0.0% | 4 → 0 | 6.0 | 0.50 |" in text
    assert "timm " + results.versions("timm:a", "capture")["timm"] in text
    remarks = table.markdown(table.entries([some_rows()[4]]))
    assert "passed (4 regions, fixed batch)" in remarks
    cut = {"capture": FACTS["capture"], "shrink": {"macs": 0.4987, "stays": {"softmax has no rule": 0.25}}}
    assert "| passed (49.9% of the MACs) |" in table.markdown(table.entries([row_of("timm:a", "shrink", **cut)]))
    failed = row_of("timm:a", "shrink", ok=False, **cut)
    assert "; stays: softmax has no rule (25%)" in table.markdown(table.entries([failed]))


def test_the_page_holds_all_of_it_and_nothing_from_elsewhere() -> None:
    page = table.html(table.entries(some_rows()))
    data = json.loads(page.partition("const data = ")[2].partition(";\n")[0].replace("<\\/", "</"))
    assert [model["model"] for model in data["models"]] == [
        "timm:a",
        "timm:b",
        "timm:big",
        "timm:c",
        "torchvision:r",
    ]
    assert data["models"][0]["reasons"] == {"onnx": "SomeError: a|b </script>"}
    assert page.count("</script>") == 1  # that of the data does not end the script
    assert "http" not in page


def test_rates_go_between_the_markers(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n{table._BEGIN}\nold\n{table._END}\nafter\n")
    found = table.entries(some_rows())
    table.update(file, found)
    assert file.read_text() == f"before\n{table._BEGIN}\n{table.summary(found)}\n{table._END}\nafter\n"
    file.write_text("no markers")
    with pytest.raises(CompatError, match="expected the lines"):
        table.update(file, found)


# --- inputs and stages


class Detector(nn.Module):
    __module__ = "torchvision.models.detection.net"


class Flow(nn.Module):
    __module__ = "torchvision.models.optical_flow.net"


def test_detectors_get_images_and_targets() -> None:
    inputs = example(Detector(), (3, 40, 60))
    images, targets = inputs.args
    assert [tuple(image.shape) for image in images] == [(3, 40, 60)] * 2
    for target in targets:
        boxes = target["boxes"]
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes <= torch.tensor([60, 40, 60, 40])).all())
        assert target["masks"].shape == (2, 40, 60)
        assert bool(target["masks"].flatten(1).any(1).all())
        assert target["keypoints"].shape == (2, 17, 3)


def test_flow_gets_two_images_and_others_one() -> None:
    one, other = example(Flow(), (3, 128, 128)).args
    assert not torch.equal(one, other)
    (images,) = example(nn.Identity(), (3, 8, 8), batch=3, device="meta").args
    assert (tuple(images.shape), images.device.type) == ((3, 3, 8, 8), "meta")
    assert example(nn.Identity(), (3, 8, 8)).shapes == ["2x3x8x8"]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("bert", {"input_ids"}),
        ("clip", {"input_ids", "pixel_values"}),
        ("vit", {"pixel_values"}),
        ("whisper", {"input_features", "decoder_input_ids"}),
    ],
)
def test_models_of_transformers_run_on_their_example(name: str, inputs: set[str]) -> None:
    pytest.importorskip("transformers")
    from fxprune.zoo import build

    module, shape = build(ModelSpec(f"transformers:{name}"))
    given = example(module, shape)
    assert set(given.kwargs) == inputs
    assert given.inputs == given.kwargs
    stages.any_output(module(**given.kwargs), given.targets).backward()


class Notes:
    """A journal that stays in this process."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.place = name
        self.facts[name] = {}
        yield

    def note(self, **facts: Any) -> None:
        self.facts[self.place].update(facts)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    yield Notes()
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)


def test_a_model_goes_through_all_stages(notes: Notes) -> None:
    stages.examine(Task("timm:test_nfnet", "onnx"), notes)
    capture, prune, onnx = (notes.facts[stage] for stage in ("capture", "prune", "onnx"))
    assert capture["inputs"] == ["2x3x160x160"]
    assert (capture["device"], capture["regions"], capture["dynamic_batch"]) == ("cpu", 1, True)
    assert 0 < prune["of"] - prune["compared"] <= prune["derived"]  # weight standardisation
    assert prune["plain_empty"] > 0 == prune["empty"]
    assert prune["ones"] == {"train": 0.0, "eval": 0.0, "buffers": 0.0, "varies": True}
    assert prune["masked"]["varies"]
    assert onnx["difference"] < 1e-5
    json.dumps(notes.facts, allow_nan=False)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_half_of_the_channels_go(notes: Notes, name: str) -> None:
    stages.examine(Task(f"timm:{name}", "shrink", image=64), notes)
    assert list(notes.facts) == ["capture", "shrink"]
    shrink = notes.facts["shrink"]
    assert 0.45 <= shrink["macs"] <= 0.5
    assert shrink["parameters"] < notes.facts["capture"]["parameters"]
    assert shrink["units"] > 100
    assert all(0 < share < 0.5 for share in shrink["stays"].values())
    json.dumps(notes.facts, allow_nan=False)


class Branch(nn.Module):
    """Linear layers beside a branch that begins as closed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.scale * self.b(self.a(x).softmax(-1)))


def test_a_closed_branch_hides_no_wrong_cut(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.zoo, "build", lambda spec: (Branch(), (4,)))
    monkeypatch.setitem(rules._RULES, "softmax", rules._same)
    with pytest.raises(ShrinkError, match="differs from the masked one"):
        stages.examine(Task("timm:branch", "shrink"), notes)


@pytest.mark.parametrize(("name", "inputs"), [("test_resnet", "2x3x64x64"), ("test_vit", "2x3x64x64")])
def test_smaller_images_where_a_model_takes_them(notes: Notes, name: str, inputs: str) -> None:
    stages.examine(Task(f"timm:{name}", "prune", image=64), notes)
    assert notes.facts["capture"]["inputs"] == [inputs]
    assert notes.facts["prune"]["masked"]["varies"]


def test_its_own_size_where_it_does_not(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    build = stages.zoo.build

    def picky(spec: ModelSpec) -> Any:
        if spec.input_shape is not None:
            raise AssertionError("sides must be multiples of 160")
        return build(spec)

    monkeypatch.setattr(stages.zoo, "build", picky)
    stages.examine(Task("timm:test_resnet", "prune", image=64), notes)
    assert notes.facts["capture"]["inputs"] == ["2x3x160x160"]
    assert notes.facts["capture"]["own_size"] == "sides must be multiples of 160"


@pytest.mark.parametrize(("name", "scored"), [("test_resnet", 2), ("test_vit", 1)])
def test_a_score_is_computed_once_where_the_live_point_changes_nothing(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, name: str, scored: int
) -> None:
    calls = []
    get = stages.criteria.get
    counting = type("Counting", (), {"score": lambda _, scoring: calls.append(1) or get("grasp").score(scoring)})()
    monkeypatch.setattr(stages.criteria, "get", lambda wanted: counting if wanted == "grasp" else get(wanted))
    stages.examine(Task(f"timm:{name}", "prune", image=64), notes)
    assert len(calls) == scored


def test_what_does_not_fit_is_captured_without_values(notes: Notes) -> None:
    stages.examine(Task("timm:test_vit", "onnx", memory=10**6), notes)
    assert list(notes.facts) == ["capture"]
    assert notes.facts["capture"]["device"] == "meta"
    assert notes.facts["capture"]["too_large"].startswith("371,240 parameters need about")


def test_a_graph_that_computes_something_else_fails(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = stages.capture

    def wrongly(module: nn.Module, *inputs: Any) -> Any:
        captured = capture(module, *inputs)
        with torch.no_grad():
            for parameter in captured.host.parameters():
                parameter.mul_(1.01)
        return captured

    monkeypatch.setattr(stages, "capture", wrongly)
    with pytest.raises(CompatError, match="eval, ones: the graph differs from the module by"):
        stages.examine(Task("timm:test_vit", "prune"), notes)
    assert notes.facts["prune"]["ones"]["eval"] > stages.TOLERANCE


def test_differences() -> None:
    one = {"a": torch.tensor([1.0, -4.0]), "b": (torch.tensor([1]), None)}
    assert stages.difference(one, {"a": torch.tensor([1.0, -4.0]), "b": (torch.tensor([1]), None)}) == 0.0
    assert stages.difference(one, {"a": torch.tensor([2.0, -4.0]), "b": (torch.tensor([1]), None)}) == 0.25
    inf = float("inf")
    assert stages.difference(one, {"a": one["a"], "b": (torch.tensor([2]), None)}) == inf
    assert stages.difference(one, {"a": one["a"]}) == inf
    assert stages.difference(torch.zeros(2), torch.zeros(2, 1)) == inf
    assert stages.difference(torch.zeros(2), torch.ones(2)) == inf
    assert stages.difference(torch.tensor([inf, 1.0]), torch.tensor([1.0, 1.0])) == inf
    assert stages.difference(torch.tensor([inf, 1.0]), torch.tensor([inf, 1.0])) == 0.0


def test_described_errors_are_short() -> None:
    error = described(ValueError("x" * 1000))
    assert len(error["reason"]) == 400
    assert error["traceback"] == []


def test_free_memory_is_shared_among_the_jobs() -> None:
    assert plan.memory_limit(2.5, 4) == int(2.5 * GIB)
    assert 0 < plan.memory_limit(None, 2) < psutil.virtual_memory().total / 2


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan.threads(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert plan.threads(10**6) == 1


# --- the command line


def fxprune(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fxprune", "compat", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    done = fxprune("torchvision:alexnet", "torchvision:raft_small", "--memory", "4", "-o", str(file))
    assert done.stderr == f"capture: 2 of 2 passed (100.0%); rows are in {file}\n"
    assert done.returncode == 0
    alexnet, raft = read_rows([file], ROWS)
    assert (alexnet["capture"]["device"], alexnet["capture"]["parameters"]) == ("meta", 61100840)
    assert len(raft["capture"]["inputs"]) == 2

    page, text = tmp_path / "page.html", tmp_path / "table.md"
    done = fxprune("table", str(file), "--html", str(page), "--markdown", str(text))
    assert "| torchvision | 2 of 2 (100%) |" in done.stdout
    assert "torchvision:alexnet" in page.read_text()
    assert text.read_text().startswith("# Compatibility")
