"""`PrunedModel`: a captured model with masks, to be trained, saved and loaded like any module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, WeightError
from fxprune.live import LiveChange
from fxprune.masks import Masks
from fxprune.program import operand_value
from fxprune.regions import CapturedModel, Mode
from fxprune.rewrite import check_masks, insert_masks, mask_name
from fxprune.weights import PrunableWeight, Weights, find_weights


@dataclass(frozen=True)
class Whole:
    """What a model was before channels of it were cut.

    Attributes:
        shapes: of its prunable weights, by name.
        macs: multiply-adds a sample of products with these.
        parameters: number of elements of all parameters.
    """

    shapes: Mapping[str, tuple[int, ...]]
    macs: int
    parameters: int

    @classmethod
    def of(cls, captured: CapturedModel, weights: Weights) -> Whole:
        """Of a captured model with all of its weights."""
        return cls(
            {weight.name: weight.shape for weight in weights},
            sum(weight.macs for weight in weights),
            sum(parameter.numel() for parameter in captured.host.parameters()),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Whole:
        """What `dataclasses.asdict` gave; raises KeyError, TypeError or ValueError."""
        shapes = {str(name): tuple(map(int, shape)) for name, shape in values["shapes"].items()}
        return cls(shapes, int(values["macs"]), int(values["parameters"]))


@dataclass(frozen=True)
class PruneRecord:
    """How the masks of a model came about.

    Attributes:
        criterion: name of the criterion.
        sparsity: the sparsity asked for.
        rounds: how often the weights were scored.
        ranking: how densities were spread: ``"global"``, ``"layer"`` or ``"erk"``.
        floor: the floor asked for, a share of the overall density.
        floor_used: the floor that was needed for every output to depend on the input.
        floored: weights of which the floor kept more than the ranking alone.
        live: whether weights were scored at the live point.
        changes: what the live point changed while scoring.
        zero_share: share of the saliencies that were exactly zero.
        cut_off: places of the outputs, in flat order, that no longer depend on the input.
        sanity: name of the sanity check that the masks or the weights went through, if any.
        seed: seed of whatever was drawn.
        budget: what was to be left where channels were cut, ``"macs=0.5"``.
        removed: the channels that were cut, of the whole model: one slice of each unit, as the name of a tensor, a
            dimension and indices. The others follow from these.
        whole: what the model was before channels were cut.
        pattern: what every group of elements keeps, ``"2:4"``.
    """

    criterion: str
    sparsity: float
    rounds: int
    ranking: str
    floor: float
    floor_used: float
    floored: tuple[str, ...]
    live: bool
    changes: tuple[LiveChange, ...]
    zero_share: float
    cut_off: tuple[int, ...]
    sanity: str | None
    seed: int
    budget: str | None = None
    removed: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    whole: Whole | None = None
    pattern: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PruneRecord:
        """The record that `to_json` wrote.

        Raises:
            TypeError, KeyError, ValueError: an attribute is missing, unknown or of another type.
        """
        lists = {name: tuple(values[name]) for name in ("floored", "cut_off")}
        changes = tuple(LiveChange(**change) for change in values["changes"])
        removed = tuple(
            (str(t), int(dim), tuple(map(int, places))) for t, dim, places in values.get("removed", ())
        )
        whole = None if values.get("whole") is None else Whole.from_json(values["whole"])
        record = cls(**{**values, **lists, "changes": changes, "removed": removed, "whole": whole})
        for name, kinds in _RECORD_TYPES.items():
            if not isinstance(getattr(record, name), kinds):
                raise TypeError(f"{name} of the record: got {getattr(record, name)!r}")
        return record


_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("criterion", "ranking"), str),
    **dict.fromkeys(("sparsity", "floor", "floor_used", "zero_share"), (int, float)),
    **dict.fromkeys(("rounds", "seed", "live"), int),
    **dict.fromkeys(("sanity", "budget", "pattern"), (str, type(None))),
}


def require_pruned(model: object, error: type[FxpruneError]) -> None:
    """Raise `error` for what is no `PrunedModel`."""
    if not isinstance(model, PrunedModel):
        raise error(
            f"expected a pruned model, as fxprune.prune returns it, got {type(model).__name__}; prune it first"
        )


class PrunedModel(nn.Module):
    """A sparse network that is called, trained and moved as the module was that it came from.

    Its state dict has the keys of the original and one ``<weight>_mask`` for each prunable weight. A
    state dict without masks loads as well, and leaves the masks as they are. Wherever a graph reads a
    weight it reads ``weight * mask``: no optimiser can bring a removed weight back.

    Freezing a submodule with ``model.bn1.eval()`` has no effect, since a captured graph is one piece: it
    is for training or for evaluation as a whole.

    Attributes:
        weights: the weights that have masks.
        record: how the masks came about, if `fxprune.prune` made them.
    """

    weights: Weights
    record: PruneRecord | None

    def __init__(
        self,
        captured: CapturedModel,
        weights: Weights,
        masks: Mapping[str, Tensor],
        record: PruneRecord | None = None,
    ) -> None:
        super().__init__()
        host = insert_masks(captured, weights, Masks(dict(masks))).host
        # The host's state is this module's state, under the same names. The host itself stays out of
        # the module tree, so that no name gains a prefix.
        self._fxprune_host: nn.Module
        self.__dict__["_fxprune_host"] = host
        self._parameters, self._buffers, self._modules = host._parameters, host._buffers, host._modules
        self._non_persistent_buffers_set = host._non_persistent_buffers_set
        self._version = host._version
        self.training = host.training
        self.__dict__["weights"], self.__dict__["record"] = weights, record
        self.register_load_state_dict_pre_hook(_keep_masks)  # type: ignore[no-untyped-call]

    @classmethod
    def dense(cls, captured: CapturedModel) -> PrunedModel:
        """A model with masks that keep everything.

        Raises:
            WeightError: there is no prunable weight.
        """
        weights = find_weights(captured)
        return cls(captured, weights, {w.name: torch.ones(w.shape, dtype=torch.bool) for w in weights})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the original computes with its operands masked."""
        return self._fxprune_host(*args, **kwargs)

    def train(self, mode: bool = True) -> PrunedModel:
        """Switch to the graph for training, or with ``mode=False`` to that for evaluation."""
        super().train(mode)
        self._fxprune_host.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PrunedModel:
        self._fxprune_host._apply(fn, recurse)
        return self

    @property
    def captured(self) -> CapturedModel:
        """The captured model, masks included, on the same state."""
        return CapturedModel(self._fxprune_host)

    @property
    def masks(self) -> Masks:
        """The present masks; the tensors are the model's own buffers."""
        buffers = dict(self.named_buffers())
        return Masks({weight.name: buffers[mask_name(weight)] for weight in self.weights})

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Change the masks in place; graphs and optimiser state stay valid.

        Raises:
            MaskError: the masks are not bool, or do not fit the weights.
        """
        check_masks(self.weights, Masks(dict(masks)))
        for name, own in self.masks.items():
            own.copy_(masks[name])

    def effective_weight(self, name: str) -> Tensor:
        """The tensor that products use for the weight `name`: masked, and computed where it is derived."""
        weight = self.weights[name]
        region = self.captured.regions[weight.region]
        mode: Mode = "eval" if "eval" in weight.sites else "train"
        value = operand_value(region, region._fxprune[mode], weight.sites[mode])
        return torch.where(self.masks[name], value, torch.zeros_like(value))

    def dense_state_dict(self, *, skip_derived: bool = False) -> dict[str, Tensor]:
        """A state dict of the original module, with zeros in place of what was removed.

        A derived weight is computed from parameters, and mostly no value of these makes the computed
        tensor zero in the right places: standardising a weight moves its zeros, for one.

        Args:
            skip_derived: leave the parameters of such weights dense instead of raising.

        Raises:
            WeightError: a mask cannot be expressed in the original's parameters; names the weights.
        """
        masks = {mask_name(weight) for weight in self.weights}
        state = self.state_dict()  # with its metadata, which loading looks at
        for name in list(state):
            state[name] = state[name].detach().clone()
            if name in masks:
                del state[name]
        impossible = [weight.name for weight in self.weights if not self._zero(weight, state)]
        if impossible and not skip_derived:
            raise WeightError(
                f"{len(impossible)} of {len(self.weights)} weights are computed from parameters, and no value "
                f"of the parameters gives the masked weight: {', '.join(impossible[:4])}; export the model, or "
                "use skip_derived=True to leave these dense"
            )
        return state

    def _zero(self, weight: PrunableWeight, state: dict[str, Tensor]) -> bool:
        """Zero the parameter of `weight` in `state`, under all its names; False if that is not exact."""
        name, mask = weight.parameters[0], self.masks[weight.name]
        own = dict(self.named_parameters(remove_duplicate=False))
        others = (other for other in self.weights if other is not weight)
        if own[name].numel() != mask.numel() or any(set(o.parameters) & set(weight.parameters) for o in others):
            return False
        zeroed = torch.where(mask.view(own[name].shape), own[name].detach(), torch.zeros_like(own[name]))
        if weight.derived:
            region = self.captured.regions[weight.region]
            local = name.removeprefix(f"{weight.region}.") if weight.region else name
            (mode, site), *_ = weight.sites.items()
            value = operand_value(region, region._fxprune[mode], site, {local: zeroed})
            wanted = self.effective_weight(weight.name)
            if not (torch.equal(value == 0, wanted == 0) and torch.allclose(value, wanted, rtol=1e-6, atol=0)):
                return False
        for alias, parameter in own.items():
            if parameter is own[name] and alias in state:
                state[alias] = zeroed
        return True


def _keep_masks(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state dict of the unpruned model load: masks that it lacks stay as they are."""
    assert isinstance(module, PrunedModel)
    masks = {mask_name(weight): module.masks[weight.name] for weight in module.weights}
    if not any(prefix + name in state_dict for name in masks):
        state_dict.update({prefix + name: mask for name, mask in masks.items()})
