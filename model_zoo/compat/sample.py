"""Print the sample that `make compat-sample` captures: the smallest model of each module of the libraries.

Run as: python model_zoo/compat/sample.py > model_zoo/compat/sample.txt; models are built without values.
"""

from __future__ import annotations

import warnings

import timm
import torch
from torchvision import models

from fxprune.zoo import ModelSpec, build


def size(name: str) -> float:
    """Number of parameters; infinite for models that cannot be built without values."""
    try:
        with torch.device("meta"):
            module, _ = build(ModelSpec(name))
    except Exception:
        return float("inf")
    return sum(p.numel() for p in module.parameters())


def modules() -> dict[str, list[str]]:
    """The names of the models by library and module."""
    found: dict[str, list[str]] = {}
    for module in timm.list_modules():
        found[f"timm.{module}"] = [f"timm:{name}" for name in timm.list_models(module=module)]
    for name in models.list_models():
        found.setdefault(models.get_model_builder(name).__module__, []).append(f"torchvision:{name}")
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for names in modules().values():
        if names:
            print(min(names, key=lambda name: (size(name), name)), flush=True)
