"""Lyapunov exponents: the growth rates of perturbations along the steps of a map, of a recurrent cell, or of depth.

For J_t the Jacobian of step t the exponents are lambda_i = lim ln s_i(J_T ... J_1) / T. For the leading k of them k
orthonormal tangent vectors go through the steps with a QR after each, and the exponents are the means of ln |R_ii|
(Benettin, Galgani, Giorgilli & Strelcyn 1980, Meccanica 15, 9; Shimada & Nagashima 1979, Prog. Theor. Phys. 61, 1605).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isometry.errors import InputError, NonFiniteError
from isometry.jacobian import JacobianOperator, keeps_torch_state, strict_numerics
from isometry.progress import Progress, progress_listener

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LyapunovExponents:
    """The leading k exponents, per step, largest first in the limit of many steps.

    Parameters
    ----------
    values : (k,) array
        Means over the inputs, natural logarithm per step.
    error : (k,) array
        Standard errors over the inputs; of one input nan.
    of_inputs : (B, k) array
        Of each input.
    steps, warmup : int
        Steps that were averaged, and steps before them that were not.
    """

    values: Array
    error: Array
    of_inputs: Array
    steps: int
    warmup: int

    def __str__(self) -> str:
        return "\n".join(
            f"{value:.6g}" + ("" if math.isnan(error) else f" ± {error:.2g}")
            for value, error in zip(self.values, self.error, strict=True)
        )


@keeps_torch_state
def lyapunov_exponents(
    cell: nn.Module | Callable[..., Tensor],
    x: Tensor,
    k: int,
    steps: int,
    *,
    inputs: Tensor | None = None,
    warmup: int = 0,
    seed: int = 0,
    progress: Progress | Callable[..., Any] | bool | None = None,
) -> LyapunovExponents:
    """The k leading Lyapunov exponents of x -> cell(x), with their error over inputs.

    Parameters
    ----------
    cell : nn.Module or callable
        One step: from states (B, *shape) to states of the same shape, each sample by itself. With ``inputs``, called as
        ``cell(inputs[t], states)``, as `torch.nn.GRUCell` is.
    x : (B, *shape) Tensor
        States to start from. Each has tangent vectors of its own, and the error is the spread over them: independent
        draws give an error of the mean over their distribution.
    k : int
        Exponents, at most the numbers of a state.
    steps : int
        Steps to average over.
    inputs : (warmup + steps, ...) Tensor, optional
        What drives the cell, step by step.
    warmup : int
        Steps before those, in which states reach the attractor and tangent vectors their directions. Without it the
        exponents are those of the product of exactly ``steps`` factors on random vectors, off by O(1 / steps).
    seed : int
        Of the tangent vectors.
    progress : callable or bool, optional
        As for :func:`isometry.measure`.

    Returns
    -------
    LyapunovExponents

    Raises
    ------
    InputError
        For numbers out of their range, or a step that changes the shape of the states.
    NonFiniteError
        Where states or tangent vectors leave the range of floats.

    Examples
    --------
    >>> found = lyapunov_exponents(lambda x: x * torch.tensor([2.0, 0.5]), torch.ones(1, 2).double(), 2, 50, warmup=50)
    >>> (found.values / math.log(2)).round(6).tolist()
    [1.0, -1.0]
    """
    size = x[0].numel() if isinstance(x, Tensor) and x.dim() > 1 and len(x) else 0
    if size == 0:
        raise InputError("x holds at least one state, stacked first: (B, *shape)")
    for name, number, least, most in (
        ("k", k, 1, size),
        ("steps", steps, 1, math.inf),
        ("warmup", warmup, 0, math.inf),
    ):
        if not least <= number <= most:
            raise InputError(f"{name} is a whole number from {least} to {most}; got {number}")
    if inputs is not None and len(inputs) < warmup + steps:
        raise InputError(f"inputs has {len(inputs)} entries, fewer than warmup + steps = {warmup + steps}")
    generator = torch.Generator().manual_seed(seed)
    states = x.detach()
    vectors = torch.randn(len(x), size, k, generator=generator, dtype=torch.float64).to(states.device)
    vectors = torch.linalg.qr(vectors).Q
    sums = torch.zeros(len(x), k, dtype=torch.float64, device=states.device)
    with progress_listener(progress, "lyapunov") as listener:
        for step in range(warmup + steps):
            states, block = _stepped(cell if inputs is None else _driven(cell, inputs[step]), states, vectors)
            with strict_numerics(states.device):
                vectors, upper = torch.linalg.qr(block)
            growth = torch.log(upper.diagonal(dim1=1, dim2=2).abs())
            if bool(torch.isnan(growth).any()) or not bool(torch.isfinite(states).all()):
                raise NonFiniteError(
                    f"states or tangent vectors leave the range of floats at step {step + 1}"
                )
            if step >= warmup:
                sums += growth
            listener(step + 1, warmup + steps, "steps")
    found = (sums / steps).cpu().numpy()
    spread = found.std(axis=0, ddof=1) / math.sqrt(len(x)) if len(x) > 1 else np.full(k, math.nan)
    return LyapunovExponents(found.mean(axis=0), spread, found, steps, warmup)


def _driven(cell: Callable[..., Tensor], value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda states: cell(value, states)


def _stepped(
    step: nn.Module | Callable[[Tensor], Tensor], states: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """The states after a step, and (B, size, k) the tangent vectors behind it in float64."""
    operator = JacobianOperator(step, states, batched=True, check=False)
    after = operator.evaluation.value
    if after.shape != states.shape:
        raise InputError(f"a step takes states of shape {tuple(states.shape)} to {tuple(after.shape)}")
    shape = (vectors.shape[2], *states.shape)
    block = vectors.permute(2, 0, 1).reshape(shape).to(operator.dtype)
    image = operator.matmat(block).reshape(shape[0], len(states), -1)
    return after.detach(), image.permute(1, 2, 0).to(torch.float64)
