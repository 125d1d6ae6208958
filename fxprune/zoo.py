"""A model's name -> the module, with random weights: one of a library's, or a factory of the user's own.

    timm:resnet18               one of timm's models
    torchvision:vit_b_16        one of torchvision's
    transformers:bert           one of transformers', tiny (pip install fxprune[transformers])
    nets/vgg.py:make_vgg        a factory in a file
    research.nets:make_vgg      a factory in an importable module

The last two run the user's code. A checkpoint therefore only *records* them: see `runs_user_code`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxprune.errors import ModelSpecError
from fxprune.tiny_transformers import TINY, build_tiny

__all__ = ["ModelSpec", "build", "list_models", "matches", "parse_shape", "runs_user_code"]

Shape = tuple[int, ...]

LIBRARIES = ("timm", "torchvision", "transformers")
FORMS = "timm:NAME, torchvision:NAME, transformers:NAME, path/to/file.py:FACTORY or package.module:FACTORY"

# Arguments that would make a library download or unpickle weights. Models are built with random ones, and
# a checkpoint's spec must not be able to make `build` open another file.
WEIGHT_SOURCES = frozenset(
    [
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "weights",
        "weights_backbone",
        "use_pretrained_backbone",
    ]
)

# Arguments that would contradict the shape that `build` returns; the spec's input_shape sets them.
SHAPE_ARGUMENTS = frozenset(["in_chans", "img_size", "image_size"])

USER_PREFIX = "fxprune_user_"  # of the modules made from files
VIDEO_FRAMES = 16  # what torchvision's MViT is built for, and enough for each of its other video models


@dataclass(frozen=True)
class ModelSpec:
    """What to build. Small, comparable, and made of JSON values, so that a checkpoint can hold it.

    Args:
        name: One of the four forms in the module's docstring.
        input_shape: One sample, channels first. None takes the model's own default; factories have none.
        num_classes: Outputs of the classifier. None takes the model's own default.
        kwargs: Further arguments to the constructor.

    Raises:
        ModelSpecError: A field has the wrong type, or `kwargs` asks for trained weights.
    """

    name: str
    input_shape: Shape | None = None
    num_classes: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require(isinstance(self.name, str), "a model's name as a string", self.name, f"give {FORMS}")
        if self.input_shape is not None:
            _require(_is_shape(self.input_shape), "an input shape of positive integers", self.input_shape)
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if self.num_classes is not None:
            _require(_is_size(self.num_classes), "a positive number of classes", self.num_classes)
        _require(_is_kwargs(self.kwargs), "constructor arguments by name", self.kwargs)
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        _check_kwargs(self)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `from_json` reads it back.

        Raises:
            ModelSpecError: An argument in `kwargs` is not a JSON value.
        """
        values = {
            "name": self.name,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "num_classes": self.num_classes,
            "kwargs": self.kwargs,
        }
        try:
            return dict(json.loads(json.dumps(values, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ModelSpecError(
                f"expected constructor arguments that JSON can hold, got {dict(self.kwargs)!r} ({error}); "
                "pass numbers, strings, booleans, lists and dicts"
            ) from error

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote. Builds nothing and runs nothing.

        Raises:
            ModelSpecError: Keys are missing or unknown, or a value has the wrong type.
        """
        _require(isinstance(values, Mapping), "a JSON object that describes a model", values)
        known = {"name", "input_shape", "num_classes", "kwargs"}
        _require(
            "name" in values and set(values) <= known,
            "a model's name, and at most its input_shape, num_classes and kwargs",
            dict(values),
        )
        return cls(**values)


def build(spec: ModelSpec) -> tuple[nn.Module, Shape]:
    """Build the model with random weights, drawn from torch's global generator.

    Args:
        spec: What to build.

    Returns:
        The module in training mode, as its library or factory made it, and the shape of one sample.

    Raises:
        ModelSpecError: Nothing has that name, or it cannot be built so.
    """
    library, name = _split_library(spec.name)
    if library == "timm":
        return _build_timm(spec, name)
    if library == "torchvision":
        return _build_torchvision(spec, name)
    if library == "transformers":
        return _build_transformers(spec, name)
    return _build_factory(spec)


def runs_user_code(spec: ModelSpec) -> bool:
    """Whether building this imports code from outside the libraries.

    Loading a checkpoint must not do that unless the caller names the model again.
    """
    return _split_library(spec.name)[0] is None


def list_models(pattern: str = "*") -> list[str]:
    """All library models whose name matches a glob, sorted, each with its prefix.

    Args:
        pattern: With a prefix ("timm:resnet*") or without ("resnet*" looks in all libraries).
    """
    names = [f"{library}:{name}" for library in LIBRARIES for name in _library_names(library)]
    return sorted(name for name in names if matches(name, pattern))


def matches(name: str, pattern: str) -> bool:
    """Whether a library's model matches a glob, with or without its prefix."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(":")[2], pattern)


def parse_shape(text: str) -> Shape:
    """Read "3x32x32" as (3, 32, 32).

    Raises:
        ModelSpecError: The text is not positive integers joined by x.
    """
    sizes = text.strip().lower().split("x")
    if not all(re.fullmatch("0*[1-9][0-9]*", size) for size in sizes):
        raise ModelSpecError(
            f"expected positive sizes joined by x, got {text!r}; write one sample, channels first: 3x32x32"
        )
    return tuple(int(size) for size in sizes)


# --- the libraries


def _build_timm(spec: ModelSpec, name: str) -> tuple[nn.Module, Shape]:
    import timm

    if not timm.is_model(name):
        raise _unknown_model("timm", name)
    with _quoting(spec.name):
        default = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        shape = spec.input_shape or tuple(default.input_size)
        _check_rank(spec, shape, tuple(default.input_size))
        kwargs = _constructor_kwargs(spec)
        if shape[0] != default.input_size[0]:
            kwargs["in_chans"] = shape[0]
        # timm marks the models whose weights or buffers depend on the image size; the others take any.
        if default.fixed_input_size and shape[1:] != tuple(default.input_size[1:]):
            # some models of older timm take one number and no pair
            kwargs["img_size"] = shape[1] if shape[1] == shape[2] else shape[1:]
        return timm.create_model(name, pretrained=False, **kwargs), shape


def _build_torchvision(spec: ModelSpec, name: str) -> tuple[nn.Module, Shape]:
    from torchvision import models

    if name not in models.list_models():
        raise _unknown_model("torchvision", name)
    default = _torchvision_shape(name)
    shape = spec.input_shape or default
    _check_rank(spec, shape, default)
    if shape[0] != 3:
        raise ModelSpecError(
            f"expected 3 channels, which torchvision's models are made for, got {_joined(shape)} for "
            f"{spec.name}; use {_joined((3, *shape[1:]))}, or one of timm's models, which take any number"
        )
    kwargs = {"weights": None, **_constructor_kwargs(spec)}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        kwargs["weights_backbone"] = None  # its default is to download the backbone
    if "googlenet" in name or "inception" in name:
        kwargs.setdefault("init_weights", True)  # what they do anyway, after a FutureWarning
    kwargs |= _torchvision_size(spec, name, shape)
    with _quoting(spec.name):
        return models.get_model(name, **kwargs), shape


def _torchvision_shape(name: str) -> Shape:
    """The images that a model's default weights were made for; 224 x 224 where they do not say."""
    from torchvision import models

    try:
        crop = models.get_model_weights(name).DEFAULT.transforms().crop_size
    except (AttributeError, ValueError):  # detection, segmentation, optical flow, models without weights
        crop = [224]
    height, width = crop[0], crop[-1]
    is_video = models.get_model_builder(name).__module__.startswith("torchvision.models.video.")
    return (3, VIDEO_FRAMES, height, width) if is_video else (3, height, width)


def _torchvision_size(spec: ModelSpec, name: str, shape: Shape) -> dict[str, Any]:
    """The argument that fits a model to its input, where it needs to be told."""
    if name.startswith("mvit") and shape != (3, VIDEO_FRAMES, 224, 224):
        raise ModelSpecError(
            f"expected 3x16x224x224, the one size that torchvision builds {name} for, got {_joined(shape)}; "
            "leave the input shape out"
        )
    if name.startswith("maxvit"):
        return {"input_size": shape[1:]}
    if not name.startswith("vit_"):
        return {}
    if shape[1] != shape[2]:
        raise ModelSpecError(
            f"expected a square image, which torchvision's vision transformers need, got {_joined(shape)} "
            f"for {spec.name}; use a square one, or timm's"
        )
    return {"image_size": shape[1]}


def _library_names(library: str) -> list[str]:
    """All names of one library; imported here because the libraries take seconds to import."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    if library == "torchvision":
        from torchvision import models

        return list(models.list_models())
    return list(TINY) if importlib.util.find_spec("transformers") else []


def _build_transformers(spec: ModelSpec, name: str) -> tuple[nn.Module, Shape]:
    if importlib.util.find_spec("transformers") is None:
        raise ModelSpecError(f"{spec.name} needs transformers; pip install fxprune[transformers]")
    if name not in TINY:
        raise _unknown_model("transformers", name)
    shape = spec.input_shape or TINY[name].shape
    _check_rank(spec, shape, TINY[name].shape)
    with _quoting(spec.name):
        return build_tiny(name, dict(spec.kwargs), spec.num_classes), shape


# --- the user's own factories


def _build_factory(spec: ModelSpec) -> tuple[nn.Module, Shape]:
    source, colon, attribute = spec.name.rpartition(":")
    if not (colon and source and attribute):
        raise _unknown_form(spec.name)
    is_file = source.endswith(".py")
    folder = Path(source).expanduser().resolve().parent if is_file else Path.cwd()
    with _importable(folder, forget=is_file):
        module = _load_file(Path(source).expanduser(), spec.name) if is_file else _import(source, spec.name)
        factory = _factory(module, attribute, spec.name)
        shape = _given_shape(spec)
        with _quoting(spec.name):
            model = factory(**_factory_kwargs(factory, spec))
    if not isinstance(model, nn.Module):
        raise ModelSpecError(
            f"expected {spec.name} to return a torch.nn.Module, got {type(model).__name__}; "
            "return the model itself"
        )
    return model, shape


def _given_shape(spec: ModelSpec) -> Shape:
    if spec.input_shape is None:
        raise ModelSpecError(
            f"expected the shape of one input sample for {spec.name}, got none, and a factory has no "
            "default; say --input 3x32x32 (input_shape=(3, 32, 32))"
        )
    return spec.input_shape


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ModelSpecError(f"expected a Python file at {path}, got nothing there; check the path in {name!r}")
    # One name a path: `dataclasses` and `pickle` look a class's module up in sys.modules.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(f"{USER_PREFIX}{path.stem}_{digest}", path)
    assert found is not None  # the suffix is .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        with _quoting(str(path), doing="import"):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[found.name]
        raise
    return module


def _import(source: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise _unknown_module(source, name)
    with _quoting(source, doing="import"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{source}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses another
            raise _unknown_module(source, name) from error


def _factory(module: ModuleType, attribute: str, name: str) -> Callable[..., Any]:
    factory = getattr(module, attribute, None)
    if callable(factory):
        return factory
    got = "nothing of that name" if factory is None else f"a {type(factory).__name__}"
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    raise ModelSpecError(
        f"expected a function or class {attribute!r} for {name}, got {got}; "
        f"there are: {', '.join(sorted(own)) or 'none'}"
    )


def _factory_kwargs(factory: Callable[..., Any], spec: ModelSpec) -> dict[str, Any]:
    """The spec's arguments; `num_classes` only for a factory that takes it."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable written in C has no signature
        return dict(spec.kwargs)
    takes_classes = any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
    return _constructor_kwargs(spec) if takes_classes else dict(spec.kwargs)


@contextmanager
def _importable(folder: Path, *, forget: bool) -> Iterator[None]:
    """Let code import what lies in `folder`, and leave no trace: no path entry, no bytecode.

    With `forget`, modules imported from the folder leave `sys.modules` again: nets in two folders may both
    have a `blocks.py`, and the second must not get the first one's. Packages in use before stay whole.
    """
    known, path, silent = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()  # a file written a moment ago counts
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = silent
        for name in set(sys.modules) - known if forget else ():
            top = name.partition(".")[0]
            if not (top in known or top.startswith(USER_PREFIX)) and _lies_in(sys.modules[name], folder):
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is a sibling: in the folder, and not in an environment kept below it."""
    file = getattr(module, "__file__", None)
    return file is not None and folder in Path(file).parents and "site-packages" not in Path(file).parts


# --- checks and messages


def _split_library(name: str) -> tuple[str | None, str]:
    library, colon, model = name.partition(":")
    return (library, model) if colon and library in LIBRARIES else (None, name)


def _constructor_kwargs(spec: ModelSpec) -> dict[str, Any]:
    return dict(spec.kwargs) if spec.num_classes is None else {**spec.kwargs, "num_classes": spec.num_classes}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_shape(value: object) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(map(_is_size, value))


def _is_kwargs(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _require(holds: bool, expected: str, got: object, advice: str = "correct the model's spec") -> None:
    if not holds:
        raise ModelSpecError(f"expected {expected}, got {got!r}; {advice}")


def _check_kwargs(spec: ModelSpec) -> None:
    if "num_classes" in spec.kwargs:
        raise ModelSpecError("expected num_classes as a field of its own, got it in kwargs; move it there")
    if runs_user_code(spec):
        return
    for name in sorted(WEIGHT_SOURCES & set(spec.kwargs)):
        raise ModelSpecError(
            f"expected a model with random weights, got the argument {name!r} for {spec.name}; build it "
            "without, and load_state_dict trained weights, or hand a module of your own to fxprune"
        )
    for name in sorted(SHAPE_ARGUMENTS & set(spec.kwargs)):
        raise ModelSpecError(
            f"expected the size of the input as input_shape, got the argument {name!r} for {spec.name}; "
            "give channels, height and width there"
        )


def _check_rank(spec: ModelSpec, shape: Shape, default: Shape) -> None:
    if len(shape) != len(default):
        raise ModelSpecError(
            f"expected a sample of {len(default)} dimensions for {spec.name}, got {_joined(shape)}; "
            f"its default is {_joined(default)}"
        )


@contextmanager
def _quoting(name: str, *, doing: str = "build") -> Iterator[None]:
    """Turn whatever the enclosed code raises into a `ModelSpecError` that quotes it."""
    try:
        yield
    except ModelSpecError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses arguments exits when imported
        raise _cannot(name, error, doing=doing) from error


def _cannot(name: str, error: BaseException, *, doing: str) -> ModelSpecError:
    advice = "check its arguments and the input shape" if doing == "build" else "make it importable"
    reason = str(error) or "no message"
    return ModelSpecError(f"cannot {doing} {name}, got {type(error).__name__}: {reason}; {advice}")


def _unknown_model(library: str, name: str) -> ModelSpecError:
    return ModelSpecError(
        f"expected the name of a model in {library}, got {name!r}; "
        + _suggestion(f"{library}:{close}" for close in _nearest(name, library))
    )


def _unknown_form(name: str) -> ModelSpecError:
    """A name without a colon: say which library has it, or what is near."""
    if name.endswith(".py"):
        return ModelSpecError(f"expected a factory in the file, got only {name!r}; write {name}:FACTORY")
    exact = [f"{library}:{name}" for library in LIBRARIES if name in _library_names(library)]
    near = [f"{library}:{close}" for library in LIBRARIES for close in _nearest(name, library)]
    return ModelSpecError(f"expected {FORMS}, got {name!r}; {_suggestion(exact or near)}")


def _unknown_module(source: str, name: str) -> ModelSpecError:
    near = difflib.get_close_matches(source.lower(), LIBRARIES, n=1)
    corrected = [f"{near[0]}:{name.partition(':')[2]}"] if near else []
    return ModelSpecError(
        f"expected {FORMS}, got {name!r}, and there is no module {source!r} to import; " + _suggestion(corrected)
    )


def _nearest(name: str, library: str) -> list[str]:
    return difflib.get_close_matches(name.lower(), _library_names(library), n=3)


def _suggestion(names: Iterable[str]) -> str:
    listed = " or ".join(names)
    return f"did you mean {listed}?" if listed else "fxprune.zoo.list_models lists the libraries' names"


def _joined(shape: Shape) -> str:
    return "x".join(map(str, shape))
