"""`Point`: one configuration of a sweep in canonical form, with its key and its name.

Points are hashed by their canonical configuration: the key is the SHA-256 of its JSON with sorted keys and floats as
Python's repr. A default left out or written down, 1 or 1.0, `model = "mlp:depth=4"` or `depth = 4` give the same
canonical configuration. The contents of files that a configuration names are hashed too: a checkpoint that was trained
further is another point.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from isometry.errors import SpecError
from isometry.loading.builtin import given_settings
from isometry.loading.inputs import FILES
from isometry.nn.options import NETWORKS
from isometry.sweeps.keys import (
    COMPARISON_KEYS,
    KINDS,
    Reader,
    measurement_keys,
    network_keys,
    prediction_keys,
    read_value,
    shown,
    training_keys,
    unknown_key,
)
from isometry.sweeps.sources import imported_files, module_file
from isometry.training.options import NETWORK_DEFAULTS, TrainingOptions

# Version of the hashing, hashed itself: a change of it makes every stored point unknown.
KEY_VERSION = 1
_NAME_BYTES = 150
_TITLES = {"measure": "", "predict": "prediction", "compare": "comparison", "train": "training"}


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Parameters
    ----------
    kind : {"measure", "predict", "compare", "train"}
    values : mapping
        The canonical configuration: plain JSON values by key, with the defaults that matter.
    files : mapping
        SHA-256 of the files that the configuration names, by the key that names them, and of the files that a model
        imports from its own folder.
    """

    kind: str
    values: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical configuration, in hexadecimal."""
        content = {"version": KEY_VERSION, "kind": self.kind, "configuration": dict(self.values)}
        if self.files:
            content["files"] = dict(self.files)
        packed = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(packed.encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """Name of the results in a file: the configuration in short, and the beginning of the key."""
        plain = _defaults(self.kind, self.values.get("model"))
        told = [
            f"{key}={_short(key, value)}"
            for key, value in self.values.items()
            if key != "model" and (key in ("depth", "seed") or plain.get(key) != value)
        ]
        words = [_TITLES[self.kind], _short("model", self.values.get("model", "")), ", ".join(told)]
        label = " ".join(word for word in words if word)
        label = "".join(sign if sign.isprintable() and sign not in "/\\" else "-" for sign in label).lstrip(
            ". "
        )
        return f"{label.encode()[:_NAME_BYTES].decode(errors='ignore').strip()} [{self.key[:16]}]"

    def record(self) -> dict[str, Any]:
        """The record stored with the results, as plain JSON values."""
        found: dict[str, Any] = {"kind": self.kind, "key": self.key, "configuration": dict(self.values)}
        return {**found, "files": dict(self.files)} if self.files else found


def point_of(
    configuration: Mapping[str, Any],
    where: str = "the configuration",
    *,
    known: dict[tuple[Any, ...], dict[str, str]] | None = None,
) -> Point:
    """The point of a configuration written by a user.

    Parameters
    ----------
    configuration : mapping
        Keys and values of docs/sweeps.md, with ``kind`` ("measure" if left out). A value of None is one left out.
    where : str
        Name of the configuration in errors.
    known : dict, optional
        Takes the digests of files that were read, and gives them again: all points of one plan are of one version.

    Raises
    ------
    SpecError
        When a key is unknown or missing, or has a value that it does not accept.
    """
    given = {key: value for key, value in configuration.items() if value is not None}
    for key in given:
        if not isinstance(key, str):
            raise SpecError(f"{where}: a key is text; got {shown(key)}")
    kind = given.pop("kind", "measure")
    if kind not in KINDS:
        raise SpecError(f"{where}: kind is one of {', '.join(KINDS)}; got {shown(kind)}")
    if kind == "train":
        model, readers = None, training_keys()
    else:
        model, given = _model(kind, given, where)
        readers = _readers(kind, model)
    values = {}
    for key, value in given.items():
        if key not in readers:
            raise _stray(key, readers, kind, model, where)
        values[key] = read_value(key, value, readers[key], where)
    values = {**_defaults(kind, model), **values}
    _check_together(kind, model, values, where)
    # In the order of the readers: names do not depend on the order in which the user writes the keys.
    ordered = {key: values[key] for key in readers if key in values}
    if model is not None:
        ordered = {"model": model, **ordered}
    known = {} if known is None else known
    named = tuple(ordered.get(key) for key in ("model", "weights", "input", "input_ids", "data"))
    named += tuple(ordered.get("args", ()))
    if named not in known:
        known[named] = digests(ordered, where=where)
    return Point(kind, ordered, known[named])


def _model(kind: str, given: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The name of the network, and the configuration extended by the settings in its MODEL string."""
    spec = given.pop("model", "mlp" if kind == "predict" else None)
    if not isinstance(spec, str):
        raise SpecError(
            f"{where}: model is missing; it is one of {', '.join(NETWORKS)}, path/to/file.py:callable, "
            "package.module:callable, torchvision:NAME or timm:NAME"
            if spec is None
            else f"{where}: model is text; got {shown(spec)}"
        )
    model, _, rest = spec.partition(":")
    if model not in NETWORKS:
        if kind == "predict":
            raise SpecError(f"{where}: a prediction is of {', '.join(NETWORKS)}; got model {spec!r}")
        if ":" not in spec or not rest:
            raise SpecError(
                f"{where}: model {spec!r} is none: it is one of {', '.join(NETWORKS)}, path/to/file.py:callable, "
                "package.module:callable, torchvision:NAME or timm:NAME"
            )
        return spec, given
    for key, value in given_settings(model, rest).items():
        if key == "seed":
            raise SpecError(
                f"{where}: give seed as a key of its own, not within the model: it seeds network, input and probes"
            )
        if key in given:
            raise SpecError(f"{where}: {key} is given twice, by itself and within the model {spec!r}")
        given = {**given, key: value}
    return model, given


