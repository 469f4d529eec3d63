"""`measure`: model, input -> Spectrum."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from isometry.errors import InputError
from isometry.estimators import defaults
from isometry.jacobian import DEFAULT_MEMORY_LIMIT, JacobianOperator, keeps_torch_state
from isometry.measurement.adaptive import Limits, extend_until
from isometry.measurement.convergence import (
    warn_of_relative_errors,
    warn_of_underflow,
    warn_stopped,
    warn_unconverged,
)
from isometry.measurement.distributed import (
    SHARED_INPUTS,
    SHARED_PROBES,
    SINGLE_PROCESS,
    ProcessGroup,
    current_process_group,
    fingerprint,
    refuse_differences,
)
from isometry.measurement.lanczos_run import LanczosRun
from isometry.measurement.methods import (
    Exact,
    Lanczos,
    Method,
    chain_beyond_floor,
    checked_method,
    exact_is_affordable,
)
from isometry.measurement.operators import Operators, measure_groups
from isometry.measurement.options import (
    MeasureOptions,
    given_options,
    method_options,
    operator_options,
    recorded_options,
    refuse_operator_options,
    requested_goal,
    requested_method,
)
from isometry.measurement.provenance import record, recorded_ensemble, refuse_own_keys
from isometry.measurement.shares import recorded_shares
from isometry.measurement.stopping import Goal, stop_record
from isometry.progress import Progress, StepProgress, progress_listener
from isometry.spectrum import Curve, Spectrum
from isometry.spectrum.formatting import percent_text

_log = logging.getLogger(__name__)


@keeps_torch_state
def measure(
    model: nn.Module | Callable[..., Any] | JacobianOperator,
    x: Any = None,
    method: str | Method = "auto",
    goal: Goal | None = None,
    *,
    batched: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Progress | Callable[..., Any] | bool | None = None,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
    **options: Unpack[MeasureOptions],
) -> Spectrum:
    """The singular-value distribution of the Jacobian of ``model`` at ``x``.

    Parameters
    ----------
    model : nn.Module, callable or JacobianOperator
        Maps the inputs to the output. It is left exactly as it was: parameters, buffers, gradients, mode. A ready
        :class:`isometry.JacobianOperator` has its input and its options already.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        One input, exactly as the model takes it; with ``batched``, B of them stacked first, each with its own
        Jacobian, whose distributions are averaged. Left out with a ready operator.
    method : {"auto", "exact", "lanczos", "randomized", "chain"} or method object
        "exact" builds J from its shorter side and takes its SVD in float64; "lanczos" is stochastic Lanczos
        quadrature on the Golub-Kahan bidiagonalisation; "randomized" finds the leading ``rank`` triplets
        and samples the rest; "chain" finds every value over any number of decades, each with a relative error, from the
        factors of J between the cuts of the recorded model. "auto" is exact or lanczos, whichever takes fewer products:
        exact where min(m, n) is no more than 2 * probes * steps, the matrix fits into ``memory_limit`` and its short
        side is at most 6000. Where exact finds values below its floor, chain follows it if the products are float64,
        the model has cuts and the short side is at most 1024; the report says so. ``Exact()``,
        ``Lanczos(probes=32)``, ``Randomized(rank=50)`` and ``Chain()`` of :mod:`isometry.measurement` are the same with
        their options.
    goal : Goal, optional
        What the error of which quantity is to fall to, and what that may cost. Its parts may be given as ``rtol``,
        ``quantity`` and ``budget`` instead.
    batched, dtype, device :
        As for :class:`isometry.JacobianOperator`.
    seed : int
        Every probe has its own stream, from (seed, input, probe): the answer depends neither on chunking nor
        on how inputs are split, and repeats bit for bit on one machine with one thread.
    memory_limit : int, optional
        Bytes for the intermediates of the products, for the dense matrix of "exact" and for the Krylov bases of
        "lanczos" and "randomized", whose probes go in groups where they do not fit together, and whose search for the
        leading triplets restarts; 2 GiB. The peak is predicted before the work, logged at level INFO, and recorded as
        ``predicted_peak_bytes``.
    progress : callable or bool, optional
        Called with (done, total, text). By default a progress bar where standard error is a terminal; False for none.
    name : str
        What reports and files call the result.
    provenance : mapping, optional
        Further plain values to record with it, under names that the measurement does not use itself; None for what is
        unknown, which is left out. An ``ensemble`` among them stands in for the one that the model itself is known to
        be a draw from. No number of the spectrum depends on what is recorded.
    probes, steps, top, tol, rank, probe : optional
        Of a method that is given by its name, which ignores those it does not have.

        - probes, steps: random probes of each input and Golub-Kahan steps of each probe; 16 and 50 for lanczos, 8 and
          30 for randomized. With a goal the most of each: by default 4096 probes and as many steps as there are, but
          for "mean_square", which steps do not improve (always as many as given, or 50), and "top" and "s_max", which
          probes do not (8).
        - top: how many of the largest singular values to report with residual bounds; 6.
        - tol: relative residual the reported top values must reach; a ConvergenceWarning says where they do not.
        - rank: leading triplets of randomized; 20, or ``top``.
        - probe: kind of the probes of lanczos, {"gaussian", "rademacher", "orthogonal"}; see
          :class:`isometry.measurement.Lanczos`.
    rtol, quantity, budget : optional
        The goal by its parts.

        - rtol: add probes and steps until the error of ``quantity`` is at most this. ``provenance["stopped"]`` records
          why it stopped ("rtol", "budget", "probes", "steps", "memory", "interrupted") and the error reached; a
          ConvergenceWarning says where that is above ``rtol``. With "auto" the exact method takes over where it is
          cheaper than what is still to be spent, and has no error to stop for.
        - quantity: {"mean_square", "cdf", "top", "s_max"}, what ``rtol`` bounds: "mean_square" by default; see
          :class:`isometry.measurement.Goal`.
        - budget: products that may be spent, or seconds as "60s" ("5min", "2h"), which are checked after each step.
          Without ``rtol`` all of it is spent. What seconds pay for depends on the machine: such a result does not
          repeat.
    args, kwargs, wrt, source, target, output, products, tf32 : optional
        Of the operator, as for :class:`isometry.JacobianOperator`: further inputs of the model, and what J is taken
        with respect to. Where ``wrt`` names several inputs, ``provenance["shares"]`` has the share of each in the mean
        square, with its standard error.
    on_interrupt : {"return", "raise"}
        What Ctrl-C does: return what is known by then, with ``provenance["stopped"]["reason"]`` "interrupted" and a
        ConvergenceWarning, or raise KeyboardInterrupt. Where nothing is known yet, as of an exact measurement without a
        single complete input, it is raised in any case.
    shared : bool
        Share the work out among the processes of ``torch.distributed``, as under ``torchrun``: groups of a few probes,
        and inputs. Every process calls this with the same model, input and options, and every one returns the
        spectrum, the same bit for bit for any number of processes. Not with a goal.

    Returns
    -------
    Spectrum
        With its errors: over probes, over inputs, residuals of the extremes, bounds on the cdf.

    Raises
    ------
    IsometryError
        See :class:`isometry.JacobianOperator`; ConvergenceError where a dense SVD fails.
    TypeError
        For an option that does not exist.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 4, bias=False)
    >>> _ = torch.nn.init.orthogonal_(layer.weight)
    >>> round(measure(layer, torch.ones(4)).s_max, 6)
    1.0
    >>> from isometry.measurement import Lanczos
    >>> measure(layer, torch.ones(4), Lanczos(probes=3)).n_probes
    3
    """
    given = given_options(options, measure)
    asked, aim = requested_method(method, given), requested_goal(goal, given)
    _refuse_arguments(x, seed, batched, given, aim)
    refuse_own_keys(provenance or {})
    shared = "shared" in given
    processes = current_process_group() if shared else SINGLE_PROCESS
    began = time.perf_counter()
    operator = operator_of(
        model, x, memory_limit, batched=batched, dtype=dtype, device=device,
        **operator_options(given),
    )  # fmt: skip
    if processes.size > 1:
        refuse_differences(processes, fingerprint(operator))
    chosen = checked_method(asked, operator, aim, method_options(given))
    listened = progress if processes.is_main or callable(progress) else False
    with progress_listener(listened, name or "measuring") as listener:
        run = _Run(
            Operators(operator), aim, seed, listener, name or "spectrum", processes, shared, began,
            # Interrupted processes have no time left to gather what each of them knows.
            return_partial=given.get("on_interrupt") != "raise" and not shared,
            may_switch=asked is None,
        )  # fmt: skip
        spectrum, reason, peak = run.by(chosen)
    # Groups of inputs have operators of their own; the rounding is that of all inputs together.
    distribution = spectrum.distribution
    assert not isinstance(distribution, Curve), "a measurement has values or nodes"
    errors = replace(distribution.errors, eps=operator.unit, rounding=operator.rounding)
    record_options = recorded_options(operator, given, method, goal)
    top = record_options.get("top")
    spectrum = replace(
        spectrum,
        distribution=replace(distribution, errors=errors),
        name=name,
        seconds=time.perf_counter() - began,
        provenance={
            **spectrum.provenance,
            **record(operator, seed=seed, options=record_options),
            **recorded_shares(operator, seed),
            "predicted_peak_bytes": peak,
            **({"processes": processes.size} if processes.size > 1 else {}),
            **_additions(operator, provenance),
        },
    )
    if aim is not None or reason is not None:
        stopped = stop_record(reason, aim, spectrum, top=top)
        if reason == "interrupted":
            stopped["inputs"] = f"{spectrum.n_inputs} of {operator.batch or 1}"
        spectrum = replace(spectrum, provenance={**spectrum.provenance, "stopped": stopped})
        warn_stopped(stopped)
    warn_of_underflow(spectrum, str(operator.dtype).removeprefix("torch."), operator.zero_cause)
    warn_of_relative_errors(spectrum)
    if chosen.tol is not None:
        warn_unconverged(spectrum, chosen.tol, top=top)
    return spectrum


@dataclass(frozen=True)
class _Run:
    """What the methods have in common while they run."""

    operators: Operators
    goal: Goal | None
    seed: int
    progress: Progress
    text: str
    processes: ProcessGroup
    shared: bool
    began: float
    return_partial: bool
    may_switch: bool

    def by(self, method: Method) -> tuple[Spectrum, str | None, int]:
        """The spectrum by that method, why it stopped (None where all was done), and the predicted peak in bytes."""
        goals = (self.goal,) if isinstance(method, Lanczos) else ()
        peak = method.peak(self.operators.whole, *goals)
        _log.info(peak)
        if not isinstance(method, Lanczos):
            spectrum, reason = self.whole_inputs(method)
            chain = (
                chain_beyond_floor(spectrum, self.operators.whole)
                if self.may_switch and reason is None
                else None
            )
            if chain is None:
                return spectrum, reason, peak.size
            # What the dense matrix cannot tell from zero, its factors can.
            found, reason = self.whole_inputs(chain, fallback=spectrum)
            if found is not spectrum:
                note = f"exact, which had {percent_text(spectrum.zero_mass)} of the values below its floor"
                found = replace(
                    found, products=found.products + spectrum.products,
                    provenance={**found.provenance, "instead_of": note},
                )  # fmt: skip
            return found, reason, max(peak.size, chain.peak_bytes(self.operators.whole))
        spectrum, reason, reached = self.sampled(method)
        if self.goal is not None and reached[0]:
            peak = max(
                peak, method.peak(self.operators.whole, self.goal, reached), key=lambda each: each.size
            )
        if reason != "exact":
            return spectrum, reason, peak.size
        dense = Exact(method.top, method.tol)
        found, reason = self.whole_inputs(dense, fallback=spectrum)
        if found is not spectrum:
            found = replace(found, products=found.products + spectrum.products)
        return found, reason, max(peak.size, dense.peak_bytes(self.operators.whole))

    def sampled(self, method: Lanczos) -> tuple[Spectrum, str | None, tuple[int, int]]:
        """By probes, whose number and steps may grow until the goal is reached: why it stopped, and both numbers.

        What each round will take at its peak is logged before it, at the level of debugging but for the first.
        """
        whole = self.operators.whole
        inputs_per_group = method.inputs_per_group(whole, self.goal)
        run = LanczosRun(
            self.operators, min(inputs_per_group, SHARED_INPUTS) if self.shared else inputs_per_group,
            seed=self.seed, probe=method.probe, top=method.top or defaults.TOP,
            keep_bases=self.goal is not None and self.goal.adds_steps, progress=self.labelled(method),
            processes=self.processes, max_probes_per_group=SHARED_PROBES if self.shared else None,
        )  # fmt: skip
        probes, steps = method.numbers(whole, self.goal)
        reason = None
        try:
            if self.goal is None:
                run.extend(probes, steps)
            else:
                limits = Limits(probes, steps, self.products_of_a_switch())
                reason = extend_until(
                    self.goal, run, limits, began=self.began,
                    on_round=lambda *numbers: _log.debug(method.peak(whole, self.goal, numbers)),
                )  # fmt: skip
        except KeyboardInterrupt:
            if not (self.return_partial and run.begun):
                raise
            reason = "interrupted"
        return run.spectrum(), reason, (run.probes, run.steps)

    def whole_inputs(self, method: Method, fallback: Spectrum | None = None) -> tuple[Spectrum, str | None]:
        """By a method that yields nothing for a part of an input."""
        return measure_groups(
            self.operators, 1 if self.shared else method.inputs_per_group(self.operators.whole), method.run,
            seed=self.seed, progress=self.labelled(method), return_partial=self.return_partial, fallback=fallback,
            processes=self.processes,
        )  # fmt: skip

    def products_of_a_switch(self) -> float:
        """What going over to the exact method would cost; inf where it is out of the question."""
        whole = self.operators.whole
        # How long a decomposition takes is not known, so within a time nothing goes over to it.
        timed = self.goal is not None and self.goal.seconds is not None
        if timed or not self.may_switch or not exact_is_affordable(Exact(), whole, self.goal):
            return math.inf
        return Exact().products(whole)

    def labelled(self, method: Method) -> StepProgress:
        """The listener, told which spectrum by which method."""
        return lambda done, total: self.progress(done, total, f"{self.text} ({method.name})")


def _refuse_arguments(
    x: Any, seed: Any, batched: bool, options: Mapping[str, Any], goal: Goal | None
) -> None:
    """Raise InputError for arguments of `measure` that cannot be meant, before anything is computed."""
    if not isinstance(seed, Integral):
        raise InputError(f"seed is a whole number; got {seed!r}")
    if seed < 0:
        raise InputError(f"seed is a non-negative integer; got {seed}")
    if batched and isinstance(x, Tensor) and (x.dim() < 1 or x.shape[0] == 0):
        raise InputError(f"batched=True needs at least one input; got shape {tuple(x.shape)}")
    on_interrupt = options.get("on_interrupt", "return")
    if on_interrupt not in ("return", "raise"):
        raise InputError(f'on_interrupt is "return" or "raise"; got {on_interrupt!r}')
    if "shared" in options and goal is not None:
        raise InputError(
            "rtol and budget are judged on all probes, which shared processes have at the end only"
        )


def operator_of(model: Any, x: Any, memory_limit: int | None, **options: Any) -> JacobianOperator:
    """The operator of the model at the input, or the ready one."""
    if isinstance(model, JacobianOperator):
        refuse_operator_options({"x": x, "memory_limit": memory_limit, **options})
        return model
    if x is None and not options.get("args") and not options.get("kwargs"):
        raise InputError(
            "measure(model, x) takes an input x, or args= and kwargs=; only a ready JacobianOperator has its own"
        )
    limit = DEFAULT_MEMORY_LIMIT if memory_limit is None else memory_limit
    return JacobianOperator(model, x, memory_limit=limit, **{"products": "auto", **options})


def _additions(operator: JacobianOperator, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the caller records with the measurement, and the ensemble that J is a draw from."""
    said = dict(provenance or {})
    part = operator.options["source"] is not None or operator.options["target"] is not None
    if part:
        said["part"] = True
    if "ensemble" not in said:
        only = operator.inputs.only_tensor
        said["ensemble"] = None if only is None else recorded_ensemble(operator.model, only, part=part)
    return {key: value for key, value in said.items() if value is not None}
