"""Which channels go, and what becomes of a model that loses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import NET
from test_coupling import EXAMPLES, Net, built, conv, pooled
from torch import Tensor, nn

import fxprune
from fxprune.channels import Budget, check_channels, check_included, choose
from fxprune.coupling import Coupling, couple
from fxprune.errors import CheckpointError, MaskError, ShrinkError
from fxprune.files import replacing
from fxprune.saliency import Saliency
from fxprune.shrink import shrink
from fxprune.stages import PruneJob, prune_stage, train_stage
from fxprune.training import TrainConfig
from fxprune.weights import Weights, find_weights
from fxprune.zoo import ModelSpec


def ready(name: str = "residual") -> tuple[Coupling, Weights, Saliency]:
    captured = built(EXAMPLES[name])
    weights = find_weights(captured)
    generator = torch.Generator().manual_seed(0)
    values = {weight.name: torch.rand(weight.shape, generator=generator) for weight in weights}
    return couple(captured), weights, Saliency(values)


def numbers(coupling: Coupling, tensor: str, dim: int) -> list[int]:
    return [int(root) for root in coupling.roots(tensor, dim)]


def test_a_unit_is_worth_the_sum_of_its_weights() -> None:
    """Of the residual network's stream: slices of three convolutions and of the head, by hand."""
    coupling, weights, values = ready()
    by_hand = (
        values["a.weight"].sum((1, 2, 3))
        + values["b.weight"].sum((0, 2, 3))
        + values["c.weight"].sum((1, 2, 3))
        + values["head.weight"].sum(0)
    )
    stream, inner = numbers(coupling, "a.weight", 0), numbers(coupling, "b.weight", 0)
    worth = dict(zip(stream, by_hand.tolist(), strict=True))
    worth |= dict(
        zip(inner, (values["b.weight"].sum((1, 2, 3)) + values["c.weight"].sum((0, 2, 3))).tolist(), strict=True)
    )
    cut = choose(coupling, weights, weights, values, Budget("macs", 0.6), normalise="none")
    assert 0 < len(cut) < len(worth)
    assert max(worth[unit] for unit in cut) <= min(worth[unit] for unit in set(worth) - set(cut))


@pytest.mark.parametrize(
    ("name", "cost"), [("chain", "macs"), ("chain", "params"), ("places of each channel", "macs")]
)
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_budget_is_met_and_not_by_more_than_a_unit(name: str, cost: str, share: float) -> None:
    captured = built(EXAMPLES[name])
    coupling, weights, values = ready(name)

    def left(cut: list[int]) -> float:
        shrunk = shrink(captured, coupling, cut)
        if cost == "macs":
            return sum(w.macs for w in find_weights(shrunk)) / sum(w.macs for w in weights)
        sizes = [sum(p.numel() for p in model.host.parameters()) for model in (shrunk, captured)]
        return sizes[0] / sizes[1]

    cut = choose(coupling, weights, weights, values, Budget(cost, share))  # type: ignore[arg-type]
    assert left(cut) <= share
    assert max(left([unit for unit in cut if unit != other]) for other in cut) > share


def test_the_floor_and_multiples() -> None:
    coupling, weights, values = ready()
    widths = []
    for floor, round_to in ((0.0, 1), (0.5, 1), (0.0, 4)):
        cut = set(choose(coupling, weights, weights, values, Budget("macs", 0.5), floor=floor, round_to=round_to))
        widths.append([len(set(numbers(coupling, t, 0)) - cut) for t in ("a.weight", "b.weight")])
    assert widths[1][0] >= 4
    assert widths[1][1] >= 3
    assert widths[2][0] in (4, 8)  # 6 inner channels are less than two fours: one is kept
    assert widths[2][1] == 4
    with pytest.raises(ShrinkError, match=r"expected a share of at least 0\.\d+ of the macs, the smallest"):
        choose(coupling, weights, weights, values, Budget("macs", 0.01))


def test_what_is_excluded_stays() -> None:
    coupling, weights, values = ready()
    some = weights.select(exclude="c.weight")
    cut = choose(coupling, weights, some, values, Budget("macs", 1.0))
    assert cut == []
    with pytest.raises(ShrinkError, match="the smallest that can be reached"):  # all units have a part of it
        choose(coupling, weights, some, values, Budget("macs", 0.9))


