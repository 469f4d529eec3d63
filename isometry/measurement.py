"""The front door: model, input -> Spectrum."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from isometry.convergence import DEFAULT_TOP, warn_of_underflow, warn_unconverged
from isometry.errors import FallbackWarning, InputError
from isometry.estimators import exact, lanczos, randomized
from isometry.estimators.rows import side_by_side
from isometry.jacobian import JacobianOperator
from isometry.jacobian.function import Output
from isometry.jacobian.operator import DEFAULT_MEMORY_LIMIT
from isometry.progress import Progress, progress_bar, silent
from isometry.provenance import record, recorded_ensemble
from isometry.spectrum import Spectrum

METHODS = ("auto", "exact", "lanczos", "randomized")
DEFAULT_PROBES, DEFAULT_STEPS, DEFAULT_RANK = 16, 50, 20
# A dense SVD of a longer short side takes minutes on a processor, whatever the products cost.
_LARGEST_DENSE_SIDE = 6000


def measure(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    method: str = "auto",
    *,
    probes: int | None = None,
    steps: int | None = None,
    top: int | None = None,
    rank: int | None = None,
    tol: float | None = None,
    batched: bool = False,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | Callable[[int, int], None] | bool | None = None,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Spectrum:
    """The singular-value distribution of the Jacobian of ``model`` at ``x``.

    Parameters
    ----------
    model : nn.Module or callable
        What maps the input to the output. It is left exactly as it was: parameters, buffers, gradients, mode.
    x : Tensor
        One input, exactly as the model takes it; with ``batched``, B of them stacked first, each with its own
        Jacobian, whose distributions are averaged.
    method : {"auto", "exact", "lanczos", "randomized"}
        "exact" builds J from its shorter side and takes its SVD in float64; "lanczos" is stochastic Lanczos
        quadrature on the Golub-Kahan bidiagonalisation; "randomized" finds the leading ``rank`` triplets
        and samples the rest. "auto" takes exact where min(m, n) products are no more than the 2 * probes * steps
        of lanczos, the matrix fits into ``memory_limit`` and its short side is at most 6000; lanczos otherwise.
    probes, steps : int, optional
        Random probes of each input and Golub-Kahan steps of each probe; 16 and 50 for lanczos, 8 and 30 for
        randomized.
    top : int, optional
        How many of the largest singular values to report with residual bounds.
    rank : int, optional
        Leading triplets of "randomized"; 20, or ``top``.
    tol : float, optional
        Relative residual the reported top values must reach; a ConvergenceWarning says where they do not.
    batched, source, target, output, dtype, device :
        As for :class:`isometry.JacobianOperator`.
    seed : int
        Every probe has its own stream, from (seed, input, probe): the answer depends neither on chunking nor
        on how inputs are split, and repeats bit for bit on one device with the same number of threads.
    memory_limit : int
        Bytes for the intermediates of the products, for the dense matrix of "exact" and for the Krylov bases of
        "lanczos", whose probes go in groups where they do not fit together.
    progress : callable or bool, optional
        Called with (done, total, text). By default a progress bar where standard error is a terminal; False for none.
    name : str
        What reports and files call the result.
    provenance : mapping, optional
        Further plain values to record with it; None for what is unknown, which is left out. An ``ensemble`` among them
        stands in for the one that the model itself is known to be a draw from.

    Returns
    -------
    Spectrum
        With its errors: over probes, over inputs, residuals of the extremes, bounds on the cdf.

    Raises
    ------
    IsometryError
        See :class:`isometry.JacobianOperator`; ConvergenceError where a dense SVD fails.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 4, bias=False)
    >>> _ = torch.nn.init.orthogonal_(layer.weight)
    >>> round(measure(layer, torch.ones(4)).s_max, 6)
    1.0
    """
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    for option, value in {"probes": probes, "steps": steps, "top": top, "rank": rank, "seed": seed}.items():
        if value is not None and not isinstance(value, Integral):
            raise InputError(f"{option} is a whole number; got {value!r}")
        if value is not None and option != "seed" and value < 1:
            raise InputError(f"{option} is at least 1; got {value}")
    if tol is not None and not tol > 0:
        raise InputError(f"tol is a positive relative residual; got {tol}")
    if seed < 0:
        raise InputError(f"seed is a non-negative integer; got {seed}")
    if batched and isinstance(x, Tensor) and (x.dim() < 1 or x.shape[0] == 0):
        raise InputError(f"batched=True needs at least one input; got shape {tuple(x.shape)}")
    began = time.perf_counter()
    make = partial(
        JacobianOperator, model, batched=batched, source=source, target=target, output=output,
        dtype=dtype, device=device, memory_limit=memory_limit,
    )  # fmt: skip
    with _listener(progress, name) as tell:
        operator = make(x)
        estimate, method = _choose(method, operator, probes, steps, top, rank, seed, memory_limit)
        count = x.shape[0] if batched else 1
        group = _inputs_at_once(operator, method, probes, steps, memory_limit) if batched else 1
        parts = []
        for first in range(0, count, group):
            if group < count:
                with warnings.catch_warnings():
                    # The first operator has said it for all of them.
                    warnings.simplefilter("ignore", FallbackWarning)
                    operator = make(x[first : first + group])

            def tick(done: int, total: int, first: int = first) -> None:
                share = min(group, count - first)
                tell(first * total + done * share, count * total, f"{name or 'spectrum'} ({method})")

            parts.append(estimate(operator, first_input=first, progress=tick))
    spectrum = side_by_side(parts)
    options = {
        "batched": batched, "source": source, "target": target, "output": output,
        "top": top, "rank": rank, "tol": tol, "memory_limit": memory_limit,
    }  # fmt: skip
    said = dict(provenance or {})
    if "ensemble" not in said:
        said["ensemble"] = recorded_ensemble(model, x, part=source is not None or target is not None)
    said = {key: value for key, value in said.items() if value is not None}
    spectrum = replace(
        spectrum,
        name=name,
        seconds=time.perf_counter() - began,
        provenance={**spectrum.provenance, **record(operator, x, seed=seed, options=options), **said},
    )
    warn_of_underflow(spectrum, operator.dtype)
    if tol is not None:
        warn_unconverged(spectrum, tol)
    return spectrum


def _choose(
    method: str,
    operator: JacobianOperator,
    probes: int | None,
    steps: int | None,
    top: int | None,
    rank: int | None,
    seed: int,
    memory_limit: int,
) -> tuple[Callable[..., Spectrum], str]:
    """The estimator with its options, and its name."""
    m, n = operator.shape
    if method == "auto":
        stochastic = 2 * (probes or DEFAULT_PROBES) * min(steps or DEFAULT_STEPS, min(m, n))
        cheap = min(m, n) <= stochastic and min(m, n) <= _LARGEST_DENSE_SIDE
        method = "exact" if cheap and 3 * 8 * m * n <= memory_limit else "lanczos"
    if method == "exact":
        if 3 * 8 * m * n > memory_limit:
            raise InputError(
                f"the dense {m} x {n} Jacobian and its SVD take about {3 * 8 * m * n / 1e9:.3g} GB, more than "
                f"memory_limit ({memory_limit / 1e9:.3g} GB): take method='lanczos', or raise memory_limit"
            )

        def dense(operator: JacobianOperator, *, first_input: int, progress: Any) -> Spectrum:
            return exact(operator, block=max(operator.chunk, 1), progress=progress)

        return dense, method
    if method == "lanczos":
        count, length = probes or DEFAULT_PROBES, steps or DEFAULT_STEPS
        sampled = partial(lanczos, probes=count, steps=length, top=top or DEFAULT_TOP)
        return partial(sampled, seed=seed, memory_limit=memory_limit), method
    leading = rank or top or DEFAULT_RANK
    return partial(randomized, seed=seed, rank=leading, probes=probes or 8, steps=steps or 30), method


def _inputs_at_once(
    operator: JacobianOperator, method: str, probes: int | None, steps: int | None, memory_limit: int
) -> int:
    """How many inputs to measure together: what the estimator keeps for each of them must fit into the limit."""
    m, n = operator.shape
    if method == "exact":
        kept = 3 * 8 * m * n
    else:
        kept = (probes or DEFAULT_PROBES) * (steps or DEFAULT_STEPS) * (m + n) * operator.point.element_size()
    count = operator.batch or 1
    fitting = max(1, memory_limit // max(kept, 1))
    # A chunk of one probe of all inputs at once is the least the products need.
    return int(max(1, min(count, fitting, 64)))


@contextmanager
def _listener(progress: Any, name: str) -> Iterator[Callable[[float, float, str], None]]:
    if progress is None or progress is True:
        with progress_bar(name or "measuring") as bar:
            yield bar
    elif progress is False:
        yield silent
    else:
        yield progress
