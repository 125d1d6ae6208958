"""Criteria: each computes a saliency for every prunable element, and nothing else.

To add one, register a function of a `Scoring`::

    @fxprune.criteria.register("mine")
    def mine(scoring):
        return {name: weight.abs() for name, weight in scoring.operands.items()}
"""

from fxprune.criteria import grasp, magnitude, obd, random, snip, synflow
from fxprune.criteria.registry import Criterion, get, names, register
from fxprune.scoring import Scoring

__all__ = [
    "Criterion",
    "Scoring",
    "get",
    "grasp",
    "magnitude",
    "names",
    "obd",
    "random",
    "register",
    "snip",
    "synflow",
]
