"""`Summary`: the numbers that reports show of a spectrum, filled by `reported.summary_of` and rendered everywhere.

It knows no spectrum, only plain numbers. Each number has one name (that of its field, in JSON, CSV and loggers), one
label for people (`LABELS`) and one text (`Summary.cells`).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .advice import Advice
from .formatting import error_text, json_ready, number_text, percent_text
from .unlisted import Unlisted

# Why a measurement with a goal may have stopped, and how a report says so.
STOPPED = {
    "rtol": "", "interrupted": "interrupted", "budget": "budget of {} spent", "probes": "most probes taken",
    "steps": "most steps taken", "memory": "memory limit", "rounding": "rounding", "exact": "exact",
}  # fmt: skip
REPORTED_QUANTILES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
# What isometry means where nothing else is asked for: s within a factor of two of 1.
LOW, HIGH = 0.5, 2.0

# Name of a number -> what people read, in the order of the table.
LABELS: Mapping[str, str] = {
    "shape": "J",
    "method": "method",
    "slow_products": "slow products",
    "null_dimension": "null dimension",
    "s_max": "s_max",
    "unlisted": "not listed",
    **{f"quantile_{p}": "median" if p == "0.5" else f"quantile {p}" for p in reversed(REPORTED_QUANTILES)},
    "s_min": "s_min",
    "condition_number": "condition number",
    "mean_square": "mean s²",
    "mean_square_stderr_inputs": "± over inputs",
    "relative_error": "relative error",
    "zero_mass": "zero mass",
    "scale": "scale (rms s)",
    "spread": "near the scale",
    "isometry": f"in [{LOW:g}, {HIGH:g}]",
    "isometry_limits95": "95 % limits",
    "outside": "outside the law",
}


@dataclass(frozen=True)
class Summary:
    """The reported numbers of one spectrum.

    nan stands for what is not known, and for a number outside the range of floats, whose log10 is then known; inf for
    what is infinite.

    Parameters
    ----------
    name, kind, method, shape, null_dimension, inputs, probes, products, seconds
        As of the `Spectrum`.
    s_max, s_max_residual, log10_s_max, s_min, s_min_residual, log10_s_min : float
        Extreme singular values with their residual bounds.
    s_min_upper_bound : float
        An upper bound of s_min that is known even where s_min is not.
    condition_number, log10_condition_number, condition_number_bound : float
        s_max / s_min, its log10, and a lower bound of it.
    mean_square, mean_square_stderr, mean_square_stderr_inputs, log10_mean_square : float
        E[s^2], its standard error over probes and the one over inputs, log10 E[s^2].
    mean_square_interval95 : (float, float)
        Confidence interval of E[s^2] over probes.
    variance : float
        Var[s^2].
    quantiles, log10_quantiles : mappings of text to float
        By their levels, as texts: ``"0.5"``.
    floor, zero_mass : float
        Largest s that cannot be told from zero, and the fraction of singular values at or below it.
    proved_zero_mass : float
        The part of it that is zero without rounding; nan where nothing is known of that.
    relative_error : float
        Largest relative error of a singular value, whatever its size; nan where errors are shares of s_max.
    scale, log10_scale : float
        The root mean square singular value, sqrt(E[s^2]), and its log10.
    spread : (float, float)
        Least and largest fraction of singular values within a factor of two of the scale, whatever that is.
    isometry : (float, float)
        Least and largest fraction of singular values in [0.5, 2]; they differ where the floor is above 0.5.
    isometry_stderr : float
    isometry_limits95 : (float, float)
        Limits of that fraction with 95 % confidence.
    verdict : str
        One sentence.
    outside : float, log10_outside
        Where a prediction knows of a singular value that its law does not hold, a lower bound of the largest.
    outside_certain : bool
        Whether that bound lies above the law.
    top : sequence of (float, float)
        The largest singular values found, with their residual bounds; empty for a prediction.
    unlisted : Unlisted, optional
        How many more are as large as the last of these; None for a prediction.
    instead_of : str
        The method that was tried before, and why it did not do; empty where there was none.
    slow_products : str
        What made the products, and why, where it was no replay of the recorded maps; empty where it was.
    advice : sequence of Advice
        What to do, where something is to be done.
    seed, dtype, device, stopped, shares
        As recorded with the measurement, None where nothing was.
    """

    name: str
    kind: str
    method: str
    shape: tuple[int, int] | None
    null_dimension: int
    inputs: int
    probes: int
    s_max: float
    s_max_residual: float
    log10_s_max: float
    s_min: float
    s_min_residual: float
    s_min_upper_bound: float
    log10_s_min: float
    condition_number: float
    log10_condition_number: float
    condition_number_bound: float
    mean_square: float
    mean_square_stderr: float
    mean_square_stderr_inputs: float
    mean_square_interval95: tuple[float, float]
    log10_mean_square: float
    variance: float
    quantiles: Mapping[str, float]
    log10_quantiles: Mapping[str, float]
    floor: float
    zero_mass: float
    isometry: tuple[float, float]
    isometry_stderr: float
    isometry_limits95: tuple[float, float]
    verdict: str
    products: int
    seconds: float
    proved_zero_mass: float = math.nan
    relative_error: float = math.nan
    scale: float = math.nan
    log10_scale: float = math.nan
    outside: float = math.nan
    log10_outside: float = math.nan
    outside_certain: bool = False
    spread: tuple[float, float] = (math.nan, math.nan)
    top: Sequence[tuple[float, float]] = ()
    unlisted: Unlisted | None = None
    instead_of: str = ""
    slow_products: str = ""
    advice: Sequence[Advice] = ()
    seed: Any = None
    dtype: Any = None
    device: Any = None
    stopped: Mapping[str, Any] | None = field(default=None)
    shares: Sequence[Mapping[str, Any]] = ()

    # ---- for programs ------------------------------------------------------------------------------

    def json(self) -> dict[str, Any]:
        """Every number as plain JSON values; None stands for nan and inf."""
        least, most = self.isometry
        values: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "method": self.method,
            "shape": self.shape,
            "null_dimension": self.null_dimension,
            "inputs": self.inputs,
            "probes": self.probes,
            "s_max": self.s_max,
            "s_max_residual": self.s_max_residual,
            "log10_s_max": self.log10_s_max,
            "s_min": self.s_min,
            "s_min_residual": self.s_min_residual,
            "s_min_upper_bound": self.s_min_upper_bound,
            "log10_s_min": self.log10_s_min,
            "condition_number": self.condition_number,
            "log10_condition_number": self.log10_condition_number,
            "mean_square": self.mean_square,
            "mean_square_stderr": self.mean_square_stderr,
            "mean_square_stderr_inputs": self.mean_square_stderr_inputs,
            "mean_square_interval95": self.mean_square_interval95,
            "log10_mean_square": self.log10_mean_square,
            "variance": self.variance,
            "quantiles": self.quantiles,
            "log10_quantiles": self.log10_quantiles,
            "floor": self.floor,
            "below_floor": self.zero_mass,
            "zero_mass": self.zero_mass,
            "proved_zero_mass": self.proved_zero_mass,
            "relative_error": self.relative_error,
            "scale": self.scale,
            "log10_scale": self.log10_scale,
            "spread": {"factor": 2.0, "fraction": self.spread[0], "fraction_at_most": self.spread[1]},
            "isometry": {
                "low": LOW,
                "high": HIGH,
                "fraction": least,
                "fraction_at_most": most,
                "stderr": self.isometry_stderr,
                "limits95": self.isometry_limits95,
            },
            "verdict": self.verdict,
            "products": self.products,
            "seconds": self.seconds,
            "seed": self.seed,
            "dtype": self.dtype,
            "device": self.device,
        }
        if self.stopped is not None:
            values["stopped"] = self.stopped
        if self.instead_of:
            values["instead_of"] = self.instead_of
        if self.slow_products:
            values["slow_products"] = self.slow_products
        if self.advice:
            values["advice"] = [asdict(one) for one in self.advice]
        if self.shares:
            values["shares"] = [dict(share) for share in self.shares]
        if self.outside_text:
            values["outside"] = {
                "s": self.outside,
                "log10_s": self.log10_outside,
                "certain": self.outside_certain,
            }
        if self.top:
            values["top"] = [{"s": s, "residual": residual} for s, residual in self.top]
        if self.unlisted is not None:
            values["unlisted"] = asdict(self.unlisted)
        plain: dict[str, Any] = json_ready(values)
        return plain

    def flat(self) -> dict[str, float]:
        """The main numbers under names without structure, as a logger or a table of values takes them.

        A quantile is ``quantile_0.5``; ``isometry`` is nan where the floor leaves it open.
        """
        least, most = self.isometry
        lower, upper = self.isometry_limits95
        numbers: dict[str, float] = {
            "s_max": self.s_max,
            "s_max_residual": self.s_max_residual,
            "s_min": self.s_min,
            "s_min_residual": self.s_min_residual,
            "s_min_upper_bound": self.s_min_upper_bound,
            "condition_number": self.condition_number,
            "mean_square": self.mean_square,
            "mean_square_stderr": self.mean_square_stderr,
            "log10_mean_square": self.log10_mean_square,
            "variance": self.variance,
            **{f"quantile_{p}": value for p, value in self.quantiles.items()},
            "scale": self.scale,
            "spread": self.spread[0] if self.spread[0] == self.spread[1] else math.nan,
            "isometry": least if most == least else math.nan,
            "isometry_stderr": self.isometry_stderr,
            "isometry_lower": lower,
            "isometry_upper": upper,
            "zero_mass": self.zero_mass,
            "floor": self.floor,
            "inputs": self.inputs,
            "probes": self.probes,
            "null_dimension": self.null_dimension,
            "products": self.products,
            "seconds": self.seconds,
        }
        return {key: float(value) for key, value in numbers.items()}

    # ---- for people --------------------------------------------------------------------------------

    def cells(self) -> dict[str, str]:
        """The text of each number, by its name, in the order of `LABELS`; empty where there is nothing to say."""
        share, limits = percent_text(*self.isometry), percent_text(*self.isometry_limits95)
        texts = {
            "shape": f"{self.shape[0]} x {self.shape[1]}" if self.shape else "infinite width",
            "method": ", ".join(
                [
                    self.method,
                    *([f"{self.probes} probes"] if self.probes > 1 else []),
                    *([f"{self.inputs} inputs"] if self.inputs > 1 else []),
                    *([f"instead of {self.instead_of}"] if self.instead_of else []),
                ]
            ),
            "slow_products": self.slow_products,
            "null_dimension": str(self.null_dimension) if self.null_dimension else "",
            "s_max": error_text(self.s_max, self.s_max_residual, self.log10_s_max),
            "unlisted": "" if self.unlisted is None else self.unlisted.text(),
            "s_min": self._s_min_text(),
            "condition_number": self._condition_text(),
            "mean_square": error_text(self.mean_square, self.mean_square_stderr, self.log10_mean_square),
            "mean_square_stderr_inputs": (
                f"{self.mean_square_stderr_inputs:.2g}"
                if math.isfinite(self.mean_square_stderr_inputs)
                else ""
            ),
            "relative_error": f"{self.relative_error:.1g} of each value at most"
            if self.relative_error >= 0
            else "",
            "zero_mass": self._zero_text(),
            "scale": number_text(self.scale, self.log10_scale),
            "spread": percent_text(*self.spread),
            "isometry": share,
            "isometry_limits95": limits if limits != share else "",
            "outside": self.outside_text,
        }
        texts |= {f"quantile_{p}": self.quantile_text(p) for p in self.quantiles}
        return {key: texts[key] for key in LABELS}

    def rows(self) -> list[tuple[str, str]]:
        """The table as (label, text) pairs, with the sentences: why the measurement stopped, and the verdict."""
        rows = [(LABELS[key], text) for key, text in self.cells().items() if text]
        return [
            *rows,
            *([("shares of mean s²", self.shares_text)] if self.shares else []),
            *([("stopped", self.stopped_text)] if self.stopped_text else []),
            ("verdict", self.verdict),
            *(("advice", one.text) for one in self.advice),
        ]

    def text(self) -> str:
        """The table as text."""
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        title = f"Spectrum {self.name}".rstrip()
        return "\n".join([title] + [f"  {label:<{width}}  {value}" for label, value in rows])

    def html(self) -> str:
        """The table as HTML, for a notebook."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in self.rows()
        )
        return f"<table><caption>Spectrum {html.escape(self.name)}</caption>{cells}</table>"

    def quantile_text(self, level: str) -> str:
        """The text of one of the reported quantiles."""
        return quantile_text(self.quantiles[level], self.log10_quantiles[level], self.floor)

    @property
    def level(self) -> str:
        """ "good", "partly" or "bad": the colour of the verdict. "partly" also where the floor leaves it open."""
        least, most = self.spread
        return "good" if least >= 0.95 else "partly" if most >= 0.5 else "bad"

    @property
    def shares_text(self) -> str:
        """The share of each of several inputs in the mean square; empty where J is with respect to one."""
        return ", ".join(_share_text(share) for share in self.shares)

    @property
    def stopped_text(self) -> str:
        """Why a measurement with a goal stopped, or that it was interrupted; empty where there is nothing to say."""
        stopped = self.stopped
        if stopped is None:
            return ""
        quantity = str(stopped.get("quantity", "")).replace("_", " ")
        known = (
            f"{quantity} known to {stopped['error']:.2g}" if "error" in stopped else f"{quantity} not known"
        )
        asked = f" (rtol {stopped['rtol']:g})" if "rtol" in stopped else ""
        reason = stopped["reason"]
        if reason == "rtol":
            return f"{known}{asked}"
        if reason == "interrupted":
            part = f"interrupted, partial: {stopped.get('inputs')} inputs, {self.probes} probes"
            return f"{part}; {known}{asked}" if quantity else part
        return f"{STOPPED[reason].format(stopped.get('budget'))}; {known}{asked}"

    @property
    def outside_text(self) -> str:
        """What a prediction says of a singular value outside its law; empty where there is none."""
        if math.isnan(self.log10_outside):
            return ""
        bound = f"s_max at least {number_text(self.outside, self.log10_outside)}"
        reason = "phi has a mean, which the branches add up along the signal"
        return (
            f"one value, {bound}: {reason}"
            if self.outside_certain
            else f"perhaps one value, {bound}: {reason}"
        )

    def _s_min_text(self) -> str:
        if math.isnan(self.s_min) and math.isnan(self.log10_s_min):
            return f"not resolved (at most {number_text(max(self.s_min_upper_bound, self.floor))})"
        return error_text(self.s_min, self.s_min_residual, self.log10_s_min)

    def _condition_text(self) -> str:
        if math.isnan(self.condition_number) and math.isnan(self.log10_condition_number):
            return f"at least {number_text(self.condition_number_bound)}"
        return number_text(self.condition_number, self.log10_condition_number)

    def _zero_text(self) -> str:
        if not self.zero_mass > 0:
            return ""
        place = f"s at most {number_text(self.floor)}" if self.floor > 0 else "s = 0"
        if self.kind == "measured" and self.proved_zero_mass < self.zero_mass:
            proved = (
                f", {percent_text(self.proved_zero_mass)} proved and the rest"
                if self.proved_zero_mass
                else ""
            )
            place += f"{proved} to the rounding of a layer"
        return f"{percent_text(self.zero_mass)} ({place})"


