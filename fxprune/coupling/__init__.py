"""Which slices of which parameters, buffers and activations of a model have to be cut together.

Every dimension of every tensor in the captured graphs has labels, one an index (`atoms`). Each operator says how
they go on (`rules`), and what has to go together is joined. What is left is a `Coupling`: units, each a set of
slices that can be cut without a trace but for the size, and for everything else the reason why it stays.
"""

from fxprune.coupling.coupling import Coupling, Family, Slice, Unit, couple

__all__ = ["Coupling", "Family", "Slice", "Unit", "couple"]
