"""Peak memory and time of pruning a model of a billion parameters.

    python benchmarks/large.py                       # timm:vit_giant_patch14_224 at 90%, two images
    python benchmarks/large.py --model timm:vit_small_patch16_224 --json results.json

All of it counts: building the model, capturing it, scoring with GraSP, the masks, the pruned model. Memory is the
largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from pathlib import Path
from typing import Any


def measure(name: str, images: int, memory: int | None) -> dict[str, Any]:
    """Prune a model at 90% on random images of its own size."""
    import torch

    from fxprune import prune
    from fxprune.zoo import ModelSpec, build

    torch.manual_seed(0)
    start = time.perf_counter()
    model, shape = build(ModelSpec(name))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    built = time.perf_counter()
    batches = [(torch.randn(images, *shape), torch.arange(images))]
    pruned = prune(model, data=batches, sparsity=0.9, memory=memory)
    return {
        "model": name,
        "images": images,
        "parameters": parameters,
        "sparsity": pruned.masks.sparsity,
        "build_s": built - start,
        "prune_s": time.perf_counter() - built,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm:vit_giant_patch14_224")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--memory", type=int, help="bytes for speed; 0 for as little as possible")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8d ms %(message)s")
    result = measure(options.model, options.images, options.memory)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
