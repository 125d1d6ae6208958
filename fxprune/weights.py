"""`find_weights`: which operands of a captured model can be pruned, and why the others cannot.

Weights are found where they are used. Whatever a convolution, a matrix product or a recurrent layer
takes for its weight is followed back, through views and slices, to the tensor that it shows. Mostly that
is a parameter. Where it is computed from parameters (weight standardisation, `weight_norm`, a low-rank
product), the computed tensor is the weight: a mask on the parameter would be undone by the computation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import fx

from fxprune import operators
from fxprune.errors import CaptureError, WeightError
from fxprune.program import Program
from fxprune.regions import MODES, CapturedModel, Mode, Region


@dataclass(frozen=True)
class PrunableWeight:
    """A tensor that products of a captured model take for a weight.

    Attributes:
        name: the parameter's name in the state dict. A derived weight has the name of its largest
            parameter, without the ``parametrizations.*.original`` of torch's parametrizations.
        shape: sizes as the product sees them, before views and slices.
        parameters: the parameters that it is or is computed from.
        derived: whether it is computed from parameters rather than one of them.
        operators: names of the products that use it, one for each use.
        macs: multiply-adds a sample, dense, in evaluation mode (see `operators.macs`).
        region: path of the captured region.
        sites: for each mode in which it is used, the name of its node in that mode's graph.
        products: names of the nodes of these products in the evaluation graph.
        input_dim: the dimension that all its products sum over; None where that is not one, or not the same.
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    derived: bool
    operators: tuple[str, ...]
    macs: int
    region: str
    sites: Mapping[Mode, str]
    products: tuple[str, ...]
    input_dim: int | None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """All parameters of a captured model: each is part of a prunable weight or skipped for a reason.

    Attributes:
        prunable: in the order of use in the training graph.
        skipped: reason by parameter name.
    """

    prunable: tuple[PrunableWeight, ...]
    skipped: Mapping[str, str]

    def __iter__(self) -> Iterator[PrunableWeight]:
        return iter(self.prunable)

    def __len__(self) -> int:
        return len(self.prunable)

    def __getitem__(self, name: str) -> PrunableWeight:
        for weight in self.prunable:
            if weight.name == name:
                return weight
        raise WeightError(f"no prunable weight {name!r}; there are {', '.join(w.name for w in self)}")

    @property
    def numel(self) -> int:
        """Number of prunable elements."""
        return sum(weight.numel for weight in self.prunable)

    def select(self, include: str | Sequence[str] = (), exclude: str | Sequence[str] = ()) -> Weights:
        """Keep the weights whose name matches a glob of `include` (all, if empty) and none of `exclude`.

        Raises:
            WeightError: a glob matches no weight, or nothing is left.
        """
        include = (include,) if isinstance(include, str) else include
        exclude = (exclude,) if isinstance(exclude, str) else exclude
        for glob in (*_globs("include", include), *_globs("exclude", exclude)):
            if not any(fnmatchcase(weight.name, glob) for weight in self):
                skipped = [f"{name} ({why})" for name, why in self.skipped.items() if fnmatchcase(name, glob)]
                hint = f"; it matches only what is skipped: {', '.join(skipped[:3])}" if skipped else ""
                names = ", ".join(weight.name for weight in self.prunable[:8])
                raise WeightError(f"{glob!r} matches no prunable weight{hint}; there are {names}, ...")
        left: dict[str, str] = {}
        for weight in self:
            excluding = [glob for glob in exclude if fnmatchcase(weight.name, glob)]
            if excluding:
                left[weight.name] = f"excluded by {excluding[0]!r}"
            elif include and not any(fnmatchcase(weight.name, glob) for glob in include):
                left[weight.name] = "not among the included"
        if len(left) == len(self):
            raise WeightError("include and exclude leave no weight to prune; loosen one of them")
        return self.leaving(left)

    def leaving(self, reasons: Mapping[str, str]) -> Weights:
        """All but the weights named, whose parameters are skipped for the reasons given."""
        skipped = {
            name: reasons[weight.name] for weight in self if weight.name in reasons for name in weight.parameters
        }
        return Weights(tuple(w for w in self if w.name not in reasons), {**self.skipped, **skipped})


