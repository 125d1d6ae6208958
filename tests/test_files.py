from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxprune.files import replacing


@pytest.fixture
def permissive():
    """A umask whose effect can be told from that of mkstemp, which makes files private."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_writes_a_new_file_and_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "net.onnx"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    for path in (old, new):
        with pytest.raises(error):
            interrupted(path, error)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "old"


def test_a_failing_last_step_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "net.onnx"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"), replacing(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_the_temporary_file_is_hidden_beside_it_with_its_suffix(tmp_path: Path) -> None:
    # beside it, since only within one file system a rename is atomic
    with replacing(tmp_path / "net.onnx") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        assert temporary.name.startswith(".")


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # it ends last
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "net.onnx", tmp_path / ".net.onnx.notes.onnx"
    leftover = tmp_path / ".net.onnx.abcdef12.onnx"
    leftover.write_text("half")
    other.write_text("of nobody's business")
    with replacing(path) as first:
        assert not leftover.exists()
        with replacing(path) as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")
    assert sorted(tmp_path.iterdir()) == [other, path]


@pytest.mark.usefixtures("permissive")
def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o644


def test_no_folder_can_be_made_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError), replacing(tmp_path / "file" / "net.onnx"):  # noqa: PT011
        pytest.fail("there is nowhere to write")
