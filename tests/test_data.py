from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from fxprune.data import fashion_mnist, load, num_classes, splits
from fxprune.data.images import LUMA
from fxprune.data.loading import FAMILIES
from fxprune.errors import DataError


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def class_tree(folder: Path, names: str, images: int) -> Path:
    """`images` pictures for each class, the class's position readable from their colour."""
    for label, name in enumerate(names):
        for number in range(images):
            paint(folder / name / f"{number:02}.png", (40 * label, number, 0))
    return folder


def raw(image: Tensor, spec: str) -> Tensor:
    """Undo the normalisation: values of 0 ... 255."""
    family = FAMILIES[spec]
    return (image * torch.tensor(family.std)[:, None, None] + torch.tensor(family.mean)[:, None, None]) * 255


# --- digits


def test_digits_are_split_evenly_whatever_the_seed() -> None:
    found = load("digits", (1, 8, 8))
    assert (len(found.train), len(found.score), len(found.test)) == (1435, 1435, 362)
    shares = torch.tensor(found.test.targets).bincount() / (
        torch.tensor(found.test.targets).bincount() + torch.tensor(found.train.targets).bincount()
    )
    assert shares.min() > 0.19
    assert shares.max() < 0.21
    other = load("digits", (1, 8, 8), seed=1)
    assert torch.equal(other.test.images, found.test.images)
    everything = torch.cat([found.train.images, found.test.images])
    assert len(everything.unique(dim=0)) == 1797  # nothing is in both


def test_digits_are_normalised_float_images_with_int_labels() -> None:
    found = load("digits", (1, 8, 8))
    image, label = found.train[0]
    assert (type(image), image.dtype, image.shape, type(label)) == (Tensor, torch.float32, (1, 8, 8), int)
    pixels = torch.stack([found.train[i][0] for i in range(len(found.train))])
    assert pixels.mean().abs() < 0.01
    assert (pixels.std() - 1).abs() < 0.01
    assert found.class_names == tuple("0123456789")
    assert num_classes("digits") == found.num_classes == 10


def test_grey_images_are_repeated_for_three_channels() -> None:
    grey, colour = load("digits", (1, 16, 16)).test[5][0], load("digits", (3, 16, 16)).test[5][0]
    assert torch.equal(colour, grey.expand(3, 16, 16))


def test_resizing_at_once_and_one_by_one_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = load("digits", (1, 20, 12))
    monkeypatch.setattr(splits, "RESIZED_LIMIT", 0)
    one_by_one = load("digits", (1, 20, 12))
    assert at_once.test.images.shape[-2:] == (20, 12)
    assert one_by_one.test.images.shape[-2:] == (8, 8)
    for index in (0, 100, 300):
        torch.testing.assert_close(at_once.test[index], one_by_one.test[index])


def test_large_images_are_not_kept_in_memory() -> None:
    assert load("digits", (3, 224, 224)).train.images.shape == (1435, 1, 8, 8)


def test_a_limit_keeps_the_classes_equal_and_the_test_set_whole() -> None:
    found = load("digits", (1, 8, 8), limit=105)
    assert len(found.train) == len(found.score) == 105
    counts = torch.tensor(found.train.targets).bincount(minlength=10)
    assert counts.min() == 10
    assert counts.max() == 11
    assert len(found.test) == 362
    assert torch.equal(found.train.images, load("digits", (1, 8, 8), limit=105).train.images)
    assert not torch.equal(found.train.images, load("digits", (1, 8, 8), limit=105, seed=1).train.images)
    assert len(load("digits", (1, 8, 8), limit=10**6).train) == 1435
    with pytest.raises(DataError, match="positive limit, got 0"):
        load("digits", (1, 8, 8), limit=0)


# --- Fashion-MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str = "") -> np.ndarray:
    images = np.arange(6 * 28 * 28).reshape(6, 28, 28) % 251
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.array([3, 1, 4, 1, 5, 9]))
    return images


