"""`measure_blocks`: the gain of every block of a sequential network and of the running product, in one walk.

The walk goes through the network once. At each block it takes the block's own Jacobian at the point that reaches it,
and pushes k random tangents, which began at the input, one block further. Their lengths are the running product's:
E ||J_b ... J_1 v||^2 = ||J_b ... J_1||_F^2 / n_0 for v uniform on the unit sphere of R^n_0 (Hutchinson 1990, Commun.
Stat. Simul. Comput. 19, 433). So every prefix of the network is measured for the price of one product with J, and the
cost is linear in the depth. Tangents are made unit vectors after each block and their lengths kept as logarithms: a
thousand blocks leave the range of floats.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isometry.depth.chain import Step, applied
from isometry.depth.sequential_blocks import Block, blocks_of
from isometry.errors import InputError, IsometryError, ModelError
from isometry.estimators import exact, lanczos
from isometry.jacobian import (
    DEFAULT_MEMORY_LIMIT,
    JacobianOperator,
    point_function,
    refuse_training_mode,
    strict_numerics,
)
from isometry.measurement import measure
from isometry.progress import Progress, progress_listener
from isometry.spectrum import ErrorModel, Spectrum
from isometry.spectrum.block_profile import LEVELS, BlockProfile

Array = NDArray[np.float64]

DEFAULT_PROBES, DEFAULT_STEPS = 16, 8
# Spectra of the running product are taken at depths 1, 4, 16, ...: together a third of one at full depth.
DEPTH_RATIO = 4
RUNNING_STEPS = 30
LN10 = math.log(10)
_TANGENTS = 7


def measure_blocks(
    model: nn.Module,
    x: Tensor,
    *,
    blocks: str | None = None,
    probes: int = DEFAULT_PROBES,
    steps: int = DEFAULT_STEPS,
    batched: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | Callable[[int, int], None] | bool | None = None,
    name: str = "",
    whole: Spectrum | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> BlockProfile:
    """The gain of every block of ``model`` and of the running product, which show where the signal is lost.

    Parameters
    ----------
    model : nn.Module
        A chain of layers: `torch.nn.Sequential` (nested as well), or a reference network of `isometry.nn`. It is not
        changed.
    x : Tensor
        One input, exactly as the model takes it; with ``batched``, B of them stacked first.
    blocks : str, optional
        Regular expression: a module whose whole name matches it is a block, and what lies between two of them is
        another. By default the children of a Sequential, or stem, layers and head of a reference network.
    probes, steps : int
        Random tangents, and Golub-Kahan steps of each block's own spectrum. A block whose shorter side is no more than
        2 * probes * steps is measured exactly.
    batched, dtype, device, seed, memory_limit, progress, name, provenance :
        As for `isometry.measure`.
    whole : Spectrum, optional
        The spectrum of the whole network where it is known; measured with the same probes, and 30 steps, if not.

    Returns
    -------
    BlockProfile
        With chi of every block, the mean square of every running product, and the running product's whole spectrum at
        depths 1, 4, 16, ... and L.

    Raises
    ------
    ModelError
        When the model is not a chain, or the chain does not reproduce the output of the model.
    InputError
        When no module's name matches ``blocks``, or an argument is out of its range.

    Examples
    --------
    >>> layers = [torch.nn.Linear(8, 8, bias=False) for _ in range(5)]
    >>> for layer in layers:
    ...     _ = torch.nn.init.orthogonal_(layer.weight)
    >>> _ = layers[3].weight.data.mul_(0.01)
    >>> profile = measure_blocks(torch.nn.Sequential(*layers), torch.ones(8), progress=False)
    >>> profile.blocks[profile.at_fault()], round(float(profile.chi[3]), 9)
    ('3', 0.0001)
    """
    for option, value, least in (("probes", probes, 2), ("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{option} is a whole number of {least} or more; got {value!r}")
    if not isinstance(model, nn.Module) or not isinstance(x, Tensor):
        raise InputError(
            f"measure_blocks takes an nn.Module and a tensor; got {type(model).__name__}, {type(x).__name__}"
        )
    refuse_training_mode(model)
    began = time.perf_counter()
    own, point = _placed(model, x, dtype, device)
    chain = blocks_of(own, blocks)
    with progress_listener(progress, "blocks") as tell:
        spectra, logs, end = _walk(
            chain,
            point,
            batched=batched,
            probes=probes,
            steps=steps,
            seed=seed,
            memory_limit=memory_limit,
            tell=tell,
        )
        _same_as_model(own, point, end)
        running = _running_spectra(
            own, point, chain, name=name, whole=whole, tell=tell,
            batched=batched, probes=probes, steps=RUNNING_STEPS, seed=seed, memory_limit=memory_limit,
        )  # fmt: skip
    return replace(
        _profile(chain, spectra, logs, running),
        name=name,
        provenance={
            **running[len(chain)].provenance, **(provenance or {}),
            "probes": probes, "steps": steps, "seed": seed, "blocks_pattern": blocks or "",
            "seconds_blocks": time.perf_counter() - began,
        },
    )  # fmt: skip


def _placed(
    model: nn.Module, x: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[nn.Module, Tensor]:
    """A copy of the model and the input, on the device and in the dtype of the measurement."""
    part = point_function(model, x, dtype=dtype, device=device)
    return part.module or model, part.point


def _same_as_model(model: nn.Module, point: Tensor, end: Tensor) -> None:
    """Raise ModelError where the chain of blocks does not reproduce the output of the model."""
    with strict_numerics(point.device):
        value = model(point.clone())
    same = isinstance(value, Tensor) and value.shape == end.shape
    # The same operations in the same order; a model of its own order, or with hooks, is off by its whole size.
    if not same or float((value - end).norm()) > 1e-3 * float(value.norm()):
        raise ModelError(
            f"the blocks of this {type(model).__name__}, one after another, do not give what the model gives: its "
            "forward does more than to call them (hooks, a method of its own). Build it as a plain torch.nn.Sequential"
        )


# ---- the walk ------------------------------------------------------------------------------------------


def _walk(
    chain: Sequence[Block],
    point: Tensor,
    *,
    batched: bool,
    probes: int,
    steps: int,
    seed: int,
    memory_limit: int,
    tell: Progress,
) -> tuple[list[Spectrum], Array, Tensor]:
    """Every block's own spectrum; ln ||J_b ... J_1 v||^2 as (L, inputs, probes), v of length 1; and the output."""
    inputs = point.shape[0] if batched else 1
    logs = np.zeros((len(chain), inputs, probes))
    total = np.zeros((inputs, probes))
    spectra: list[Spectrum] = []
    tangents: Tensor | None = None
    for number, block in enumerate(chain):
        try:
            with warnings.catch_warnings():
                # A warning about one block (slower products) would repeat for hundreds.
                warnings.simplefilter("ignore" if number else "default")
                operator = JacobianOperator(block.function, point, batched=batched, memory_limit=memory_limit)
        except IsometryError as error:
            raise type(error)(f"block {block.name!r}: {error}") from error
        if tangents is None:
            tangents = _unit_tangents(operator, probes, seed)
        tangents, log_length = _unit(operator.matmat(tangents), batched)
        logs[number] = total = total + 2 * log_length
        spectra.append(_own_spectrum(operator, probes, steps, [seed, number], memory_limit))
        with strict_numerics(point.device):
            point = applied(Step(block.name, block.function, None), point)
        tell(number + 1, len(chain), f"block {block.name}")
    return spectra, logs, point


