from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import Mlp, pruned_case
from torch import Tensor
from torch.nn import functional as F

from fxprune import PrunedModel
from fxprune.data import ImageData, ImageSet
from fxprune.data.splits import Split
from fxprune.errors import MaskError, ResumeError, TopologyError
from fxprune.masks import kept_count
from fxprune.topology import DSR, SET, TOPOLOGIES, DeepR, Movement, RigL, make, rounds_to, tickets
from fxprune.topology.dsr import _shared
from fxprune.topology.movement import regrown
from fxprune.training import Callback, Run, TrainConfig, fit
from fxprune.training.state import TrainingState

CONFIG = TrainConfig(epochs=4, lr=0.05, batch_size=16, weight_decay=0.01)
STEPS_PER_EPOCH = 4
METHODS: dict[str, Callable[..., Movement]] = {
    "set": SET,
    "rigl": lambda seed=0: RigL(seed, every=3),
    "deep-r": lambda seed=0: DeepR(seed, l1=0.05, temperature=1e-3),
    "dsr": lambda seed=0: DSR(seed, threshold=0.05, share=0.2, every=2),
}
EVERY_METHOD = pytest.mark.parametrize("name", METHODS)


def images(*shape: int, classes: int) -> ImageData:
    """Sixty-four to train on and 16 to test on; each class has a mean of its own."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, *shape, generator=generator)

    def some(count: int) -> ImageSet:
        labels = [index % classes for index in range(count)]
        noise = torch.randn(count, *shape, generator=generator)
        return ImageSet(Split(means[labels] + noise, labels), lambda image: image)

    train, test = some(64), some(16)
    return ImageData("noise", classes, train, test, train, tuple(map(str, range(classes))))


DATA = images(1, 8, 8, classes=5)  # for the case conv_net, which has batch statistics and dropout
VECTORS = images(6, classes=4)  # for the case mlp


@dataclass(frozen=True)
class Seen:
    """Copies of what a run had at some point."""

    masks: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


class Watch(Callback):
    """Copies what there is at each point of the loop, by the name of the point and the step."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], Seen] = {}

    def before_step(self, run: Run) -> None:
        self._look("before_step", run)

    def after_step(self, run: Run) -> None:
        self._look("after_step", run)

    def _look(self, point: str, run: Run) -> None:
        parameters = dict(run.model.named_parameters())
        momentum = {
            name: run.optimizer.state[parameter]["momentum_buffer"].clone()
            for name, parameter in parameters.items()
            if "momentum_buffer" in run.optimizer.state[parameter]
        }
        masks = {name: mask.clone() for name, mask in run.model.masks.items()}
        state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        weights = {name: parameters[name].detach().clone() for name in masks}
        self.seen[point, run.step] = Seen(masks, weights, momentum, state)


def moves(
    method: Movement, model: PrunedModel | None = None, data: ImageData = DATA, config: TrainConfig = CONFIG
) -> dict[int, tuple[Seen, Seen]]:
    """Train; what there was just before and just after each step's move, by the step."""
    first, last = Watch(), Watch()
    fit(model or pruned_case("conv_net"), data, config, [first, method, last])
    start, end = {
        "rigl": (("before_step", 0), ("after_step", 1)),  # which leaves the optimiser's step out
        "deep-r": (("after_step", 1), ("after_step", 1)),
    }.get(method.name, (("before_step", 0), ("before_step", 0)))
    pairs = {}
    for step in range(config.epochs * STEPS_PER_EPOCH):
        before, after = first.seen[start[0], step + start[1]], last.seen[end[0], step + end[1]]
        if not same(before.masks, after.masks):
            pairs[step] = before, after
    return pairs


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


# what all of them hold


@EVERY_METHOD
def test_moves_keep_the_density_and_start_at_zero(name: str) -> None:
    pairs = moves(METHODS[name]())
    assert len(pairs) >= 2
    for before, after in pairs.values():
        if name == "dsr":
            assert sum(counts(before.masks).values()) == sum(counts(after.masks).values())
        else:
            assert counts(before.masks) == counts(after.masks)
        for weight, mask in after.masks.items():
            changed = mask != before.masks[weight]
            assert not after.weights[weight][changed].any()
            if after.momentum:
                assert not after.momentum[weight][changed].any()
            if name != "deep-r":  # which shrinks and shakes the others
                kept = before.masks[weight] & mask
                assert torch.equal(after.weights[weight][kept], before.weights[weight][kept])