@pytest.mark.parametrize(
    ("below", "suffix"), [("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz"), (".", ".gz")]
)
def test_fashion_mnist_is_read_packed_or_not(tmp_path: Path, below: str, suffix: str) -> None:
    images = write_fashion(tmp_path / below, suffix)
    found = load("fashion-mnist", (1, 28, 28), root=tmp_path)
    assert found.test.targets == [3, 1, 4, 1, 5, 9]
    torch.testing.assert_close(raw(found.test[2][0], "fashion-mnist"), torch.tensor(images[2:3]).float())
    assert found.class_names[9] == "Ankle boot"


def test_fashion_mnist_of_debian() -> None:
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip(f"{fashion_mnist.DEBIAN_FOLDER} is absent: apt install dataset-fashion-mnist")
    found = load("fashion-mnist", (1, 28, 28), limit=2000)
    assert (len(found.train), len(found.test)) == (2000, 10_000)
    pixels = torch.stack([found.score[i][0] for i in range(2000)])
    assert pixels.mean().abs() < 0.05
    assert (pixels.std() - 1).abs() < 0.05


def test_missing_fashion_mnist_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist.*download=True") as caught:
        load("fashion-mnist", (1, 28, 28), root=tmp_path)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not an idx file", bytes([0, 0, 8, 3, 0, 0, 0, 9]), b"\0\0\x08\x01\0\0\0\x09abc"]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files_are_explained(tmp_path: Path, content: bytes, suffix: str) -> None:
    write_fashion(tmp_path, suffix)
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=r"IDX format in .*train-images|as many labels as images"):
        load("fashion-mnist", (1, 28, 28), root=tmp_path)


