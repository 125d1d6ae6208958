"""Random networks: what has to hold of every network holds of a few hundred, the same ones each time.

`benchmarks/soak.py` tries thousands. A network that fails is printed as a description, and becomes a
counter-example below, as small as it still fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak
import torch
from hypothesis import HealthCheck, given, settings
from properties import (
    PROPERTIES,
    QUICK,
    Property,
    Subject,
    captured_equals_eager,
    counts_are_exact,
    encodings_decode_to_the_model,
    every_parameter_is_accounted_for,
    folded_equals_masked,
    masked_equals_eager_with_masked_operands,
    shrunk_equals_masked,
    without_dead_channels_it_is_the_same,
)
from random_layers import LAYERS
from random_networks import Network, Step, build, describe, networks

import fxprune
from fxprune import dead, find_weights, operators, pipeline
from fxprune.errors import CaptureError, FxpruneError
from fxprune.masks import kept_count
from fxprune.onnx.encodings import SparseWeight
from fxprune.program import operand_value

EVERY_TIME = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@settings(EVERY_TIME, max_examples=150)
@given(networks())
def test_every_property_but_files(network: Network) -> None:
    subject = Subject(network)
    for holds in QUICK:
        holds(subject)


@settings(EVERY_TIME, max_examples=15)
@given(networks())
def test_files(network: Network) -> None:
    encodings_decode_to_the_model(Subject(network))


# --- networks of which something did not hold once


def linear(number: int, size: int, out: int, **options: Any) -> Step:
    return Step("linear", (number,), {"in_features": size, "out_features": out, **options})


COUNTER_EXAMPLES = {
    "a layer whose result is dropped": Network(((4,),), (linear(0, 4, 3), linear(0, 4, 3)), outputs=(2,)),
    "a layer of which evaluation drops the result": Network(
        ((4,),), (linear(0, 4, 3), linear(0, 4, 3)), outputs=(2,), auxiliary=(1,), form="tuple"
    ),
    "one value a channel": Network(
        ((4,),), (linear(0, 4, 5), Step("batch_norm1d", (1,), {"num_features": 5}), linear(2, 5, 3)), outputs=(3,)
    ),
    "indices of maxima that nobody reads": Network(
        ((2, 6),),
        (Step("max_pool1d", (0,), {"kernel_size": 3, "stride": 2, "padding": 0}), linear(1, 2, 3)),
        outputs=(2,),
    ),
    "noise while training": Network(
        ((6,),), (linear(0, 6, 5), Step("noise", (1,)), linear(2, 5, 3)), outputs=(3,)
    ),
    "slopes drawn while training": Network(
        ((6,),), (linear(0, 6, 5), Step("rrelu", (1,)), linear(2, 5, 3)), outputs=(3,)
    ),
    "dropout between recurrent layers": Network(
        ((3, 6),),
        (
            linear(0, 6, 5),
            Step("gru", (1,), {"input_size": 5, "hidden_size": 4, "num_layers": 2, "dropout": 0.2, "last": False}),
            linear(2, 4, 3),
        ),
        outputs=(3,),
    ),
    "factors of a weight whose order of sizes changes": Network(
        ((3,),), (Step("low_rank", (0,), {"dim": 3, "out": 8, "rank": 2}), linear(1, 8, 5)), outputs=(2,)
    ),
    **{
        f"two inputs, of which one limits the batch {how}": Network(
            ((4,), (4,)),
            (Step("by_batch", (0,), {"limit": limit}), linear(2, 4, 3), linear(1, 4, 3)),
            outputs=(3, 4),
            form="tuple",
        )
        for how, limit in (("from above", 3), ("from below", 2))
    },
    "constants before groups": Network(
        ((4, 6),),
        (
            Step("conv1d", (0,), {"in_channels": 4, "out_channels": 8, "kernel_size": 2}),
            Step("conv1d", (1,), {"in_channels": 8, "out_channels": 6, "kernel_size": 1, "groups": 2}),
            linear(2, 5, 3),
        ),
        outputs=(3,),
    ),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", COUNTER_EXAMPLES)
def test_counter_examples(name: str, seed: int) -> None:
    subject = Subject(COUNTER_EXAMPLES[name], seed)
    for holds in PROPERTIES if seed == 0 else QUICK:
        holds(subject)


def captured_example(name: str) -> fxprune.CapturedModel:
    return Subject(COUNTER_EXAMPLES[name]).captured


def test_a_layer_whose_result_is_dropped_is_skipped() -> None:
    weights = find_weights(captured_example("a layer whose result is dropped"))
    assert [weight.name for weight in weights] == ["step2.weight"]
    assert weights.skipped["step1.weight"] == "no output of the model depends on it"


def test_one_sample_is_too_few_for_batch_statistics() -> None:
    host = captured_example("one value a channel").host
    with pytest.raises(
        CaptureError, match=r"sizes 2 to inf of dimension 0, .* batch statistics have two values, got 1"
    ):
        host.train()(torch.randn(1, 4))
    assert host.eval()(torch.randn(1, 4)).isfinite().all()


def test_a_weight_keeps_its_name_when_it_is_cut() -> None:
    captured = captured_example("factors of a weight whose order of sizes changes")
    names = [weight.name for weight in find_weights(captured)]
    thin = fxprune.prune_channels(captured, budget="params=0.3", criterion="random")
    assert thin.get_parameter("step1.a").numel() > thin.get_parameter("step1.b").numel()
    assert [weight.name for weight in thin.weights] == names == ["step1.b", "step2.weight"]


def test_constants_before_groups_become_part_of_the_bias() -> None:
    subject = Subject(COUNTER_EXAMPLES["constants before groups"])
    pruned = fxprune.PrunedModel.dense(subject.captured)
    pruned.masks["step1.weight"][::4] = False  # a channel of each group is its bias alone
    thin = fxprune.cut_dead(pruned)
    assert thin.get_parameter("step1.weight").shape[0] == 6


# --- the properties have the power to fail


PLAIN = Network(
    ((4, 8, 8),),
    (
        Step("conv2d", (0,), {"in_channels": 4, "out_channels": 8, "kernel_size": 3}),
        Step("batch_norm2d", (1,), {"num_features": 8}),
        Step("relu", (2,)),
        Step("dropout", (3,)),
        Step("conv2d", (4,), {"in_channels": 8, "out_channels": 6, "kernel_size": 3, "derived": "standardised"}),
        Step("mean", (5,), {"dims": (-2, -1), "keepdim": False}),
        linear(6, 6, 3),
    ),
    outputs=(7,),
)


def no_pass(_: object) -> Callable[[object], None]:
    return lambda graph: None


def other_units(captured: Any, coupling: Any, cut: Any, shrink: Any = pipeline.shrink) -> Any:
    others = sorted(set(coupling.units()) - set(cut))
    return shrink(captured, coupling, others[:1])


def rounded(*args: Any, of: Any = SparseWeight.of) -> SparseWeight:
    name, array, dtype = args
    return of(name, np.round(array, 1), dtype)


BREAKAGES: dict[str, tuple[Property, str, object]] = {
    "both graphs are those of evaluation": (
        captured_equals_eager,
        "fxprune.regions.Region.forward",
        lambda self, *args, **kwargs: self._fxprune["eval"].run(self, args, kwargs),
    ),
    "linear layers have no weight": (
        every_parameter_is_accounted_for,
        "fxprune.operators._WEIGHT_SLOTS",
        {name: slots for name, slots in operators._WEIGHT_SLOTS.items() if name != "linear"},
    ),
    "masks are not inserted": (masked_equals_eager_with_masked_operands, "fxprune.rewrite._multiply", no_pass),
    "one more is kept": (counts_are_exact, "fxprune.masks.kept_count", lambda n, s: min(n, kept_count(n, s) + 1)),
    "multiply-adds of a bias": (
        counts_are_exact,
        "fxprune.operators.macs",
        lambda node, operand, macs=operators.macs: macs(node, operand) + 100,
    ),
    "folded weights are not those of evaluation": (
        folded_equals_masked,
        "fxprune.rewrite.operand_value",
        lambda *args: 1.01 * operand_value(*args),
    ),
    "constants of dead channels are lost": (
        without_dead_channels_it_is_the_same,
        "fxprune.dead._shiftable",
        lambda node, shiftable=dead._shiftable: (place := shiftable(node)) and (place[0], 0.0),
    ),
    "other channels are cut than were masked": (shrunk_equals_masked, "fxprune.pipeline.shrink", other_units),
    "values are rounded": (encodings_decode_to_the_model, "fxprune.onnx.encodings.SparseWeight.of", rounded),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_each_property_notices_what_is_broken(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holds, name, broken = BREAKAGES[how]

    def try_it() -> None:
        for seed in range(4):
            holds(Subject(PLAIN, seed))

    try_it()
    monkeypatch.setattr(name, broken)
    with pytest.raises((AssertionError, FxpruneError)):
        try_it()


# --- the strategy


def test_a_description_says_all() -> None:
    for seed in range(50):
        network = describe(random.Random(seed))
        assert eval(repr(network)) == network == describe(random.Random(seed))
        one, other = (build(network).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_every_layer_occurs() -> None:
    found = {step.kind for seed in range(1000) for step in describe(random.Random(seed)).steps}
    assert found == {*LAYERS, "reuse", "tied", "transposed"}


# --- the soak


def test_a_soak_goes_on_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[tuple[int, bool]]()

    def measure(seed: int, *, files: bool) -> soak.Row:
        tried.append((seed, files))
        row = {"seed": seed, "steps": 3, "kinds": ["linear"], "files": files, "seconds": 1.0}
        fails = seed == 3 and tried.count((seed, files)) == 1
        return row | ({"failures": {"counts_are_exact": "why"}} if fails else {})

    monkeypatch.setattr(soak, "measure", measure)
    file = tmp_path / "soak.jsonl"
    for examples in (4, 8):
        soak.run(file, examples, 2, 2, files=3, failed=False)
    assert tried == [(1, False), (3, True), (5, False), (7, False)]
    assert "4 of 4 networks tried" in soak.table([file])
    assert "| counts are exact | 4 | 1: seeds 3 |" in soak.table([file])
    soak.run(file, 8, 2, 2, files=3, failed=True)
    assert tried[4:] == [(3, True)]
    assert "| counts are exact | 4 | 0 |" in soak.table([file])
    assert "| encodings decode to the model | 1 | 0 |" in soak.table([file])


def test_a_soak_writes_down_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.masks.kept_count", lambda n, s: min(n, kept_count(n, s) + 1))
    row = soak.measure(4, files=False)
    assert set(row["failures"]) == {"counts_are_exact"}
    assert eval(row["network"]) == describe(random.Random(4))
