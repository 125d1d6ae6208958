"""How small, how quick to open and how exact are sparse ONNX files? Each against the dense float32 file.

    python benchmarks/encoding.py                          # two networks, three sparsities, a Markdown table
    python benchmarks/encoding.py --model timm:resnet50 --sparsity 0.9 --json encoding.json

A network with random weights is pruned at random, through `fxprune.prune`, with the same density in all layers up
to chance: what an encoding takes depends on where the zeros are, and random places are the hardest. The entropy
bound is H(density) bits a weight for the positions, 32 bits a non-zero (16 for values in float16) and the rest of
the file: `fxprune.onnx.sizes.entropy_bound`.

Times are medians of interleaved runs, dense and encoded in turn in one process with one thread: opening a session
from a file in the page cache, and running one image. Decoder nodes are counted in ONNX Runtime's optimised graph.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
from record import Row

MODELS = ("timm:resnet50", "timm:vit_small_patch16_224")
SPARSITIES = (0.8, 0.9, 0.98)
FILES: dict[str, dict[str, Any]] = {  # name: options of export_onnx
    "auto": {},
    "auto fp16": {"values": "fp16"},
    "coo": {"encoding": "coo"},
    "bitmask": {"encoding": "bitmask"},
    "gaps": {"encoding": "gaps"},
}
DECODERS = {"BitShift", "BitwiseAnd", "CumSum", "ScatterElements", "GatherElements", "Expand"}


def session(path: Path, *, optimised: bool = True, dump: Path | None = None) -> Any:
    """An ONNX Runtime session with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    if not optimised:
        options.graph_optimization_level = level.ORT_DISABLE_ALL
    if dump is not None:  # layouts of the last level are of this machine, and no file of them can be written
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(dump)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def operators(path: Path, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a file."""
    import onnx

    session(path, dump=folder / "optimised.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def encoded(dense: Path, path: Path, pruned: Any, options: dict[str, Any]) -> Any:
    """Encode the weights of a dense file again, as `export_onnx` does, and verify what comes of it."""
    import onnx

    from fxprune.onnx.checks import METADATA, facts_of
    from fxprune.onnx.encode import encode_weights
    from fxprune.onnx.verify import verify_onnx

    model = onnx.load(dense)
    storage = encode_weights(model, {weight.name for weight in pruned.weights}, **options)
    facts = json.dumps({**facts_of(model), **asdict(storage)})
    next(entry for entry in model.metadata_props if entry.key == METADATA).value = facts
    onnx.save(model, path)
    result = verify_onnx(path, pruned, batches=(1,))
    result.require()
    print(f"  {path.name}: {result.bytes:,} bytes", file=sys.stderr, flush=True)
    return result


def measure(name: str, sparsity: float, repeats: int, folder: Path) -> list[Row]:
    """A row for each file of a network at a sparsity."""
    import torch

    from fxprune import export_onnx, prune
    from fxprune.onnx.sizes import entropy_bound, gzip_bytes, zstd_bytes
    from fxprune.zoo import ModelSpec, build

    torch.manual_seed(0)
    module, shape = build(ModelSpec(name))
    pruned = prune(module, torch.zeros(2, *shape), sparsity=sparsity, criterion="random", floor=0.0)
    masks = pruned.masks
    paths = {file: folder / f"{file}.onnx".replace(" ", "-") for file in ("dense", *FILES)}
    results = {"dense": export_onnx(pruned, paths["dense"], encoding="dense")}
    for file, options in FILES.items():
        results[file] = encoded(paths["dense"], paths[file], pruned, options)
    dense = results["dense"].bytes
    rest = dense - 4 * masks.numel
    counts = [(mask.numel(), int(mask.sum())) for mask in masks.values()]
    bounds = {bits: entropy_bound(counts, value_bits=bits, rest=rest) for bits in (32, 16)}

    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    starts = interleaved({file: partial(session, path) for file, path in paths.items()}, repeats)
    opened = {file: session(path) for file, path in paths.items()}
    feed = {opened["dense"].get_inputs()[0].name: image}
    runs = interleaved({file: partial(s.run, None, feed) for file, s in opened.items()}, 3 * repeats)
    plain = operators(paths["dense"], folder)
    common = {"model": name, "sparsity": sparsity, "nonzero": masks.kept, "prunable": masks.numel}
    rows = []
    for file, path in paths.items():
        graph = operators(path, folder)
        rows.append(
            {
                **common,
                "file": file,
                "bytes": results[file].bytes,
                "to_dense": results[file].bytes / dense,
                "to_bound": results[file].bytes / bounds[16 if "fp16" in file else 32],
                "start": starts[file] / starts["dense"],
                "start_ms": 1e3 * starts[file],
                "latency": runs[file] / runs["dense"],
                "latency_ms": 1e3 * runs[file],
                "decoder_nodes": sum(graph[op] - plain[op] for op in DECODERS),
                "same_graph": graph == plain,
                "difference": results[file].difference,
                "unoptimised": results[file].unoptimised,
                "rounding": results[file].rounding,
            }
        )
    for file, size in (
        ("gzip -6 of dense", gzip_bytes(paths["dense"])),
        ("zstd -3 of dense", zstd_bytes(paths["dense"])),
        ("zstd -19 of dense", zstd_bytes(paths["dense"], level=19)),
        ("entropy bound", round(bounds[32])),
        ("entropy bound, fp16", round(bounds[16])),
    ):
        to_bound = size / bounds[16 if "fp16" in file else 32]
        rows.append({**common, "file": file, "bytes": size, "to_dense": size / dense, "to_bound": to_bound})
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | sparsity | file | bytes | of dense | of the bound | session start | latency "
        "| decoder nodes | difference | unoptimised | by fp16 |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            row["model"].partition(":")[2],
            f"{row['sparsity']:.0%}",
            row["file"],
            f"{row['bytes']:,}",
            f"{row['to_dense']:.4f}",
            f"{row['to_bound']:.3f}",
        ]
        if "start" in row:
            cells += [f"{row['start']:.2f}", f"{row['latency']:.2f}", str(row["decoder_nodes"])]
            cells += [
                f"{row[name]:.0e}" if row[name] else "-" for name in ("difference", "unoptimised", "rounding")
            ]
        else:
            cells += [""] * 6
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--sparsity", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument(
        "--repeats", type=int, default=9, help="runs of each session start; three times as many of inference"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows: list[Row] = []
    for name, sparsity in itertools.product(options.model, options.sparsity):
        print(f"{name} at {sparsity:.0%}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, sparsity, options.repeats, Path(folder))
        record.write(options.json, rows, "onnx", "onnxruntime", "timm")  # after each, since they take a while
    print(table(rows))


if __name__ == "__main__":
    main()