def test_what_is_included_and_cannot_lose_a_channel_is_refused() -> None:
    coupling, weights, _ = ready()
    for glob, says in (
        ("a.weight", "not included, and smaller with it: .*b.weight"),
        ("head.weight", "dimension 0"),
    ):
        with pytest.raises(ShrinkError, match=f"include.*'{glob}'.*{says}"):
            check_included(coupling, weights, weights.select([glob]), [glob])
    both = ["b.weight", "c.weight"]  # between the two all channels may go
    check_included(coupling, weights, weights.select(both), both)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("flops=0.5", "cost", 0.0, 1), "expected one of macs, params, latency, got 'flops'"),
        (("macs", "cost", 0.0, 1), "expected something like macs=0.5, got 'macs'"),
        (("macs=0", "cost", 0.0, 1), r"expected a share of the whole in \(0, 1\], got 0"),
        (("macs=nan", "cost", 0.0, 1), r"expected a share of the whole in \(0, 1\], got nan"),
        (("macs=0.5", "weight", 0.0, 1), "normalise: expected one of cost, size, none, got 'weight'"),
        (("macs=0.5", "cost", 1.5, 1), "floor: expected a share"),
        (("macs=0.5", "cost", 0.0, 0), "round_to: expected a positive integer, got 0"),
    ],
)
def test_settings_out_of_range(settings: tuple[str, str, float, int], says: str) -> None:
    with pytest.raises(ShrinkError, match=says):
        check_channels(*settings)


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(20, 3, 8, 8), torch.arange(20) % 5)]


