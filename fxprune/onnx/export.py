"""`export_onnx`: write the folded network as an ONNX file, and let it stand only if it is verified."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import math
import os
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxprune import operators
from fxprune.errors import ExportError
from fxprune.files import replacing
from fxprune.model import PrunedModel, require_pruned
from fxprune.onnx.checks import METADATA, OLDEST_OPSET, state_digest
from fxprune.onnx.encode import Storage, Values, check_choice, encode_weights
from fxprune.onnx.encodings import DOMAIN
from fxprune.onnx.external import data_beside
from fxprune.onnx.parts import parts_to_onnx
from fxprune.onnx.sizes import file_bytes
from fxprune.onnx.verify import VERIFICATION, Verification, check_tolerance, verify_onnx
from fxprune.program import Input, Program
from fxprune.progress import working
from fxprune.regions import Region
from fxprune.rewrite import fold
from fxprune.trace import forget

logger = logging.getLogger(__name__)

OPSET = 20

# A view of a transposed tensor is legal or not by its strides, and these change when the exporter
# decomposes the graph. ONNX knows no strides: the copies below are gone from the file.
_VIEWS = ("view", "reshape", "_unsafe_view", "flatten")


def export_onnx(
    pruned: PrunedModel,
    path: str | os.PathLike[str],
    *,
    encoding: str = "auto",
    values: Values = "fp32",
    inline: bool = False,
    opset: int = OPSET,
    tolerance: float | None = None,
    images: Tensor | None = None,
    metadata: dict[str, str] | None = None,
) -> Verification:
    """Write the evaluation graph of `pruned`, its masks folded into its weights, as an ONNX file.

    The file is written beside `path`, verified against the model (`verify_onnx`), and moved to `path`
    only when every check has passed. The model itself is left as it is, in whatever mode it is. Beyond
    2 GB, which a protobuf message cannot hold, tensors go to a second file in the same folder.

    Args:
        pruned: the model, on any device.
        path: the file to write; one that exists is replaced.
        encoding: how weights are stored: ``"dense"``, ``"coo"``, ``"bitmask"``, ``"gaps"``, or for each weight
            the smallest of these (``"auto"``, which leaves out coo: see `fxprune.onnx.encodings.coo`).
        values: ``"fp32"``: non-zeros as the model has them; ``"fp16"``: rounded to float16, which halves the
            file. What is computed stays as precise as the model.
        inline: write decoders out for each weight instead of calling functions, for runtimes that do not
            take functions inside a file (OpenVINO); about a kilobyte a weight, and a graph hard to read.
        opset: version of ONNX's standard operators, 18 or later.
        tolerance: largest difference between ONNX Runtime and PyTorch, relative to the largest output;
            by default 1e-4, and 1e-2 for a model in half precision, whose sums round that much.
        images: real inputs, batch first, to compare the best class on; random ones by default.
        metadata: further entries for the file's metadata.

    Raises:
        ExportError: the graph cannot be written as ONNX, or not as asked for.
        VerificationError: the file does not do what the model does; nothing is left at `path`.
    """
    import onnx

    require_pruned(pruned, ExportError)
    check_choice(encoding, values)
    check_tolerance(tolerance)
    if not all(isinstance(part, str) for entry in (metadata or {}).items() for part in entry):
        raise ExportError(f"metadata: expected strings by name, got {metadata!r}; write numbers as strings")
    latest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not OLDEST_OPSET <= opset <= latest:
        raise ExportError(
            f"opset: expected {OLDEST_OPSET} to {latest}, got {opset!r}; older ones lack operators used here, "
            "later ones are unknown to the installed onnx"
        )
    if any(tensor.dtype is torch.bfloat16 for tensor in pruned.state_dict().values()):
        raise ExportError(
            "the model is in bfloat16, which ONNX Runtime does not run on the CPU; use .float() first"
        )
    target = Path(path)
    if target.is_dir():
        raise ExportError(f"{target}: expected a path for a file, got a folder; add a file name to it")
    source = state_digest(pruned)
    model = copy.deepcopy(pruned).cpu()
    with working("writing ONNX"):
        proto = _to_onnx(model, opset) if model.captured.is_whole else parts_to_onnx(model, opset)
    storage = encode_weights(proto, {weight.name for weight in model.weights}, encoding, values)
    if inline:
        _inline(proto)
    for key, value in {**_metadata(model, storage, source), **(metadata or {})}.items():
        proto.metadata_props.add(key=key, value=value)
    del model
    try:
        with data_beside(proto, target), replacing(target) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            del proto
            with working("verifying the file"):
                result = verify_onnx(temporary, pruned, tolerance=tolerance, images=images)
            result.require()
            _add_metadata(temporary, VERIFICATION, json.dumps(result.summary()))
            result = replace(result, bytes=file_bytes(temporary))
    except OSError as error:
        raise ExportError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another path"
        ) from error
    logger.info("wrote %s, %d bytes, verified", target, result.bytes)
    return result


def _to_onnx(model: PrunedModel, opset: int) -> Any:
    root = model.captured.host
    assert isinstance(root, Region)
    program = root._fxprune["eval"]
    folded = fold(model.captured, model.weights)
    names = _keep_tensor_outputs(folded.graph, program)
    _batch_attention(folded.graph)
    _add_zeros_to_volumes(folded.graph)
    _make_views_legal(folded.graph)
    _spell_out(folded.graph)
    _part_batches(folded.graph)
    folded.recompile()
    inputs = tuple(program.sample_inputs(2))
    batch = _batch(program)
    shapes = tuple(None if leaf.shape is None else _dynamic(leaf, batch) for leaf in program.inputs)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.export.export(folded, inputs, dynamic_shapes=shapes, strict=False)
            written = torch.onnx.export(
                exported,
                inputs,
                dynamo=True,
                optimize=False,
                dynamic_shapes=shapes,
                opset_version=opset,
                input_names=[leaf.name for leaf in program.inputs],
                output_names=names,
                verbose=False,
            )
            assert written is not None
            forget(exported)
            _simplify(written.model, {weight.name for weight in model.weights})
            return written.model_proto
    except Exception as error:  # the exporter raises errors of many classes
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        raise ExportError(
            f"torch cannot write this graph as ONNX: {type(cause).__name__}: "
            f"{str(cause).strip().partition(chr(10))[0]}"
        ) from error


def _batch(program: Program) -> Any:
    """The batch dimension by a name of its own, which the file keeps, within the limits of all inputs."""
    least, most = program.batch_limits
    bounds = {"min": least} if least > 2 else {}
    bounds |= {"max": int(most)} if most < math.inf else {}
    return torch.export.Dim("batch", **bounds)


def _dynamic(leaf: Input, batch: Any) -> dict[int, Any]:
    """Which sizes may change: the batch, and others as they turn out."""
    free = [place for place, size in enumerate(leaf.shape or ()) if size is None]
    return {place: torch.export.Dim.AUTO if place else batch for place in free}


def _keep_tensor_outputs(graph: fx.Graph, program: Program) -> list[str]:
    """Drop outputs that are no tensors, which ONNX has no place for; return the names of the rest."""
    (output,) = [node for node in graph.nodes if node.op == "output"]
    leaves = output.args[0]
    assert isinstance(leaves, (tuple, list))
    named = [(name, leaf) for name, leaf in zip(program.output_names, leaves, strict=True)]
    kept = [(name, leaf) for name, leaf in named if isinstance(leaf, fx.Node) and "shape" in leaf.meta]
    with graph.inserting_before(output):
        # what is returned as it came in, or as it is stored, would lose its own name to the output's
        kept = [
            (
                name,
                graph.call_function(torch.ops.aten.clone.default, (leaf,)) if leaf.op != "call_function" else leaf,
            )
            for name, leaf in kept
        ]
    if not kept:
        raise ExportError("the model returns no tensor, so there is nothing to export")
    output.args = (tuple(leaf for _, leaf in kept),)
    return [name for name, _ in kept]


def _make_views_legal(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if operators.name_of(node) in _VIEWS and isinstance(node.args[0], fx.Node):
            with graph.inserting_before(node):
                contiguous = graph.call_function(
                    torch.ops.aten.clone.default,
                    (node.args[0],),
                    {"memory_format": torch.contiguous_format},
                )
            node.update_arg(0, contiguous)


def _batch_attention(graph: fx.Graph) -> None:
    """Give attention the four dimensions that the exporter takes: those before the last three become one."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        before = node.meta["shape"][:-3]
        there: tuple[Any, tuple[Any, ...]]
        back: tuple[Any, tuple[Any, ...]]
        if len(node.meta["shape"]) == 3:  # heads that are part of the batch
            there, back = (aten.unsqueeze.default, (0,)), (aten.squeeze.dim, (0,))
        elif len(before) > 1 and operators.argument(node, 3, "attn_mask") is None:
            there, back = (aten.flatten.using_ints, (0, -4)), (aten.unflatten.int, (0, [-1, *before[1:]]))
        else:
            continue
        with graph.inserting_before(node):
            for place in range(3):
                node.update_arg(place, graph.call_function(there[0], (node.args[place], *there[1])))
        with graph.inserting_after(node):
            result = graph.call_function(back[0], (node, *back[1]))
        node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)


