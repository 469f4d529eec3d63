"""`tune_`: scale the weights of a model until the Jacobian of every block keeps the mean square, at given inputs.

What LSUV does to activations (Mishkin and Matas 2015, arXiv 1511.06422) is done to Jacobians: tangents are pushed
through the recorded run, and each layer is scaled so that the running mean square behind it is 1. A layer acts on what
leaves it in proportion to its weights, so one step is exact for the layers as they are; it changes the activations
behind it, so recording and step are repeated until all agree, first block first: block b depends on blocks before it
alone. The last layer then takes secant steps on the spectrum of the whole, whatever lies behind it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.depth.block_gains import measure_blocks
from isometry.depth.tuning_plan import Plan, plan_of
from isometry.depth.tuning_report import TunedWeights, TuningReport, top_over_scale
from isometry.depth.tuning_steps import LN10, Solver
from isometry.errors import (
    ConvergenceError,
    ConvergenceWarning,
    InputError,
    ModelError,
)
from isometry.jacobian import (
    DEFAULT_MEMORY_LIMIT,
    JacobianOperator,
    Output,
    Wrt,
    keeps_torch_state,
    private_copy,
    refuse_training_mode,
    uncompiled,
)
from isometry.measurement import measure
from isometry.progress import Progress, progress_listener
from isometry.spectrum import Spectrum
from isometry.spectrum.block_profile import BlockProfile

DEFAULT_PROBES, DEFAULT_TOLERANCE, DEFAULT_SWEEPS = 32, 0.01, 60
# Measured anew, with other probes: by so much, beyond three standard errors, a mean square may be off.
_WORSE = 0.05
# A share of singular values near their scale that may be lost before a smaller signal is tried.
_WIDER = 0.1
# The last layer: most steps, ln of the largest factor of one, and the slopes of ln mean square against ln factor.
_TRIALS, _LARGEST_STEP, _SLOPES = 8, 1.4, (0.5, 4.0)


@keeps_torch_state
def tune_(
    model: nn.Module,
    x: Any = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    wrt: Wrt = None,
    output: Output = None,
    batched: bool = False,
    branch_gain: float = 0.5,
    leave: str | None = None,
    q_star: float | None = None,
    dry_run: bool = False,
    probes: int = DEFAULT_PROBES,
    tolerance: float = DEFAULT_TOLERANCE,
    sweeps: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | Callable[[int, int], None] | bool | None = None,
    name: str = "",
) -> TuningReport:
    """Scale weights of ``model``, in place, so that at ``x`` the running mean square singular value is 1 all along.

    Parameters
    ----------
    model : nn.Module
        Any model whose run can be recorded. Only the scales of its weights change: no sign, direction or bias.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        One input, exactly as the model takes it; with ``batched``, B of them stacked first, and mean squares are those
        over all. Take what the model will see: real data, or noise of their size.
    args, kwargs, wrt, output, batched, dtype, device, memory_limit, progress, name :
        As for `isometry.measure`.
    branch_gain : float
        c: a branch f of x + f(x) may have the mean square c^2 / (number of branches) relative to its stream x, and let
        the sum grow by as much, so that all together multiply it by at most e^(c^2). Larger ones are scaled down;
        smaller ones stay, and so do those that start at zero.
    leave : str, optional
        Regular expression: modules and parameters whose whole name matches it are left as they are.
    q_star : float, optional
        Mean square of the signal that leaves the first layer. Activations are straighter at small signals, and the
        spectrum is narrower; the last layer makes up for it. By default the signal is as the inputs and the mean square
        of 1 have it, and 1/(number of layers), as in `critical_init_`, where that spreads the spectrum.
    dry_run : bool
        Leave the model bit for bit; the report says what would change, and ``after`` is measured on a copy.
    probes : int
        Random tangents; up to twice as many input numbers are taken one by one, which is exact.
    tolerance : float
        How far a running mean square may be off, relative.
    sweeps : int, optional
        At most so many recordings of the model; 60 and one for each layer by default.
    seed : int
        Of the tangents.

    Returns
    -------
    TuningReport
        Spectrum and profile before and after, every factor with chi before and after and their errors, and what was
        left alone and why.

    Raises
    ------
    InputError
        Nothing to tune (all normalised, frozen, computed), shared or quantised weights, nothing that passes at these
        inputs (dead units), an argument out of its range.
    ModelError
        The run cannot be recorded, or the model is in training mode.
    ConvergenceError
        A mean square stays off its target, with the block; or the tuned model is worse, in mean square or spread.
    NonFiniteError
        NaN or inf.

    All is tried on a copy: whatever is raised, an interrupt included, the model is as it was, bit for bit.

    Notes
    -----
    The mean square M = ||J||_F^2 / r of the product so far is over the r singular values that can differ from zero: r
    is the least number of values that everything has passed through, the input included. At a layer between two
    others, M is taken at what leaves it, before its activation, so that a block is an activation with the layer behind
    it; the last one is then scaled until that of the whole is 1. For a chain at its critical point this is chi_1 = 1 in
    every layer (Schoenholz et al. 2017, arXiv 1611.01232, eq. 8), without a theory of its activations. Where inputs are
    larger than an activation can take (tanh at 30), the layers between are held at a lower mean square, at which the
    signal has mean square 1.

    Branches of mean square c^2/L: Tarnowski et al. 2019, arXiv 1809.08848 (the spectrum depends on the sum of these
    alone); Hayou et al. 2021, arXiv 2010.12859; De and Smith 2020, arXiv 2002.10444; Zhang, Dauphin and Ma 2019, arXiv
    1901.09321. The last weights of the branch are scaled, of a branch that ends in a normalisation those of the
    normalisation (Goyal et al. 2017, arXiv 1706.02677, sec. 5.1, set these to zero).

    Scaling cannot make a Gaussian matrix orthogonal: it moves the spectrum to 1 and leaves its spread.
    `isometry.init` fills new weights.

    Examples
    --------
    >>> layers = [torch.nn.Linear(16, 16) for _ in range(6)]
    >>> model = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.Tanh())))
    >>> report = tune_(model, torch.ones(16), progress=False)
    >>> report.before.mean_square < 0.01, 0.9 < report.after.mean_square < 1.1
    (True, True)
    """
    _check_arguments(model, branch_gain, q_star, probes, tolerance, sweeps, seed)
    model = uncompiled(model)
    refuse_training_mode(model)
    _refuse_quantised(model)
    _refuse_empty_statistics(model)
    began = time.perf_counter()
    call: dict[str, Any] = {
        "args": args, "kwargs": kwargs, "wrt": wrt, "output": output, "batched": batched, "dtype": dtype,
        "device": device, "memory_limit": memory_limit,
    }  # fmt: skip
    # As it is now, also while another thread trains it.
    copy = private_copy(model)
    measured: dict[str, Any] = {**call, "progress": False, "on_interrupt": "raise", "seed": seed}
    with warnings.catch_warnings():
        # That J is as good as zero is what is to be cured.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver = Solver(JacobianOperator(copy, x, **call), probes, seed)
        before = measure(copy, x, name=name, **measured)
    plan = plan_of(
        solver.tangents, solver.module, frozen=_frozen(model), aliases=_aliases(model), leave=leave,
        branch_gain=branch_gain,
    )  # fmt: skip
    profile = _profile(copy, x, call, seed, name, before)
    scaled = _Scaled(copy, plan, before, lambda: measure(copy, x, name=name, **measured))
    most = DEFAULT_SWEEPS + len(plan.stations) if sweeps is None else sweeps
    best: _Trial | None = None
    # A small signal keeps activations straight: it is tried where the signal as it comes makes the spectrum wider.
    for signal in (q_star,) if q_star is not None else (None, 1 / max(plan.layers, 1)):
        try:
            with progress_listener(progress, "sweeps") as listener:
                logs = solver.solve(plan, tolerance, most, listener, signal=signal)
        except ConvergenceError:
            if best is None:
                raise
            break
        factors, after = _settled(scaled, logs, tolerance)
        if best is None or _is_better(after, best.after, plan):
            best = _Trial(factors, after, tuple(solver.entries(plan, logs)))
        if plan.layers < 2 or _near(after) > _near(before) - _WIDER:
            break
    assert best is not None
    factors, after = best.factors, best.after
    scaled.set(factors)
    _refuse_worse(before, after, plan)
    report = TuningReport(
        before=before,
        after=after,
        profile_before=profile,
        profile_after=_profile(copy, x, call, seed, name, after) if factors else profile,
        weights=best.entries,
        left_alone=tuple((one.name, one.reason) for one in plan.left),
        sweeps=solver.sweeps,
        dry_run=dry_run,
        name=name,
        seconds=time.perf_counter() - began,
    )
    if not dry_run:
        _apply(model, factors)
    return report


# ---- the arguments -----------------------------------------------------------------------------------------


def _check_arguments(
    model: object,
    branch_gain: float,
    q_star: float | None,
    probes: int,
    tolerance: float,
    sweeps: int | None,
    seed: int,
) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"tune_ scales the weights of an nn.Module; got {type(model).__name__}")
    for option, number, least in (
        ("probes", probes, 2),
        ("sweeps", 1 if sweeps is None else sweeps, 1),
        ("seed", seed, 0),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{option} is a whole number of {least} or more; got {number!r}")
    for option, value, most in (
        ("branch_gain", branch_gain, math.inf),
        ("q_star", q_star, math.inf),
        ("tolerance", tolerance, 1.0),
    ):
        if value is None and option == "q_star":
            continue
        if not isinstance(value, int | float) or not (math.isfinite(value) and 0 < value <= most):
            limit = "" if math.isinf(most) else f" and at most {most:g}"
            raise InputError(f"{option} is a finite number above zero{limit}; got {value!r}")


def _refuse_quantised(model: nn.Module) -> None:
    for name, part in model.named_modules():
        quantised = "quantized" in type(part).__module__.split(".")
        for key, tensor in (*part._parameters.items(), *part._buffers.items()):
            if isinstance(tensor, Tensor) and (tensor.is_quantized or _whole_weights(key, tensor)):
                quantised = True
        if quantised:
            raise InputError(
                f"the weights of module {name or 'itself'!r} ({type(part).__name__}) are quantised, and whole numbers "
                "have no scale to tune: tune the model before it is quantised"
            )


def _refuse_empty_statistics(model: nn.Module) -> None:
    """Raise for a batch-norm that has seen no data: what it does now is not what it does in training."""
    for name, part in model.named_modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase) or part.running_var is None:
            continue
        unseen = part.num_batches_tracked is not None and int(part.num_batches_tracked) == 0
        if unseen and torch.equal(part.running_var, torch.ones_like(part.running_var)):
            raise InputError(
                f"{name!r} ({type(part).__name__}) has seen no data: its statistics are still 0 and 1, so that in "
                "evaluation mode it normalises nothing, and scales found now would be wrong in training. Run some "
                "batches first: model.train(); model(batch); model.eval()"
            )


def _whole_weights(key: str, tensor: Tensor) -> bool:
    return "weight" in key and tensor.dtype in (torch.int8, torch.uint8, torch.int32, torch.int16)


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not tensor.requires_grad}


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Name of each parameter -> the other names that share its memory."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {name: [n for n in all_ if n != name] for all_ in names.values() for name in all_}


# ---- before and after ----------------------------------------------------------------------------------------


def _profile(
    module: nn.Module, x: Any, call: Mapping[str, Any], seed: int, name: str, whole: Spectrum
) -> BlockProfile | None:
    with suppress(ModelError):
        return measure_blocks(module, x, **call, seed=seed, name=name, whole=whole, progress=False)
    return None


@dataclass(frozen=True)
class _Trial:
    """Factors, and what came of them."""

    factors: dict[str, float]
    after: Spectrum
    entries: tuple[TunedWeights, ...]


class _Scaled:
    """A copy of the model with its weights scaled, and the spectrum that it has."""

    def __init__(
        self, copy: nn.Module, plan: Plan, before: Spectrum, measured: Callable[[], Spectrum]
    ) -> None:
        self.plan, self._before, self._measured = plan, before, measured
        self._parameters = dict(copy.named_parameters())
        names = [name for station in plan.stations for name in station.parameters]
        self._originals = {name: self._parameters[name].clone() for name in names}

    def set(self, factors: Mapping[str, float]) -> None:
        """Scale the weights as they were."""
        with torch.no_grad():
            for name, tensor in self._originals.items():
                self._parameters[name].copy_(tensor * factors[name] if name in factors else tensor)

    def at(self, logs: Sequence[float]) -> tuple[dict[str, float], Spectrum]:
        """The factors of the stations' parameters, and the spectrum with them."""
        factors = _factors(self.plan, logs)
        self.set(factors)
        return factors, self._measured() if factors else self._before


