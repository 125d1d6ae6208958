"""`Setting`: where a study is made, from a TOML file. What data, which networks, how they train, what is tried."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fxprune.channels import Budget
from fxprune.errors import StudyError
from fxprune.masks import check_sparsity
from fxprune.toml import model_spec, read_tables, require_known
from fxprune.topology import make
from fxprune.training import TrainConfig
from fxprune.zoo import ModelSpec

Kind = Literal["train", "kernel", "channels"]

_TABLES = {
    "data": ("name", "limit", "test_limit"),
    "networks": None,
    "train": None,
    "grid": ("methods", "sparsities", "seeds", "per_class", "per_classes", "few_sparsities", "shares"),
    "topology": None,
    "tickets": ("rewind", "rate"),
    "kernel": ("per_class", "lr", "steps"),
}
_NETWORK = ("model", "input", "kwargs", "train")

# Where the linear model of a network oscillates, it foretells nothing: a step has to stay below 2 samples over the
# largest eigenvalue of the kernel for a squared loss, which was 2e-4 at worst on the digits of model_zoo.
_KERNEL = {"per_class": 5, "lr": 2e-4, "steps": 100}


@dataclass(frozen=True)
class Network:
    """A network and how it trains.

    Attributes:
        name: in tables and plots.
        model: with the shape of its input.
        train: settings; the seed is replaced by the experiment's.
    """

    name: str
    model: ModelSpec
    train: TrainConfig


@dataclass(frozen=True)
class Setting:
    """Where studies are made.

    Attributes:
        name: the file's, without its suffix.
        data: data spec.
        limit: at most so many training images; None for all.
        test_limit: images that are tested after each epoch, all being tested after the last; None for all.
        networks: by name.
        methods: those that the study of the accuracy compares; none stands for all.
        sparsities: at which networks are compared, ascending.
        shares: of the multiply-adds that are left where channels are cut, descending.
        few_sparsities: a part of these, for the studies that vary something else.
        seeds: each draws another initialisation, other score images and another order of training.
        per_class: score images of each class.
        per_classes: numbers of these that the study of the batch size tries.
        topology: settings by name of a topology, in place of its paper's defaults, which are those of long runs.
        rewind: share of the first training after which late resetting puts the weights back.
        rate: share of the weights that each round of a ticket removes at most; 0.2 in its papers.
        kernel: ``per_class`` images of the tangent kernel, ``lr`` and ``steps`` of the training that it predicts.
        digests: of everything that decides what an experiment of a kind gives, networks' code included.
    """

    name: str
    data: str
    limit: int | None
    test_limit: int | None
    networks: Mapping[str, Network]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    few_sparsities: tuple[float, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    per_class: int
    per_classes: tuple[int, ...]
    topology: Mapping[str, Mapping[str, Any]]
    rewind: float
    rate: float
    kernel: Mapping[str, Any]
    digests: Mapping[Kind, str]

    @classmethod
    def read(cls, path: Path) -> Setting:
        """Read a setting; files of networks are found from its folder.

        Raises:
            StudyError: the file cannot be read, or says something that nothing is for.
        """
        tables = read_tables(path, "a setting", _TABLES, StudyError)
        try:
            return _setting(path, tables)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StudyError(f"{path}: expected a setting as in model_zoo/studies, got {error!r}") from error

    def network(self, name: str) -> Network:
        """A network by its name.

        Raises:
            StudyError: there is none of that name.
        """
        if name not in self.networks:
            raise StudyError(f"network: expected one of {', '.join(self.networks)}, got {name!r}")
        return self.networks[name]


def _setting(path: Path, tables: dict[str, dict[str, Any]]) -> Setting:
    data, grid = tables["data"], {"per_class": 10, "per_classes": (1, 2, 5, 10, 20), **tables["grid"]}
    tickets, kernel = {"rewind": 0.1, "rate": 0.2, **tables["tickets"]}, {**_KERNEL, **tables["kernel"]}
    sparsities = tuple(sorted(grid["sparsities"]))
    few = tuple(sorted(grid.get("few_sparsities", sparsities)))
    shares = tuple(
        sorted((Budget("macs", share).share for share in grid.get("shares", (0.5, 0.25))), reverse=True)
    )
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not set(few) <= set(sparsities):
        raise StudyError(f"{path}: few_sparsities: expected some of {list(sparsities)}, got {list(few)}")
    networks = {name: _network(path, name, table, tables["train"]) for name, table in tables["networks"].items()}
    if not networks:
        raise StudyError(f"{path}: expected a network, such as [networks.resnet20] with a model, got none")
    for name in ("sparsities", "seeds"):
        if not grid[name]:
            raise StudyError(f"{path}: {name}: expected at least one, got none")
    for name, settings in tables["topology"].items():
        make(name, **settings)  # mistakes are told now, not after hours
    _check_numbers(path, data, grid, {**tickets, **kernel})
    of_kernel = _digest({**tables, "kernel": kernel}, networks, kernel=True)
    return Setting(
        path.stem,
        str(data["name"]),
        data.get("limit"),
        data.get("test_limit"),
        networks,
        tuple(grid.get("methods", ())),
        sparsities,
        few,
        shares,
        tuple(int(seed) for seed in grid["seeds"]),
        grid["per_class"],
        tuple(grid["per_classes"]),
        tables["topology"],
        tickets["rewind"],
        tickets["rate"],
        kernel,
        {
            "train": _digest(tables, networks),
            "kernel": of_kernel,
            "channels": _digest({**tables, "topology": {}, "tickets": {}}, networks),
        },
    )


def _check_numbers(path: Path, data: dict[str, Any], grid: dict[str, Any], more: dict[str, float]) -> None:
    counts: dict[str, Any] = {name: data[name] for name in ("limit", "test_limit") if name in data}
    counts |= {"per_class": grid["per_class"], "per_class of [kernel]": more["per_class"], "steps": more["steps"]}
    counts |= {f"per_classes, at {place}": count for place, count in enumerate(grid["per_classes"])}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise StudyError(f"{path}: {name}: expected a positive integer, got {value!r}")
    if not 0 < more["lr"] < math.inf:
        raise StudyError(f"{path}: lr of [kernel]: expected a positive number, got {more['lr']!r}")
    if not 0 <= more["rewind"] < 1:
        raise StudyError(f"{path}: rewind: expected a share of the training in [0, 1), got {more['rewind']!r}")
    if not 0 < more["rate"] < 1:
        raise StudyError(f"{path}: rate: expected a share of the weights in (0, 1), got {more['rate']!r}")


def _network(path: Path, name: str, table: Mapping[str, Any], train: Mapping[str, Any]) -> Network:
    require_known(path, f"[networks.{name}]", table, _NETWORK, StudyError)
    for entry in ("model", "input"):
        if entry not in table:
            raise StudyError(f"{path}: [networks.{name}] lacks {entry!r}")
    config = TrainConfig.from_dict({**train, **table.get("train", {})})
    return Network(name, model_spec(path, str(table["model"]), table), config)


def _digest(tables: Mapping[str, Any], networks: Mapping[str, Network], *, kernel: bool = False) -> str:
    """Of what decides results: not of the grid, which only says how many there are.

    The kernel is that of the initialisation: how networks train has no part in it.
    """
    without = ("grid", "train", "topology", "tickets") if kernel else ("grid", "kernel")
    decides = {name: table for name, table in tables.items() if table and name not in without}
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    digest.update(str(tables["grid"].get("per_class", 10)).encode())
    for network in networks.values():
        file = network.model.name.rpartition(":")[0]
        if file.endswith(".py"):
            try:
                digest.update(Path(file).read_bytes())
            except OSError as error:
                raise StudyError(f"{file}: expected the code of a network, got {error.strerror}") from error
    return digest.hexdigest()[:16]