@lru_cache
def _readers(kind: str, model: str) -> dict[str, Reader]:
    if kind == "predict":
        return {**network_keys(model, sampled=False), **prediction_keys()}
    network = network_keys(model) if model in NETWORKS else {}
    comparison = COMPARISON_KEYS if kind == "compare" else {}
    return {**network, **measurement_keys(), **comparison}


@lru_cache
def _defaults(kind: str, model: str | None) -> dict[str, Any]:
    """Values of the keys that the user leaves out."""
    if kind == "train":
        known = training_keys()
        options = {
            entry.name: entry.default
            for entry in fields(TrainingOptions)
            if entry.name in known and entry.name != "learning_rate"
        }
        return {"data": "digits", **NETWORK_DEFAULTS, **options}
    network = {}
    if model in NETWORKS:
        known = network_keys(str(model), sampled=kind != "predict")
        network = {key: value for key, value in NETWORKS[str(model)].defaults.items() if key in known}
    if kind == "predict":
        return {**network, "readout": False}
    measurement = {"batch_axis": True, "eval": False, "method": "auto", "seed": 0}
    return {**network, **measurement, **({"theory": "ensemble"} if kind == "compare" else {})}


def _stray(key: str, readers: Mapping[str, Reader], kind: str, model: str | None, where: str) -> SpecError:
    """The error for a key that this kind of point, or this model, does not take."""
    if kind == "predict" and key in {*network_keys(str(model)), *measurement_keys(), "seeds"}:
        return SpecError(
            f"{where}: {key} does not change a prediction, which is that of infinite width and draws nothing; leave "
            'it out, or take kind = "compare"'
        )
    if kind != "train" and model not in NETWORKS and key in network_keys("vanilla-cnn") | network_keys("mlp"):
        return SpecError(f"{where}: {key} is a setting of the built-in networks, and the model is {model!r}")
    what = f"{where}: a point of kind {kind!r}"
    return unknown_key(key, readers, what if kind == "train" else f"{what} with model {model!r}")