def _unit_tangents(operator: JacobianOperator, probes: int, seed: int) -> Tensor:
    """Random tangents at the input, uniform on the unit sphere: (k, *input_shape), with a batch (k, B, ...)."""
    inputs, size = operator.batch or 1, operator.shape[1]
    draws = np.empty((probes, inputs, size))
    for probe in range(probes):
        for index in range(inputs):
            # A stream for each probe of each input, apart from those of the spectra.
            stream = np.random.SeedSequence([seed, _TANGENTS, index, probe])
            draws[probe, index] = np.random.Generator(np.random.PCG64(stream)).standard_normal(size)
    draws /= np.linalg.norm(draws, axis=-1, keepdims=True)
    return torch.from_numpy(draws).to(operator.point).reshape(probes, *operator.point.shape)


def _unit(tangents: Tensor, batched: bool) -> tuple[Tensor, Array]:
    """The tangents as unit vectors, zero where they are zero, and ln of their lengths as (inputs, probes)."""
    axis = 2 if batched else 1
    flat = tangents.flatten(axis).double() if tangents.dim() > axis else tangents.double()[..., None]
    scale = flat.abs().amax(dim=-1, keepdim=True)
    length = scale * torch.linalg.vector_norm(flat / torch.where(scale > 0, scale, 1.0), dim=-1, keepdim=True)
    units = (flat / torch.where(length > 0, length, 1.0)).reshape(tangents.shape).to(tangents)
    with np.errstate(divide="ignore"):
        logs = np.log(length[..., 0].cpu().numpy())
    return units, logs.T if batched else logs[None, :]


