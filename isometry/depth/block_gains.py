"""`measure_blocks`: the gain of every block of a network and of the running product, in one walk.

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

from isometry.depth.block_walks import BlockOperator, Walk, block_seed, own_spectrum, recorded_walk, walk_of
from isometry.depth.recorded_blocks import RecordedBlock
from isometry.depth.sequential_blocks import Block
from isometry.errors import InputError
from isometry.jacobian import (
    DEFAULT_MEMORY_LIMIT,
    Output,
    Wrt,
    keeps_torch_state,
    model_inputs,
    point_function,
    refuse_training_mode,
)
from isometry.measurement import measure
from isometry.progress import Progress, progress_listener
from isometry.spectrum import ErrorModel, Spectrum
from isometry.spectrum.block_profile import LEVELS, BlockProfile, ResidualGain

Array = NDArray[np.float64]

DEFAULT_PROBES, DEFAULT_STEPS = 16, 8
# Spectra of the running product are taken at depths 1, 4, 16, ...: together a third of one at full depth.
DEPTH_RATIO = 4
RUNNING_STEPS = 30
LN10 = math.log(10)
_TANGENTS = 7


@keeps_torch_state
def measure_blocks(
    model: nn.Module | Callable[..., Any],
    x: Any = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    wrt: Wrt = None,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
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
    model : nn.Module or callable
        Any model whose run can be recorded, or a chain of layers: `torch.nn.Sequential` (nested as well), or a
        reference network of `isometry.nn`. It is not changed.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        One input, exactly as the model takes it; with ``batched``, B of them stacked first.
    args, kwargs, wrt, source, target, output :
        As for `isometry.JacobianOperator`. Where any is given, the blocks are those of a recording.
    blocks : str, optional
        Regular expression: a module whose whole name matches it is a block, and what lies between two of them is
        another. By default the children of a Sequential, or stem, layers and head of a reference network; of any other
        model what lies between two tensors through which all dependence on the input passes, where the pieces of one
        transformer layer, or of one block of a ResNet, count as one.
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
        With chi of every block, the mean square of every running product, the running product's whole spectrum at
        depths 1, 4, 16, ... and L, and chi of x -> x + f(x) and of f at every sum x + f(x).

    Raises
    ------
    ModelError
        When the model is not a chain and its run cannot be recorded, with the operation that prevents it.
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
    if not callable(model):
        raise InputError(
            f"measure_blocks takes an nn.Module, or a function of tensors; got {type(model).__name__}"
        )
    refuse_training_mode(model if isinstance(model, nn.Module) else None)
    began = time.perf_counter()
    operator: dict[str, Any] = {"batched": batched, "memory_limit": memory_limit}
    how = {"args": args, "kwargs": kwargs, "wrt": wrt, "source": source, "target": target, "output": output}
    alone = isinstance(args, tuple) and not args and all(how[name] is None for name in how if name != "args")
    if isinstance(x, Tensor) and alone:
        own, point = _placed(model, x, dtype, device)
        walk = walk_of(own, point, blocks, **operator)
    else:
        own, point, operator = model, x, {**operator, **how, "dtype": dtype, "device": device}
        walk = recorded_walk(own, point, blocks, **operator)
    with progress_listener(progress, "blocks") as listener:
        spectra, logs, sums = _walk(
            walk,
            batched=batched,
            probes=probes,
            steps=steps,
            seed=seed,
            memory_limit=memory_limit,
            progress=listener,
        )
        running = _running_spectra(
            own, point, walk, operator, name=name, whole=whole, progress=listener, probes=probes, seed=seed
        )
    return replace(
        _profile(walk.blocks, spectra, logs, sums, running),
        name=name,
        provenance={
            **running[len(walk.blocks)].provenance, **(provenance or {}),
            "probes": probes, "steps": steps, "seed": seed, "blocks_pattern": blocks or "",
            "seconds_blocks": time.perf_counter() - began,
        },
    )  # fmt: skip


def _placed(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[nn.Module | Callable[[Tensor], Any], Tensor]:
    """A copy of the model, and the input, on the device and in the dtype of the measurement.

    Nothing of the user's module is run: another thread may train it, and what a forward pass writes stays in the copy.
    """
    part = point_function(model, model_inputs(model, x), dtype=dtype, device=device)
    return part.module or model, part.point


# ---- the walk ------------------------------------------------------------------------------------------


def _walk(
    walk: Walk, *, batched: bool, probes: int, steps: int, seed: int, memory_limit: int, progress: Progress
) -> tuple[list[Spectrum], Array, list[ResidualGain]]:
    """Every block's own spectrum; ln ||J_b ... J_1 v||^2 as (L, inputs, probes), v of length 1; the residual sums."""
    logs: list[Array] = []
    spectra: list[Spectrum] = []
    sums: list[ResidualGain] = []
    tangents: Tensor | None = None

    def spectrum_of(operator: BlockOperator, *stream: int) -> Spectrum:
        return own_spectrum(operator, probes, steps, block_seed(seed, *stream), memory_limit)

    for number, block in enumerate(walk.walked()):
        operator = block.operator
        if tangents is None:
            tangents = _unit_tangents(operator, probes, seed)
        tangents, log_length = _unit(operator.matmat(tangents), batched)
        logs.append((logs[-1] if logs else 0.0) + 2 * log_length)
        own = spectrum_of(operator, number)
        spectra.append(own)
        for place, found in enumerate(block.residual_sums):
            stream = own if found.stream is None else spectrum_of(found.stream, number, 2 * place)
            branch = spectrum_of(found.branch, number, 2 * place + 1)
            sums.append(
                ResidualGain(
                    number, found.name,
                    stream.mean_square, stream.mean_square_stderr,
                    branch.mean_square, branch.mean_square_stderr,
                )
            )  # fmt: skip
        progress(number + 1, len(walk.blocks), f"block {block.name}")
    return spectra, np.array(logs), sums


