"""Damage to files, as chance has it: bytes, truncation, forged sizes and names, values of other types.

`DAMAGES` names what can be done to a file of each kind; a kind of damage that is named twice is done twice as
often. The same source of random numbers does the same to the same content.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from safetensors.torch import load, save

Draw = random.Random
Damage = Callable[[Draw, bytes], bytes]

_SIZES = [0, 1, -1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64, 10**30]
_NAMES = ["", ".", "..", "../secret.bin", "/etc/passwd", "weights-000000000000.safetensors", "a" * 5000, "\x00"]
_NAMES += [
    "evil.py:make_net",
    "evil:make_net",
    "timm:resnet18",
    "torchvision:nosuch",
    "imagefolder:..",
    "<script>",
]
_NAMES += ["${HOME}", "ё\u202e"]
_VALUES: list[Any] = [*_SIZES, *_NAMES, None, True, False, [], {}, [[]], [1, "x"], 0.5, -0.5, 1e308, float("nan")]
_VALUES += [float("inf"), {"a": 1}, ["../secret.bin"], [10**9] * 3, [2**62, 2**62]]


def flip_bits(draw: Draw, content: bytes) -> bytes:
    """A few bits."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 2, 8, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw: Draw, content: bytes) -> bytes:
    """The beginning, down to nothing."""
    return content[: draw.choice([0, 1, 8, len(content) // 2, len(content) - 1, draw.randrange(len(content))])]


def overwrite(draw: Draw, content: bytes) -> bytes:
    """A stretch of noise, zeros or ones."""
    start, length = draw.randrange(len(content)), draw.choice([1, 8, 100])
    noise = draw.choice([draw.randbytes(length), bytes(length), b"\xff" * length])
    return content[:start] + noise + content[start + length :]


def splice(draw: Draw, content: bytes) -> bytes:
    """A piece of the file once more in another place, or cut out."""
    start, length = draw.randrange(len(content)), draw.choice([1, 16, 200])
    piece, place = content[start : start + length], draw.randrange(len(content))
    if draw.random() < 0.5:
        return content[:place] + piece + content[place:]
    return content[:start] + content[start + length :]


def number_in_text(draw: Draw, content: bytes) -> bytes:
    """A number becomes another."""
    found = list(re.finditer(rb"\d+", content))
    at = draw.choice(found)
    return content[: at.start()] + str(draw.choice(_SIZES)).encode() + content[at.end() :]


def _value_somewhere(draw: Draw, tree: Any) -> Any:
    """A value of a tree of JSON becomes another, or goes, or comes twice."""
    places = [*_places(tree)]
    for _ in range(draw.choice([1, 1, 1, 3])):
        holder, key = draw.choice(places)
        action = draw.random()
        with contextlib.suppress(KeyError, IndexError, TypeError):  # it went with another
            if action < 0.15:
                del holder[key]
            elif action < 0.25 and isinstance(holder, list):
                holder.append(holder[key])
            elif action < 0.35 and isinstance(holder, dict):
                holder[draw.choice([str(key) + "x", "", "__class__", "name"])] = holder[key]
            else:
                holder[key] = draw.choice(_VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def json_value(draw: Draw, content: bytes) -> bytes:
    """Somewhere another value."""
    return json.dumps(_value_somewhere(draw, json.loads(content))).encode()


def nested(draw: Draw, content: bytes) -> bytes:
    """Brackets without end."""
    depth = draw.choice([100, 10_000, 1_000_000])
    text = draw.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])
    return draw.choice([text, content[:-2] + b',"x":' + text + b"}"])


def row_value(draw: Draw, content: bytes) -> bytes:
    """In one row another value."""
    lines = content.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    lines[place] = json_value(draw, lines[place]) + b"\n"
    return b"".join(lines)


def toml_value(draw: Draw, content: bytes) -> bytes:
    """An entry gets another value."""
    lines = content.decode().splitlines()
    place = draw.choice([i for i, line in enumerate(lines) if "=" in line])
    name = lines[place].partition(" =")[0]
    values = [
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[1]]",
        "true",
        '"../../etc"',
        "2026-11-23",
    ]
    values += [*map(str, _SIZES), *map(json.dumps, _NAMES), '["x", 1]', "{a = 1}", "[" * 3000]
    lines[place] = f"{name} = {draw.choice(values)}"
    return "\n".join(lines).encode()


def toml_line(draw: Draw, content: bytes) -> bytes:
    """A line is gone, or comes twice, or a table gets another name."""
    lines = content.decode().splitlines()
    place, action = draw.randrange(len(lines)), draw.randrange(3)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(draw.randrange(len(lines)), lines[place])
    else:
        lines[place] = draw.choice(
            ["[x]", "[[model]]", "[model.name]", "x = 1", "a.b.c = 1", "[networks.'']", "\x00"]
        )
    return "\n".join(lines).encode()


def tensors_header(draw: Draw, content: bytes) -> bytes:
    """The JSON in front of tensors says something else of them: shapes, types, places, names."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json_value(draw, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def tensors_length(draw: Draw, content: bytes) -> bytes:
    """The header's length is another."""
    return struct.pack("<Q", draw.choice([size for size in _SIZES if 0 <= size < 2**64])) + content[8:]


def tensors_shape(draw: Draw, content: bytes) -> bytes:
    """A consistent file, in which a tensor has another shape or type."""
    tensors = load(content)
    name = draw.choice(sorted(tensors))
    other: list[Callable[[Any], Any]] = [
        lambda t: t[:0], lambda t: t.flatten(), lambda t: t.double(), lambda t: t.bool(), lambda t: t[None],
        lambda t: t * float("nan"), lambda _: torch.zeros(3), lambda t: t.half(), lambda t: t.repeat(2),
    ]  # fmt: skip
    with contextlib.suppress(Exception):
        tensors[name] = draw.choice(other)(tensors[name]).contiguous()
    if draw.random() < 0.3:
        tensors[draw.choice(["x", "0.weight_mask_mask", "optimizer.99.momentum_buffer"])] = tensors.pop(name)
    (length,) = struct.unpack("<Q", content[:8])
    return save(tensors, json.loads(content[8 : 8 + length]).get("__metadata__"))


def onnx_part(draw: Draw, content: bytes) -> bytes:
    """A part of the model says something else: sizes, types, names, places of data, operators."""
    model = onnx.load_from_string(content)
    graph = model.graph
    tensor = draw.choice(graph.initializer)
    node = draw.choice(graph.node)
    function = draw.choice(model.functions)
    size = draw.choice([size for size in _SIZES if -(2**63) <= size < 2**63])

    def outside() -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = draw.choice(["../secret.bin", "/etc/passwd", "out/../../secret.bin", "net.py", "", "x" * 5000])
        tensor.external_data.add(key="location", value=place)
        if draw.random() < 0.5:
            tensor.external_data.add(key="length", value=str(size))
        if draw.random() < 0.5:
            tensor.external_data.add(key="offset", value=str(size))

    def constant() -> None:
        inner = draw.choice([each for each in function.node if each.attribute])
        attribute = draw.choice(inner.attribute)
        if attribute.ints:
            attribute.ints[0] = size
        else:
            attribute.i, attribute.type = size, onnx.AttributeProto.INT

    def endless() -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["going"], ["on"])],
            "body",
            [helper.make_tensor_value_info(*of) for of in (("count", 7, []), ("going", 9, []))],
            [helper.make_tensor_value_info("on", 9, [])],
        )
        steps = helper.make_tensor("steps", 7, [], [2**62])
        true = helper.make_tensor("true", 9, [], [True])
        graph.initializer.extend([steps, true])
        graph.node.insert(0, helper.make_node("Loop", ["steps", "true"], [], body=body))

    def calls_itself() -> None:
        call = helper.make_node(function.name, list(function.input), list(function.output), domain=function.domain)
        del function.node[:]
        function.node.append(call)

    def change(holder: Any, name: str, value: Any) -> Callable[[], None]:
        return lambda: setattr(holder, name, value)

    actions: list[Callable[[], Any]] = [
        outside, constant, endless, calls_itself,
        lambda: tensor.dims.append(size),
        lambda: tensor.dims.__setitem__(0, size) if tensor.dims else None,
        change(tensor, "data_type", draw.randrange(30)),
        change(tensor, "name", draw.choice([other.name for other in graph.initializer])),
        change(tensor, "raw_data", tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]),
        lambda: graph.initializer.remove(tensor),
        change(node, "op_type", draw.choice(["Nosuch", "Loop", "Tile", "Expand", "Identity", ""])),
        change(node, "domain", draw.choice(["nosuch", "com.microsoft", "fxprune"])),
        lambda: node.input.append(draw.choice(["nosuch", *node.output])),
        lambda: graph.node.remove(node),
        lambda: node.input.pop() if node.input else None,
        lambda: graph.node.append(node),
        lambda: graph.ClearField(draw.choice(["input", "output", "node", "initializer"])),
        lambda: model.ClearField(draw.choice(["opset_import", "functions", "ir_version", "metadata_props"])),
        lambda: setattr(model.opset_import[0], "version", size),
        lambda: setattr(model, "ir_version", size),
        change(model.metadata_props[0], "value", draw.choice(["", "{", "[]", '{"source": 3}', "[" * 100_000])),
        lambda: [setattr(a, "i", size) if a.type == 2 else a.ints.append(size) for a in node.attribute],
        lambda: graph.input[0].type.tensor_type.shape.dim.add(dim_value=size),
        lambda: setattr(graph.input[0].type.tensor_type, "elem_type", draw.randrange(30)),
    ]  # fmt: skip
    with contextlib.suppress(IndexError, ValueError):
        draw.choice(actions)()
    return model.SerializeToString()


_BYTES: dict[str, Damage] = {"bits": flip_bits, "truncated": truncate, "noise": overwrite, "spliced": splice}
_SAFETENSORS = {**_BYTES, "header": tensors_header, "length": tensors_length, "tensor": tensors_shape}
_TEXT: dict[str, Damage] = {**_BYTES, "number": number_in_text}
_JSON = {**_TEXT, "value": json_value, "value ": json_value, "value  ": json_value, "nested": nested}
_ROWS = {**_TEXT, "value": row_value, "value ": row_value, "value  ": row_value, "nested": nested}
_TOML = {**_TEXT, "value": toml_value, "value ": toml_value, "line": toml_line}
_ONNX = {**_BYTES, "part": onnx_part, "part ": onnx_part, "part  ": onnx_part}
DAMAGES: dict[str, Mapping[str, Damage]] = {
    "weights": _SAFETENSORS,
    "training": _SAFETENSORS,
    "manifest": _JSON,
    "recipe": _TOML,
    "setting": _TOML,
    "onnx": _ONNX,
    "compat": _ROWS,
    "study": _ROWS,
}
