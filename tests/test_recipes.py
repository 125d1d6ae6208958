"""The recipes of the paper: they are read as they stand, and say what is missing where the data is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune import zoo
from fxprune.errors import DataError
from fxprune.recipes import Recipe, run

RECIPES = sorted((Path(__file__).parent.parent / "model_zoo/recipes").glob("*.toml"))
PAPERS = [path for path in RECIPES if path.stem.startswith(("cifar", "tiny", "imagenet"))]


def test_every_data_set_and_network_of_the_paper_has_one() -> None:
    assert [path.stem for path in PAPERS] == [
        "cifar10-resnet32",
        "cifar10-vgg19",
        "cifar100-resnet32",
        "cifar100-vgg19",
        "imagenet-resnet50",
        "imagenet-vgg16",
        "tiny-imagenet-resnet32",
        "tiny-imagenet-vgg19",
    ]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_papers_schedule(path: Path) -> None:
    recipe = Recipe.read(path)
    train = recipe.train
    epochs = {"cifar10": 160, "cifar100": 160, "tiny": 300, "imagenet": 90}[path.stem.partition("-")[0]]
    decay = 5e-4 if path.stem.startswith("cifar") else 1e-4
    assert (train.epochs, train.weight_decay, train.momentum, train.nesterov) == (epochs, decay, 0.9, False)
    assert [train.rate(progress) for progress in (0.0, 0.49, 0.51, 0.76)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert (recipe.job.floor, recipe.job.live, recipe.job.temperature) == (0.0, False, 200.0)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_without_the_data_the_recipe_says_what_to_get(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXPRUNE_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(path)
    with pytest.raises(DataError) as error:
        run(recipe)
    assert any(word in str(error.value) for word in ("download", "unpacked", "class folders"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_model_of_a_recipe_exists(path: Path) -> None:
    spec = Recipe.read(path).job.model
    library = spec.name.partition(":")[0]
    if library in zoo.LIBRARIES:
        assert zoo.list_models(spec.name) == [spec.name]
    else:
        assert Path(spec.name.rpartition(":")[0]).is_file()
