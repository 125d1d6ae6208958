"""What has to hold of every network, whatever it is made of: the properties that tests and `soak.py` try.

Each property takes a `Subject`, and raises AssertionError or an error of fxprune where it does not hold. What
fxprune computes is held against the module itself, run by torch: without masks it is the module, and with masks
the module whose operands are masked by hand.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from pathlib import Path

import onnx
import torch
from random_layers import LowRank
from random_networks import Net, Network, build
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import fxprune
from fxprune import CapturedModel, Masks, PrunableWeight, PrunedModel, Weights, capture, find_weights
from fxprune.coupling import couple
from fxprune.errors import CaptureError, ShrinkError
from fxprune.onnx.encode import encode_weights
from fxprune.onnx.verify import verify_onnx
from fxprune.rewrite import fold

_BATCH = 3
_BATCHES = (5, 1)
_RANDOM = frozenset(("dropout", "channel_dropout", "alpha_dropout", "drop_path", "noise", "rrelu"))
_ENCODINGS = ("bitmask", "gaps", "coo", "auto")


class Subject:
    """A network with what is made of it, each once and when it is asked for.

    Args:
        network: the description.
        seed: of its parameters, of masks and of inputs.
    """

    def __init__(self, network: Network, seed: int = 0) -> None:
        self.network, self.seed = network, seed

    def module(self) -> Net:
        """The module itself, a fresh one each time."""
        return build(self.network, self.seed)

    @cached_property
    def _captured(self) -> CapturedModel:
        return capture(self.module(), self.network.call(_BATCH, self.seed))

    @property
    def captured(self) -> CapturedModel:
        """The captured model, a copy each time."""
        return CapturedModel(copy.deepcopy(self._captured.host))

    @cached_property
    def weights(self) -> Weights:
        """Its prunable weights."""
        return find_weights(self._captured)

    @cached_property
    def masks(self) -> Masks:
        """Random ones: of any density, in part by whole rows and columns."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        masks = {}
        for weight in self.weights:
            mask = draw(*weight.shape) < draw()
            for dim, size in enumerate(weight.shape):
                whole = (draw(size) < 0.8).view([-1 if each == dim else 1 for each in range(mask.dim())])
                mask &= whole
            masks[weight.name] = mask
        return Masks(masks)

    def pruned(self) -> PrunedModel:
        """The model with these masks, a fresh one each time."""
        return PrunedModel(self.captured, self.weights, self.masks)

    def masked_by_hand(self) -> Net:
        """The module itself with its operands masked."""
        module = self.module()
        for weight in self.weights:
            _mask_by_hand(module, weight, self.masks[weight.name])
        return module

    @property
    def sizes(self) -> Iterator[int]:
        """Batch sizes other than that of the capture which the captured branches hold for."""
        limits = [step.options["limit"] for step in self.network.steps if step.kind == "by_batch"]
        for size in _BATCHES:
            if all((size > limit) is (limit < _BATCH) for limit in limits):
                yield size

    def has_batch_statistics(self, *, training: bool) -> bool:
        """Whether some normalisation takes those of the batch, for which one sample may be too few."""
        found = [step for step in self.network.steps if step.kind.startswith("batch_norm")]
        return any(training or not step.options.get("track_running_stats", True) for step in found)

    @property
    def is_certain(self) -> bool:
        """Whether nothing is drawn at random while training."""
        kinds = {step.kind for step in self.network.steps}
        drops = any(step.options.get("dropout") for step in self.network.steps)
        return not (kinds & _RANDOM or drops)


