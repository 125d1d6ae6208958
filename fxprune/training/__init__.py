"""Training: one flat loop, callbacks that hang on it, and a state from which it goes on.

A pruned model needs no loop of its own: any loop that trains the original trains it.
"""

from fxprune.training.callbacks import Callback, EachEpoch, Run
from fxprune.training.config import Epoch, TrainConfig
from fxprune.training.loop import evaluate, fit
from fxprune.training.state import TrainingState

__all__ = ["Callback", "EachEpoch", "Epoch", "Run", "TrainConfig", "TrainingState", "evaluate", "fit"]