def _part_batches(graph: fx.Graph) -> None:
    """Take batches that went through a layer as one apart by a dimension of their own.

    Of pieces whose size follows the batch's, the exporter cannot prove how many there are.
    """
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.chunk.default):
        data, chunks = node.args[:2]
        dim = operators.argument(node, 2, "dim", 0) % len(data.meta["shape"])
        if dim in data.meta["dynamic"]:
            with graph.inserting_before(node):
                apart = graph.call_function(aten.unflatten.int, (data, dim, [chunks, -1]))
            node.target, node.args, node.kwargs = aten.unbind.int, (apart, dim), {}


def _spell_out(graph: fx.Graph) -> None:
    """Write operators that the exporter does not know by those that they are in evaluation."""
    for node in graph.nodes:
        if operators.name_of(node) == "rrelu":
            lower, upper = operators.argument(node, 1, "lower", 1 / 8), operators.argument(node, 2, "upper", 1 / 3)
            node.target, node.kwargs = torch.ops.aten.leaky_relu.default, {}
            node.args = (node.args[0], (lower + upper) / 2)


def _add_zeros_to_volumes(graph: fx.Graph) -> None:
    """Give convolutions of three dimensions a bias: where there is none, onnxscript 0.7 makes a wrong one."""
    for node in list(graph.nodes):
        if operators.name_of(node) == "conv3d" and operators.argument(node, 2, "bias") is None:
            weight = node.args[1].meta
            with graph.inserting_before(node):
                zeros = graph.call_function(
                    torch.ops.aten.zeros.default, ([weight["shape"][0]],), {"dtype": weight["dtype"]}
                )
            node.args = (*node.args[:2], zeros, *node.args[3:])