# --- CIFAR


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images a batch, in the layout of both sets, with the checksums of torchvision left out."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    for kind, key, names in ((datasets.CIFAR10, "labels", 10), (datasets.CIFAR100, "fine_labels", 100)):
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        for files in ("train_list", "test_list"):
            for file, _ in getattr(kind, files):
                (folder / file).write_bytes(pickle.dumps({"data": pixels, key: [0, 1, 2, names - 1]}))
            monkeypatch.setattr(kind, files, [(file, None) for file, _ in getattr(kind, files)])
        meta = {kind.meta["key"]: [f"name {i}" for i in range(names)]}
        (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    return tmp_path


@pytest.mark.parametrize(("spec", "classes", "images"), [("cifar10", 10, 20), ("cifar100", 100, 4)])
def test_cifar_is_read(cifar: Path, spec: str, classes: int, images: int) -> None:
    found = load(spec, (3, 32, 32), root=cifar)
    assert (len(found.train), len(found.score), len(found.test)) == (images, images, 4)
    assert num_classes(spec) == found.num_classes == len(found.class_names) == classes
    assert found.test.targets == [0, 1, 2, classes - 1]
    stored = pickle.loads((cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    torch.testing.assert_close(
        raw(found.test[1][0], spec), torch.tensor(stored[1]).reshape(3, 32, 32).float(), atol=0.01, rtol=0
    )


def test_photographs_are_augmented_to_train_and_never_to_score(cifar: Path) -> None:
    found = load("cifar10", (3, 32, 32), root=cifar)
    torch.manual_seed(0)
    trained = [found.train[0][0] for _ in range(8)]
    assert all(image.shape == (3, 32, 32) for image in trained)
    assert len({image.sum().item() for image in trained}) > 4
    assert torch.equal(found.score[0][0], found.score[0][0])
    assert torch.equal(found.score[0][0], found.test[0][0])  # the same picture in this fixture


def test_digits_are_not_augmented() -> None:
    found = load("digits", (1, 8, 8))
    assert torch.equal(found.train[0][0], found.score[0][0])


def test_colours_become_grey_for_one_channel(cifar: Path) -> None:
    grey = load("cifar10", (1, 32, 32), root=cifar).test[0][0]
    colour = raw(load("cifar10", (3, 32, 32), root=cifar).test[0][0], "cifar10")
    luma = torch.tensor(LUMA)
    mean, std = (luma @ torch.tensor(c) for c in (FAMILIES["cifar10"].mean, FAMILIES["cifar10"].std))
    expected = (torch.einsum("c,chw->hw", luma, colour) / 255 - mean) / std
    torch.testing.assert_close(grey[0], expected, atol=0.02, rtol=0)  # grey levels are whole numbers


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_missing_cifar_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setenv("FXPRUNE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz .*download=True") as caught:
        load("cifar10", (3, 32, 32), root=tmp_path if by == "argument" else None)
    assert str(tmp_path / "cifar-10-batches-py") in str(caught.value)


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match="no route to host"):
        load("cifar10", (3, 32, 32), root=tmp_path, download=True)


# --- folders of images


def test_photographs_of_any_size_are_cropped_and_not_squeezed(tmp_path: Path) -> None:
    """Of a photograph twice as wide as high, of which the left fifth is red, the middle has nothing red."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :8, 0] = 255
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "a" / "1.png")
    found = load(f"imagefolder:{tmp_path}", (3, 14, 14))
    assert raw(found.test[0][0], "imagefolder").abs().max() < 1
    assert torch.equal(found.score[0][0], found.test[0][0])
    torch.manual_seed(0)
    shares = {round(float(raw(found.train[0][0], "imagefolder")[0].mean()) / 255, 2) for _ in range(20)}
    assert len(shares) > 5  # pieces, of which some have none of the red columns, and some many
    assert min(shares) == 0
    assert max(shares) > 0.2
    assert found.train[0][0].shape == (3, 14, 14)


def test_an_image_folder_with_train_and_val(tmp_path: Path) -> None:
    class_tree(tmp_path / "train", "abc", 4)
    class_tree(tmp_path / "val", "abc", 2)
    found = load(f"imagefolder:{tmp_path}", (3, 8, 8))
    assert (len(found.train), len(found.test), found.class_names) == (12, 6, ("a", "b", "c"))
    assert num_classes(f"imagefolder:{tmp_path}") == 3
    for image, label in (found.test[i] for i in range(6)):
        assert image.shape == (3, 8, 8)
        assert raw(image, "imagefolder")[0].mean() == pytest.approx(40 * label, abs=0.01)


def test_a_class_absent_from_val_does_not_shift_the_labels(tmp_path: Path) -> None:
    class_tree(tmp_path / "train", "abc", 3)
    paint(tmp_path / "test" / "c" / "1.png", (80, 0, 0))
    found = load(f"imagefolder:{tmp_path}", (3, 8, 8))
    assert found.test.targets == [2]


def test_a_class_tree_finds_its_sibling(tmp_path: Path) -> None:
    class_tree(tmp_path / "train", "abc", 3)
    class_tree(tmp_path / "val", "abd", 3)  # other classes: not its test set
    class_tree(tmp_path / "test", "abc", 1)
    found = load(f"imagefolder:{tmp_path / 'train'}", (3, 8, 8))
    assert (len(found.train), len(found.test)) == (9, 3)


def test_a_class_tree_alone_holds_a_tenth_out(tmp_path: Path) -> None:
    class_tree(tmp_path / "train", "ab", 20)  # a class may be called train, val or test
    tree = (tmp_path / "train").rename(tmp_path / "tree")
    paint(tree / "train" / "1.png", (9, 9, 9))
    paint(tree / "train" / "2.png", (9, 9, 9))
    found = load(f"imagefolder:{tree}", (3, 8, 8))
    assert found.class_names == ("a", "b", "train")
    assert torch.tensor(found.test.targets).bincount().tolist() == [2, 2, 1]
    assert torch.tensor(found.train.targets).bincount().tolist() == [18, 18, 1]
    assert not set(found.train.images) & set(found.test.images)
    assert found.test.images == load(f"imagefolder:{tree}", (3, 8, 8), seed=3).test.images


def test_relative_paths_start_at_root(tmp_path: Path) -> None:
    class_tree(tmp_path / "pictures", "ab", 2)
    assert num_classes("imagefolder:pictures", root=tmp_path) == 2
    assert len(load("imagefolder:pictures", (1, 8, 8), root=tmp_path).test) == 2


def test_wrong_image_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no such folder; make one folder a class"):
        load(f"imagefolder:{tmp_path / 'nowhere'}", (3, 8, 8))
    with pytest.raises(DataError, match="got none; make one folder a class"):
        num_classes(f"imagefolder:{tmp_path}")
    class_tree(tmp_path / "train", "ab", 2)
    class_tree(tmp_path / "val", "abz", 1)
    with pytest.raises(DataError, match="got 'z', which training lacks"):
        load(f"imagefolder:{tmp_path}", (3, 8, 8))
    (tmp_path / "train" / "z").mkdir()
    with pytest.raises(DataError, match=r"expected images in .*/train/z, got none \(1 of 3"):
        load(f"imagefolder:{tmp_path}", (3, 8, 8))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    class_tree(tmp_path, "ab", 3)
    (tmp_path / "a" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    found = load(f"imagefolder:{tmp_path}", (3, 8, 8))
    with pytest.raises(DataError, match=r"expected an image in .*a/00\.png"):
        found.score[0]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "wnids.txt").write_text("n2\nn1\n")  # not in order, as in the real file
    for label, wnid in enumerate(("n1", "n2")):
        for number in range(3):
            paint(tmp_path / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", (90 * label, 0, 0), (64, 64))
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
    for number, label in enumerate((1, 0, 1)):
        paint(tmp_path / "val" / "images" / f"val_{number}.JPEG", (90 * label, 0, 0), (64, 64))
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\nval_2.JPEG\tn2\t0\t0\t9\t9\n"
    )
    return tmp_path


def test_tiny_imagenet_is_read(tiny: Path) -> None:
    found = load(f"tiny-imagenet:{tiny}", (3, 64, 64))
    assert num_classes(f"tiny-imagenet:{tiny}") == found.num_classes == 2
    assert found.class_names == ("n1", "n2")
    assert found.train.targets == [0, 0, 0, 1, 1, 1]
    assert found.test.targets == [1, 0, 1]
    for split in (found.score, found.test):
        for image, label in (split[i] for i in range(3)):
            assert raw(image, "tiny-imagenet")[0].mean() == pytest.approx(90 * label, abs=2)


def test_wrong_tiny_imagenet_is_explained(tiny: Path) -> None:
    with pytest.raises(DataError, match=r"expected a text file .*wnids\.txt"):
        num_classes(f"tiny-imagenet:{tiny / 'train'}")
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn7\n")
    with pytest.raises(DataError, match="class of wnids"):
        load(f"tiny-imagenet:{tiny}", (3, 64, 64))
    (tiny / "val" / "val_annotations.txt").write_text("\n")
    with pytest.raises(DataError, match="expected a line for each"):
        load(f"tiny-imagenet:{tiny}", (3, 64, 64))


# --- specs and shapes


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cifr10", "did you mean cifar10?"),
        ("fashion_mnist", "did you mean fashion-mnist?"),
        ("tinyimagenet:/data", "did you mean tiny-imagenet:PATH?"),
        ("imagefolder", "did you mean imagefolder:PATH?"),
        ("digits:/data", "did you mean digits?"),
        ("zzz", "use one of these"),
    ],
)
def test_unknown_data_is_explained(spec: str, said: str) -> None:
    for call in (lambda: load(spec, (3, 8, 8)), lambda: num_classes(spec)):
        with pytest.raises(DataError, match=f"got '{spec}'") as caught:
            call()
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((784,), "got 784"),
        ((3, 32), "CxHxW"),
        ((3, 16, 8, 8), "CxHxW"),
        ((3, 0, 8), "CxHxW"),
        ((2, 8, 8), "1 or 3"),
    ],
)
def test_shapes_that_are_no_image_are_explained(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load("digits", shape)
