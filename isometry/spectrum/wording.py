"""What a person reads of a spectrum: the verdict in one sentence, the short table, a quantile, a share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spectrum import Spectrum

REPORTED_QUANTILES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")


def verdict_text(spectrum: Spectrum, low: float = 0.5, high: float = 2.0) -> str:
    """One sentence: is this dynamical isometry?"""
    share, most = spectrum.isometry_bounds(low, high)
    median = float(spectrum.log10_quantile(0.5))
    reach = f"{percent_text(share, most)} of the singular values lie in [{low:g}, {high:g}]"
    if share >= 0.95:
        return f"isometric: {reach}"
    if (share < 0.5 <= most) or most >= 0.95:
        return f"not resolved: {reach}; what lies below the floor, {spectrum.floor:.2g}, takes more steps or exact"
    if share >= 0.5:
        return f"partly isometric: {reach}"
    if low > 0 and median < math.log10(low):
        known = math.isfinite(median) or spectrum.floor > 0
        where = (
            f"half are at most {quantile_text(spectrum, 0.5).removeprefix('< ')}"
            if known
            else "half are zero"
        )
        return f"not isometric, signals vanish in most directions: {reach}, {where}"
    if median > math.log10(high):
        where = f"half are at least {quantile_text(spectrum, 0.5)}"
        return f"not isometric, signals grow in most directions: {reach}, {where}"
    return f"not isometric: {reach}"


def table_rows(spectrum: Spectrum) -> list[tuple[str, str]]:
    """The short table as (label, value) pairs: what every rendering of a spectrum shows."""
    shape = f"{spectrum.shape[0]} x {spectrum.shape[1]}" if spectrum.shape else "infinite width"
    rows = [("J", f"{shape}, {spectrum.kind} ({spectrum.method})")]
    if spectrum.null_dimension:
        rows.append(("null dimension", f"{spectrum.null_dimension} (forced by the shape, not counted below)"))
    if spectrum.n_inputs > 1 or spectrum.n_probes > 1:
        rows.append(("inputs x probes", f"{spectrum.n_inputs} x {spectrum.n_probes}"))
    rows.append(("s_max", _with_error(spectrum.s_max, spectrum.s_max_residual, "residual")))
    for key in REPORTED_QUANTILES[::-1]:
        rows.append((f"quantile {key}", quantile_text(spectrum, float(key))))
    if math.isnan(spectrum.s_min):
        rows.append(("s_min", f"not resolved (at most {max(spectrum.s_min_bound, spectrum.floor):.3g})"))
    else:
        rows.append(("s_min", _with_error(spectrum.s_min, spectrum.s_min_residual, "residual")))
    rows.append(("mean s^2", _with_error(spectrum.mean_square, spectrum.mean_square_stderr, "+-")))
    if spectrum.n_inputs > 1:
        rows.append(("  over inputs", f"+- {spectrum.moment_stderr(1, over='inputs'):.2g}"))
    if math.isfinite(spectrum.condition_number):
        rows.append(("condition", f"{spectrum.condition_number:.4g}"))
    else:
        bound = (
            spectrum.s_max / max(spectrum.s_min_bound, spectrum.floor)
            if max(spectrum.s_min_bound, spectrum.floor)
            else math.inf
        )
        rows.append(("condition", f"at least {bound:.3g}" if math.isfinite(bound) else "infinite"))
    if spectrum.below_floor > 0:
        place = f"s <= {spectrum.floor:.2g}" if spectrum.floor > 0 else "s = 0"
        rows.append(
            (
                "below floor" if spectrum.floor > 0 else "mass at zero",
                f"{100 * spectrum.below_floor:.3g} % ({place})",
            )
        )
    share, limits = percent_text(*spectrum.isometry_bounds()), percent_text(*spectrum.isometry_band())
    rows.append(("in [0.5, 2]", share))
    if limits != share:
        rows.append(("  95 % limits", limits))
    stop = stopping_text(spectrum)
    if stop is not None:
        rows.append(("stopped", stop))
    rows.append(("verdict", spectrum.verdict()))
    return rows


def stopping_text(spectrum: Spectrum) -> str | None:
    """Why a measurement with a goal stopped, or that it was interrupted; None where there is nothing to say."""
    stopped = spectrum.provenance.get("stopped")
    if stopped is None:
        return None
    quantity = str(stopped.get("quantity", "")).replace("_", " ")
    known = f"{quantity} known to {stopped['error']:.2g}" if "error" in stopped else f"{quantity} not known"
    asked = f" (rtol {stopped['rtol']:g})" if "rtol" in stopped else ""
    reason = stopped["reason"]
    if reason == "rtol":
        return f"{known}{asked}"
    if reason == "interrupted":
        part = f"interrupted, partial: {stopped['inputs']} inputs, {spectrum.n_probes} probes"
        return f"{part}; {known}{asked}" if quantity else part
    ended = {
        "budget": f"budget of {stopped.get('budget')} spent", "probes": "most probes taken",
        "steps": "most steps taken", "memory": "memory limit", "rounding": "rounding", "exact": "exact",
    }[reason]  # fmt: skip
    return f"{ended}; {known}{asked}"


def table_text(spectrum: Spectrum) -> str:
    """The short table as text."""
    rows = spectrum.rows()
    width = max(len(label) for label, _ in rows)
    title = f"Spectrum {spectrum.name}".rstrip()
    return "\n".join([title] + [f"  {label:<{width}}  {value}" for label, value in rows])


def table_html(spectrum: Spectrum) -> str:
    """The short table as HTML, for a notebook."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{_escape(a)}</th><td style='text-align:left'>{_escape(b)}</td></tr>"
        for a, b in spectrum.rows()
    )
    return f"<table><caption>Spectrum {_escape(spectrum.name)}</caption>{cells}</table>"


def quantile_text(spectrum: Spectrum, p: float) -> str:
    """A quantile as a person reads it: '< floor' below the floor, a power of ten outside the float range."""
    if p <= spectrum.zero_mass and spectrum.zero_mass > 0:
        return f"< {spectrum.floor:.2g}" if spectrum.floor > 0 else "0"
    value = float(spectrum.quantile(p))
    if value == 0 or math.isinf(value):
        return f"1e{float(spectrum.log10_quantile(p)):.2f}"
    return f"{value:.4g}"


def percent_text(least: float, most: float) -> str:
    """A share as a person reads it: one number, or from least to most where they differ."""
    # What differs by less than the digits shown is one number.
    if most - least > 5e-4:
        return f"{100 * least:.3g} to {100 * most:.3g} %"
    return f"{100 * least:.3g} %"


def _with_error(value: float, error: float, word: str) -> str:
    if not error > 0:
        return f"{value:.5g}" if error == 0 else f"{value:.5g} (error unknown)"
    return f"{value:.5g} {word} {error:.2g}" if word == "+-" else f"{value:.5g} ({word} {error:.2g})"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
