"""Where things are written: folders in use, full disks, no permission, odd names, other directories."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from test_bad_use import RECIPE, SETTING, contents, example, prune
from test_cli import NET, run  # noqa: F401  the fixture
from torch import nn

import fxprune
from fxprune import ModelSpec
from fxprune.checkpoint import annotate
from fxprune.errors import CheckpointError, ResultsError
from fxprune.lock import sole_writer
from fxprune.rows import Kind, RowFile

Call = Callable[..., tuple[int, str, str]]
KIND = Kind("a test", {"name": str})
PRUNE = ["prune", "net.py:make_net", "--input", "1x8x8", "--sparsity", "0.5", "--criterion", "random"]
MODEL = ["--model", "net.py:make_net"]


SPEC = ModelSpec("net.py:make_net", (1, 8, 8))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    (folder / "net.py").write_text(NET)
    (folder / "setting.toml").write_text(SETTING)
    (folder / "recipe.toml").write_text(RECIPE.replace("[prune]", "[train]\nepochs = 1\n[prune]"))
    pruned = prune(example())
    notes = {"data": "digits", "training": []}
    for name in ("out", "other"):
        fxprune.save(pruned, folder / name, model=SPEC, input_shape=(1, 8, 8), notes=notes)
    fxprune.export_onnx(pruned, folder / "out" / "model.onnx")
    return folder


@pytest.fixture
def place(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: code, settings, two checkpoints and a file of one."""
    monkeypatch.chdir(shutil.copytree(origin, tmp_path, dirs_exist_ok=True))
    return tmp_path


# --- two processes