class _Mask(nn.Module):
    """Masks a weight after the parametrizations before it; the next mask for the next time that it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[tuple[PrunableWeight, Tensor]] = []
        self.calls = 0

    def forward(self, value: Tensor) -> Tensor:
        mode = "train" if self.training else "eval"
        masks = [mask for weight, mask in self.masks if mode in weight.sites]
        if not masks:  # nothing depends on it in this mode
            return value
        self.calls += 1
        return value * masks[(self.calls - 1) % len(masks)].view(value.shape)


def _mask_by_hand(module: nn.Module, weight: PrunableWeight, mask: Tensor) -> None:
    """Zeros in the parameter, or behind the computation of what is computed."""
    if not weight.derived:
        parameter = module.get_parameter(weight.name)
        with torch.no_grad():
            parameter.mul_(mask.view(parameter.shape))
        return
    first = weight.parameters[0]
    owner = module.get_submodule(re.split(r"\.parametrizations\.|\.\w+$", first)[0])
    if isinstance(owner, LowRank):
        owner.mask = mask
        return
    chain = owner.parametrizations["weight"]  # type: ignore[index]
    if not isinstance(chain[-1], _Mask):
        parametrize.register_parametrization(owner, "weight", _Mask().train(owner.training), unsafe=True)
        chain = owner.parametrizations["weight"]  # type: ignore[index]
    chain[-1].masks.append((weight, mask))


# --- properties


def captured_equals_eager(subject: Subject) -> None:
    """Keys of the state; outputs in both modes at other batch sizes, gradients, and what training changes."""
    eager, host = subject.module(), subject.captured.host
    assert list(host.state_dict()) == list(eager.state_dict())
    _equal_in_both_modes(subject, eager, host, {})


def masked_equals_eager_with_masked_operands(subject: Subject) -> None:
    """The same with masks; gradients of what is masked are zero."""
    plain = {weight.name: subject.masks[weight.name] for weight in subject.weights if not weight.derived}
    by_hand, pruned = subject.masked_by_hand(), subject.pruned()
    _equal_in_both_modes(subject, by_hand, pruned, plain)


def _equal_in_both_modes(
    subject: Subject, eager: nn.Module, other: nn.Module, masks: Mapping[str, Tensor]
) -> None:
    assert subject.captured.regions[""]._fxprune["eval"].dynamic_batch or not list(subject.sizes), "a fixed batch"
    for size, training in itertools.product(subject.sizes, (True, False)):
        inputs = subject.network.call(size, subject.seed + 1)
        for model in (eager, other):
            model.train(training)
            model.zero_grad()
        if _refuses(ValueError, eager, inputs):
            assert _refuses(CaptureError, other, inputs), "one sample is refused by the module only"
            continue
        expected, found = _run(eager, inputs), _run(other, inputs)
        _same(found, expected, f"outputs, {'training' if training else 'evaluation'} at batch size {size}")
        grads = {name: parameter.grad for name, parameter in other.named_parameters()}
        for name, parameter in eager.named_parameters():
            gradient, mask = parameter.grad, masks.get(name)
            gradient = gradient if gradient is None or mask is None else gradient * mask.view(gradient.shape)
            _same([grads[name]], [gradient], f"gradient of {name}")
        buffers = dict(other.named_buffers())
        for name, buffer in eager.named_buffers():
            _same([buffers[name]], [buffer], f"buffer {name}")


def _refuses(error: type[Exception], model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether these are too few samples for batch statistics."""
    try:
        _run(copy.deepcopy(model), inputs)
    except error:
        return True
    return False


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs; gradients are those of the sum of their squares."""
    torch.manual_seed(0)
    outputs = pytree.tree_leaves(model(*(tensor.clone() for tensor in inputs)))
    loss = sum((leaf.square().mean() for leaf in outputs), torch.zeros(()))
    if loss.requires_grad:
        loss.backward()
    return [leaf.detach() for leaf in outputs]


def _same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], what: str) -> None:
    assert len(found) == len(expected), f"{what}: {len(expected)} expected, got {len(found)}"
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            assert one is other, f"{what}: {_told(other)} expected, got {_told(one)}"
            continue
        assert one.shape == other.shape, f"{what}: {tuple(other.shape)} expected, got {tuple(one.shape)}"
        if not torch.equal(one, other):
            torch.testing.assert_close(
                one, other, rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda m: f"{what}: {m}"
            )


def _told(value: Tensor | None) -> str:
    return "nothing" if value is None else f"a tensor of {tuple(value.shape)}"


def every_parameter_is_accounted_for(subject: Subject) -> None:
    """Each is part of a prunable weight, or skipped with a reason; matrices that products take are prunable."""
    network, weights, module = subject.network, subject.weights, subject.module()
    prunable = {name for weight in weights for name in weight.parameters}
    names = {name for name, _ in module.named_parameters()}
    assert prunable | set(weights.skipped) == names
    assert not prunable & set(weights.skipped)
    assert all(weights.skipped.values())
    first = {id(parameter): name for name, parameter in reversed(list(module.named_parameters()))}
    used = set().union(*(network.reads(each) for each in (*network.outputs, *network.auxiliary)))
    for number, step in enumerate(network.steps, len(network.inputs)):
        kind = step.kind
        if kind == "reuse":
            kind = network.steps[int(step.options["of"].removeprefix("step")) - len(network.inputs)].kind
        for name, parameter in module.get_submodule(f"step{number}").named_parameters():
            if number in used and _is_weight(kind, name, parameter):
                name = first[id(parameter)]
                assert name in prunable, f"{name} of {kind} is skipped: {weights.skipped[name]}"


def _is_weight(kind: str, name: str, parameter: Tensor) -> bool:
    if kind in ("embedding", "layer_norm", "rms_norm", "shift", "scale", "token", "no_gradient"):
        return False
    return parameter.dim() > 1 and not name.endswith(("bias_k", "bias_v")) and "deploys" not in name


def counts_are_exact(subject: Subject) -> None:
    """Kept weights of a cut, non-zeros of what is computed, and multiply-adds of layers."""
    generator = torch.Generator().manual_seed(subject.seed)
    percent = int(torch.randint(0, 100, (), generator=generator))
    pruned = fxprune.prune(subject.captured, sparsity=percent / 100, criterion="magnitude", floor=0.0)
    total = sum(weight.numel for weight in subject.weights)
    assert pruned.masks.numel == total
    assert pruned.masks.kept == total - math.floor(Decimal(percent) * total / 100)
    for weight in pruned.weights:
        value, mask = pruned.effective_weight(weight.name), pruned.masks[weight.name]
        assert value.shape == weight.shape
        assert not value[~mask].any()
        assert weight.derived or bool(value[mask].all())
    counted = _multiply_adds(subject)
    for weight in subject.weights:
        if weight.parameters[0] in counted:
            assert weight.macs == counted[weight.parameters[0]], f"multiply-adds of {weight.name}"


def _multiply_adds(subject: Subject) -> dict[str, int]:
    """Of one sample in evaluation, by the parameter of a layer of torch that is called as such."""
    module = subject.module().eval()
    names = {id(parameter): name for name, parameter in reversed(list(module.named_parameters()))}
    found: dict[str, int] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        spread = inputs[0] if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)) else output
        per = weight.shape[-1] if isinstance(layer, nn.Linear) else math.prod(weight.shape[1:])  # type: ignore[arg-type,union-attr]
        name = names.get(id(weight))  # none for a weight that is computed
        if name:
            found[name] = found.get(name, 0) + spread[0].numel() * int(per)

    convolutions = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    network = subject.network
    read = set().union(*(network.reads(each) for each in network.outputs))
    if {"tied", "transposed"} & {step.kind for step in network.steps}:
        return {}  # other layers use the weight as well
    if len(read | set(range(len(network.inputs)))) < len(network.inputs) + len(network.steps):
        return {}  # a layer may be called for nothing
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, *convolutions)):
            layer.register_forward_hook(note)
    with torch.no_grad():
        module(*subject.network.call(_BATCH))
    return found


def folded_equals_masked(subject: Subject) -> None:
    """The graph with masks in its weights computes the same, has no mask, and holds the masked weights."""
    pruned = subject.pruned().eval()
    folded = fold(pruned.captured, pruned.weights)
    for size in subject.sizes:
        if size == 1 and subject.has_batch_statistics(training=False):
            continue
        inputs = subject.network.call(size, subject.seed + 2)
        with torch.no_grad():
            expected = pytree.tree_leaves(pruned(*(each.clone() for each in inputs)))
            found = folded(*(each.clone() for each in inputs))
        _same(pytree.tree_leaves(found), expected, f"outputs at batch size {size}")
    state = folded.state_dict()
    assert not any("mask" in name for name in state)
    for weight in pruned.weights:
        if "eval" in weight.sites:
            assert torch.equal(state[weight.name], pruned.effective_weight(weight.name)), weight.name
            assert not state[weight.name][~subject.masks[weight.name]].any()


def without_dead_channels_it_is_the_same(subject: Subject) -> None:
    """What masks left dead is cut, and nothing changes."""
    pruned = subject.pruned()
    thin = fxprune.cut_dead(pruned)
    assert thin.masks.numel <= pruned.masks.numel
    _close_in_both_modes(subject, pruned, thin)


def shrunk_equals_masked(subject: Subject) -> None:
    """Channels are cut, and the module with zeros in the places that are gone computes the same."""
    thin = _thin(subject)
    if thin is None:
        return
    captured = subject.captured
    coupling = couple(captured)
    assert thin.record is not None
    units = coupling.units()
    slices = [
        each
        for tensor, dim, indices in thin.record.removed
        for root in {int(coupling.roots(tensor, dim)[index]) for index in indices}
        for each in units[root].slices
    ]
    by_hand = subject.module()
    state = dict([*by_hand.named_parameters(), *by_hand.named_buffers()])
    derived = {name for weight in subject.weights if weight.derived for name in weight.parameters}
    sizes = {weight.name: weight.shape for weight in subject.weights}
    assert any(weight.shape != sizes[weight.name] for weight in thin.weights)
    if any(each.tensor in derived for each in slices):
        return  # zeros of parameters are not those of what is computed, with which fxprune itself has compared it
    with torch.no_grad():
        for each in slices:
            if isinstance(state[each.tensor], nn.Parameter):
                state[each.tensor].index_fill_(each.dim, torch.tensor(each.indices), 0.0)
    _close_in_both_modes(subject, by_hand, thin)


def _close_in_both_modes(subject: Subject, expected: nn.Module, other: nn.Module) -> None:
    for size, training in itertools.product(subject.sizes, (True, False)):
        inputs = subject.network.call(size, subject.seed + 3)
        if training and not subject.is_certain:
            continue  # what is drawn depends on sizes
        if size == 1 and subject.has_batch_statistics(training=training):
            continue
        wanted, found = (_run(model.train(training), inputs) for model in (expected, other))
        for want, got in zip(wanted, found, strict=True):
            difference = float((want - got).abs().max()) / max(float(want.abs().max()), 1e-30)
            assert difference <= 1e-5, f"differ by {difference:.1e} of the largest, {training=}, {size} samples"


def _thin(subject: Subject) -> PrunedModel | None:
    """Without about half of its channels, or as many as can go; None if none can."""
    for share in (0.5, 0.7, 0.9, 0.97):
        try:
            return fxprune.prune_channels(
                subject.captured, budget=f"params={share}", criterion="random", floor=0.0, seed=subject.seed
            )
        except ShrinkError as error:
            if not str(error).startswith("budget: expected a share of at least"):
                raise
    return None


def encodings_decode_to_the_model(subject: Subject) -> None:
    """Files of each encoding: the same zeros and values, and the same outputs in ONNX Runtime."""
    pruned = subject.pruned()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dense.onnx")
        assert fxprune.export_onnx(pruned, path, encoding="dense").passed
        for encoding in _ENCODINGS:
            model = onnx.load(path)
            encode_weights(model, [weight.name for weight in pruned.weights], encoding)
            file = Path(folder, f"{encoding}.onnx")
            onnx.save(model, file)
            result = verify_onnx(file, pruned)
            failed = [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
            assert not failed, f"{encoding}: {'; '.join(failed)}"


Property = Callable[[Subject], None]

QUICK: tuple[Property, ...] = (
    captured_equals_eager,
    every_parameter_is_accounted_for,
    masked_equals_eager_with_masked_operands,
    counts_are_exact,
    folded_equals_masked,
    without_dead_channels_it_is_the_same,
    shrunk_equals_masked,
)
PROPERTIES: tuple[Property, ...] = (*QUICK, encodings_decode_to_the_model)