def find_weights(captured: CapturedModel) -> Weights:
    """Find every operand of the captured graphs that can be pruned, and account for every parameter.

    Raises:
        WeightError: the model has no prunable weight at all.
        CaptureError: it is not captured.
    """
    if not isinstance(captured, CapturedModel):
        raise CaptureError(
            f"expected a captured model, got {type(captured).__name__}; fxprune.capture makes one of a module"
        )
    found: list[PrunableWeight] = []
    skipped: dict[str, str] = {}
    regions = captured.regions
    shared = _shared(regions.values())
    for path, region in regions.items():
        prefix = f"{path}." if path else ""
        parameters = {name for name, _ in region.named_parameters()}
        merged: dict[str, PrunableWeight] = {}
        for mode in MODES:
            for site in _find_sites(region._fxprune[mode], parameters):
                weight = site.describe(prefix, path, mode, merged)
                merged[weight.name] = weight
        tied = {prefix + name for name, parameter in region.named_parameters() if id(parameter) in shared}
        trained = [w for w in merged.values() if "train" in w.sites and not tied.intersection(w.parameters)]
        used = {name for weight in trained for name in weight.parameters}
        found.extend(trained)
        for name in sorted(parameters):
            if prefix + name in tied:
                skipped[prefix + name] = "shared by parts of the model that are captured apart"
            elif prefix + name not in used:
                skipped[prefix + name] = _reason(region, name)
    for name, _ in captured.host.named_parameters():
        if not any(name in weight.parameters for weight in found):
            skipped.setdefault(name, "outside every captured region")
    if not found:
        raise WeightError(
            "the model has no prunable weight: no parameter reaches a convolution, a matrix product or a "
            f"recurrent layer; skipped: {skipped or 'nothing, since it has no parameter at all'}"
        )
    return Weights(tuple(found), skipped)


def _globs(name: str, value: object) -> Sequence[str]:
    if not isinstance(value, Sequence) or not all(isinstance(glob, str) for glob in value):
        raise WeightError(f"{name}: expected one glob of weight names, or several, got {value!r}")
    return value


def _shared(regions: Iterable[Region]) -> set[int]:
    """The ids of parameters that more than one region has."""
    counts = Counter(id(parameter) for region in regions for parameter in region.parameters())
    return {parameter for parameter, count in counts.items() if count > 1}


