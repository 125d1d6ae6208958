"""`TrainingState`: what an interrupted run needs, beside the weights of its model, to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxprune import distributed
from fxprune.errors import ResumeError
from fxprune.training.callbacks import Callback, Run
from fxprune.training.config import Epoch


@dataclass(frozen=True)
class TrainingState:
    """The state of a run between two epochs; tensors and JSON values, nothing that is executed when read.

    Attributes:
        tensors: of the optimiser, ``optimizer.<place>.<name>``, and of callbacks, ``<callback>.<name>``.
        values: settings and history, as JSON.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run, callbacks: Sequence[Callback]) -> TrainingState:
        """The present state of a run; the tensors are its own, not copies."""
        tensors: dict[str, Tensor] = {}
        for place, state in run.optimizer.state_dict()["state"].items():
            entries = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"optimizer.{place}.{name}": value for name, value in entries.items()}
        for callback in callbacks:
            tensors |= {f"{callback.name}.{name}": value for name, value in callback.state().items()}
        history = [epoch.to_json() for epoch in run.history]
        return cls(tensors, {"settings": _settings(run, callbacks), "step": run.step, "history": history})

    @property
    def history(self) -> list[Epoch]:
        """The epochs that are over.

        Raises:
            ResumeError: the values are not what `of` gives.
        """
        try:
            return [Epoch(**epoch) for epoch in self.values["history"]]
        except (KeyError, TypeError) as error:
            raise ResumeError(f"the state of training is damaged: {error}; train afresh") from error

    def restore(self, run: Run, callbacks: Sequence[Callback]) -> None:
        """Put a run that has just begun into this state.

        Raises:
            ResumeError: the state is of a run with other settings, or of another model.
        """
        told, saved = _settings(run, callbacks), self.values.get("settings")
        if told != saved:
            saved = saved if isinstance(saved, dict) else {}
            names = [name for name in {**saved, **told} if saved.get(name) != told.get(name)]
            odd = "; ".join(f"{name}: expected {saved.get(name)!r}, got {told.get(name)!r}" for name in names)
            raise ResumeError(f"the settings are not those of the run that was interrupted: {odd}")
        run.history = self.history
        run.step = len(run.history) * run.steps_per_epoch
        if self.values.get("step") != run.step:
            raise ResumeError(f"expected a state after step {run.step}, got one after {self.values.get('step')}")
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for place, parameter in enumerate(parameters):
            entries = self._of(f"optimizer.{place}.")
            if any(tensor.shape != parameter.shape for tensor in entries.values()):
                raise ResumeError("the state is of another model: expected that of this one, or to train afresh")
            if entries:
                state[place] = entries
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for callback in callbacks:
            own = self._of(f"{callback.name}.").items()
            callback.restore({name: tensor.to(parameters[0].device) for name, tensor in own})

    def _of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, under the rest of their names."""
        return {n.removeprefix(prefix): tensor for n, tensor in self.tensors.items() if n.startswith(prefix)}


def _settings(run: Run, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """What decides how training goes on; not where it runs, which a name does not tell."""
    told: dict[str, Any] = {name: value for name, value in run.config.to_json().items() if name != "device"}
    told |= {"data": run.data.name, "images": len(run.data.train), "processes": distributed.processes()}
    hanging = {callback.name: dict(callback.settings()) for callback in callbacks}
    return told | {name: settings for name, settings in hanging.items() if settings}