def _share_text(share: Mapping[str, Any]) -> str:
    value, error = share["share"], share["stderr"]
    if value is None:
        return f"{share['path']} unknown"
    known = f" ± {100 * error:.2g}" if error else ""
    return f"{share['path']} {100 * value:.4g}{known} %"


def recorded_shares(found: Any) -> tuple[Mapping[str, Any], ...]:
    """The shares as a measurement records them; empty where something else is recorded."""

    def is_share(one: Any) -> bool:
        if not isinstance(one, Mapping) or not isinstance(one.get("path"), str):
            return False
        value, error = one.get("share"), one.get("stderr")
        return (value is None and error is None) or (isinstance(value, float) and isinstance(error, float))

    parts = found if isinstance(found, list | tuple) else ()
    return tuple(parts) if all(map(is_share, parts)) else ()


def quantile_text(value: float, log10: float, floor: float) -> str:
    """A quantile as `number_text`; ``< floor`` inside the mass that cannot be told from zero, where log10 is -inf."""
    return f"< {number_text(floor)}" if log10 == -math.inf and floor > 0 else number_text(value, log10)


def verdict_text(
    spread: tuple[float, float],
    scale: tuple[float, str],
    median: tuple[float, str],
    zero_mass: float,
    floor: float,
    low: float,
    high: float,
) -> str:
    """One sentence: is this dynamical isometry? Spread and scale apart: a network may be isometric up to scale.

    Parameters
    ----------
    spread : (float, float)
        Least and largest fraction of singular values within a factor of two of the scale.
    scale, median : (float, str)
        log10 of the root mean square and of the median, and their texts.
    zero_mass, floor : float
        As of `Summary`.
    low, high : float
        Scales from ``low`` to ``high`` are 1.
    """
    if zero_mass > 1 - 1e-9:
        place = f"lie below the floor, {number_text(floor)}" if floor > 0 else "are zero"
        return f"not isometric, no signal passes: all singular values {place}"
    least, most = spread
    small = low > 0 and scale[0] < math.log10(low)
    large = scale[0] > (math.log10(high) if high > 0 else -math.inf)
    up_to = " up to scale" if small or large else ""
    passes = " (signals fade)" if small else " (signals grow)" if large else ""
    reach = f"scale {scale[1]}{passes}, {percent_text(least, most)} of the singular values within a factor 2 of it"
    if least >= 0.95:
        return f"isometric{up_to}: {reach}"
    if (least < 0.5 <= most) or most >= 0.95:
        return (
            f"not resolved: {reach}; more steps or exact resolve those below the floor, {number_text(floor)}"
        )
    if least >= 0.5:
        return f"partly isometric{up_to}: {reach}"
    if median[0] >= scale[0] - math.log10(2):
        return f"not isometric: {reach}"
    if median[0] == -math.inf:
        place = f"below the floor, {number_text(floor)}" if floor > 0 else "zero"
        where = f"{percent_text(zero_mass)} are {place}"
    else:
        where = f"half are at most {median[1]}"
    vanish = low > 0 and median[0] < math.log10(low)
    which = "signals vanish in most directions" if vanish else "few directions dominate"
    return f"not isometric, {which}: {reach}, {where}"


def table(summaries: Sequence[Summary]) -> list[tuple[str, str, list[str]]]:
    """(name, label, texts) of every number that at least one of the summaries shows, one text for each of them."""
    cells = [summary.cells() for summary in summaries]
    return [(key, label, texts) for key, label in LABELS.items() if any(texts := [one[key] for one in cells])]
