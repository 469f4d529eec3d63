"""The front door: model, input -> Spectrum."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.estimators import exact, randomized
from isometry.estimators.blocks import PROBES
from isometry.estimators.randomized import DEFAULT_TOL
from isometry.jacobian import JacobianOperator
from isometry.jacobian.function import Output
from isometry.jacobian.operator import DEFAULT_MEMORY_LIMIT
from isometry.measurement.convergence import DEFAULT_TOP, warn_of_underflow, warn_stopped, warn_unconverged
from isometry.measurement.distributed import (
    SHARED_INPUTS,
    SHARED_PROBES,
    SINGLE_PROCESS,
    current_process_group,
    fingerprint,
    refuse_differences,
)
from isometry.measurement.lanczos_run import Operators, Sampling, whole_inputs
from isometry.measurement.methods import DEFAULT_RANK, METHODS, Plan, peak_text, plan
from isometry.measurement.provenance import record, recorded_ensemble, refuse_own_keys
from isometry.measurement.stopping import Goal, summary
from isometry.progress import Progress, progress_bar, silent
from isometry.spectrum import Spectrum

_log = logging.getLogger(__name__)


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
    rtol: float | None = None,
    quantity: str | None = None,
    budget: int | str | None = None,
    probe: str = "gaussian",
    batched: bool = False,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    tf32: bool = False,
    on_interrupt: str = "return",
    shared: bool = False,
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
        randomized. With ``rtol`` or ``budget`` the most of each: by default 4096 probes and as many steps as there are,
        but for "mean_square", which steps do not improve (always as many as given, or 50), and "top" and
        "s_max", which probes do not (8).
    top : int, optional
        How many of the largest singular values to report with residual bounds.
    rank : int, optional
        Leading triplets of "randomized"; 20, or ``top``.
    tol : float, optional
        Relative residual the reported top values must reach; a ConvergenceWarning says where they do not.
    rtol : float, optional
        Add probes and steps until the error of ``quantity`` is at most this. ``provenance["stopped"]`` says why it
        stopped ("rtol", "budget", "probes", "steps", "memory", "interrupted") and the error reached; a
        ConvergenceWarning says where that is above ``rtol``. With "auto" the exact method takes over where it is
        cheaper than what is still to be spent, and has no error to stop for.
    quantity : {"mean_square", "cdf", "top", "s_max"}
        What ``rtol`` is about. "mean_square", the default: half the width of its 95 % interval, relative. "cdf": the
        largest distance of the cdf from its simultaneous 95 % band, from the floor upwards. "top" and "s_max": the
        largest residual of all reported top values, or of s_max, relative.
    budget : int or str, optional
        Products that may be spent, or seconds as "60s" ("5min", "2h"), which are looked at after each step. Without
        ``rtol`` all of it is spent. How far seconds reach depends on the machine: such a result does not repeat.
    probe : {"gaussian", "rademacher", "orthogonal"}
        Kind of probes: uniform on the sphere, as normalised Gaussian vectors are; random signs; uniform, and orthogonal
        to one another in fixed groups of 16. Random signs vary less where singular vectors keep to few inputs (0.28 to
        1.05 of the variance, benchmarks/probes.py), orthogonal ones where n is small; the law behind the certified
        band is that of the sphere, hence the default.
    batched, source, target, output, dtype, device, tf32 :
        As for :class:`isometry.JacobianOperator`.
    seed : int
        Every probe has its own stream, from (seed, input, probe): the answer depends neither on chunking nor
        on how inputs are split, and repeats bit for bit on one device with the same number of threads.
    memory_limit : int
        Bytes for the intermediates of the products, for the dense matrix of "exact" and for the Krylov bases of
        "lanczos" and "randomized", whose probes go in groups where they do not fit together, and whose search for the
        leading triplets restarts. The peak is predicted before the work, logged at level INFO, and recorded as
        ``predicted_peak_bytes``.
    on_interrupt : {"return", "raise"}
        What Ctrl-C does: return what is known by then, with ``provenance["stopped"]["reason"]`` "interrupted" and a
        ConvergenceWarning, or raise KeyboardInterrupt. Where nothing is known yet, as of an exact measurement that
        is not through with a single input, it is raised in any case.
    shared : bool
        Share the work out among the processes of ``torch.distributed``, as under ``torchrun``: groups of a few probes,
        and inputs. Every process calls this with the same model, input and options, and every one returns the
        spectrum, the same bit for bit for any number of processes. Not with ``rtol`` or ``budget``.
    progress : callable or bool, optional
        Called with (done, total, text). By default a progress bar where standard error is a terminal; False for none.
    name : str
        What reports and files call the result.
    provenance : mapping, optional
        Further plain values to record with it, under names that the measurement does not use itself; None for what is
        unknown, which is left out. An ``ensemble`` among them stands in for the one that the model itself is known to
        be a draw from. No number of the spectrum depends on what is recorded.

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
    if probe not in PROBES:
        raise InputError(f"probe is one of {', '.join(PROBES)}; got {probe!r}")
    if on_interrupt not in ("return", "raise"):
        raise InputError(f'on_interrupt is "return" or "raise"; got {on_interrupt!r}')
    refuse_own_keys(provenance or {})
    goal = Goal.of(rtol, quantity, budget, top)
    if shared and goal is not None:
        raise InputError(
            "rtol and budget are judged on all rows, which shared processes have at the end only"
        )
    group = current_process_group() if shared else SINGLE_PROCESS
    began = time.perf_counter()
    make = partial(
        JacobianOperator, model, batched=batched, source=source, target=target, output=output,
        dtype=dtype, device=device, memory_limit=memory_limit, tf32=tf32,
    )  # fmt: skip
    operators = Operators(make, x, make(x))
    if group.size > 1:
        refuse_differences(group, fingerprint(model, x, operators.whole))
    way = plan(
        method, operators.whole, probes=probes, steps=steps, memory_limit=memory_limit, goal=goal, kind=probe
    )
    _log.info(peak_text(way))
    at_once = min(way.inputs_at_once, SHARED_INPUTS) if shared else way.inputs_at_once
    # Interrupted processes have no time left to gather what each of them knows.
    catch = on_interrupt == "return" and not shared
    peak, spent = way.peak_bytes, 0
    spectrum, reason = None, None
    with _listener(progress if group.is_main or callable(progress) else False, name) as tell:
        if way.method == "lanczos":
            sampling = Sampling(
                operators, at_once, seed=seed, probe=probe, top=top or DEFAULT_TOP,
                memory_limit=memory_limit, keep=goal is not None and goal.quantity != "mean_square",
                tell=lambda done, total: tell(done, total, f"{name or 'spectrum'} (lanczos)"),
                group=group, most_together=SHARED_PROBES if shared else None,
            )  # fmt: skip
            reason = sampling.run(goal, way.limits, began=began, catch=catch)
            spectrum, spent = sampling.spectrum(), sampling.products
            if reason == "exact":
                way = plan("exact", operators.whole, probes=probes, steps=steps, memory_limit=memory_limit)
        if way.method != "lanczos":
            found, reason = whole_inputs(
                operators, 1 if shared else at_once,
                _estimator(way, rank=rank or top or DEFAULT_RANK, tol=tol, seed=seed, memory_limit=memory_limit),
                tell=lambda done, total: tell(done, total, f"{name or 'spectrum'} ({way.method})"),
                catch=catch, otherwise=spectrum, group=group,
            )  # fmt: skip
            spectrum = replace(found, products=found.products + spent) if found is not spectrum else found
    assert spectrum is not None, "one of the two has run"
    options = {
        "batched": batched, "source": source, "target": target, "output": output, "top": top, "rank": rank,
        "tol": tol, "rtol": rtol, "quantity": quantity, "budget": budget, "memory_limit": memory_limit,
        "tf32": tf32 or None,
    }  # fmt: skip
    said = dict(provenance or {})
    if "ensemble" not in said:
        said["ensemble"] = recorded_ensemble(model, x, part=source is not None or target is not None)
    said = {key: value for key, value in said.items() if value is not None}
    # Groups of inputs have operators of their own; the rounding is that of all inputs together.
    recorded = record(operators.whole, x, seed=seed, options=options)
    errors = replace(spectrum.quadrature.errors, rounding=operators.whole.rounding)
    spectrum = replace(
        spectrum,
        distribution=replace(spectrum.quadrature, errors=errors),
        name=name,
        seconds=time.perf_counter() - began,
        provenance={
            **spectrum.provenance,
            **recorded,
            "predicted_peak_bytes": max(peak, way.peak_bytes),
            **({"processes": group.size} if group.size > 1 else {}),
            **said,
        },
    )
    if goal is not None or reason is not None:
        stopped = summary(reason, goal, spectrum)
        if reason == "interrupted":
            stopped["inputs"] = f"{spectrum.n_inputs} of {operators.count}"
        spectrum = replace(spectrum, provenance={**spectrum.provenance, "stopped": stopped})
        warn_stopped(stopped)
    warn_of_underflow(spectrum, recorded["dtype"])
    if tol is not None:
        warn_unconverged(spectrum, tol, top=top)
    return spectrum


def _estimator(
    way: Plan, *, rank: int, tol: float | None, seed: int, memory_limit: int
) -> Callable[..., Spectrum]:
    """The method of whole inputs, with its options."""
    if way.method == "randomized":
        sampled = partial(randomized, rank=rank, tol=tol or DEFAULT_TOL, probes=way.probes, steps=way.steps)
        return partial(sampled, seed=seed, memory_limit=memory_limit)

    def dense(operator: JacobianOperator, *, first_input: int, progress: Any) -> Spectrum:
        return exact(operator, block=max(operator.chunk, 1), progress=progress)

    return dense


@contextmanager
def _listener(progress: Any, name: str) -> Iterator[Callable[[float, float, str], None]]:
    if progress is None or progress is True:
        with progress_bar(name or "measuring") as bar:
            yield bar
    elif progress is False:
        yield silent
    else:
        yield progress
