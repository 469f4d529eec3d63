"""`smallest_singular_value`: model, input -> s_min between two bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from isometry.errors import InputError, ModelError
from isometry.estimators import ChainFactor, SmallestSingularValue
from isometry.estimators import smallest_singular_value as smallest_of_operator
from isometry.estimators.graded_chain import chain_bytes
from isometry.jacobian import JacobianOperator, keeps_torch_state
from isometry.measurement.measurement import operator_of
from isometry.measurement.operators import Operators
from isometry.measurement.options import OperatorOptions
from isometry.measurement.segment_factors import segment_factors, segments_of
from isometry.progress import Progress, StepProgress, progress_listener


@keeps_torch_state
def smallest_singular_value(
    model: nn.Module | Callable[..., Any] | JacobianOperator,
    x: Any = None,
    *,
    rtol: float = 1e-2,
    delta: float = 1e-3,
    max_products: int | None = None,
    batched: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Progress | Callable[..., Any] | bool | None = None,
    **options: Unpack[OperatorOptions],
) -> SmallestSingularValue:
    """The smallest singular value of the Jacobian of ``model`` at ``x`` between two bounds, or why it is not known.

    Products with J come first, 128 of them: they end it where all values are alike, or s_min is alone below the others.
    Then J is inverted: through its factors where the recorded model has cuts, else as a matrix where that fits into
    ``memory_limit``; else products go on as long as they may.

    Parameters
    ----------
    model, x, batched, dtype, device, progress :
        As for :func:`isometry.measure`. With ``batched`` each input has an interval of its own.
    rtol : float
        Width of the interval wanted, relative to its upper end.
    delta : float
        Probability with which an interval may fail, for each input.
    max_products : int, optional
        Products of each input at most.
    seed : int
        Of the random vectors.
    memory_limit : int, optional
        Bytes for the vectors, and for the matrices of solves; 2 GiB.
    args, kwargs, wrt, source, target, output, products, tf32 : optional
        Of the operator, as for :class:`isometry.JacobianOperator`.

    Returns
    -------
    SmallestSingularValue
        ``lower``, ``upper`` and their logarithms for each input, ``zeros`` where J has exact ones, and ``cause`` where
        the interval is wider than ``rtol``. Printed, it says all that.

    Raises
    ------
    IsometryError
        As :func:`isometry.measure`; InputError for a model whose products J v do not work.

    Notes
    -----
    The interval is that of the recorded factors: J at the activations as the model rounds them. Bounds hold up to
    rounding as it is stated (``JacobianOperator.rounding``) or measured, whichever is larger: see
    ``isometry.estimators.inverse_chain``. Through factors with cuts of min(m, n) numbers there is no limit to the
    condition number; as one matrix, or between wider cuts, it is about 1e13 in float64 and 1e4 in float32. A factor
    that is itself singular to rounding ends it: "at most".

    Examples
    --------
    >>> layers = [torch.nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(30)]
    >>> for layer in layers:
    ...     _ = layer.weight.data.copy_(torch.diag(torch.tensor([1.0, 0.5, 0.25, 0.125])))
    >>> print(smallest_singular_value(torch.nn.Sequential(*layers), torch.ones(4, dtype=torch.float64)))
    s_min = 8.07794e-28 to 8.07794e-28 (confidence 0.999)
    """
    operator = operator_of(
        model, x, memory_limit, batched=batched, dtype=dtype, device=device,
        **{name: value for name, value in options.items() if value is not None and value is not False},
    )  # fmt: skip
    if operator.reverse_only:
        raise InputError(
            f"s_min by solves stands on products J v, and there are {operator.backend}: take method='exact'"
        )
    operators, count = Operators(operator), operator.batch or 1
    found = []
    with progress_listener(progress, "s_min") as listener:
        for index in range(count):
            part = operators(range(index, index + 1)) if operator.batch is not None else operator

            def report(done: int, total: int, index: int = index) -> None:
                listener(index * total + done, count * total, "s_min")

            listen: StepProgress = report
            found.append(
                smallest_of_operator(
                    part, factors=lambda part=part: _factors(part), rtol=rtol, delta=delta, max_products=max_products,
                    memory_limit=operator.memory_limit, seed=seed, first_input=index, progress=listen,
                )
            )  # fmt: skip
    return found[0] if count == 1 else _joined(found)


def _factors(operator: JacobianOperator) -> Sequence[ChainFactor] | None:
    """The factors of J where the model has cuts and their vectors fit into the memory limit."""
    try:
        segments = segments_of(operator)
    except ModelError:
        return None
    fits = chain_bytes(min(operator.shape), segments.widest, operator.dtype) <= operator.memory_limit
    return segment_factors(operator) if len(segments) > 1 and fits else None


def _joined(found: Sequence[SmallestSingularValue]) -> SmallestSingularValue:
    """One result of all inputs."""
    arrays = ("upper", "lower", "converged", "zero", "residual", "log_lower", "log_upper", "zeros")
    return SmallestSingularValue(
        **{name: np.concatenate([getattr(one, name) for one in found]) for name in arrays},
        left=torch.cat([one.left for one in found]),
        right=torch.cat([one.right for one in found]),
        confidence=min(one.confidence for one in found),
        cause=tuple(text for one in found for text in one.cause),
        solved=tuple(text for one in found for text in one.solved),
        products=sum(one.products for one in found),
        blocks=sum(one.blocks for one in found),
        seconds=sum(one.seconds for one in found),
    )