@EVERY_METHOD
def test_what_is_masked_has_no_effect_and_the_model_learns(name: str) -> None:
    model = pruned_case("conv_net")
    kept = model.masks.kept
    history = fit(model, DATA, replace(CONFIG, epochs=12), [METHODS[name]()])
    assert history[-1].loss < history[0].loss
    assert model.masks.kept == kept
    for weight, mask in model.masks.items():
        assert not model.effective_weight(weight)[~mask].any()
        assert model.effective_weight(weight)[mask].any()


@EVERY_METHOD
def test_the_seed_fixes_what_is_drawn(name: str) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        model = pruned_case("conv_net")
        fit(model, DATA, CONFIG, [METHODS[name](seed)])
        return model.state_dict()

    first = trained(0)
    assert same(first, trained(0))
    assert same(first, trained(1)) == (name == "rigl")  # which draws nothing


class Save(Callback):
    """Keeps the state after an epoch, as a checkpoint would."""

    def __init__(self, epoch: int, callbacks: Sequence[Callback]) -> None:
        self.epoch, self.callbacks = epoch, callbacks

    def after_epoch(self, run: Run) -> None:
        if len(run.history) == self.epoch:
            self.state = copy.deepcopy(TrainingState.of(run, self.callbacks))
            self.model = copy.deepcopy(run.model.state_dict())


@pytest.mark.parametrize("first", [True, False], ids=["saved before", "saved after"])
@EVERY_METHOD
def test_a_resumed_run_ends_with_the_same_weights_and_masks(name: str, first: bool) -> None:
    whole, method = pruned_case("conv_net"), METHODS[name]()
    save = Save(2, [method])
    fit(whole, DATA, CONFIG, [save, method] if first else [method, save])
    resumed = pruned_case("conv_net", density=1.0)  # other masks, that the state dict is to replace
    resumed.load_state_dict(save.model)
    fit(resumed, DATA, CONFIG, [METHODS[name]()], resume=save.state)
    assert same(whole.state_dict(), resumed.state_dict())
    assert not same(whole.state_dict(), save.model)


@EVERY_METHOD
def test_derived_weights_are_refused(name: str) -> None:
    model = pruned_case("standardised")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TopologyError, match=r"1 of 2 weights cannot be moved: conv\.weight; .*exclude"):
        fit(model, images(2, 6, 6, classes=3), CONFIG, [METHODS[name]()])
    assert same(before, model.state_dict())


def test_frozen_weights_are_refused() -> None:
    model = pruned_case("mlp")
    dict(model.named_parameters())["fc2.weight"].requires_grad_(False)
    with pytest.raises(TopologyError, match=r"fc2\.weight"):
        fit(model, VECTORS, CONFIG, [SET()])


def test_a_model_without_masks_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"expected a model with masks to move, got Mlp; .*fxprune\.prune"):
        fit(Mlp(), VECTORS, CONFIG, [SET()])


def test_what_was_dropped_is_drawn_only_if_little_else_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([True] * 6 + [False] * 4).view(2, 5)
    dropped = torch.tensor([True] * 3 + [False] * 7).view(2, 5)
    drawn = [regrown(mask, dropped, 3, generator) for _ in range(40)]
    assert all(int(new.sum()) == 3 and not (new & mask).any() for new in drawn)
    assert torch.stack(drawn).any(0).flatten().tolist() == [False] * 6 + [True] * 4
    more = [regrown(mask, dropped, 6, generator) for _ in range(40)]
    assert all(int(new.sum()) == 6 and bool((new | mask).all()) for new in more)
    assert torch.stack(more).any(0).flatten().tolist() == [True] * 3 + [False] * 3 + [True] * 4
    assert not regrown(mask, dropped, 0, generator).any()


# SET


