"""Operators that scoring puts in the place of torch's: equal in value, made to be differentiated twice.

For some of torch's operators the gradient of the gradient does not exist (hard sigmoid), is infinite at zero
(norm), or is put together from a dozen element-wise passes (batch and layer normalisation, GELU) or from a
convolution whose kernel is a whole image (convolutions). Here it is written out, in terms of the
kernels that torch has for the first gradient. ``benchmarks/scoring.py`` shows what that saves.

Notation: `g` is the gradient that a first backward pass gets, `v` what the second one gets for the result of
the first, `ggy` and so on what it returns. Forward derivatives (``jvp``) are made of the same parts, and can be
differentiated in turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fxprune import operators
from fxprune.doubly.activations import gelu, hardsigmoid, hardswish, relu
from fxprune.doubly.attentions import attention
from fxprune.doubly.batch_norms import batch_norm
from fxprune.doubly.boxes import roi_align
from fxprune.doubly.convolutions import convolution
from fxprune.doubly.layer_norms import layer_norm
from fxprune.doubly.reductions import log_softmax, softmax, vector_norm

REPLACEMENTS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "relu": relu,
    "gelu": gelu,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "scaled_dot_product_attention": attention,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "linalg_vector_norm": vector_norm,
    "roi_align": roi_align,
}


def make_doubly_differentiable(graph: fx.Graph) -> None:
    """Let a graph call the operators of this module."""
    for node in list(graph.nodes):
        replacement = REPLACEMENTS.get(operators.name_of(node))
        if replacement is not None and not operators.changed(node):
            node.target = replacement


class _Replacing(TorchFunctionMode):
    """Replaces what Python code calls, where that has no second derivative."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.torchvision.roi_align:
            function = roi_align
        elif function in (F.hardsigmoid, F.hardswish):
            function, args, kwargs = REPLACEMENTS[function.__name__], args[:1], None
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def twice_differentiable_calls() -> Iterator[None]:
    """For the Python code between the regions of a host: its calls have a second derivative inside the block."""
    with sdpa_kernel(SDPBackend.MATH), _Replacing():
        yield