def _check_together(kind: str, model: str | None, values: Mapping[str, Any], where: str) -> None:
    """Raise SpecError for combinations of keys that exclude each other."""
    if kind in ("measure", "compare"):
        if model not in NETWORKS and not {"input", "input_ids", "args"} & set(values):
            raise SpecError(
                f"{where}: the model {model!r} does not fix the shape of its input: give input, input_ids or args"
            )
        if "inputs" in values and not values["batch_axis"]:
            raise SpecError(
                f"{where}: inputs are stacked along a batch axis: batch_axis = false does not go with them"
            )
    if kind == "compare" and values["theory"] == "ensemble":
        cause = None
        if model not in NETWORKS:
            cause = f"the model {model!r}"
        elif values.get("init") == "mirrored":
            cause = "init 'mirrored'"
        else:
            cause = next((key for key in ("in_channels", "in_features", "num_classes", "weights", "source", "target",
                                  "args", "input_ids", "wrt")
                          if key in values), None)  # fmt: skip
        if cause:
            raise SpecError(
                f"{where}: no ensemble is known for {cause}, so there is no law to compare with; take theory = "
                "'layers', the free product of the network's own layers"
            )
    if kind == "compare" and values["theory"] == "layers" and {"args", "input_ids", "wrt"} & set(values):
        raise SpecError(
            f"{where}: the free product of the layers is that of one input; args, input_ids and wrt stay out"
        )
    if kind == "compare" and values["theory"] == "layers" and values.get("inputs", 1) > 1:
        raise SpecError(f"{where}: the free product of the layers is that of one input; leave inputs out")


_DIGESTS: dict[tuple[Path, int, int], str] = {}


def digests(values: Mapping[str, Any], folder: Path = Path(), where: str = "") -> dict[str, str]:
    """SHA-256 of the files that a configuration names, by key; relative paths begin at ``folder``.

    "model imports" stands for the files of its own folder that a model file imports.

    Raises
    ------
    SpecError
        When one is not there.
    """
    places: dict[str, Path] = {}
    for key in ("weights", "input", "input_ids", "data"):
        value = values.get(key)
        if isinstance(value, str) and Path(value).suffix:
            places[key] = folder / value
    for entry in values.get("args", ()):
        name, _, value = entry.partition("=")
        if Path(value).suffix in FILES:
            places[f"args {name}"] = folder / value
    if (source := model_source(values, folder)) is not None:
        places["model"] = source
    found = {key: _digest(path, f"{where}: {key}") for key, path in places.items()}
    if "model" in places and (imports := imported_files(places["model"])):
        beside = places["model"].resolve().parent
        parts = [(file.relative_to(beside).as_posix(), _digest(file, f"{where}: model")) for file in imports]
        found["model imports"] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return found


def model_source(values: Mapping[str, Any], folder: Path) -> Path | None:
    """The Python file of a model: the one it names, or a module of the folder; None for other models."""
    place = str(values.get("model", "")).rpartition(":")[0]
    if place.endswith(".py"):
        return folder / place
    return module_file(place, folder) if place and place.replace(".", "").isidentifier() else None


def _digest(path: Path, what: str) -> str:
    try:
        state = path.stat()
        if not path.is_file():  # a pipe would be waited for
            raise OSError(errno.EINVAL, "it is no regular file")
        # A checkpoint may occur in thousands of configurations; it is hashed once.
        known = (path.absolute(), state.st_size, state.st_mtime_ns)
        if known not in _DIGESTS:
            with path.open("rb") as file:
                _DIGESTS[known] = hashlib.file_digest(file, "sha256").hexdigest()
        return _DIGESTS[known]
    except (OSError, ValueError) as error:  # a zero in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{what} names the file {str(path)!r}, which can not be read: {reason}") from error


def _short(key: str, value: Any) -> str:
    """A value as a name shows it: files without their folders, numbers in a few digits (the key has them all)."""
    if key in ("model", "weights", "input", "input_ids", "data", "folder"):
        return str(value).replace("\\", "/").rpartition("/")[2]
    if isinstance(value, list):
        return " ".join(_short("", entry) for entry in value)
    return (
        f"{value:.6g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