def test_set_replaces_the_smallest_after_each_epoch_but_the_last() -> None:
    pairs = moves(SET(share=0.3))
    assert list(pairs) == [4, 8, 12]
    for before, after in pairs.values():
        for name, mask in before.masks.items():
            gone, come = mask & ~after.masks[name], ~mask & after.masks[name]
            size = before.weights[name].abs()
            assert int(gone.sum()) == int(come.sum()) == int(0.3 * int(mask.sum())) > 0
            assert size[gone].max() <= size[mask & ~gone].min()


def test_set_draws_places_evenly() -> None:
    model = pruned_case("mlp", density=0.3)
    pairs = moves(SET(), model, VECTORS, replace(CONFIG, epochs=40))
    free = torch.stack([~before.masks["fc1.weight"] for before, _ in pairs.values()]).sum(0)
    come = torch.stack([after.masks["fc1.weight"] & ~b.masks["fc1.weight"] for b, after in pairs.values()]).sum(0)
    often = free > 20
    assert come[often].min() > 0
    assert come[often].float().std() < 0.2 * free[often].float().mean()


# RigL


def test_rigl_grows_the_largest_dense_gradients_and_leaves_the_step_out() -> None:
    config = replace(CONFIG, epochs=16, batch_size=64, warmup=0.0)  # whole batches: their order does not matter
    model = pruned_case("mlp", density=0.4)
    first, last = Watch(), Watch()
    fit(model, VECTORS, config, [first, RigL(share=0.5, every=3, until=0.5), last])
    batch, labels = torch.stack([VECTORS.train[i][0] for i in range(64)]), torch.tensor(VECTORS.train.targets)
    returned, moved = 0, list[int]()
    for step in range(16):
        before, after = first.seen["before_step", step], last.seen["after_step", step + 1]
        if step not in (0, 3, 6):
            assert same(before.masks, after.masks)
            assert not same(before.weights, after.weights)
            continue
        dense = Mlp()
        dense.load_state_dict(
            {
                name: tensor * before.masks[name] if name in before.masks else tensor
                for name, tensor in before.state.items()
                if not name.endswith("_mask")
            }
        )
        F.cross_entropy(dense(batch), labels).backward()
        share = 0.25 * (1 + torch.cos(torch.tensor(torch.pi * step / 8)).item())
        for name, mask in before.masks.items():
            size, gradient = before.weights[name].abs(), dense.get_parameter(name).grad.abs()
            count = int(share * int(mask.sum()))
            moved.append(count)
            smallest = size.masked_fill(~mask, torch.inf).flatten().argsort()[:count]
            stay = mask.flatten().index_fill(0, smallest, False)
            largest = gradient.flatten().masked_fill(stay, -1).argsort(descending=True)[:count]
            assert torch.equal(after.masks[name].flatten(), stay.index_fill(0, largest, True))
            returned += int(mask.flatten()[largest].sum())
        untouched = [name for name in before.state if name.endswith("bias")]
        assert all(torch.equal(before.state[name], after.state[name]) for name in untouched)
    assert moved[0] > moved[2] > moved[4] or moved[1] > moved[3] > moved[5] > 0
    assert returned > 0  # and they kept their values: the first test looks at all that stays in the mask


def test_rigl_computes_the_same_while_its_masks_are_open() -> None:
    class Outputs(Callback):
        def __init__(self) -> None:
            self.values: list[Tensor] = []

        def before_step(self, run: Run) -> None:
            generator = torch.random.get_rng_state()
            copied = copy.deepcopy(run.model)
            self.values.append(copied(torch.ones(3, 1, 8, 8)).detach())
            torch.random.set_rng_state(generator)

    first, last = Outputs(), Outputs()
    fit(pruned_case("conv_net"), DATA, CONFIG, [first, RigL(every=3), last])
    assert all(torch.equal(a, b) for a, b in zip(first.values, last.values, strict=True))


# Deep-R