def _settled(scaled: _Scaled, logs: list[float], tolerance: float) -> tuple[dict[str, float], Spectrum]:
    """The factors, and the spectrum with them; the last layer takes up what is left open.

    That is what an activation or branches behind it make of the mean square, and what random tangents are off where
    there are few outputs, of which the spectrum knows it better. Secant steps, for as long as they help: behind an
    activation that saturates there may be no scale that is right.
    """
    plan = scaled.plan
    factors, after = scaled.at(logs)
    slope, turned = 2.0, False
    for _ in range(_TRIALS if plan.last is not None else 0):
        off = _off_the_whole(after, plan)
        error = 2 * after.mean_square_stderr / after.mean_square if after.mean_square > 0 else 0.0
        if not abs(off) > max(tolerance, error):
            break
        # Where nothing passes, the activation behind the layer saturates.
        step = min(max(-off / slope, -_LARGEST_STEP), _LARGEST_STEP) if math.isfinite(off) else -_LARGEST_STEP
        step = -step if turned else step
        trial = [log + (step if number == plan.last else 0.0) for number, log in enumerate(logs)]
        factors_there, spectrum = scaled.at(trial)
        new = _off_the_whole(spectrum, plan)
        if abs(new) < abs(off) or (math.isinf(off) and math.isinf(new)):
            logs[:], factors, after = trial, factors_there, spectrum
            if math.isfinite(off):
                slope = min(max(abs(new - off) / abs(step), _SLOPES[0]), _SLOPES[1])
        elif turned:
            break
        else:
            turned = True
    return factors, after


