"""FX passes: `insert_masks` puts ``mul(operand, mask)`` in, `fold` bakes it into the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxprune.errors import MaskError
from fxprune.masks import Masks
from fxprune.program import Pass, attribute, copy_graph, node_named, operand_value, state_reads
from fxprune.regions import CapturedModel
from fxprune.weights import PrunableWeight, Weights


def mask_name(weight: PrunableWeight) -> str:
    """State-dict key of the mask of `weight`."""
    return f"{weight.name}_mask"


def insert_masks(captured: CapturedModel, weights: Weights, masks: Masks) -> CapturedModel:
    """Multiply every prunable operand by its mask, in the graphs of both modes.

    Masks become bool buffers named after their weight, ``conv1.weight_mask``. Bool, because it takes a
    quarter of the memory of a float mask and the product has the dtype of the weight.

    Args:
        captured: left as it is; the result shares the memory of its parameters.
        weights: which operands to mask.
        masks: one for each of `weights`, of its shape.

    Raises:
        MaskError: masks and weights do not fit each other.
    """
    check_masks(weights, masks)
    result = captured.alias()
    regions = result.regions
    for weight in weights:
        _register(result.host, mask_name(weight), masks[weight.name].clone())
    for path, region in regions.items():
        own = [weight for weight in weights if weight.region == path]
        for mode, program in region._fxprune.items():
            sites = {w.sites[mode]: local(mask_name(w), path) for w in own if mode in w.sites}
            region._fxprune[mode] = program.rewritten(_multiply(sites))
    return result


def drop_masks(captured: CapturedModel, weights: Weights) -> CapturedModel:
    """What `insert_masks` was given: a copy without masks, on the same memory."""
    result = captured.alias()
    for path, region in result.regions.items():
        names = {local(mask_name(weight), path) for weight in weights if weight.region == path}
        region._fxprune = {
            mode: program.rewritten(_unmultiply(names)) for mode, program in region._fxprune.items()
        }
    for weight in weights:
        prefix, _, name = mask_name(weight).rpartition(".")
        del result.host.get_submodule(prefix)._buffers[name]
    return result


def _unmultiply(masks: set[str]) -> Pass:
    """A pass that takes the products with masks of these names out."""

    def change(graph: fx.Graph) -> None:
        for read in [node for node in graph.nodes if node.op == "get_attr" and node.target in masks]:
            for product in list(read.users):
                product.replace_all_uses_with(product.args[0])
                graph.erase_node(product)
            graph.erase_node(read)

    return change


def check_masks(weights: Weights, masks: Mapping[str, Tensor]) -> None:
    """Raise `MaskError` unless there is one mask of the right shape for each weight."""
    names = {weight.name for weight in weights}
    if names != set(masks):
        odd = sorted(names ^ set(masks))
        raise MaskError(f"expected one mask for each of {len(names)} weights, got {len(masks)}; see {odd[:4]}")
    for weight in weights:
        shape = tuple(masks[weight.name].shape)
        if shape != weight.shape:
            raise MaskError(f"mask of {weight.name!r}: expected shape {weight.shape}, got {shape}")


def fold(captured: CapturedModel, weights: Weights, path: str = "") -> fx.GraphModule:
    """The evaluation graph with masks baked into its weights: no mask is left, and no computed weight.

    Inputs and outputs are flat lists of leaves. The result has copies of the masked weights, under the
    names that the weights have in the region, and shares the memory of everything else.

    Args:
        captured: what `insert_masks` returned.
        weights: the weights that it was given.
        path: the region; by default that of a model that is captured whole.
    """
    region = captured.regions[path]
    program = region._fxprune["eval"]
    graph = copy_graph(program.graph)
    tensors = {str(node.target): attribute(region, str(node.target)) for node in state_reads(graph)}
    folded = {}
    for weight in weights:
        if "eval" not in weight.sites or weight.region != path:
            continue
        name, mask = local(weight.name, path), local(mask_name(weight), path)
        site = node_named(graph, weight.sites["eval"])
        product = next(user for user in site.users if _multiplies(user, mask))
        with graph.inserting_before(product):
            constant = graph.create_node("get_attr", f"{name}_folded")
        constant.meta = dict(product.meta)
        product.replace_all_uses_with(constant)
        value = operand_value(region, program, site.name)
        tensors[str(constant.target)] = torch.where(tensors[mask], value, torch.zeros_like(value))
        folded[name] = constant
    graph.eliminate_dead_code()
    for name, constant in folded.items():
        for node in state_reads(graph):
            if node.target == name:  # read elsewhere, unmasked: the weight has the name
                node.target = f"{name}_unmasked"
                tensors[node.target] = tensors[name]
        tensors[name], constant.target = tensors[str(constant.target)], name
    graph.lint()
    return fx.GraphModule({name: tensors[name] for name in {str(n.target) for n in state_reads(graph)}}, graph)


def _multiply(masks: Mapping[str, str]) -> Pass:
    """A pass that multiplies the node of each name by the mask of the given attribute."""

    def change(graph: fx.Graph) -> None:
        for site_name, mask in masks.items():
            site = node_named(graph, site_name)
            with graph.inserting_after(site):
                read = graph.create_node("get_attr", mask)
            with graph.inserting_after(read):
                product = graph.call_function(torch.ops.aten.mul.Tensor, (site, read))
            read.meta = {**site.meta, "dtype": torch.bool}
            product.meta = dict(site.meta)
            for user in [user for user in site.users if user is not product]:
                user.replace_input_with(site, product)

    return change


def _multiplies(node: fx.Node, mask: str) -> bool:
    operands = node.all_input_nodes
    return node.target is torch.ops.aten.mul.Tensor and len(operands) == 2 and operands[1].target == mask


def local(name: str, region: str) -> str:
    """A name of the model's state as a region has it."""
    return name.removeprefix(f"{region}.") if region else name


def _register(module: nn.Module, path: str, mask: Tensor) -> None:
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    if name in owner._buffers or name in owner._parameters or name in owner._modules:
        raise MaskError(f"the model already has {path!r}; a model can be pruned once, then its masks change")
    owner.register_buffer(name, mask)