def _own_spectrum(
    operator: JacobianOperator, probes: int, steps: int, stream: list[int], memory_limit: int
) -> Spectrum:
    """The spectrum of one block's own Jacobian."""
    m, n = operator.shape
    if min(m, n) <= 2 * probes * steps and 3 * 8 * m * n <= memory_limit:
        return exact(operator, block=max(operator.chunk, 1))
    seed = int(np.random.SeedSequence(stream).generate_state(1)[0])
    return lanczos(operator, seed=seed, probes=probes, steps=steps, memory_limit=memory_limit)


def _running_spectra(
    model: nn.Module,
    point: Tensor,
    chain: Sequence[Block],
    *,
    name: str,
    whole: Spectrum | None,
    tell: Progress,
    **options: Any,
) -> dict[int, Spectrum]:
    """Spectra of the running product at depths 1, 4, 16, ..., and at full depth."""
    depths = [DEPTH_RATIO**k for k in range(len(chain)) if DEPTH_RATIO**k < len(chain)]
    running: dict[int, Spectrum] = {}
    with warnings.catch_warnings():
        # The whole network warns the caller of all this; inside it a small J is the result, not a fault.
        warnings.simplefilter("ignore")
        for number, depth in enumerate(depths):
            # Layers between two blocks are no module that a measurement could end at.
            end = next((d for d in range(depth, len(chain)) if chain[d - 1].module is not None), None)
            if end is not None and end not in running:
                block = chain[end - 1]
                tell(number, len(depths), f"product up to {block.name}")
                running[end] = measure(
                    model, point, target=block.module, name=f"{name or 'network'} to {block.name}", progress=False,
                    on_interrupt="raise", provenance={"running_product_of": name, "depth": end}, **options,
                )  # fmt: skip
    if whole is None:
        whole = measure(model, point, name=name, progress=False, on_interrupt="raise", **options)
    running[len(chain)] = whole
    return running


# ---- the profile --------------------------------------------------------------------------------------


def _profile(
    chain: Sequence[Block], spectra: Sequence[Spectrum], logs: Array, running: Mapping[int, Spectrum]
) -> BlockProfile:
    """The profile of blocks with these spectra, from ln ||J_b ... J_1 v||^2 as (L, inputs, probes)."""
    shapes = np.array([spectrum.shape for spectrum in spectra], dtype=np.int64)
    entering = shapes[0, 1]
    # ||J v||^2 has the mean ||J||_F^2 / n_0.
    per_value = np.log(entering / np.minimum(shapes[:, 0], entering))
    means, rows = zip(*(_mean_and_rows(values) for values in logs), strict=True)
    before = (np.ones_like(rows[0]), *rows[:-1])
    log_mean = np.array(means) + per_value
    # The tangents are independent, whatever the probes of the spectra were.
    tangents = ErrorModel()
    with np.errstate(invalid="ignore"):
        gain = np.diff(log_mean, prepend=0.0)
    return BlockProfile(
        blocks=tuple(block.name for block in chain),
        kinds=tuple(block.kind for block in chain),
        shapes=shapes,
        chi=np.array([spectrum.mean_square for spectrum in spectra]),
        chi_stderr=np.array([spectrum.mean_square_stderr for spectrum in spectra]),
        s_max=np.array([spectrum.s_max for spectrum in spectra]),
        s_max_residual=np.array([spectrum.s_max_residual for spectrum in spectra]),
        log10_quantiles=np.array([spectrum.log10_quantile(LEVELS) for spectrum in spectra]),
        log10_mean_square=log_mean / LN10,
        log10_mean_square_stderr=np.array([tangents.standard_error(row) for row in rows]) / LN10,
        log10_gain=gain / LN10,
        # The same probes enter and leave a block: their common part cancels (delta method).
        log10_gain_stderr=np.array(
            [tangents.standard_error(row - last) for row, last in zip(rows, before, strict=True)]
        )
        / LN10,
        running=running,
    )


def _mean_and_rows(log_values: Array) -> tuple[float, Array]:
    """ln of the mean of exp(log_values), and each value over that mean; nan where all are zero."""
    top = float(log_values.max())
    if top == -math.inf:
        return -math.inf, np.full(log_values.shape, np.nan)
    scaled = np.exp(log_values - top)
    mean = float(scaled.mean())
    return top + math.log(mean), scaled / mean