def _unit_tangents(operator: BlockOperator, probes: int, seed: int) -> Tensor:
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


def _running_spectra(
    model: nn.Module | Callable[..., Any],
    point: Any,
    walk: Walk,
    operator: Mapping[str, Any],
    *,
    name: str,
    whole: Spectrum | None,
    progress: Progress,
    probes: int,
    seed: int,
) -> dict[int, Spectrum]:
    """Spectra of the running product at depths 1, 4, 16, ..., and at full depth."""
    count = len(walk.blocks)
    depths = [DEPTH_RATIO**k for k in range(count) if DEPTH_RATIO**k < count]
    running: dict[int, Spectrum] = {}
    with warnings.catch_warnings():
        # The whole network warns the caller of all this; inside it a small J is the result, not a fault.
        warnings.simplefilter("ignore")
        for number, depth in enumerate(depths):
            end = walk.depth_of_product(depth)
            if end is not None and end not in running:
                block = walk.blocks[end - 1].name
                progress(number, len(depths), f"product up to {block}")
                running[end] = walk.product(
                    end, probes=probes, steps=RUNNING_STEPS, seed=seed, name=f"{name or 'network'} to {block}",
                    provenance={"running_product_of": name, "depth": end},
                )  # fmt: skip
    if whole is None:
        whole = measure(
            model, point, probes=probes, steps=RUNNING_STEPS, seed=seed, progress=False, on_interrupt="raise",
            name=name, **operator,
        )  # fmt: skip
    running[count] = whole
    return running


# ---- the profile --------------------------------------------------------------------------------------


def _profile(
    chain: Sequence[Block | RecordedBlock],
    spectra: Sequence[Spectrum],
    logs: Array,
    sums: Sequence[ResidualGain],
    running: Mapping[int, Spectrum],
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
        residual_sums=tuple(sums),
    )


def _mean_and_rows(log_values: Array) -> tuple[float, Array]:
    """ln of the mean of exp(log_values), and each value over that mean; nan where all are zero."""
    top = float(log_values.max())
    if top == -math.inf:
        return -math.inf, np.full(log_values.shape, np.nan)
    scaled = np.exp(log_values - top)
    mean = float(scaled.mean())
    return top + math.log(mean), scaled / mean