def test_deep_r_never_breaks_a_sign() -> None:
    method, watch = METHODS["deep-r"](), Watch()
    model = pruned_case("conv_net")
    initial = {name: model.get_parameter(name).detach().clone() for name in model.masks}
    masks = {name: mask.clone() for name, mask in model.masks.items()}
    fit(model, DATA, CONFIG, [method, watch])
    signs = method.state()
    gone: dict[str, Tensor] = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for step in range(1, 17):
        seen = watch.seen["after_step", step]
        for name, mask in seen.masks.items():
            gone[name] |= masks[name] & ~mask
            assert not (seen.weights[name] * signs[name] < 0)[mask].any()
            assert not seen.weights[name][gone[name] & ~mask].any()
    for name, sign in signs.items():
        assert sign.dtype == torch.int8
        assert torch.equal(sign[masks[name]], initial[name].sign()[masks[name]].to(torch.int8))
        drawn = sign[~masks[name]].float()
        assert set(drawn.tolist()) == {-1, 1}
    assert sum(int(mask.sum()) for mask in gone.values()) > 20


@pytest.mark.parametrize(("temperature", "deviation"), [(0.0, 0.0), (None, 0.01 * 0.3), (0.5, 0.1)])
def test_deep_r_shrinks_and_shakes(temperature: float | None, deviation: float) -> None:
    first, last = Watch(), Watch()
    model = pruned_case("mlp", density=0.5)
    with torch.no_grad():
        for name in model.masks:  # far from zero: nothing is rewired
            model.get_parameter(name).copy_(3 * model.get_parameter(name).sign())
    config = replace(CONFIG, lr=0.01, schedule="constant", warmup=0.0)
    fit(model, VECTORS, config, [first, DeepR(l1=0.3, temperature=temperature), last])
    noise = []
    for step in range(1, 17):
        before, after = first.seen["after_step", step], last.seen["after_step", step]
        for name, mask in before.masks.items():
            weight = before.weights[name][mask]
            noise.append(after.weights[name][mask] - (weight - 0.01 * 0.3 * weight.sign()))
            assert torch.equal(after.weights[name][~mask], before.weights[name][~mask])
    drawn = torch.cat(noise)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.15, abs=1e-6)
    assert abs(float(drawn.mean())) <= 0.15 * deviation + 1e-6


def test_deep_r_rewires_a_dense_model() -> None:
    model = pruned_case("conv_net", density=1.0)
    fit(model, DATA, CONFIG, [DeepR(l1=0.5)])
    assert model.masks.sparsity == 0
    assert any(not model.get_parameter(name).all() for name in model.masks)


@pytest.mark.parametrize("name", ["deep-r", "dsr"])
def test_the_state_of_another_method_is_refused(name: str) -> None:
    for method in (SET(), METHODS[name]()):
        save = Save(2, [method])
        fit(pruned_case("mlp"), VECTORS, CONFIG, [method, save])
        if isinstance(method, SET):
            with pytest.raises(ResumeError, match=f"settings are not .* {name}: expected None"):
                fit(pruned_case("mlp"), VECTORS, CONFIG, [METHODS[name]()], resume=save.state)
    own = {key: tensor for key, tensor in save.state.tensors.items() if not key.startswith(name)}
    with pytest.raises(TopologyError, match="state is of a run without it"):
        fit(pruned_case("mlp"), VECTORS, CONFIG, [METHODS[name]()], resume=TrainingState(own, save.state.values))


# DSR


def test_dsr_moves_weights_between_layers() -> None:
    pairs = moves(METHODS["dsr"]())
    assert any(counts(before.masks) != counts(after.masks) for before, after in pairs.values())


@pytest.mark.parametrize(("threshold", "factor"), [(1e-4, 2), (0.5, 0.5)])
def test_dsr_drops_what_is_below_its_threshold_and_adapts_it(threshold: float, factor: float) -> None:
    class Thresholds(Callback):
        def __init__(self, method: DSR) -> None:
            self.method, self.values = method, list[float]()

        def before_step(self, run: Run) -> None:
            self.values.append(float(self.method.state()["threshold"]))

    method = DSR(threshold=threshold, share=0.2, every=2)
    first, last, model = Watch(), Watch(), pruned_case("conv_net")
    before_, after_ = Thresholds(method), Thresholds(method)
    target, changes = 0.2 * model.masks.kept, set()
    fit(model, DATA, replace(CONFIG, epochs=12), [first, before_, method, after_, last])
    times = [
        step
        for step in range(1, 48)
        if step % (2 if step < 6 else 4 if step < 20 else 8 if step < 34 else 16) == 0
    ]
    for step, (old, new) in enumerate(zip(before_.values, after_.values, strict=True)):
        before, after = first.seen["before_step", step], last.seen["before_step", step]
        if step not in times:
            assert old == new
            assert same(before.masks, after.masks)
            continue
        gone = 0
        for name, mask in before.masks.items():
            size = before.weights[name].abs()
            small = mask & (size < old)
            if torch.equal(small, mask):
                small.view(-1)[size.masked_fill(~mask, -1).argmax()] = False
            assert not (after.masks[name] & small & after.weights[name].bool()).any()
            assert (after.masks[name] | small)[mask].all()
            gone += int(small.sum())
        assert new == old * (2 if gone < 0.9 * target else 0.5 if gone > 1.1 * target else 1)
        changes.add(new / old)
    assert factor in changes


