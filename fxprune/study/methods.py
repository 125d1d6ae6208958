"""Ways to a trained sparse network: what studies compare.

Pruned at the initialisation and trained; trained, pruned and trained again from there with the schedule from its
start (learning rate rewinding: Renda et al., ICLR 2020); lottery tickets; masks that move while training. Each
yields one result for each sparsity that it is asked for, and takes every sparse network through the same
schedule, which is what is compared; so do those of `CHANNELS`, where networks get smaller. What else a method
trains (the dense network that magnitude pruning starts from, the rounds of a ticket) is told with it, as
`Method.more`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxprune import topology
from fxprune.errors import StudyError
from fxprune.model import PrunedModel
from fxprune.study.lab import Lab, Trained
from fxprune.topology.tickets import rounds_to, tickets
from fxprune.training import Callback, Epoch

# The sparsity reached, the model, and what came of its training.
Result = tuple[float, PrunedModel, Trained]
# Takes a lab, sparsities, a seed, and what a study varies: settings of `Lab.start` and `Lab.prune` by name.
Way = Callable[[Lab, Sequence[float], int, Mapping[str, Any]], Iterator[Result]]


@dataclass(frozen=True)
class Method:
    """A way to a trained sparse network.

    Attributes:
        way: goes it.
        paper: where it is from.
        chained: whether one run gives all sparsities, so that they are computed together.
        more: what is trained beside the sparse network itself, in words.
    """

    way: Way
    paper: str
    chained: bool = False
    more: str = ""


def _dense(lab: Lab, _: Sequence[float], seed: int, vary: Mapping[str, Any]) -> Iterator[Result]:
    lab.start(seed, vary.get("initialisation", "own"))
    model = lab.dense()
    yield 0.0, model, lab.train(model, seed)


def _at_initialisation(criterion: str, **options: Any) -> Way:
    def way(lab: Lab, sparsities: Sequence[float], seed: int, vary: Mapping[str, Any]) -> Iterator[Result]:
        changes = {name: value for name, value in vary.items() if name != "initialisation"}
        for sparsity in sparsities:
            lab.start(seed, vary.get("initialisation", "own"))
            model = lab.prune(criterion, sparsity, seed, **options, **changes)
            yield sparsity, model, lab.train(model, seed)

    return way


def _after_training(criterion: str) -> Way:
    def way(lab: Lab, sparsities: Sequence[float], seed: int, _: Mapping[str, Any]) -> Iterator[Result]:
        lab.start(seed)
        dense = lab.dense()
        lab.train(dense, seed)
        trained = _copied(lab)
        for sparsity in sparsities:
            lab.captured.host.load_state_dict(trained)
            model = lab.prune(criterion, sparsity, seed)
            yield sparsity, model, lab.train(model, seed)

    return way


def _ticket(*, late: bool) -> Way:
    def way(lab: Lab, sparsities: Sequence[float], seed: int, _: Mapping[str, Any]) -> Iterator[Result]:
        lab.start(seed)
        results: list[Trained] = []

        def train(model: PrunedModel, callbacks: Sequence[Callback]) -> list[Epoch]:
            results.append(lab.train(model, seed, callbacks))
            return []

        steps = lab.config(seed).epochs * (len(lab.images.train) // lab.config(seed).batch_size)
        rewind = round(lab.setting.rewind * steps) if late else 0
        rounds = rounds_to(max(sparsities), lab.setting.rate, sparsities)
        model = lab.dense()
        for ticket in tickets(model, train, rounds, rewind):
            if ticket.sparsity in sparsities:
                yield ticket.sparsity, model, results[-1]

    return way


def _moving(name: str, ranking: str) -> Way:
    def way(lab: Lab, sparsities: Sequence[float], seed: int, _: Mapping[str, Any]) -> Iterator[Result]:
        for sparsity in sparsities:
            lab.start(seed)
            model = lab.prune("random", sparsity, seed, ranking=ranking)
            moves = topology.make(name, seed=seed, **lab.setting.topology.get(name, {}))
            yield sparsity, model, lab.train(model, seed, [moves])

    return way


def _thinned(criterion: str, *, trained: bool = False, **options: Any) -> Way:
    """Channels are cut, and what is left is trained; `sparsities` are shares of the multiply-adds that go."""

    def way(lab: Lab, sparsities: Sequence[float], seed: int, _: Mapping[str, Any]) -> Iterator[Result]:
        lab.start(seed)
        if trained:
            lab.train(lab.dense(), seed)
        start = _copied(lab)
        for sparsity in sparsities:
            lab.captured.host.load_state_dict(start)
            model = lab.thin(criterion, 1 - sparsity, seed, **options)
            yield sparsity, model, lab.train(model, seed)

    return way


def _copied(lab: Lab) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in lab.captured.host.state_dict().items()}


METHODS: Mapping[str, Method] = {
    "dense": Method(_dense, "no pruning"),
    "random": Method(_at_initialisation("random"), "one global draw"),
    "magnitude-init": Method(_at_initialisation("magnitude"), "large initial weights"),
    "snip": Method(_at_initialisation("snip"), "Lee et al., ICLR 2019"),
    "synflow": Method(_at_initialisation("synflow", rounds=100), "Tanaka et al., NeurIPS 2020, 100 rounds"),
    "grasp": Method(_at_initialisation("grasp"), "Wang et al., ICLR 2020"),
    "magnitude": Method(
        _after_training("magnitude"), "Han et al., NeurIPS 2015, in one cut", True, "the dense network"
    ),
    "obd": Method(_after_training("obd"), "LeCun et al., NeurIPS 1989, in one cut", True, "the dense network"),
    "ticket": Method(_ticket(late=False), "Frankle and Carbin, ICLR 2019", True, "every round before it"),
    "late-reset": Method(_ticket(late=True), "Frankle et al., 2019", True, "every round before it"),
    "set": Method(_moving("set", "erk"), "Mocanu et al., Nature Communications 2018"),
    "deep-r": Method(_moving("deep-r", "layer"), "Bellec et al., ICLR 2018"),
    "dsr": Method(_moving("dsr", "layer"), "Mostafa and Wang, ICML 2019"),
    "rigl": Method(_moving("rigl", "erk"), "Evci et al., ICML 2020"),
}


CHANNELS: Mapping[str, Method] = {
    "dense": METHODS["dense"],
    "thinner": Method(_thinned("random", ranking="layer"), "the same share of every width, drawn at random"),
    "random": Method(_thinned("random"), "random saliencies"),
    "snip": Method(_thinned("snip"), "sums of SNIP's saliencies"),
    "grasp": Method(_thinned("grasp"), "sums of GraSP's saliencies"),
    "magnitude": Method(
        _thinned("magnitude", trained=True), "sums of magnitudes after training", True, "the dense network"
    ),
}


def method(name: str, among: Mapping[str, Method] = METHODS) -> Method:
    """A method by its name.

    Raises:
        StudyError: there is none of that name.
    """
    if name not in among:
        raise StudyError(f"method: expected one of {', '.join(among)}, got {name!r}")
    return among[name]
