"""`conduct`: do what a study needs, and write its numbers, its plot and its page, all from the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import ResultsError, StudyError
from fxprune.files import replacing
from fxprune.rows import Row, read_rows, reading
from fxprune.study.claims import claims_page
from fxprune.study.runner import ROWS, require_setting, run
from fxprune.study.setting import Setting
from fxprune.study.studies import PAPER, STUDIES, study
from fxprune.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_FILE = "rows.jsonl"


def conduct(
    name: str, path: Path, output: Path | None, networks: Sequence[str], *, jobs: int = 1, measure: bool = True
) -> Iterator[str]:
    """Conduct a study, or all of them; a line for each thing that is done.

    Args:
        name: of a study, or ``"all"`` for the paper's questions.
        path: the setting.
        output: folder; ``out/studies/SETTING`` by default. What it has of the setting already is not done again.
        networks: only these of the setting; all if there are none.
        jobs: experiments at a time.
        measure: whether to do what is missing, or to make the pages of what there is.

    Raises:
        StudyError: there is no such study, setting or network, or nothing to make a page of.
        ResultsError: the folder holds results of another setting, or such as no study writes.
    """
    setting = Setting.read(path)
    wanted = list(PAPER) if name == "all" else [study(name)]
    names = [setting.network(network).name for network in networks] or list(setting.networks)
    folder = output or Path("out/studies") / setting.name
    file = folder / ROWS_FILE
    if measure:
        for each in wanted:
            run(setting, each.experiments(setting, names), file, jobs=jobs)
    rows = read_rows([file], ROWS) if file.exists() else []
    require_setting(file, setting, rows)
    with reading(ROWS):
        numbers = {
            each: each.numbers(setting, found) for each in STUDIES.values() if (found := _of(each, setting, rows))
        }
    for each in wanted:
        if each in numbers:
            with reading(ROWS):
                _write(folder, each, numbers[each], _command(each.name, path))
            yield f"{each.name}: {folder / each.name}.md, .json and .png"
        elif name != "all":
            raise StudyError(f"{file}: expected results of {each.name}, got none; measure first, without --pages")
    if rows:
        with reading(ROWS):
            _text(folder / "README.md", _index(folder, setting, path, rows, numbers))


def _of(study: Study, setting: Setting, rows: Sequence[Row]) -> list[Row]:
    """The rows of a study in the order of its experiments, whatever order they were made in."""
    order = {e.key: place for place, e in enumerate(study.experiments(setting, list(setting.networks)))}
    wanted = [row for row in rows if row["experiment"] in order and "failed" not in row]
    found = {(row["experiment"], row["sparsity"]): row for row in wanted}
    return sorted(found.values(), key=lambda row: (order[row["experiment"]], row["sparsity"]))


def _write(folder: Path, study: Study, numbers: dict[str, Any], command: str) -> None:
    _text(folder / f"{study.name}.json", json.dumps(numbers, indent=1) + "\n")
    picture = f"![{study.question}]({study.name}.png)"
    page = [f"# {study.question}", f"    {command}", picture, study.page(numbers)]
    _text(folder / f"{study.name}.md", "\n\n".join(page) + "\n")
    _figure(folder / f"{study.name}.png", study.plot(numbers))


def _command(name: str, path: Path) -> str:
    return f"fxprune study {name} {path.name if path.is_absolute() else path.as_posix()}"


def _index(
    folder: Path, setting: Setting, path: Path, rows: Sequence[Row], numbers: Mapping[Study, dict[str, Any]]
) -> str:
    """A page that leads to the others, with the paper's claims."""
    versions = sorted({json.dumps(row["versions"], sort_keys=True) for row in rows})
    there = [each for each in numbers if (folder / f"{each.name}.md").exists()]
    others = [each.name for each in there if each not in PAPER]
    names = ["all", *others] if set(PAPER) <= set(there) else [each.name for each in there]
    minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
    parts = [
        f"# {setting.name}",
        "\n".join(f"    {_command(name, path)}" for name in names),
        f"Data: {setting.data}"
        + (f", {setting.limit:,} training images" if setting.limit else "")
        + f"; seeds {', '.join(map(str, setting.seeds))}; networks "
        + ", ".join(
            f"{n.name} ({n.train.epochs} epochs, batches of {n.train.batch_size}, peak rate {n.train.lr:g})"
            for n in setting.networks.values()
        )
        + f". {len(rows)} rows in [{ROWS_FILE}]({ROWS_FILE}), which also say with which versions they were made: "
        + "; ".join(_versions(text) for text in versions)
        + f". Finding masks and training took {minutes:.0f} minutes in all, one experiment after the other.",
        "\n".join(f"- [{each.question}]({each.name}.md)" for each in there),
        "\n".join(f"- Failed, and left out: {_told(row)}" for row in rows if "failed" in row),
        claims_page({each.name: found for each, found in numbers.items()}),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _told(row: Row) -> str:
    return f"{row['network']}, {row['method']}, {row['sparsity']:.1%}, seed {row['seed']}: {row['failed']}"


def _versions(text: str) -> str:
    return ", ".join(f"{name} {version}" for name, version in json.loads(text).items())


def _text(path: Path, content: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; choose another output") from error


def _figure(path: Path, figure: Figure) -> None:
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})  # the same numbers, the same bytes
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; choose another output") from error
