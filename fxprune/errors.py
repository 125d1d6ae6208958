"""One exception class a stage, all of them `FxpruneError`.

Messages say what was expected, what was got and what to do about it. A mistake of the user always
surfaces as one of these and never as a traceback from inside torch.
"""

__all__ = [
    "CaptureError",
    "CheckpointError",
    "CompatError",
    "DataError",
    "ExportError",
    "FxpruneError",
    "MaskError",
    "ModelSpecError",
    "RecipeError",
    "ReportError",
    "ResultsError",
    "ResumeError",
    "ScoreError",
    "ShrinkError",
    "StudyError",
    "TopologyError",
    "TrainError",
    "VerificationError",
    "WeightError",
]


class FxpruneError(Exception):
    """Base of everything that fxprune raises on purpose."""


class ModelSpecError(FxpruneError):
    """A model specification names nothing that can be built."""


class DataError(FxpruneError):
    """Data cannot be found, or does not fit the model."""


class CaptureError(FxpruneError):
    """A module cannot be captured as FX graphs."""


class WeightError(FxpruneError):
    """No such prunable weight, or none at all."""


class ScoreError(FxpruneError):
    """Saliencies cannot be computed, or are not finite."""


class MaskError(FxpruneError):
    """The masks asked for cannot exist, or do not fit the model."""


class ShrinkError(FxpruneError):
    """Channels that were asked for cannot be cut."""


class TrainError(FxpruneError):
    """Training cannot start or cannot go on."""


class ResumeError(TrainError):
    """A training that was interrupted cannot go on: something is not as it was."""


class TopologyError(FxpruneError):
    """Masks cannot be moved while the model trains."""


class CheckpointError(FxpruneError):
    """A checkpoint folder cannot be written or read."""


class ExportError(FxpruneError):
    """The model cannot be written as an ONNX file."""


class VerificationError(ExportError):
    """An exported file does not do what the model does."""


class ReportError(FxpruneError):
    """The report cannot be written."""


class RecipeError(FxpruneError):
    """A recipe file asks for something that does not exist."""


class ResultsError(FxpruneError):
    """A file of results cannot be read or written, or holds those of something else."""


class StudyError(FxpruneError):
    """A study asks for something that does not exist."""


class CompatError(FxpruneError):
    """A run of the compatibility matrix cannot start, or its results cannot be read."""
