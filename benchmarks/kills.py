"""`kill -9` at random moments of train, prune, export, study and compat on tiny models: and what is left.

    python benchmarks/kills.py                                 # 100 kills, about half an hour
    python benchmarks/kills.py --command train --kills 5

Each command runs once undisturbed. Then it is started on a copy of the same folder and killed after a random part
of the time that the undisturbed run took, again and again, as its user would start it again; after a few kills it
may go on to its end. After each kill every file under a final name has to be whole: tensors fit the digests in
their names and in the manifest, JSON and rows parse, pictures have their ends, ONNX's checker takes the file. In
the end the folder has to hold what the undisturbed run left: the same files, and the same weights, bytes or rows.

Commands run in forks of a process that has imported everything, so that kills hit the work and not imports. Commit
nothing meanwhile: rows of compat say of which commit they are, and those of another one are made again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record
from hostile_files import NET

IN_A_ROW = 4  # kills before a run may end

SETTING = """
[data]
name = "digits"
limit = 200
test_limit = 100
[networks.net]
model = "net.py:make_net"
input = "1x8x8"
[grid]
sparsities = [0.5, 0.9]
seeds = [0, 1]
per_class = 2
methods = ["dense", "random", "grasp"]
[train]
epochs = 1
"""
_MODEL = ["--model", "net.py:make_net"]
_MOVING = ["--topology", "set", "--log", "log.csv"]
_COMPAT = ["compat", "timm:test_vit*", "--stage", "prune", "--image", "32", "-o", "out/rows.jsonl"]
_PRUNE = ["prune", "net.py:make_net", "--input", "1x8x8", "--sparsity", "0.8", "--data", "digits"]
# rows say when and how fast they were made, and where the process peaked
_OF_THE_RUN = ("at", "seconds", "cpu_seconds", "peak_gib", "limits", "versions")


@dataclass(frozen=True)
class Command:
    """A command line that is killed.

    Attributes:
        first: command lines that make the folder which it works on.
        line: the command itself.
        again: what is typed after a kill, if that is another.
        kills: its part of a hundred.
        over: whether all is done, where the same command would do it all once more.
    """

    line: Sequence[str]
    kills: int
    first: Sequence[Sequence[str]] = ()
    again: Sequence[str] = ()
    over: Callable[[Path], bool] = lambda _: False


def _trained(place: Path) -> bool:
    """Training that is over has left no state; the command would begin another schedule."""
    notes = json.loads((place / "out" / "fxprune.json").read_text())
    return bool(notes["notes"]["training"]) and notes["training"] is None


COMMANDS = {
    "train": Command(
        ["train", "out", *_MODEL, "--epochs", "6", "--batch-size", "64", *_MOVING],
        25,
        [[*_PRUNE, "-o", "out"]],
        over=_trained,
    ),
    "prune": Command([*_PRUNE, "-o", "out"], 25, again=[*_PRUNE, "-o", "out", "--force"]),
    "export": Command(["export", "out", *_MODEL], 20, [[*_PRUNE, "-o", "out"]]),
    "study": Command(["study", "accuracy", "setting.toml", "-o", "out"], 20),
    "compat": Command(_COMPAT, 10, again=[*_COMPAT, "--resume"]),
}


def measure(name: str, kills: int, draw: random.Random, home: Path) -> dict[str, Any]:
    """Kill a command so many times; what was found."""
    command = COMMANDS[name]
    base = home / "base"
    base.mkdir(parents=True)
    (base / "net.py").write_text(NET)
    (base / "setting.toml").write_text(SETTING)
    for line in command.first:
        finish(line, base)
    whole = shutil.copytree(base, home / "whole")
    start = time.monotonic()
    finish(command.line, whole)
    seconds = time.monotonic() - start
    left, runs, early, torn, different = kills, 0, 0, list[str](), list[str]()
    while left > 0:
        place = shutil.copytree(base, home / f"run{runs}")
        line: Sequence[str] = command.line
        for _ in range(min(left, draw.randint(1, IN_A_ROW))):
            if killed(line, place, draw.uniform(0.02, 1.0) * seconds):
                left -= 1
            else:
                early += 1  # it was faster this time
            torn += [f"run {runs}: {file}" for file in broken(place)]
            if command.over(place):
                break
            line = command.again or command.line if any((place / "out").glob("*")) else command.line
        if not command.over(place):
            finish(line, place)
        torn += [f"run {runs}, in the end: {file}" for file in broken(place)]
        different += [f"run {runs}: {what}" for what in differences(whole, place)]
        shutil.rmtree(place)
        runs += 1
    return {
        "command": name,
        "kills": kills,
        "runs": runs,
        "ended_before_the_kill": early,
        "seconds_undisturbed": round(seconds, 2),
        "torn_files": torn,
        "differences_in_the_end": different,
    }


# --- processes


def started(line: Sequence[str], place: Path) -> int:
    """A fork of this process at work on a command line; its id."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()  # compat's processes go with it
        os.chdir(place)
        log = os.open(place.parent / f"{place.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["fxprune", *line]
        from fxprune import cli

        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    os._exit(code)


def finish(line: Sequence[str], place: Path) -> None:
    """Let a command come to its end."""
    _, status = os.waitpid(started(line, place), 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        said = (place.parent / f"{place.name}.log").read_text()[-2000:]
        raise SystemExit(f"{' '.join(line)} ended with {code}: {said}")


def killed(line: Sequence[str], place: Path, after: float) -> bool:
    """Start a command and kill it; False if it ended before."""
    process = started(line, place)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


# --- what is left


def broken(place: Path) -> Iterator[str]:
    """Files under final names that are not whole."""
    checks: dict[str, Callable[[Path], object]] = {
        ".safetensors": _check_tensors,
        ".json": _check_json,
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        ".onnx": _check_onnx,
        ".png": lambda path: _require(path.read_bytes().endswith(b"IEND\xaeB`\x82"), "no end"),
        ".md": lambda path: _require(path.read_text().endswith("\n"), "no end"),
        ".csv": lambda path: _require({line.count(",") for line in path.read_text().splitlines()} == {4}, "cells"),
    }
    for path in sorted(place.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.suffix in checks:
            try:
                checks[path.suffix](path)
            except Exception as error:
                yield f"{path.relative_to(place)}: {error!r}"


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check_tensors(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _require(path.stem.endswith(digest[:12]), "other content than its name says")


def _check_json(path: Path) -> None:
    values = json.loads(path.read_text())
    if path.name == "fxprune.json":
        from fxprune.checkpoint import read_training

        digest = hashlib.sha256((path.parent / values["weights_file"]).read_bytes()).hexdigest()
        _require(digest == values["sha256"], "its tensors are others")
        read_training(path.parent)


def _check_onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path), full_check=True)


def differences(whole: Path, place: Path) -> Iterator[str]:
    """What an undisturbed run left that this one did not, and the other way round."""
    names = [{str(file.relative_to(each)) for file in each.rglob("*") if _counts(file)} for each in (whole, place)]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name} is only {'there' if name in names[0] else 'here'}"
    for name in sorted(names[0] & names[1]):
        wanted, found = content(whole / name), content(place / name)
        if wanted != found:
            yield f"{name} is another" + _where(wanted, found)


def _where(wanted: Any, found: Any) -> str:
    """The first rows that are not the same."""
    if not isinstance(wanted, list):
        return ""
    only = [[row for row in one if row not in other] for one, other in ((wanted, found), (found, wanted))]
    return f": {len(found)} rows, wanted {len(wanted)}; {only[1][:1]}, wanted {only[0][:1]}"


def _counts(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def content(path: Path) -> Any:
    """What a file says, without when and how fast it was made."""
    if path.suffix == ".jsonl":
        return sorted(json.dumps(_timeless(json.loads(line))) for line in path.read_text().splitlines())
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    if path.name == "README.md":  # says how long training took
        return None
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in _OF_THE_RUN}
    if isinstance(value, list):
        return [_timeless(each) for each in value]
    return "a path" if isinstance(value, str) and value.startswith("/") else value


def main() -> None:
    """Parse the command line, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="only these; all by default")
    parser.add_argument("--kills", type=int, help="of each command; by default 100 in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    imported()
    rows = []
    for name in options.command or COMMANDS:
        kills = COMMANDS[name].kills if options.kills is None else options.kills
        with tempfile.TemporaryDirectory() as home:
            rows.append(measure(name, kills, random.Random(options.seed), Path(home) / name))
        print(json.dumps(rows[-1], indent=1), flush=True)
    record.write(options.json, rows)


def imported() -> None:
    """Import what the commands do, and compute nothing: forks of a process with threads can hang."""
    for name in (
        *("matplotlib.figure", "onnx", "onnxruntime", "onnxscript", "sklearn.datasets", "torch.onnx"),
        *("torchvision.transforms.v2", "fxprune.cli", "fxprune.recipes", "fxprune.report.text"),
        "fxprune.study.pages",
        "fxprune.onnx.export",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
