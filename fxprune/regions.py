"""`Region` and `CapturedModel`: modules that run captured graphs, and the host that holds them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.program import Program, retarget

Mode = Literal["train", "eval"]
MODES: tuple[Mode, Mode] = ("train", "eval")


class Region(nn.Module):
    """A module that runs captured graphs instead of the Python they came from.

    It holds the parameters and buffers of the original under the original names, in a tree of plain
    modules, and one `Program` for each mode; `training` picks the program. (Exported graphs cannot be
    switched: dropout, drop path and batch normalisation are fixed when they are traced.) Freezing a
    submodule with ``region.bn1.eval()`` therefore has no effect; call `eval` on the whole.

    The graphs reach their state as attributes of this module, so it has no public attribute of its own
    that could hide one of the model's.
    """

    _fxprune: dict[Mode, Program]

    def __init__(self, state: nn.Module, programs: Mapping[Mode, Program]) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = state._parameters, state._buffers, state._modules
        self._non_persistent_buffers_set = state._non_persistent_buffers_set
        self._version = state._version
        self._fxprune = dict(programs)

    @classmethod
    def adopt(cls, module: nn.Module, programs: Mapping[Mode, Program]) -> None:
        """Turn a module into a region that keeps its class, with its attributes and methods, but for `forward`.

        Code around it may use these: a detection head has a method for its loss. Its hooks are part of the
        graphs, so that it must not run them again.
        """
        own = module.__dict__
        traced = {
            name: own.pop(name) for name in ("forward", "_forward_hooks", "_forward_pre_hooks") if name in own
        }
        own.update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict(), _fxprune_traced=traced)
        own["_fxprune"] = dict(programs)
        module.__class__ = type(type(module).__name__, (cls, type(module)), {})

    @staticmethod
    def release(host: nn.Module) -> None:
        """Give the modules in `host` that were adopted their own `forward` again, and their hooks."""
        for module in host.modules():
            if isinstance(module, Region):
                module.__class__ = type(module).__bases__[1]
                module.__dict__.update(module.__dict__.pop("_fxprune_traced"))
                del module.__dict__["_fxprune"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program of the present mode; takes and returns what the original's `forward` does."""
        return self._fxprune["train" if self.training else "eval"].run(self, args, kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Region:
        probe = _probe(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if probe is not None:
            moved = fn(probe)
            self._fxprune = {mode: p.retargeted(probe, moved) for mode, p in self._fxprune.items()}
            for nested in (child for child in self.children() if isinstance(child, fx.GraphModule)):
                retarget(nested.graph, probe, moved)
                nested.recompile()
        return self


@dataclass(frozen=True)
class CapturedModel:
    """A module whose computation, or the parts of it that can be, are FX graphs.

    Attributes:
        host: the module to call. It is itself the only region where the whole model could be captured.
    """

    host: nn.Module

    @property
    def is_whole(self) -> bool:
        """Whether one region holds all of the model."""
        return isinstance(self.host, Region)

    def sample_inputs(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments to try the model with; those of the capture for a model that is captured in parts."""
        if isinstance(self.host, Region):
            return self.host._fxprune["train"].sample_call(batch)
        args, kwargs = copy.deepcopy(self.host.__dict__["_fxprune_example"])
        return args, kwargs

    @property
    def regions(self) -> dict[str, Region]:
        """The captured regions by their path in the host; the path of the host itself is ``""``."""
        return {path: module for path, module in self.host.named_modules() if isinstance(module, Region)}

    def alias(self) -> CapturedModel:
        """A copy with buffers of its own whose parameters are other objects on the same memory."""
        parameters = {
            id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.host.parameters()
        }
        return CapturedModel(copy.deepcopy(self.host, dict(parameters)))


def _probe(module: nn.Module) -> Tensor | None:
    """An empty tensor with the device and dtype of the module's floating-point state."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return None
