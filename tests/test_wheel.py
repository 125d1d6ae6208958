"""What the wheel holds: the package as it is here, with its types, pages and licence, and nothing else.

`make wheel-check` builds it in isolation, checks its metadata, and runs it in an environment of its own.
"""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).parent.parent
SOURCE = ("fxprune", "tests", "benchmarks", "model_zoo", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    try:
        if int(metadata.version("setuptools").partition(".")[0]) < 77:
            pytest.skip("setuptools 77 or later builds the wheel; make wheel-check fetches it")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools builds the wheel; make wheel-check fetches it")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCE:  # a copy, since setuptools writes into what it builds from
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_it_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.startswith(f"fxprune-{fxprune.__version__}.dist-info/")}
    package = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "fxprune").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert names == package
    assert {"fxprune/py.typed", "fxprune/report/templates/page.html", "fxprune/compat/page.html"} <= names


def test_its_metadata(wheel: zipfile.ZipFile) -> None:
    folder = f"fxprune-{fxprune.__version__}.dist-info"
    told = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert (told["Name"], told["Version"], told["License-Expression"]) == ("fxprune", fxprune.__version__, "MIT")
    assert told["Description-Content-Type"] == "text/markdown"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"fxprune = fxprune.cli:main" in wheel.read(f"{folder}/entry_points.txt")
