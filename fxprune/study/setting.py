"""`Setting`: where a study is made, from a TOML file. What data, which networks, how they train, what is tried."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune import zoo
from fxprune.errors import StudyError
from fxprune.masks import check_sparsity
from fxprune.topology import make
from fxprune.training import TrainConfig
from fxprune.zoo import ModelSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES = {
    "data": {"name", "limit", "test_limit"},
    "networks": None,
    "train": None,
    "grid": {"methods", "sparsities", "seeds", "per_class", "per_classes", "few_sparsities"},
    "topology": None,
    "tickets": {"rewind", "rate"},
    "kernel": {"per_class", "lr", "steps"},
}


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
        few_sparsities: a part of these, for the studies that vary something else.
        seeds: each draws another initialisation, other score images and another order of training.
        per_class: score images of each class.
        per_classes: numbers of these that the study of the batch size tries.
        topology: settings by name of a topology, in place of its paper's defaults, which are those of long runs.
        rewind: share of the first training after which late resetting puts the weights back.
        rate: share of the weights that each round of a ticket removes at most; 0.2 in its papers.
        kernel: ``per_class`` images of the tangent kernel, ``lr`` and ``steps`` of the training that it predicts.
        digest: of everything that decides what an experiment gives, networks' code included.
    """

    name: str
    data: str
    limit: int | None
    test_limit: int | None
    networks: Mapping[str, Network]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    few_sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    per_class: int
    per_classes: tuple[int, ...]
    topology: Mapping[str, Mapping[str, Any]]
    rewind: float
    rate: float
    kernel: Mapping[str, Any]
    digest: str

    @classmethod
    def read(cls, path: Path) -> Setting:
        """Read a setting; files of networks are found from its folder.

        Raises:
            StudyError: the file cannot be read, or says something that nothing is for.
        """
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as error:
            raise StudyError(f"{path}: expected a setting in TOML, got {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StudyError(f"{path}: expected a setting in TOML, got {error}") from error
        for table, content in tables.items():
            if table not in _TABLES:
                raise StudyError(f"{path}: unknown {table!r}; there are the tables {', '.join(_TABLES)}")
            if not isinstance(content, dict):
                raise StudyError(f"{path}: {table}: expected a table, got {content!r}")
            known = _TABLES[table]
            odd = [entry for entry in content if known is not None and entry not in known]
            if odd:
                raise StudyError(
                    f"{path}: unknown {odd[0]!r} in [{table}]; there are {', '.join(sorted(known or ()))}"
                )
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


def _setting(path: Path, tables: dict[str, Any]) -> Setting:
    data, grid = tables["data"], tables["grid"]
    sparsities = tuple(sorted(grid["sparsities"]))
    few = tuple(sorted(grid.get("few_sparsities", sparsities)))
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not set(few) <= set(sparsities):
        raise StudyError(f"{path}: few_sparsities: expected some of {list(sparsities)}, got {list(few)}")
    networks = {name: _network(path, name, table, tables) for name, table in tables["networks"].items()}
    if not networks:
        raise StudyError(f"{path}: expected a network, such as [networks.resnet20] with a model, got none")
    for name, value in (
        *((name, data[name]) for name in ("limit", "test_limit") if name in data),
        ("per_class", grid.get("per_class", 10)),
        *(("per_classes", count) for count in grid.get("per_classes", ())),
    ):
        if not isinstance(value, int) or value < 1:
            raise StudyError(f"{path}: {name}: expected a positive integer, got {value!r}")
    for name in ("sparsities", "seeds"):
        if not grid[name]:
            raise StudyError(f"{path}: {name}: expected at least one, got none")
    for name, settings in tables.get("topology", {}).items():
        make(name, **settings)  # mistakes are told now, not after hours
    rewind = float(tables.get("tickets", {}).get("rewind", 0.1))
    if not 0 <= rewind < 1:
        raise StudyError(f"{path}: rewind: expected a share of the training in [0, 1), got {rewind}")
    return Setting(
        path.stem,
        str(data["name"]),
        data.get("limit"),
        data.get("test_limit"),
        networks,
        tuple(grid.get("methods", ())),
        sparsities,
        few,
        tuple(int(seed) for seed in grid["seeds"]),
        int(grid.get("per_class", 10)),
        tuple(int(count) for count in grid.get("per_classes", (1, 2, 5, 10, 20))),
        tables.get("topology", {}),
        rewind,
        float(tables.get("tickets", {}).get("rate", 0.2)),
        {"per_class": 5, "lr": 0.01, "steps": 20, **tables.get("kernel", {})},
        _digest(tables, networks),
    )


def _network(path: Path, name: str, table: Mapping[str, Any], tables: Mapping[str, Any]) -> Network:
    file, separator, factory = str(table["model"]).rpartition(":")
    spec = f"{(path.parent / file).resolve()}:{factory}" if separator and file.endswith(".py") else table["model"]
    shape = zoo.parse_shape(str(table["input"]))
    train = TrainConfig.from_dict({**tables.get("train", {}), **table.get("train", {})})
    return Network(name, ModelSpec(spec, shape, kwargs=table.get("kwargs", {})), train)


def _digest(tables: Mapping[str, Any], networks: Mapping[str, Network]) -> str:
    """Of what decides results: not of the grid, which only says how many there are."""
    decides = {name: table for name, table in tables.items() if name != "grid"}
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
