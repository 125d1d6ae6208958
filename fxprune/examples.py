"""`example`: what a model is called with, by the kind of model that it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.memory import free

_TOKENS = 8  # of a text that goes with another input
_OBJECTS = 2  # boxes in each image of a detector's


@dataclass(frozen=True)
class Example:
    """The arguments of one call, and targets to score on.

    Attributes:
        args: by position.
        kwargs: by keyword.
        targets: int64, one for each sample, all different.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def inputs(self) -> Any:
        """The arguments as a batch of `fxprune.prune` holds them."""
        return dict(self.kwargs) if self.kwargs and not self.args else self.args

    @property
    def shapes(self) -> list[str]:
        """The shapes of all tensors, as ``2x3x224x224``."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return ["x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]


def example(
    module: nn.Module, shape: tuple[int, ...], *, batch: int = 2, seed: int = 0, device: str = "cpu"
) -> Example:
    """Inputs for a model of `fxprune.zoo`: normal numbers, drawn from a seed.

    Classifiers, segmentation and video models take one tensor. torchvision's detectors take a list of images and,
    to train, their targets; its models of optical flow take two images. Those of transformers take inputs by name.

    Args:
        module: the model.
        shape: one sample, as `fxprune.zoo.build` gives it.
        batch: number of samples.
        seed: other seeds give other inputs.
        device: ``"meta"`` for inputs without values.

    Raises:
        CaptureError: they do not fit into memory.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = type(module).__module__

    def drawn() -> Tensor:
        try:
            if 4 * batch * math.prod(shape) > (free(torch.device("cpu")) or math.inf):
                raise MemoryError
            return torch.randn(batch, *shape, generator=generator, device="cpu")
        except (RuntimeError, TypeError, MemoryError) as error:  # sizes are positive: there is no other reason
            sizes = "x".join(map(str, shape))
            raise CaptureError(
                f"expected a sample that memory holds, got {sizes}; give a smaller shape"
            ) from error

    args: tuple[Any, ...] = (drawn(),)
    kwargs: dict[str, Any] = {}
    if kind.startswith("torchvision.models.detection."):
        images = list(drawn().unbind())
        args = (images, [_objects(image) for image in images])
    elif kind.startswith("torchvision.models.optical_flow."):
        args = (drawn(), drawn())
    elif kind.startswith("transformers."):
        args, kwargs = (), _named(module, drawn, batch, generator)
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))
    return Example(args, kwargs, torch.arange(batch))


def _named(module: Any, drawn: Callable[[], Tensor], batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """What a model of transformers takes: numbers, or tokens, or both, and tokens for a decoder of its own."""

    def tokens(length: int, vocabulary: int) -> Tensor:
        return torch.randint(vocabulary, (batch, length), generator=generator, device="cpu")

    config, main = module.config, module.main_input_name
    text = getattr(config, "text_config", None)
    if text is not None:  # text and images
        return {"input_ids": tokens(_TOKENS, text.vocab_size), "pixel_values": drawn()}
    if main == "input_ids":
        return {main: tokens(drawn().shape[1], config.vocab_size)}
    decoded = {"decoder_input_ids": tokens(_TOKENS, config.vocab_size)} if main == "input_features" else {}
    return {main: drawn(), **decoded}


def _objects(image: Tensor) -> dict[str, Tensor]:
    """What a detector is to find in an image: two boxes, with what some detectors also want of each."""
    height, width = image.shape[-2:]
    corners = [[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]
    boxes = torch.tensor(corners, device="cpu") * torch.tensor([width, height, width, height], device="cpu")
    masks = torch.zeros(_OBJECTS, height, width, dtype=torch.uint8, device="cpu")
    keypoints = torch.zeros(_OBJECTS, 17, 3, device="cpu")  # x, y, visible, for COCO's 17 points
    for box, mask, points in zip(boxes, masks, keypoints, strict=True):
        left, top, right, bottom = box.long().tolist()
        mask[top:bottom, left:right] = 1
        points[:] = torch.tensor([(left + right) / 2, (top + bottom) / 2, 1.0])
    return {"boxes": boxes, "labels": torch.tensor([1, 1], device="cpu"), "masks": masks, "keypoints": keypoints}
