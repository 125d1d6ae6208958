"""Masks that move while a model trains, and tickets found by training it again and again.

Nothing is captured anew: masks are buffers, and `PrunedModel.set_masks` changes them in place. Each method is a
callback of `fxprune.training.fit`::

    pruned = fxprune.prune(model, data=batches, sparsity=0.9, criterion="random", ranking="erk")
    fit(pruned, data, config, [topology.make("rigl", seed=0)])
"""

from fxprune.topology.deep_r import DeepR
from fxprune.topology.dsr import DSR
from fxprune.topology.movement import Movement
from fxprune.topology.registry import TOPOLOGIES, make
from fxprune.topology.rigl import RigL
from fxprune.topology.set import SET
from fxprune.topology.tickets import Ticket, rounds_to, tickets

__all__ = ["DSR", "SET", "TOPOLOGIES", "DeepR", "Movement", "RigL", "Ticket", "make", "rounds_to", "tickets"]
