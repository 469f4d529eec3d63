"""From a MODEL spec to an nn.Module: a file, an importable name, a built-in, a directory of transformers, a library.

Code in a file or package that the user names is run, as `python FILE` would run it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import LoadError, SpecError
from isometry.loading.builtin import build, parse_settings
from isometry.loading.pretrained import first_line, import_error, pretrained_model, torchvision_hint
from isometry.nn.options import NETWORKS

if TYPE_CHECKING:
    from torch import nn

# \b keeps click from re-wrapping the block.
MODEL_HELP = """\b
MODEL is one of
  path/to/file.py:callable   a function without arguments that returns an
  package.module:callable    nn.Module, a class, or a module
  vanilla-cnn:SETTINGS       circular 3x3 convolutions, no stem, no head
  mlp:SETTINGS  resnet:SETTINGS
  torchvision:NAME  timm:NAME   where those are installed
  hf:DIRECTORY               config.json and .safetensors of transformers
with SETTINGS such as
  depth=32,channels=16,size=8,activation=tanh,init=gaussian,
  sigma_w=1.02,sigma_b=0.0045,seed=0   (written without the line break)
"""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and its input as far as its spec determines it.

    Parameters
    ----------
    module : nn.Module
    spec : str
        The spec, unchanged.
    name : str
        A short name for reports and files.
    input_shape : tuple of int, optional
        Shape of one input, where the spec determines it (built-ins).
    repeats_channels : int, optional
        Channels of a bare convolutional trunk, over which a one-channel image may be repeated.
    """

    module: nn.Module
    spec: str
    name: str
    input_shape: tuple[int, ...] | None = None
    repeats_channels: int | None = None


def load_model(spec: str, *, seed: int = 0, evaluation: bool = False) -> LoadedModel:
    """The model a spec names.

    Parameters
    ----------
    spec : str
        See ``MODEL_HELP``.
    seed : int
        Seeds torch before foreign code runs, so that its random initialisation repeats.
    evaluation : bool
        Put the model in evaluation mode; otherwise its mode is its author's choice.

    Raises
    ------
    SpecError
        No such file, module, name or setting.
    LoadError
        The code that makes the model raised.
    """
    kind, colon, rest = spec.partition(":")
    if kind in NETWORKS:
        loaded = built_in_model(kind, parse_settings(kind, rest), spec)
    elif not colon or not rest:
        raise SpecError(
            f"{spec!r} is not a MODEL: write path/to/file.py:callable, package.module:callable, torchvision:NAME, "
            f"timm:NAME, hf:DIRECTORY, or a built-in ({', '.join(f'{name}:...' for name in NETWORKS)})"
        )
    else:
        import torch

        if not 0 <= seed < 2**64:
            raise SpecError(
                f"seed {seed}: the seed of a model is a whole number of at least 0 and below 2^64"
            )
        torch.manual_seed(seed)
        if kind in ("torchvision", "timm"):
            loaded = LoadedModel(_from_library(kind, rest), spec, rest.replace("/", "-"))
        elif kind == "hf":
            directory = Path(rest)
            loaded = LoadedModel(pretrained_model(directory), spec, directory.resolve().name)
        else:
            # The last colon: a path may hold one itself.
            place, _, attribute = spec.rpartition(":")
            loaded = LoadedModel(_make(_find(place, attribute), spec), spec, attribute)
    if evaluation:
        loaded.module.eval()
    return loaded


def built_in_model(kind: str, settings: Mapping[str, Any], spec: str) -> LoadedModel:
    """The reference network of that kind with these settings."""
    module, shape = build(kind, settings)
    bare = "channels" in settings and settings.get("in_channels") is None
    return LoadedModel(module, spec, kind, shape, settings["channels"] if bare else None)


def _find(place: str, attribute: str) -> Any:
    """The object called ``attribute`` in a file or a module."""
    is_file = place.endswith(".py") or "/" in place or "\\" in place
    module = _module_from_file(Path(place)) if is_file else _module_by_name(place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and callable(value)
                and getattr(value, "__module__", "") == module.__name__
            ]
            known = f"it defines {', '.join(sorted(names)[:12])}" if names else "it defines no callable"
            raise SpecError(f"{place} has no {attribute!r}; {known}")
        found = getattr(found, part)
    return found


def _module_from_file(path: Path) -> Any:
    if not os.path.isfile(path):
        raise SpecError(f"there is no file {str(path)!r} to load a model from")
    name = f"_isometry_model_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise SpecError(f"{str(path)!r} is not a Python file; it needs the ending .py")
    module = importlib.util.module_from_spec(specification)
    # As for `python FILE`: neighbours of the file can be imported, and classes find their module.
    first_on_path(path.resolve().parent)
    sys.modules[name] = module
    with _foreign_code(str(path)):
        specification.loader.exec_module(module)
    return module


def first_on_path(folder: Path) -> None:
    """Have modules of this folder be found before others, however often it is called."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _module_by_name(name: str) -> Any:
    # As for `python -m`: modules in the working directory come first.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with _foreign_code(name):
            return importlib.import_module(name)
    except LoadError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and name.startswith(missing.name):
            raise SpecError(
                f"there is no module {name!r} to import; a file is written with its ending, path/to/file.py:callable"
            ) from missing
        raise


def _make(found: Any, spec: str) -> nn.Module:
    """The object found, if it is an nn.Module, or the nn.Module that it returns."""
    from torch import nn

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SpecError(
            f"{spec} is a {type(found).__name__}; it must be an nn.Module or a callable that returns one"
        )
    needed = _needed_arguments(found)
    if needed:
        raise SpecError(
            f"{spec} needs the arguments {', '.join(needed)}; name a function without arguments that calls it"
        )
    with _foreign_code(spec):
        made = found()
    if not isinstance(made, nn.Module):
        raise SpecError(f"{spec} returned a {type(made).__name__}; it must return an nn.Module")
    return made


def _needed_arguments(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _from_library(library: str, name: str) -> nn.Module:
    """A network of torchvision or timm, with random weights; nothing is downloaded."""
    try:
        package = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    except Exception as error:
        # Not only ImportError: a build that does not fit this torch fails with RuntimeError while it is imported.
        raise import_error(library, error) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made = (
                package.get_model(name, weights=None)
                if library == "torchvision"
                else package.create_model(name)
            )
    except Exception as error:
        raise SpecError(f"{library} makes no model {name!r}: {first_line(error)}") from error
    return made


@contextlib.contextmanager
def _foreign_code(where: str) -> Any:
    """Run code of the user: its output goes to standard error, and its exceptions become LoadError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (SpecError, LoadError):
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"loading the model from {where} raised {type(error).__name__}: {first_line(error)}"
            f"{torchvision_hint(error)}"
        ) from error
