"""Reading an ONNX file back: the model, and its weights as ONNX Runtime decodes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fxprune.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from onnxruntime import InferenceSession


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file, with the tensors of a second file where there is one.

    Raises:
        ExportError: there is no such file, or it cannot be read.
    """
    import onnx

    try:
        return onnx.load(Path(path))
    except Exception as error:  # protobuf's errors share no class
        raise ExportError(f"{path}: expected an ONNX file, got one that cannot be read ({error})") from error


def open_session(model: Path | bytes, *, optimised: bool = True, threads: int = 0) -> InferenceSession:
    """A session on the CPU that says nothing about what it could do better; 0 threads are one a core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


class Constants:
    """What a model computes from its tensors alone.

    Any way to store a weight is read like that, and by the code of a runtime instead of ours.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.dense = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.makers = {name: node for node in graph.node for name in node.output}

    def get(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor; None if there is none, or one that depends on the model's inputs.

        Raises:
            Exception: of whatever class ONNX Runtime has for a decoder that it cannot run.
        """
        from onnx import numpy_helper

        if name in self.dense:
            return numpy_helper.to_array(self.dense[name])
        tensors = self.needed(name)
        if not tensors:
            return None
        (value,) = open_session(self._part(name, tensors), optimised=False, threads=1).run(None, {})
        return value

    def needed(self, name: str) -> list[str]:
        """The tensors that `name` is made from, itself if it is one; none if inputs are among them."""
        tensors, pending, seen = [], [name], set()
        while pending:
            each = pending.pop()
            if each in self.dense or each in self.sparse:
                tensors.append(each)
            elif each not in self.makers:
                return []
            elif each not in seen:
                seen.add(each)
                pending += [entry for entry in self.makers[each].input if entry]
        return tensors

    def _nodes(self, name: str) -> list[NodeProto]:
        """The nodes that make `name`, in order."""
        wanted, nodes = {name}, []
        for node in reversed(self.model.graph.node):
            if wanted & set(node.output):
                wanted.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _part(self, name: str, tensors: list[str]) -> bytes:
        """A model without inputs that returns `name`."""
        import onnx
        from onnx import helper

        nodes = self._nodes(name)
        graph = helper.make_graph(
            # a sparse initializer that is the weight itself is read through a node
            nodes or [helper.make_node("Identity", [name], [f"{name}/read"])],
            "part",
            [],
            [onnx.ValueInfoProto(name=name if nodes else f"{name}/read")],
            [self.dense[each] for each in tensors if each in self.dense],
            sparse_initializer=[self.sparse[each] for each in tensors if each in self.sparse],
        )
        part = helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            functions=self.model.functions,
        )
        return part.SerializeToString()
