"""`parts_to_onnx`: a model captured in parts, written as ONNX by way of its own Python.

No graph holds such a model, so torch traces the module itself on its example inputs, with zeros where weights
were removed. What its Python decides from values is fixed as the example has it, except where operators of
ONNX decide the same (suppression, top-k). So the file takes inputs of the example's sizes, and refuses others.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.model import PrunedModel
from fxprune.regions import Region


@dataclass(frozen=True)
class Eager:
    """A module of the user's own class, ready to be traced.

    Attributes:
        module: in evaluation mode, with zeros where weights were removed.
        args: example inputs that it runs on.
        names: a name for each tensor of these.
    """

    module: nn.Module
    args: tuple[Any, ...]
    names: tuple[str, ...]


def eager(pruned: PrunedModel) -> Eager:
    """The module that a model captured in parts came from, as it computes with its masks.

    Raises:
        ExportError: a removed weight is no zero of the original's parameters, or the module runs in
            evaluation mode on no positional inputs.
    """
    captured = pruned.captured
    args, kwargs = captured.sample_inputs(1)
    state = pruned.dense_state_dict()
    module = copy.deepcopy(captured.host).eval()
    Region.release(module)
    own = {name: tensor for name, tensor in module.state_dict().items() if name in state}
    for name, tensor in own.items():
        tensor.copy_(state[name])
    args = _needed(module, args, kwargs)
    return Eager(module, args, tuple(f"input_{i}" for i, _ in enumerate(tensors(args))))


def parts_to_onnx(pruned: PrunedModel, opset: int) -> Any:
    """The ONNX model of a model that is captured in parts; weights have their names.

    Raises:
        ExportError: torch cannot trace the module, or see `eager`.
    """
    import onnx

    source = eager(pruned)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                source.module,
                source.args,
                file,  # type: ignore[arg-type]  # torch writes to files as well, and says so elsewhere
                dynamo=False,
                opset_version=opset,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # else batch normalisations go into the weights
                input_names=list(source.names),
            )
    except Exception as error:  # the exporter raises errors of many classes
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"torch cannot write this model as ONNX: {type(error).__name__}: {reason}") from error
    return onnx.load_from_string(file.getvalue())


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in a tree, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _needed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments that evaluation needs: without those that have defaults, if that runs."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    for some in (args[:required], args):
        try:
            with torch.no_grad():
                module(*copy.deepcopy(some))
        except Exception as error:  # the model's own code
            failed = error
        else:
            return some
    raise ExportError(
        f"expected a model that runs on its positional example inputs, got {type(failed).__name__}: {failed}; "
        f"inputs by keyword ({', '.join(kwargs) or 'none'}) cannot be written here"
    )