def _simplify(model: Any, weights: set[str]) -> None:
    """Fold constants and drop what does nothing, and leave every weight as the model has it.

    The exporter's own optimiser also fuses batch normalisations into the weights before them and merges
    equal weights, so that none could be held against the model any more; runtimes do both when they load.
    """
    import onnxscript.optimizer
    from onnx_ir.passes import common

    own = set(model.graph.initializers)
    common.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model, should_fold=lambda node: _may_fold(node, weights))
    for simplify in (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        simplify(model)
    _merge_constants(model.graph, own)


def _merge_constants(graph: Any, own: set[str]) -> None:
    """Keep one of equal constants that the exporter made; equal tensors of the model stay apart."""
    first: dict[tuple[Any, ...], Any] = {}
    for value in [value for name, value in graph.initializers.items() if name not in own]:
        constant = value.const_value
        if value.is_graph_output() or constant.dtype.is_string():
            continue
        same = (constant.dtype, tuple(constant.shape), hashlib.sha256(constant.tobytes()).digest())
        if first.setdefault(same, value) is not value:
            value.replace_all_uses_with(first[same])
            graph.initializers.pop(value.name)


def _may_fold(node: Any, weights: set[str]) -> bool | None:
    """Leave weights under their names and in their layout, so that the file can be held against the model."""
    return False if any(value is not None and value.name in weights for value in node.inputs) else None


def _inline(proto: Any) -> None:
    """Write out calls of functions; without the tensors, of which onnx would make copies."""
    from onnx import inliner

    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    proto.CopyFrom(inliner.inline_local_functions(proto))
    proto.graph.initializer.extend(tensors)
    standard = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)


def _metadata(model: PrunedModel, storage: Storage, source: str) -> dict[str, str]:
    import onnx
    import onnxruntime

    from fxprune import __version__

    masks = model.masks
    facts = {
        "kept": masks.kept,
        "prunable": masks.numel,
        "sparsity": masks.sparsity,
        "criterion": model.record.criterion if model.record else None,
        **asdict(storage),
        "source": source,
    }
    versions = {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)}
    return {METADATA: json.dumps({"version": __version__, **versions, **facts})}


def _add_metadata(path: Path, key: str, value: str) -> None:
    """Add an entry to a file without reading it: protobuf appends to lists what follows a message."""
    import onnx

    entry = onnx.ModelProto()
    entry.metadata_props.add(key=key, value=value)
    with path.open("ab") as file:
        file.write(entry.SerializeToString())