WRITERS = {
    "prune": [*PRUNE, "-o", "out", "--force"],
    "train": ["train", "out", *MODEL, "--epochs", "1"],
    "export": ["export", "out", *MODEL],
    "shrink": ["shrink", "other", "-o", "out", *MODEL, "--force"],
    "run": ["run", "recipe.toml", "-o", "out", "--force"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_in_use_is_refused(run: Call, place: Path, command: str) -> None:  # noqa: F811
    handle = os.open("out", os.O_RDONLY)  # a lock belongs to the opened folder, as another process would have it
    fcntl.flock(handle, fcntl.LOCK_EX)
    before = contents(place)
    code, _, err = run(*WRITERS[command])
    assert code == 2
    assert "another process writes to this folder; wait for it, or choose another output" in err
    assert contents(place) == before
    os.close(handle)


def test_reading_needs_no_lock(run: Call, place: Path) -> None:  # noqa: F811
    with sole_writer(Path("out")):
        assert run("report", "out", *MODEL, "--no-latency", "--no-gradient")[0] == 0
        assert run("verify", "out/model.onnx", "--against", "out", *MODEL)[0] == 0


def test_the_lock_goes_with_the_process(place: Path) -> None:
    code = (
        "import os, pathlib; from fxprune.lock import sole_writer\n"
        "with sole_writer(pathlib.Path('out')): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another process writes to this folder"):
            annotate("out", note=1)
        holder.kill()
    annotate("out", note=1)
    assert json.loads(Path("out/fxprune.json").read_text())["notes"]["note"] == 1


def test_blocks_of_one_process_lie_within_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with sole_writer(folder):
        with sole_writer(folder):
            (folder / "file").touch()
        with pytest.raises(BlockingIOError):
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    with sole_writer(folder):
        pass
    assert (folder / "file").exists()


def test_a_folder_in_which_nothing_came_to_be_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="in vain"), sole_writer(tmp_path / "a" / "b" / "c"):
        raise ValueError("in vain")
    assert [*tmp_path.rglob("*")] == [tmp_path / "a"]


def test_rows_in_use_are_refused(run: Call, place: Path) -> None:  # noqa: F811
    with RowFile(place / "new" / "rows.jsonl", KIND) as rows:
        rows.append({"name": "a", "at": "1"})
        for command in (["study", "sanity", "setting.toml", "-o", "new"], ["compat", "-o", "new/rows.jsonl"]):
            code, _, err = run(*command)
            assert code == 2
            assert "another run writes to this file; wait for it, or choose another" in err


# --- no space


@pytest.fixture
def little_space() -> Iterator[Callable[[], None]]:
    """Files beyond a kilobyte cannot be written, from the call on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLERS = {
    **WRITERS,
    "prune anew": [*PRUNE, "-o", "new"],
    "export elsewhere": ["export", "out", *MODEL, "-f", "new/net.onnx"],
    "report": ["report", "out", *MODEL, "--no-latency", "--no-gradient", "--html", "page.html"],
}


@pytest.mark.parametrize("command", FILLERS)
def test_a_full_disk(run: Call, place: Path, little_space: Callable[[], None], command: str) -> None:  # noqa: F811
    """What stood stands, nothing half-written is left, and with space again the same command does it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = contents(place)
    little_space()
    code, _, err = run(*FILLERS[command])
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2, err
    assert "cannot write" in err
    assert "free some space" in err
    assert "Traceback" not in err
    assert {path: digest for path, digest in contents(place).items() if digest} == {
        path: digest for path, digest in before.items() if digest
    }
    code, _, err = run(*FILLERS[command])
    assert code == 0, err


def test_rows_on_a_full_disk(tmp_path: Path, little_space: Callable[[], None]) -> None:
    path = tmp_path / "rows.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RowFile(path, KIND) as rows:
        rows.append({"name": "x" * 900, "at": "1"})
        whole = path.read_bytes()
        little_space()
        with pytest.raises(ResultsError, match=r"cannot write .*rows.jsonl: .*; free some space"):
            rows.append({"name": "y" * 900, "at": "2"})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole  # not a torn row before the next one
        rows.append({"name": "z", "at": "3"})
    with RowFile(path, KIND, resume=True) as rows:
        assert [row["at"] for row in rows.rows] == ["1", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system; a limit on file sizes stands in for it above")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_file_system(run: Call, place: Path, small_disk: Path) -> None:  # noqa: F811
    code, _, err = run(*PRUNE, "-o", str(small_disk / "a"))
    code, _, err = (code, "", err) if code else run(*PRUNE, "-o", str(small_disk / "b"))
    assert code == 2
    assert "No space left on device" in err
    assert "free some space or choose another output" in err
    assert not any((small_disk / name / "fxprune.json").exists() for name in ("b",))
    code, _, err = run("export", "out", *MODEL, "-f", str(small_disk / "net.onnx"), "--encoding", "dense")
    assert code == 2
    assert "No space left on device" in err
    assert not (small_disk / "net.onnx").exists()


# --- no permission


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write to: by its mode, or for root by its file system."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("root may write to any folder, and may not mount a read-only one here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "command",
    [
        [*PRUNE, "-o", "locked/new"],
        [*PRUNE, "-o", "locked"],
        ["train", "out", *MODEL, "--log", "locked/log.csv"],
        ["export", "out", *MODEL, "-f", "locked/net.onnx"],
        ["report", "out", *MODEL, "--no-latency", "--no-gradient", "--html", "locked/page.html"],
        ["run", "recipe.toml", "-o", "locked/new"],
        ["study", "sanity", "setting.toml", "-o", "locked/new"],
        ["compat", "-o", "locked/rows.jsonl"],
        ["compat", "table", "rows.jsonl", "--html", "locked/page.html"],
    ],
    ids=lambda command: " ".join(command[:2] if command[0] == "compat" else command[:1]),
)
def test_a_read_only_folder(run: Call, place: Path, read_only: Path, command: list[str]) -> None:  # noqa: F811
    (place / "rows.jsonl").touch()
    before = contents(place)
    code, _, err = run(*command)
    assert code == 2, err
    assert "cannot write locked" in err
    assert "choose another" in err
    assert contents(place) == before


# --- names


class Named(nn.Module):
    """Layers with names that are no identifiers, in an order that sorting would change."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("größe 2", nn.Linear(64, 16))
        self.add_module("Выход", nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.Выход(torch.relu(getattr(self, "größe 2")(x.flatten(1))))


def test_names_of_layers_with_spaces_and_without_ascii(tmp_path: Path) -> None:
    module = Named()
    pruned = prune(module)
    fxprune.save(pruned, tmp_path / "out")
    again = fxprune.load(tmp_path / "out", module, (torch.zeros(2, 1, 8, 8),))
    assert torch.equal(again.masks["größe 2.weight"], pruned.masks["größe 2.weight"])
    assert fxprune.export_onnx(pruned, tmp_path / "netz.onnx", encoding="gaps").passed
    assert "Выход.bias" in {tensor.name for tensor in onnx.load(tmp_path / "netz.onnx").graph.initializer}


def test_paths_with_spaces_and_without_ascii(run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """All the way, by what is said to do next."""
    home = tmp_path / "mein Ordner ☃"
    home.mkdir()
    (home / "netz ß.py").write_text(NET)
    monkeypatch.chdir(home)
    code, _, err = run("prune", "netz ß.py:make_net", *PRUNE[2:], "--data", "digits", "-o", "выход 1")
    assert code == 0, err
    assert "next: fxprune train 'выход 1' --model 'netz ß.py:make_net'" in err
    again = ["--model", "netz ß.py:make_net"]
    code, _, err = run("train", "выход 1", *again, "--epochs", "1", "--log", "лог 1.csv")
    assert code == 0, err
    assert "next: fxprune export 'выход 1' --model 'netz ß.py:make_net'" in err
    with Path("лог 1.csv").open(newline="") as file:
        assert len([*csv.DictReader(file)]) == 1
    code, _, err = run("export", "выход 1", *again, "-f", "netz 1 ☃.onnx")
    assert code == 0, err
    code, _, err = run("verify", "netz 1 ☃.onnx", "--against", "выход 1", *again)
    assert code == 0, err
    code, _, err = run("report", "выход 1", *again, "--no-latency", "--no-gradient", "--html", "страница 1.html")
    assert code == 0, err
    assert Path("страница 1.html").is_file()
    (home / "рецепт 1.toml").write_text(RECIPE.replace("net.py", "netz ß.py"), encoding="utf-8")
    assert fxprune.recipes.Recipe.read(Path("рецепт 1.toml")).job.model.name == f"{home / 'netz ß.py'}:make_net"


def test_relative_paths_from_another_directory(
    run: Call,  # noqa: F811
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    model = ["--model", "../net.py:make_net"]
    assert run("train", "../out", *model, "--epochs", "1", "--log", "log.csv")[0] == 0
    assert run("export", "../out", *model, "-f", "../net.onnx")[0] == 0
    assert run("prune", "../net.py:make_net", *PRUNE[2:], "-o", "../a/b")[0] == 0
    monkeypatch.chdir(place)
    assert Path("below/log.csv").is_file()
    assert Path("a/b/fxprune.json").is_file()
    code, out, err = run("report", "out", *MODEL, "--no-latency", "--no-gradient", "--json")
    assert code == 0, err
    assert json.loads(out)["file"]["bytes"] == Path("net.onnx").stat().st_size  # found where it was exported to
