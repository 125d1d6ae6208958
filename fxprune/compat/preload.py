"""Imported once by the server that the processes are forked from, so that none of them pays for it again.

Tracing a first model makes torch import the rest of itself. It must not start threads, which a fork would lose:
no kernel here is large enough to be spread over several.
"""

import atexit
import contextlib
import gc
import os
import sys
from types import TracebackType

import onnxscript.optimizer  # noqa: F401  # not onnxruntime, which starts a thread
import torch

with contextlib.suppress(ImportError):
    import transformers  # noqa: F401

from fxprune.capture import capture
from fxprune.compat import stages  # noqa: F401
from fxprune.zoo import list_models


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Quiet where a parent was interrupted while it started a process, which then reads the end of its orders."""
    if kind is not EOFError:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _excepthook
torch.set_num_threads(1)
list_models()  # imports timm and torchvision
capture(torch.nn.Linear(1, 1, device="meta"), (torch.zeros(2, 1, device="meta"),))
gc.collect()
gc.freeze()  # a collection in a process would otherwise touch, and so copy, every page of this
atexit.register(
    os._exit, 0
)  # the server has nothing to put in order, and what is frozen would be reported as leaked
