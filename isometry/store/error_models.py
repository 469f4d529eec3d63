"""The error model of a measurement as attributes of its group, and that of files from before it was stored.

Version 1: ``error_model_version``, ``error_model_probe``, ``error_model_orthogonal_group``, ``error_model_eps``,
``error_model_rounding``, and ``error_model_dimension`` where it is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import h5py
import numpy as np

from isometry.errors import InputError, NewerSchemaError
from isometry.spectrum import ErrorModel, Quadrature
from isometry.spectrum.error_model import NO_PROBES
from isometry.store.admission import attribute

VERSION = 1
# A mass this close to a multiple of 1 / n is that multiple.
_WHOLE = 1e-9
_PREFIX = "error_model_"
_TYPES: dict[str, type] = {
    "probe": str,
    "orthogonal_group": int,
    "eps": float,
    "rounding": float,
    "dimension": int,
}
ATTRIBUTES = frozenset(_PREFIX + key for key in ("version", *_TYPES))


def encode_error_model(errors: ErrorModel) -> dict[str, Any]:
    """The attributes that hold an error model."""
    values = {key: value for key, value in asdict(errors).items() if value is not None}
    plain = {
        _PREFIX + key: np.int64(value) if _TYPES[key] is int else _TYPES[key](value)
        for key, value in values.items()
    }
    return {f"{_PREFIX}version": np.int64(VERSION)} | plain


def decode_error_model(group: h5py.Group) -> ErrorModel:
    """The error model that a group holds.

    Raises
    ------
    NewerSchemaError
        When it is of a version that this isometry does not know.
    InputError
        When an attribute is missing or no error model has such a value.
    """
    version = _value(group, "version", int)
    if version != VERSION:
        raise NewerSchemaError(
            f"{group.file.filename}: {group.name.lstrip('/')} has an error model of version {version} and was written "
            f"by a newer isometry (this one reads {VERSION}): you may need to update, `pip install --upgrade "
            "isometry`. Other entries of the file can be read."
        )
    return ErrorModel(**{key: _value(group, key, kind) for key, kind in _TYPES.items()})


def _value(group: h5py.Group, key: str, kind: type) -> Any:
    """One attribute as a plain value; None for a dimension that is not there."""
    name = _PREFIX + key
    value = attribute(group, name)
    if value is None and key == "dimension":
        return None
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, kind):
        raise InputError(f"{name}: " + ("the attribute is missing" if value is None else f"is {value!r}"))
    return plain


# ---- files from before --------------------------------------------------------------------------------
#
# Versions 1 and 2 of a quadrature have no error model. Bounds were computed from the record of the measurement then,
# and so they are still: this is the one place where a record becomes an input of a number.


def error_model_of_old(
    quadrature: Quadrature, record: Mapping[str, Any], dimension: int | None
) -> ErrorModel:
    """What the record of a measurement says of probes and rounding; what it does not say has no influence."""
    group, rounding, dtype = (record.get(key) for key in ("orthogonal_group", "rounding", "dtype"))
    if _all_found(quadrature, dimension):
        probe = NO_PROBES
    elif record.get("probe") == "rademacher":
        probe = "rademacher"
    else:
        probe = "gaussian" if group is None else "orthogonal"
    return ErrorModel(
        probe,
        group if isinstance(group, int) and group > 0 else 1,
        float(np.finfo(np.float32 if dtype == "float32" else np.float64).eps),
        float(rounding) if isinstance(rounding, int | float) and 0 <= rounding < math.inf else 0.0,
        dimension,
    )


def counted_of_old(quadrature: Quadrature) -> Quadrature:
    """With what versions before 4 do not say: which masses have no part of chance.

    A resolved mass that is a multiple of 1 / n is that of so many values found one by one; a random one on the sphere
    is with a probability of some n * 1e-9. Random signs make such multiples by chance.
    """
    errors = quadrature.errors
    if not errors.random:
        return replace(quadrature, counted=np.ones(quadrature.nodes.shape, bool))
    count = quadrature.weights * quadrature.dimension
    whole = (count > 0.5) & (np.abs(count - np.round(count)) <= _WHOLE * np.maximum(count, 1))
    return replace(quadrature, counted=quadrature.resolved & whole & errors.on_the_sphere)


def _all_found(quadrature: Quadrature, dimension: int | None) -> bool:
    """Whether the nodes are all singular values, each with the same mass."""
    weights = quadrature.weights
    one_each = weights.shape[1:] == (1, dimension) and bool(np.all(np.isclose(weights * weights.shape[2], 1)))
    return one_each and bool(np.all(quadrature.resolved))


def channels_of_old(record: Mapping[str, Any], shape: tuple[int, int] | None) -> dict[str, int]:
    """The channels of a convolutional trunk, which old records have in the text of the input only.

    The first axis of a (channels, *positions) input that J maps onto itself; without a batch, whose axis comes first.
    """
    written = re.match(r"\(([\d, ]+)\)", str(record.get("input", "")))
    axes = [int(number) for number in re.findall(r"\d+", written[1])] if written else []
    options = record.get("options")
    if isinstance(options, Mapping) and options.get("batched"):
        axes = axes[1:]
    while axes and axes[0] == 1:
        axes = axes[1:]
    if len(axes) < 2 or shape != (math.prod(axes), math.prod(axes)) or "channels" in record:
        return {}
    return {"channels": axes[0]}
