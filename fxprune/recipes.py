"""Recipes: a model, data, and how to prune and train, in one TOML file; `run` goes through all the stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from fxprune import data as data_sets
from fxprune import zoo
from fxprune.checkpoint import MANIFEST, annotate, load, read_manifest, require_free
from fxprune.devices import find_device
from fxprune.errors import CheckpointError, RecipeError
from fxprune.files import replacing
from fxprune.lock import sole_writer
from fxprune.onnx.verify import Verification
from fxprune.report import CompressionReport
from fxprune.stages import (
    REPORT_FILE,
    RESULTS_FILE,
    PruneJob,
    export_stage,
    prune_stage,
    report_stage,
    train_stage,
)
from fxprune.toml import model_spec, read_tables
from fxprune.topology import Movement, make
from fxprune.training import EachEpoch, Epoch, TrainConfig, evaluate, fit

_TABLES = {
    "model": ("name", "input", "num_classes", "kwargs"),
    "data": ("name",),
    "train": None,
    "prune": sorted({f.name for f in fields(PruneJob)} - {"model", "data", "device", "memory"}),
    "topology": None,
    "run": ("dense_baseline", "output"),
}


_TYPES = (("model", "name", str), ("data", "name", str), ("run", "output", str), ("run", "dense_baseline", bool))


@dataclass(frozen=True)
class Recipe:
    """A TOML file: a model, data, and how to prune and train.

    Attributes:
        job: tables ``[model]``, ``[data]`` and ``[prune]``.
        train: table ``[train]``.
        topology: table ``[topology]``: the ``method`` that moves the masks while training, and its settings; None
            for masks that stay.
        dense_baseline: whether to train the unpruned network too, from the same initialisation.
        output: folder for everything.
    """

    job: PruneJob
    train: TrainConfig = field(default_factory=TrainConfig)
    topology: Mapping[str, Any] | None = None
    dense_baseline: bool = False
    output: Path = Path("out")

    @property
    def movement(self) -> list[Movement]:
        """The callback that moves the masks, if one does.

        Raises:
            TopologyError: there is no such method or setting.
        """
        if self.topology is None:
            return []
        settings = {name: value for name, value in self.topology.items() if name != "method"}
        return [make(str(self.topology.get("method")), **{"seed": self.job.seed, **settings})]

    @property
    def digest(self) -> str:
        """Of all but the output."""
        return hashlib.sha256(repr(replace(self, output=Path())).encode()).hexdigest()[:16]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe; a model's file is found from the recipe's folder, the output from here.

        Raises:
            RecipeError: the file cannot be read, or says something that no setting is for.
        """
        tables = read_tables(path, "a recipe", _TABLES, RecipeError)
        if "name" not in tables["model"]:
            raise RecipeError(f"{path}: [model] lacks 'name'")
        if not {"sparsity", "budget", "granularity"} & set(tables["prune"]):
            raise RecipeError(
                f"{path}: [prune] lacks 'sparsity', or a 'budget' for channels, or a 'granularity' such as \"2:4\""
            )
        _check_types(path, tables["prune"])
        for table, name, kind in _TYPES:
            if not isinstance(tables[table].get(name, kind()), kind):
                wanted = {str: "text", bool: "true or false"}[kind]
                raise RecipeError(f"{path}: {name} in [{table}]: expected {wanted}, got {tables[table][name]!r}")
        prune_settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in tables["prune"].items()
        }
        train = TrainConfig.from_dict({"seed": prune_settings.get("seed", 0), **tables["train"]})
        job = PruneJob(
            model_spec(path, str(tables["model"]["name"]), tables["model"]),
            tables["data"].get("name"),
            device=train.device,
            **prune_settings,
        )
        run_table = tables["run"]
        dense, output = bool(run_table.get("dense_baseline")), Path(run_table.get("output", "out"))
        recipe = cls(job, train, tables["topology"] or None, dense, output)
        recipe.movement  # noqa: B018  mistakes are told before anything is done
        return recipe


def _check_types(path: Path, table: Mapping[str, Any]) -> None:
    """Hold the settings of [prune] against the types of the defaults of `PruneJob`."""
    kinds: dict[str, type] = {f.name: type(f.default) for f in fields(PruneJob)} | {"sparsity": float}
    for name, value in table.items():
        kind = {tuple: list, type(None): object}.get(kinds[name], kinds[name])
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (kind in (int, float) and isinstance(value, bool)):
            raise RecipeError(f"{path}: {name} in [prune]: expected {kind.__name__}, got {value!r}")


