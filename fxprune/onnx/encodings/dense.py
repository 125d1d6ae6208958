"""Every element, zeros too: what any exporter writes."""

from __future__ import annotations

from fxprune.onnx.encodings.weight import Encoded, SparseWeight, cast, tensor


class Dense:
    """A plain initializer; behind a Cast where it is stored in another type."""

    name = "dense"
    function = None

    def payload(self, weight: SparseWeight) -> int:
        """One value an element."""
        return weight.numel * weight.values.dtype.itemsize

    def encode(self, weight: SparseWeight) -> Encoded:
        """An initializer."""
        whole = weight.dense()
        if whole.dtype == weight.dtype:
            return Encoded((tensor(whole, weight.name),))
        stored = tensor(whole, f"{weight.name}/values")
        return Encoded((stored,), nodes=cast(weight, stored.name, weight.name))
