"""The keys of a configuration: their readers, and the keys of each kind of point. Internal.

A reader converts a value from TOML or Python to the plain value in the canonical configuration, the same for every
spelling (1 and 1.0, a NumPy number and Python's), or raises `Wrong` with what it accepts. The keys of networks and of
training runs follow from `isometry.nn.options` and `isometry.training.options`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from isometry.errors import InputError, SpecError
from isometry.loading.inputs import known_input_spec
from isometry.nn.options import CONVOLUTION_INITS, DENSE_INITS, NETWORKS, Option
from isometry.training.options import NETWORK_OPTIONS, TRAINING_OPTIONS

Reader = Callable[[Any], Any]

KINDS = ("measure", "predict", "compare", "train")
# A sweep writes no checkpoints.
_NO_TRAINING_KEYS = frozenset({"checkpoint_every"})


class Wrong(ValueError):
    """A value that its key does not accept; the text states what it accepts."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def shown(value: Any) -> str:
    """A value in an error message, shortened where it is long or deep."""
    return _SHORT.repr(value)


def whole(least: int = 1) -> Reader:
    """Reader of whole numbers from ``least`` on."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise Wrong(f"a whole number of {least} or more")
        return int(value)

    return read


def number(least: float = -math.inf, *, above: bool = False) -> Reader:
    """Reader of finite numbers from ``least`` on, or ``above`` it."""
    words = (
        "a finite number"
        if least == -math.inf
        else f"a number {'above' if above else 'of at least'} {least:g}"
    )

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Wrong(words)
        try:
            found = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            raise Wrong(words) from None
        if not math.isfinite(found) or found < least or (above and found == least):
            raise Wrong(words)
        return found + 0.0  # no negative zero, which would be another key

    return read


def choice(*options: str) -> Reader:
    """Reader of one of a few words."""

    def read(value: Any) -> str:
        if value not in options:
            near = get_close_matches(str(value), options, n=1)
            raise Wrong(f"one of {', '.join(options)}{f'; did you mean {near[0]!r}?' if near else ''}")
        return str(value)

    return read


def text(value: Any) -> str:
    """Reader of text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong("text")
    return str(value)


def truth(value: Any) -> bool:
    """Reader of true and false."""
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def activation(value: Any) -> str:
    """Reader of the name of an activation."""
    from isometry.nn.activations import make_activation

    name = text(value)
    try:
        make_activation(name)
    except InputError as error:
        raise Wrong(f"an activation ({error})") from error
    return name


def input_spec(value: Any) -> str:
    """Reader of an input: a shape, 'digits', or a file of numbers."""
    spec = text(value)
    if not known_input_spec(spec):
        raise Wrong("a shape such as 3x32x32, 'digits', or a .npy, .npz or .pt file")
    return spec


def texts(what: str) -> Reader:
    """Reader of one text or several, as a list."""

    def read(value: Any) -> list[str]:
        found = [value] if isinstance(value, str) else value
        if (
            not isinstance(found, list | tuple)
            or not found
            or not all(isinstance(e, str) and e for e in found)
        ):
            raise Wrong(f"{what}, or a list of such")
        return list(found)

    return read


def arguments(value: Any) -> list[str]:
    """Reader of further inputs, in the order of their names: another order is the same point."""
    words = "NAME=VALUE"
    found = texts(words)(value)
    names = [entry.partition("=")[0] for entry in found]
    if not all(
        "=" in entry and (n.isidentifier() or n.isdigit()) for entry, n in zip(found, names, strict=True)
    ):
        raise Wrong(f"{words}, or a list of such")
    if len(set(names)) < len(names):
        raise Wrong("of inputs that differ in name")
    return sorted(found)


def number_or_file(value: Any) -> int | str:
    """Reader of a number of tokens, or of a file of them."""
    return whole()(value) if isinstance(value, Integral) else text(value)


def name_or_index(value: Any) -> str | int:
    """Reader of one of several outputs."""
    return whole(0)(value) if isinstance(value, Integral) else text(value)


def reader_of(option: Option) -> Reader:
    """The reader of a setting of a network or a training run."""
    if option.name == "activation":
        return activation
    if option.choices:
        return choice(*option.choices)
    least = option.least
    if option.type is int:
        return whole(int(least or 0))
    if option.type is float:
        return number(-math.inf if least is None else least, above=option.above)
    return truth if option.type is bool else text


@lru_cache
def network_keys(model: str, *, sampled: bool = True) -> dict[str, Reader]:
    """Settings of a built-in network; only those that change a prediction, where it is not ``sampled``."""
    return {
        name: reader_of(option)
        for name, option in NETWORKS[model].options.items()
        if (name != "seed" if sampled else option.in_theory)
    }


COMPARISON_KEYS: Mapping[str, Reader] = {"theory": choice("ensemble", "layers")}


@lru_cache
def measurement_keys() -> dict[str, Reader]:
    """The options of a measurement."""
    from isometry.estimators.blocks import PROBES
    from isometry.measurement.methods import METHODS
    from isometry.measurement.stopping import QUANTITIES

    return {
        "input": input_spec,
        "inputs": whole(),
        "args": arguments,
        "input_ids": number_or_file,
        "wrt": texts("the name of an input"),
        "batch_axis": truth,
        "weights": text,
        "eval": truth,
        "method": choice(*METHODS),
        "probes": whole(),
        "steps": whole(),
        "top": whole(),
        "rank": whole(),
        "tol": number(0, above=True),
        "rtol": number(0, above=True),
        "quantity": choice(*QUANTITIES),
        # Products only: a budget in seconds gives different results on different machines.
        "budget": whole(),
        "probe": choice(*PROBES),
        "dtype": choice("float32", "float64"),
        "device": text,
        "memory_limit": whole(),
        "source": text,
        "target": text,
        "output": name_or_index,
        "seed": whole(0),
    }


def prediction_keys() -> dict[str, Reader]:
    """Keys of a prediction alone. A law is the same for dense and convolutional layers."""
    laws = [law for law in dict.fromkeys([*DENSE_INITS, *CONVOLUTION_INITS]) if law != "mirrored"]
    return {"init": choice(*laws), "q0": number(0, above=True), "readout": truth}


@lru_cache
def training_keys() -> dict[str, Reader]:
    """Keys of a training run: data, network, and the fields of `TrainingOptions`."""
    run = {"data": text, "folder": text, "limit": whole(), "device": text, "spectrum_every": whole()}
    options = [option for option in TRAINING_OPTIONS.values() if option.name not in _NO_TRAINING_KEYS]
    return {**run, **{option.name: reader_of(option) for option in [*NETWORK_OPTIONS.values(), *options]}}


def unknown_key(key: str, known: Mapping[str, Any] | Sequence[str], what: str) -> SpecError:
    """The error for an unknown key, with the keys it may have meant."""
    names = list(known)
    near = get_close_matches(key, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the keys are {', '.join(sorted(names))}"
    return SpecError(f"{what} has no key {key!r}: {hint}")


def read_value(key: str, value: Any, reader: Reader, what: str) -> Any:
    """The plain value.

    Raises
    ------
    SpecError
        When the key does not accept the value; the message names both.
    """
    try:
        return reader(value)
    except Wrong as error:
        raise SpecError(f"{what}: {key} is {error}; got {shown(value)}") from error