def _is_better(one: Spectrum, other: Spectrum, plan: Plan) -> bool:
    """Whether the mean square of one is nearer to what it should be, or else more singular values to their scale."""
    offs = [abs(_off_the_whole(spectrum, plan)) for spectrum in (one, other)]
    return offs[0] < offs[1] if abs(offs[0] - offs[1]) > _WORSE else _near(one) > _near(other)


def _near(spectrum: Spectrum) -> float:
    """The share of singular values within a factor of two of their root mean square."""
    return float(spectrum.reported.spread[0])


def _factors(plan: Plan, logs: Sequence[float]) -> dict[str, float]:
    return {
        parameter: math.exp(log)
        for station, log in zip(plan.stations, logs, strict=True)
        for parameter in station.parameters
        if log != 0.0
    }


def _off_the_whole(spectrum: Spectrum, plan: Plan) -> float:
    """ln of the mean square of the whole over what it should be: 1 for each value that can differ from zero."""
    assert spectrum.shape is not None
    wanted = math.log(plan.output_values / min(spectrum.shape))
    return spectrum.reported.log10_mean_square * LN10 - wanted


def _refuse_worse(before: Spectrum, after: Spectrum, plan: Plan) -> None:
    """Raise where the tuned model is further from isometry, in mean square or in spread."""
    if before is after:
        return
    offs, errors = [], []
    for spectrum in (before, after):
        offs.append(abs(_off_the_whole(spectrum, plan)))
        errors.append(spectrum.mean_square_stderr / spectrum.mean_square if spectrum.mean_square > 0 else 0.0)
    if not offs[1] <= offs[0] + _WORSE + 3 * math.hypot(*(e for e in errors if math.isfinite(e))):
        raise ConvergenceError(
            f"tuning made the mean square worse: {before.reported.cells()['mean_square']} before, "
            f"{after.reported.cells()['mean_square']} after. The model is as it was. Take more probes=, or inputs of "
            "the size that it will see"
        )
    tops = [top_over_scale(spectrum) for spectrum in (before, after)]
    far = [abs(spectrum.reported.log10_s_max) for spectrum in (before, after)]
    if tops[1] > tops[0] + math.log(2) and far[1] >= far[0]:
        raise ConvergenceError(
            f"tuning made the spread worse: s_max / rms was {math.exp(tops[0]):.3g} and became "
            f"{math.exp(tops[1]):.3g}. The model is as it was. Fill its weights anew by isometry.init"
        )


def _apply(model: nn.Module, factors: Mapping[str, float]) -> None:
    """Scale the weights of the user's model, all or none."""
    parameters = dict(model.named_parameters())
    originals: dict[str, Tensor] = {}
    done = False
    made_for_inference = [name for name in factors if parameters[name].is_inference()]
    if made_for_inference:
        raise InputError(
            f"the weight {made_for_inference[0]!r} was made under torch.inference_mode and cannot be written to: make "
            "the model outside of it, or copy.deepcopy it there. The model is as it was"
        )
    with torch.no_grad():
        try:
            for name in factors:
                originals[name] = parameters[name].detach().clone()
            for name, factor in factors.items():
                parameters[name].mul_(factor)
            done = True
        except RuntimeError as error:
            raise InputError(f"the weights cannot be written to: {error}. The model is as it was") from error
        finally:
            # An interrupt as well.
            if not done:
                for name, tensor in originals.items():
                    if not torch.equal(parameters[name], tensor):
                        parameters[name].copy_(tensor)