@dataclass(frozen=True)
class RunResult:
    """What came of a recipe: test accuracies in [0, 1], the file's verification, the statistics."""

    dense_accuracy: float | None
    untrained_accuracy: float
    pruned_accuracy: float
    verification: Verification
    report: CompressionReport

    def to_json(self) -> dict[str, Any]:
        """As plain dicts and lists."""
        return {
            "dense_accuracy": self.dense_accuracy,
            "untrained_accuracy": self.untrained_accuracy,
            "pruned_accuracy": self.pruned_accuracy,
            "verification": self.verification.to_json(),
            "report": self.report.to_json(),
        }


def run(
    recipe: Recipe,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Go through a recipe: prune, train, dense baseline, export, verify, report.

    A run that was interrupted goes on, under the same recipe, after the last whole epoch of the pruned network.

    Args:
        recipe: what to do.
        force: begin anew, and replace a checkpoint that stands in the output folder.
        say: called with a line when something begins or ends.
    """
    if recipe.job.data is None:
        raise RecipeError("a recipe needs [data] with a name, to train on; add it")
    with sole_writer(recipe.output):
        return _run(recipe, force, say)


def _run(recipe: Recipe, force: bool, say: Callable[[str], None]) -> RunResult:
    folder, job = recipe.output, recipe.job
    assert job.data is not None
    pruned = None
    if not force and _interrupted(recipe):
        say(f"going on in {folder}, which holds a run of this recipe that was interrupted")
    else:
        require_free(folder, force=force)
        say(f"pruning {job.spec.name.rpartition('/')[2]} by {job.criterion} to {job.goal}")
        pruned = prune_stage(job, folder, force=force, notes={"recipe": recipe.digest})
    tell = _teller(say)
    images = data_sets.load(job.data, read_manifest(folder).input_shape or ())
    if "untrained_accuracy" not in read_manifest(folder).notes:
        annotate(folder, untrained_accuracy=evaluate(pruned or load(folder, job.spec), images))
    if len(read_manifest(folder).notes["training"]) < recipe.train.epochs:
        say(f"training the pruned network, {recipe.train.epochs} epochs")
        train_stage(folder, recipe.train, [EachEpoch(tell), *recipe.movement], model=job.spec)
    dense = _dense_accuracy(recipe, images, say, tell) if recipe.dense_baseline else None
    say("exporting and verifying")
    verification = export_stage(folder, model=job.spec)
    say("measuring for the report")
    statistics = report_stage(folder, model=job.spec, latency=True, gradient=True, page=folder / REPORT_FILE)
    notes = read_manifest(folder).notes
    trained = notes["training"][-1]["test_accuracy"]
    result = RunResult(dense, notes["untrained_accuracy"], trained, verification, statistics)
    try:
        with replacing(folder / RESULTS_FILE) as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=1))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / RESULTS_FILE}: {error}; free some space") from error
    return result


def _interrupted(recipe: Recipe) -> bool:
    """Whether the output holds a run of the recipe that is not over: its figures are written last."""
    folder = recipe.output
    if not (folder / MANIFEST).is_file() or (folder / RESULTS_FILE).exists():
        return False
    return read_manifest(folder).notes.get("recipe") == recipe.digest


def _dense_accuracy(
    recipe: Recipe, images: Any, say: Callable[[str], None], tell: Callable[[Epoch], None]
) -> float:
    say(f"training the dense network, {recipe.train.epochs} epochs")
    torch.manual_seed(recipe.job.seed)
    module, _ = zoo.build(recipe.job.spec)
    config = replace(recipe.train, device=str(find_device(recipe.train.device)))
    return fit(module, images, config, [EachEpoch(tell)])[-1].test_accuracy


def _teller(say: Callable[[str], None]) -> Callable[[Epoch], None]:
    def tell(epoch: Epoch) -> None:
        say(
            f"  epoch {epoch.epoch}: loss {epoch.loss:.3f}, test accuracy {epoch.test_accuracy:.2%}, "
            f"{epoch.seconds:.1f} s"
        )

    return tell