def test_dsr_shares_by_what_survives() -> None:
    sizes = {"a": 100, "b": 100, "c": 10, "d": 100}
    assert _shared({"a": 30, "b": 10, "c": 0, "d": 0}, sizes, 8) == {"a": 6, "b": 2, "c": 0, "d": 0}
    assert _shared({"a": 10, "b": 10, "c": 10, "d": 10}, sizes, 9) == {"a": 3, "b": 3, "c": 0, "d": 3}
    assert _shared({"a": 99, "b": 1, "c": 1, "d": 0}, sizes, 11) == {"a": 1, "b": 5, "c": 5, "d": 0}
    assert sum(_shared({"a": 7, "b": 5, "c": 3, "d": 1}, sizes, 5).values()) == 5
    assert _shared({"a": 0}, sizes, 0) == {"a": 0}


def test_dsr_never_empties_a_layer() -> None:
    model = pruned_case("conv_net")
    fit(model, DATA, CONFIG, [DSR(threshold=1e6, every=1)])
    assert not model.masks.empty


# by name


def test_methods_by_name() -> None:
    assert list(TOPOLOGIES) == ["set", "rigl", "deep-r", "dsr"]
    for name, kind in TOPOLOGIES.items():
        made = make(name, seed=3)
        assert type(made) is kind
        assert (made.name, made.seed) == (name, 3)
    rigl = make("rigl", share=0.5, every=7)
    assert isinstance(rigl, RigL)
    assert (rigl.share, rigl.every, rigl.until) == (0.5, 7, 0.75)


