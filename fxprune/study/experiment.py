"""`Experiment`: the smallest piece of a study, done in one go; and what it gives, as rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fxprune.rows import Row
from fxprune.study.kernel import kernel
from fxprune.study.lab import Lab
from fxprune.study.methods import CHANNELS, METHODS, Method, method
from fxprune.study.setting import Kind


@dataclass(frozen=True)
class Experiment:
    """What to do.

    Attributes:
        kind: ``"train"`` a sparse network, or one without some of its ``"channels"``; or look at the tangent
            ``"kernel"``.
        network: name in the setting.
        method: name in `fxprune.study.methods.METHODS`, or of channels in `CHANNELS`.
        sparsities: one, or all of those that a chained method goes through; of channels, the shares of the
            multiply-adds that go.
        seed: of everything that is drawn.
        vary: what differs from the setting: ``initialisation``, ``per_class``, ``sanity``.
    """

    kind: Kind
    network: str
    method: str
    sparsities: tuple[float, ...]
    seed: int
    vary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same experiment."""
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        varied = "".join(f", {name} {value}" for name, value in self.vary.items())
        sparsities = " ".join(f"{sparsity:.1%}" for sparsity in self.sparsities)
        return f"{self.network}, {self.method}{varied}, {sparsities}, seed {self.seed}"


def experiments(
    networks: Sequence[str],
    methods: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    *,
    kind: Kind = "train",
    varies: Sequence[Mapping[str, Any]] = ({},),
) -> list[Experiment]:
    """All combinations, seed by seed, so that a part of them compares methods as well."""
    found = []
    for seed in seeds:
        for network in networks:
            for name in methods:
                chained = method(name, _methods(kind)).chained
                together = [tuple(sparsities)] if chained else [(sparsity,) for sparsity in sparsities]
                together = [(0.0,)] if name == "dense" else together
                found += [
                    Experiment(kind, network, name, part, seed, vary) for part in together for vary in varies
                ]
    return found


def perform(lab: Lab, experiment: Experiment) -> Iterator[Row]:
    """Do an experiment; a row for each sparsity."""
    start = time.monotonic()
    if experiment.kind == "kernel":
        yield header(experiment, experiment.sparsities[0]) | kernel(
            lab, experiment.method, experiment.sparsities[0], experiment.seed
        )
        return
    way = method(experiment.method, _methods(experiment.kind)).way
    for sparsity, model, trained in way(lab, experiment.sparsities, experiment.seed, experiment.vary):
        yield header(experiment, sparsity) | {
            "kept": model.masks.kept,
            "prunable": model.masks.numel,
            "emptied": len(model.masks.empty),
            "macs": sum(weight.macs for weight in model.weights),
            "accuracy": round(trained.accuracy, 5),
            "losses": [float(f"{loss:.5g}") for loss in trained.losses],
            "gradients": [float(f"{norm:.5g}") for norm in trained.gradients],
            "seconds": round(time.monotonic() - start, 1),
        }
        start = time.monotonic()


def _methods(kind: Kind) -> Mapping[str, Method]:
    return CHANNELS if kind == "channels" else METHODS


def header(experiment: Experiment, sparsity: float) -> Row:
    """What says of which experiment a row is."""
    return {
        "experiment": experiment.key,
        "kind": experiment.kind,
        "network": experiment.network,
        "method": experiment.method,
        "sparsity": sparsity,
        "seed": experiment.seed,
        "vary": dict(experiment.vary),
    }