@dataclass
class _Site:
    """A node that products use as their weight, with its uses, in one graph."""

    node: fx.Node
    program: Program
    parameters: tuple[str, ...]
    activations: set[fx.Node] = field(default_factory=set)
    uses: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)

    def _samples(self, user: fx.Node) -> int:
        """How many samples a product is computed for; one where it is the same for all."""
        return self.program.batch if user in self.activations else 1

    def describe(
        self, prefix: str, region: str, mode: Mode, known: Mapping[str, PrunableWeight]
    ) -> PrunableWeight:
        shape = self.node.meta["shape"]
        operators_ = tuple(operators.name_of(user) for user, _ in self.uses)
        macs = sum(operators.macs(user, operand) // self._samples(user) for user, operand in self.uses)
        parameters = tuple(prefix + parameter for parameter in self.parameters)
        derived = self.node.op != "get_attr"

        def is_other(weight: PrunableWeight) -> bool:
            same = (weight.shape, weight.parameters, weight.derived) == (shape, parameters, derived)
            return not same or mode in weight.sites

        base, name, serial = prefix + _public_name(self.parameters[0]), "", 1
        while not name or (name in known and is_other(known[name])):
            name = base if serial == 1 else f"{base}_{serial}"
            serial += 1
        weight = known.get(name) or PrunableWeight(
            name,
            shape,
            parameters,
            derived,
            operators_,
            0,
            region,
            {},
            (),
            self._input_dim(),
        )
        weight = replace(weight, sites={**weight.sites, mode: self.node.name})
        if mode == "eval":
            weight = replace(weight, macs=macs, products=tuple(user.name for user, _ in self.uses))
        return weight

    def _input_dim(self) -> int | None:
        found = set()
        for user, operand in self.uses:
            summed = operators.input_dim(user, operand)
            found.add(None if summed is None else operators.dims_of(operand, self.node).get(summed))
        return found.pop() if len(found) == 1 else None


def _public_name(parameter: str) -> str:
    return re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", parameter)


def _find_sites(program: Program, parameters: set[str]) -> list[_Site]:
    dependence = _Dependence(program.graph, parameters)
    activations = operators.input_dependent(program.graph)
    sites: dict[fx.Node, _Site] = {}
    reaching = operators.reaching_output(program.graph)  # exported graphs keep layers whose result is dropped
    for user in (node for node in program.graph.nodes if node in reaching):
        candidates = operators.weight_slots(user)
        if not candidates and user not in dependence.state:
            candidates = operators.product_operands(user)
        for operand in candidates:
            node = operators.source(operand)
            names = dependence.state.get(node)
            if names and node not in dependence.activations and len(node.meta.get("shape", ())) >= 2:
                sites.setdefault(node, _Site(node, program, names, activations)).uses.append((user, operand))
    for site in sites.values():
        operands = {operand for _, operand in site.uses}
        if site.node.op != "get_attr" and len(operands) == 1 and not site.node.meta["dynamic"]:
            site.node = operands.pop()  # the shape that the product sees says more than the one computed
    return [site for site in sites.values() if not site.node.meta["dynamic"]]


class _Dependence:
    """Which nodes of a graph depend on its state alone, and on which parameters.

    Attributes:
        state: parameter names, largest first, by node that depends on no input and on no random number.
        activations: those among them that a weight was already multiplied into. They are activations of
            a constant input, such as the projected query of a pooling head, and not weights.
    """

    def __init__(self, graph: fx.Graph, parameters: set[str]) -> None:
        self.state: dict[fx.Node, tuple[str, ...]] = {}
        self.activations: set[fx.Node] = set()
        sizes: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "get_attr" and node.meta:
                names: tuple[str, ...] = (node.target,) if node.target in parameters else ()
                sizes[node.target] = math.prod(node.meta.get("whole", node.meta["shape"]))
            elif node.op == "call_function" and not operators.is_random(node):
                inputs = node.all_input_nodes
                if not all(n in self.state or (n.op == "get_attr" and not n.meta) for n in inputs):
                    continue
                unique = dict.fromkeys(name for n in inputs for name in self.state.get(n, ()))
                names = tuple(sorted(unique, key=lambda name: -sizes[name]))
                if operators.weight_slots(node) or any(n in self.activations for n in inputs):
                    self.activations.add(node)
            else:
                continue
            self.state[node] = names


def _reason(region: Region, parameter: str) -> str:
    """Why a parameter is not pruned, from the first place that reads it and matters."""
    read = False
    for mode in MODES:
        graph = region._fxprune[mode].graph
        reaching = operators.reaching_output(graph)
        for node in (node for node in graph.nodes if node.op == "get_attr" and node.target == parameter):
            read = True
            for user, operand in _first_uses(node):
                if user in reaching:
                    return operators.role(user, operand)
    return "no output of the model depends on it" if read else "not used by the model's forward"


def _first_uses(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    for user in node.users:
        moves = operators.name_of(user) in operators.SELECTIONS and operators.name_of(user) != "embedding"
        if moves and user.args and user.args[0] is node:
            yield from _first_uses(user)
        else:
            yield user, node