@pytest.mark.parametrize("criterion", ["grasp", "snip", "magnitude", "random"])
def test_half_of_the_products(criterion: str, batches: list[tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """From the module to a verified file of the smaller network; the module is left alone."""
    torch.manual_seed(0)
    module = Net(
        lambda net, x: pooled(net, net.c(net.norm(net.b(net.a(x).relu())).relu())),
        a=conv(3, 16),
        b=conv(16, 16),
        norm=nn.BatchNorm2d(16),
        c=conv(16, 12),
        head=nn.Linear(12, 5),
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pruned = fxprune.prune_channels(module, data=batches, budget="macs=0.5", criterion=criterion)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    whole = sum(weight.macs for weight in find_weights(fxprune.capture(module, (batches[0][0],))))
    assert 0.4 * whole < sum(weight.macs for weight in pruned.weights) <= 0.5 * whole
    assert pruned.masks.sparsity == 0
    assert pruned.record is not None
    assert (pruned.record.budget, pruned.record.criterion) == ("macs=0.5", criterion)
    assert sum(len(places) for _, _, places in pruned.record.removed) > 3
    fxprune.export_onnx(pruned, tmp_path / "net.onnx")
    assert sum(pruned.get_parameter(f"{name}.weight").shape[0] for name in "abc") < 16 + 16 + 12


def test_the_same_seed_cuts_the_same(batches: list[tuple[Tensor, Tensor]]) -> None:
    def records() -> object:
        torch.manual_seed(0)
        net = Net(pooled_net, a=conv(3, 8), head=nn.Linear(8, 5))
        return fxprune.prune_channels(net, data=batches, budget="macs=0.5").record

    assert records() == records()


def pooled_net(net: nn.Module, x: Tensor) -> Tensor:
    return pooled(net, net.a(x).relu())


def test_a_checkpoint_of_a_smaller_network(tmp_path: Path) -> None:
    """Saved, trained from the folder, and loaded again: sizes are those that were left."""
    file, folder = tmp_path / "net.py", tmp_path / "out"
    file.write_text(NET)
    spec = ModelSpec(f"{file}:make_net", (1, 8, 8))
    job = PruneJob(spec, "digits", granularity="channel", budget="params=0.6", score_batch=50)
    pruned = prune_stage(job, folder)
    train_stage(folder, TrainConfig(epochs=1, batch_size=64), model=spec)
    again = fxprune.load(folder, spec)
    shapes = {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    assert again.record == pruned.record
    images = torch.randn(3, 1, 8, 8)
    assert not torch.equal(again.eval()(images), pruned.eval()(images))
    # what is written there is not believed
    manifest = folder / "fxprune.json"
    values = json.loads(manifest.read_text())
    for removed, says in (
        ([["nothing", 0, [1]]], "expected a dimension 0 of 'nothing'"),
        ([[values["record"]["removed"][0][0], 0, [10**6]]], "with indices up to 1000000"),
        ([[values["record"]["removed"][0][0], 1, [0]]], "cannot be cut"),
    ):
        values["record"]["removed"] = removed
        with replacing(manifest) as temporary:
            temporary.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=says):
            fxprune.load(folder, spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": "channel"},
        {"granularity": "channel", "sparsity": 0.5, "budget": "macs=0.5"},
        {"sparsity": 0.5, "budget": "macs=0.5"},
        {"budget": "macs=0.5"},
        {},
    ],
)
def test_a_job_has_one_goal(settings: dict[str, object]) -> None:
    with pytest.raises(MaskError, match=r"expected a sparsity, such as 0.9, to prune weights, or a budget"):
        PruneJob(ModelSpec("timm:resnet18"), None, **settings)  # type: ignore[arg-type]
    with pytest.raises(
        MaskError, match="granularity: expected weight, channel or a pattern such as 2:4, got 'layer'"
    ):
        PruneJob(ModelSpec("timm:resnet18"), None, 0.5, granularity="layer")


def test_worth_of_heads_counts_all_their_rows() -> None:
    coupling, weights, values = ready("heads")
    assert len(np.unique(coupling.roots("qkv.weight", 0))) == 3
    lowest = {name: tensor.clone() for name, tensor in values.items()}
    rows = lowest["qkv.weight"].view(3, 3, 4, -1)
    rows[:, 1] -= 10  # the second head of q, k and v
    cut = choose(coupling, weights, weights, Saliency(lowest), Budget("macs", 0.9), normalise="none")
    assert cut == [int(coupling.roots("qkv.weight", 0)[4])]


def test_the_report_tells_widths_before_and_after(tmp_path: Path) -> None:
    net = built(EXAMPLES["residual"])
    whole = {weight.name: weight.shape for weight in find_weights(net)}
    thin = fxprune.prune_channels(net, budget="macs=0.5", criterion="magnitude")
    report = fxprune.report(thin)
    assert {row.name: row.whole for row in report.rows} == whole
    narrow = report.rows[1]
    assert narrow.shape != narrow.whole
    text = " ".join(str(report).split())
    assert f"of {'x'.join(map(str, narrow.whole or ()))}" in text
    share = report.totals["macs"] / sum(weight.macs for weight in find_weights(net))
    assert f"channels: cut to macs=0.5: {share:.1%} of" in text
    assert "faster: tensors are smaller" in text
    assert "not faster" not in text
    page = report.to_html()
    assert "Widths" in page
    assert "Sparsity by depth" not in page
    fxprune.save(thin, tmp_path / "net")
    example = EXAMPLES["residual"]
    again = fxprune.load(tmp_path / "net", example.build(), (torch.randn(2, *example.shape),))
    assert again.record == thin.record


def test_a_ranking_by_layer_takes_the_same_share_of_each() -> None:
    coupling, weights, values = ready()
    values = Saliency({name: v * (100 if name == "a.weight" else 1) for name, v in values.items()})
    cut = set(choose(coupling, weights, weights, values, Budget("macs", 0.4), ranking="layer", normalise="none"))
    shares = [len(cut.intersection(f.units)) / len(f.units) for f in coupling.families() if len(f.units) > 1]
    assert max(shares) - min(shares) <= 1 / min(len(f.units) for f in coupling.families() if len(f.units) > 1)
    with pytest.raises(ShrinkError, match="ranking: expected one of global, layer for channels, got 'erk'"):
        PruneJob(ModelSpec("timm:resnet18"), None, granularity="channel", budget="macs=0.5", ranking="erk")


@pytest.fixture
def timed_by_size(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Files take as long as they are large; the ratios that were told."""
    told: list[float] = []

    def ratio(file: Path, whole: Path, model: fxprune.PrunedModel) -> float:
        told.append(file.stat().st_size / whole.stat().st_size)
        return told[-1]

    monkeypatch.setattr("fxprune.onnx.timing.latency_ratio", ratio)
    return told


def test_a_budget_of_latency_takes_the_largest_cut_that_is_fast_enough(timed_by_size: list[float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 4))
    options = {"criterion": "magnitude", "example_inputs": torch.randn(2, 3, 4, 4)}
    thin = fxprune.prune_channels(model, budget="latency=0.6", **options)
    assert thin.record is not None
    assert thin.record.budget == "latency=0.6"
    assert len(timed_by_size) > 3
    assert max(found for found in timed_by_size if found <= 0.6) > 0.55
    whole = fxprune.prune_channels(model, budget="macs=1", **options)
    assert sum(p.numel() for p in thin.parameters()) < 0.6 * sum(p.numel() for p in whole.parameters())


def test_a_latency_out_of_reach_is_told(timed_by_size: list[float]) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.Flatten(), nn.Linear(8 * 16, 4))
    with pytest.raises(ShrinkError, match=r"expected a share of the latency that can be reached, got 0\.01"):
        fxprune.prune_channels(model, torch.randn(2, 3, 4, 4), budget="latency=0.01", criterion="magnitude")
    assert timed_by_size
