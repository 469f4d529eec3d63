"""The record of a measurement: of what, how, with what, and which ensemble of networks J is a draw from."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from isometry.errors import InputError
from isometry.theory.ensemble import Ensemble

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from isometry.jacobian import JacobianOperator


# What a measurement records itself, by whichever method. An ensemble is its own as well, and may be given.
OWN_KEYS = frozenset(
    {"model", "input", "channels", "dtype", "device", "products_by", "rounding", "seed", "options", "shares",
     "torch_version", "numpy_version", "isometry_version", "git_commit", "created", "threads", "predicted_peak_bytes",
     "processes", "stopped", "factors", "decompositions", "condition", "sweeps", "instead_of",
     "probe", "probes", "steps", "rank", "taken_out", "kernel"}
)  # fmt: skip


def refuse_own_keys(provenance: Mapping[str, Any]) -> None:
    """Raise where a caller wants something recorded under a name that the measurement uses itself.

    Raises
    ------
    InputError
        Naming the keys. Values that are None are not recorded, and pass.
    """
    clashes = sorted(key for key in OWN_KEYS & provenance.keys() if provenance[key] is not None)
    if clashes:
        raise InputError(
            f"provenance has {', '.join(map(repr, clashes))}, which the measurement records itself: record yours under "
            f"another name, such as {'own_' + clashes[0]!r}"
        )


def record(operator: JacobianOperator, *, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What every measurement records: plain JSON values. Options that were left at None are left out."""
    # Loaded here: the command line knows this module, and its help does without torch.
    import torch

    return {
        "model": operator.description,
        "input": operator.inputs.description,
        **_channels(operator),
        **_kernel(operator.model),
        "dtype": str(operator.dtype).removeprefix("torch."),
        "device": _device_name(operator.device),
        "products_by": operator.backend,
        "rounding": operator.rounding,
        "seed": seed,
        "options": {
            key: value if isinstance(value, str | int | float) else repr(value)
            for key, value in options.items()
            if value is not None
        },
        "torch_version": torch.__version__,
        "numpy_version": np.__version__,
        "isometry_version": _own_version(),
        "git_commit": _git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
    }


def recorded_ensemble(
    model: Any, x: Tensor, *, part: bool = False, loaded: bool = False, stationary: bool = False
) -> dict[str, Any] | None:
    """The ensemble that J is a draw from, which a comparison with theory needs; None where it is of no known one.

    Parameters
    ----------
    model : module or callable
        One that knows its ensemble has it as an attribute. It speaks of the bare trunk: a stem or a head multiplies J
        by factors that it does not hold.
    x : Tensor
        The input. Its mean square gives q0, the variance of the first pre-activations.
    part : bool
        Whether only a part of the model is measured, which is no draw from the ensemble of the whole.
    loaded : bool
        Whether the weights were loaded and are not as drawn.
    stationary : bool
        Whether the input was drawn so that the pre-activations have the variance q* from the first layer on: the
        ensemble then stands for itself.
    """
    ensemble = getattr(model, "ensemble", None)
    whole = getattr(model, "stem", None) is None and getattr(model, "head", None) is None
    # Other people's models call other things an ensemble.
    if not isinstance(ensemble, Ensemble) or part or loaded or not whole:
        return None
    if ensemble.sigma_w is None or (stationary and ensemble.residual is None):
        return dict(ensemble.to_dict())
    mean_square = float(x.detach().double().square().mean()) if x.is_floating_point() else math.nan
    if not math.isfinite(mean_square):
        # Integers, nothing, NaN: the measurement says what is wrong with such an input.
        return None
    sigma_w, sigma_b = (
        value[0] if isinstance(value, tuple) else value or 0.0
        for value in (ensemble.sigma_w, ensemble.sigma_b)
    )
    q0 = sigma_w**2 * mean_square + sigma_b**2
    return dict(replace(ensemble, q0=q0).to_dict())


def _kernel(model: Any) -> dict[str, Any]:
    """How the weights of a reference convolution lie in space, which decides how far one draw strays from its law."""
    kernel = getattr(model, "kernel", None)
    return {"kernel": kernel} if isinstance(kernel, dict) else {}


def _channels(operator: JacobianOperator) -> dict[str, int]:
    """Channels of a trunk: the first axis of a (channels, *positions) input that J maps onto itself."""
    only = operator.inputs.only_tensor
    shape = () if only is None else tuple(only.shape)
    axes = list(shape[1:] if operator.batch is not None else shape)
    while axes and axes[0] == 1:
        axes = axes[1:]
    onto_itself = operator.shape == (math.prod(axes), math.prod(axes))
    return {"channels": axes[0]} if len(axes) > 1 and onto_itself else {}


def _device_name(device: torch.device) -> str:
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@lru_cache(maxsize=1)
def _own_version() -> str:
    try:
        return version("isometry")
    except PackageNotFoundError:
        # Run from a source tree that is on the path but not installed.
        return "unknown"


@lru_cache(maxsize=1)
def _git_commit() -> str | None:
    """Commit of the repository the process works in, if it is one: which code made this number."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