def test_unknown_names_are_told() -> None:
    with pytest.raises(
        TopologyError, match=r"unknown topology 'rigel'; did you mean 'rigl'\? there are set, rigl"
    ):
        make("rigel")
    with pytest.raises(
        TopologyError, match=r"unknown setting 'shar' of set; did you mean 'share'\? there are share"
    ):
        make("set", shar=0.3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("set", {"share": 0}),
        ("set", {"share": 1.0}),
        ("set", {"share": "0.3"}),
        ("set", {"seed": 0.5}),
        ("rigl", {"every": 0}),
        ("rigl", {"every": 10.0}),
        ("rigl", {"until": 1.5}),
        ("rigl", {"share": float("nan")}),
        ("deep-r", {"l1": -1e-5}),
        ("deep-r", {"temperature": float("inf")}),
        ("dsr", {"threshold": 0}),
        ("dsr", {"tolerance": True}),
        ("dsr", {"every": None}),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(TopologyError, match=f"^{next(iter(settings))}: expected "):
        make(name, **settings)


# tickets


class Trainer:
    """Trains, and keeps the state dict that each training started from."""

    def __init__(self, data: ImageData = DATA) -> None:
        self.data, self.starts = data, list[dict[str, Tensor]]()

    def __call__(self, model: PrunedModel, callbacks: Sequence[Callback]) -> Any:
        self.starts.append(copy.deepcopy(model.state_dict()))
        return fit(model, self.data, CONFIG, callbacks)


@pytest.mark.parametrize("rewind", [0, 5])
def test_tickets_are_nested_and_rewound(rewind: int) -> None:
    watch, train, model = Watch(), Trainer(), pruned_case("conv_net", density=1.0)
    fit(copy.deepcopy(model), DATA, CONFIG, [watch])
    wanted = watch.seen["after_step", rewind].state if rewind else model.state_dict()
    wanted = {name: tensor.clone() for name, tensor in wanted.items() if not name.endswith("_mask")}
    former, found = dict(model.masks), []
    for ticket in tickets(model, train, [0.3, 0.5, 0.8], rewind=rewind):
        start = train.starts[-1]
        assert same(wanted, {name: tensor for name, tensor in start.items() if name in wanted})
        assert not same(wanted, {name: tensor for name, tensor in model.state_dict().items() if name in wanted})
        assert same(dict(ticket.masks), dict(model.masks))
        assert ticket.masks.kept == kept_count(ticket.masks.numel, ticket.sparsity)
        assert all(not (mask & ~former[name]).any() for name, mask in ticket.masks.items())
        assert [epoch.epoch for epoch in ticket.history] == [1, 2, 3, 4]
        former = ticket.masks
        found.append((ticket.number, ticket.sparsity))
    assert found == [(1, 0.3), (2, 0.5), (3, 0.8)]
    assert len(train.starts) == 4


def test_tickets_keep_the_largest_trained_weights() -> None:
    model, twin = (pruned_case("conv_net", density=1.0) for _ in range(2))
    fit(twin, DATA, CONFIG)
    ticket = next(iter(tickets(model, Trainer(), [0.4])))
    size = {name: twin.get_parameter(name).detach().abs() for name in twin.masks}
    kept = torch.cat([size[name][mask] for name, mask in ticket.masks.items()])
    cut = torch.cat([size[name][~mask] for name, mask in ticket.masks.items()])
    assert kept.min() >= cut.max()


def test_what_was_removed_stays_removed_even_beside_weights_of_zero() -> None:
    model = pruned_case("mlp", density=0.5)
    masks = {name: mask.clone() for name, mask in model.masks.items()}

    def train(model: PrunedModel, callbacks: Sequence[Callback]) -> Any:
        history = fit(model, VECTORS, CONFIG, callbacks)
        with torch.no_grad():
            for name in model.masks:
                model.get_parameter(name).zero_()
        return history

    (ticket,) = tickets(model, train, [0.8])
    assert all(not (mask & ~masks[name]).any() for name, mask in ticket.masks.items())


def test_tickets_of_derived_weights() -> None:
    model = pruned_case("standardised", density=1.0)
    train = Trainer(images(2, 6, 6, classes=3))
    (ticket,) = tickets(model, train, [0.5])
    assert not model.effective_weight("conv.weight")[~ticket.masks["conv.weight"]].any()


def test_impossible_tickets_are_refused_before_training() -> None:
    train, model = Trainer(VECTORS), pruned_case("mlp", density=0.5)
    for sparsities in ([], [0.9, 0.8], [0.9, 0.9], [0.2]):
        with pytest.raises(TopologyError, match=r"^sparsities: expected"):
            tickets(model, train, sparsities)
    with pytest.raises(MaskError, match=r"^sparsity: "):
        tickets(model, train, [0.8, 1.0])
    with pytest.raises(TopologyError, match=r"^rewind: expected an integer"):
        tickets(model, train, [0.9], rewind=-1)
    assert not train.starts
    with pytest.raises(TopologyError, match=r"^rewind: expected at most the 16 steps of the training, got 17"):
        next(tickets(model, train, [0.9], rewind=17))
    with pytest.raises(TopologyError, match=r"^train: expected it to hand its callbacks on"):
        next(tickets(model, lambda model, callbacks: [], [0.9]))


def test_rounds() -> None:
    assert rounds_to(0.36) == pytest.approx([0.2, 0.36])
    assert rounds_to(0.2) == [0.2]
    assert rounds_to(0.75, rate=0.5, stops=[0.5]) == [0.5, 0.75]
    found = rounds_to(0.98, stops=(0.9, 0.95, 0.99))
    assert {0.9, 0.95, 0.98} <= set(found)
    assert found[-1] == 0.98
    density = [1.0, *(1 - sparsity for sparsity in found)]
    assert all(0.8 - 1e-9 <= b / a < 1 for a, b in itertools.pairwise(density))
    assert len(found) == 11 + 4 + 5
    for arguments in ({"sparsity": 1.0}, {"sparsity": 0.9, "rate": 0}, {"sparsity": 0.9, "stops": [1.0]}):
        with pytest.raises(TopologyError, match="expected a share"):
            rounds_to(**arguments)
