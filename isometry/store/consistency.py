"""What must hold between the numbers of one spectrum, whoever wrote them into a file.

What is `impossible` is neither stored nor read: NaN where a number has to be, a point mass at infinity, a negative
count. What is `implausible` is named by validate alone: relations between numbers that were found by different ways, so
that chance and rounding are allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isometry.spectrum import Curve, Extremes, LogValues, Quadrature, Spectrum

Array = NDArray[np.float64]

# Relative slack of comparisons between numbers that rounding alone keeps apart.
_ROUNDING = 1e-6
# A random unit vector v has <v, u>^2 = g^2 / n for a singular vector u, g about standard normal: below this with a
# chance of one in a million for a single probe.
_UNSEEN = 1e-12
# The grid of a cdf may end this far in ln s^2 before the last of the mass.
_BEYOND_GRID = 1.0


def impossible(spectrum: Spectrum) -> list[str]:
    """What no spectrum can be, each problem begun by the dataset or attribute it is about."""
    d, e = spectrum.distribution, spectrum.extremes
    problems = [] if spectrum.products >= 0 else [f"products: {spectrum.products} is negative"]
    if not 0 <= spectrum.seconds < math.inf:
        problems.append(f"seconds: {spectrum.seconds} is no time that was spent")
    if spectrum.shape is not None and min(spectrum.shape) < 1:
        problems.append(f"shape: {spectrum.shape} has no singular values")
    if isinstance(d, Quadrature):
        problems += _wrong("floor", d.floor, _not_a_size, "are negative, infinite or NaN")
    elif isinstance(d, Curve):
        for key, values in (("log_s", d.log_s), ("cdf", d.cdf_continuous), ("density", d.log_density)):
            problems += _wrong(key, values, _not_finite, "are infinite or NaN")
        # ln s = -inf stands for s = 0.
        problems += _wrong(
            "atom_log_s", d.atom_log_s, lambda t: ~(t < math.inf), "lie at infinity or are NaN"
        )
        problems += _wrong("atom_mass", d.atom_mass, _not_a_size, "are negative, infinite or NaN")
        moments = np.asarray(d.log_even_moments, float)
        problems += _wrong("log_even_moments", moments, lambda m: ~(m < math.inf), "are infinite or NaN")
    return problems + (_impossible_extremes(spectrum, e) if e is not None else [])


def implausible(spectrum: Spectrum) -> list[str]:
    """What contradicts itself beyond chance and rounding, in a spectrum that is possible."""
    d, e = spectrum.distribution, spectrum.extremes
    if isinstance(d, Curve):
        return _implausible_moments(d)
    if isinstance(d, LogValues):
        return []
    count = d.nodes.shape[2]
    if spectrum.method == "exact" and spectrum.shape is not None and count != min(spectrum.shape):
        return [
            f"nodes: {count} for each input, of an exact measurement with {min(spectrum.shape)} singular values"
        ]
    return [] if e is None else _implausible_extremes(spectrum, d, e)


def _impossible_extremes(spectrum: Spectrum, e: Extremes) -> list[str]:
    top, residual = e.top, e.top_residual
    if top.ndim != 2 or top.shape != residual.shape or top.shape[0] != spectrum.n_inputs or top.shape[1] < 1:
        return [
            f"top: has shape {top.shape} beside residuals of shape {residual.shape} and {spectrum.n_inputs} inputs"
        ]
    absent = np.isnan(top)
    if np.any(absent[:, 0]) or np.any(absent[:, :-1] & ~absent[:, 1:]):
        return [
            "top: NaN stands before a value: it fills the end of a row where fewer were found than asked for"
        ]
    problems = _wrong("top", top[~absent], _not_a_size, "are negative or infinite")
    if np.any(np.diff(top, axis=1) > _ROUNDING * top[:, :1]):
        problems.append("top: does not descend")
    known = ~absent
    problems += _wrong("top_residual", residual[known], lambda r: ~(r >= 0), "are negative or NaN")
    problems += _wrong("bottom", e.bottom, _not_a_size, "are negative, infinite or NaN")
    problems += _wrong("bottom_residual", e.bottom_residual, lambda r: ~(r >= 0), "are negative or NaN")
    if not problems and np.any(e.bottom > top[:, 0] * (1 + _ROUNDING)):
        problems.append("bottom: lies above the largest value of top")
    return problems


def _implausible_extremes(spectrum: Spectrum, d: Quadrature, e: Extremes) -> list[str]:
    problems = []
    present = d.weights > 0
    highest = np.where(present, d.nodes, 0.0).max(axis=(1, 2))
    lowest = np.where(present, d.nodes, math.inf).min(axis=(1, 2))
    largest = e.top[:, 0]
    # Nodes and leading values are both bounds of s_max from below, and top has the best of them.
    if np.any(2 * largest < highest):
        problems.append("top: its largest value is less than half of the largest node")
    if np.any(e.bottom_resolved & ~np.isfinite(e.bottom_residual)):
        problems.append("bottom_resolved: is true where bottom_residual is infinite")
    if np.any(e.bottom > 2 * np.maximum(lowest, d.floor) + e.bottom_residual):
        problems.append("bottom: is more than twice the smallest node")
    if spectrum.shape is not None:
        # s_max^2 is at most the sum of all squares, r E[s^2].
        rank = min(spectrum.shape)
        exact = d.nodes.shape[1:] == (1, rank) and bool(np.all(d.resolved))
        scale = np.maximum(np.maximum(largest, highest), np.finfo(float).tiny)[:, None, None]
        total = rank * np.sum(d.weights * (d.nodes / scale) ** 2, axis=2).mean(axis=1)
        share = (largest / scale[:, 0, 0]) ** 2
        if np.any(total < share * (1 - _ROUNDING if exact else _UNSEEN)):
            problems.append("top: its largest value exceeds what the mean square of the nodes allows")
    return problems


def _implausible_moments(curve: Curve) -> list[str]:
    """Exact moments against the stored curve, by bounds that hold however coarse its grid is.

    E[s^2k] is at most the largest s to the power 2k, and E[s^2k]^(1/k) does not fall with k (Lyapunov's inequality).
    """
    highest, before = curve.log_range[1], -math.inf
    if math.isnan(highest):  # all mass at zero
        highest = -math.inf
    if curve.unbounded:
        highest = math.inf
    for k, moment in enumerate(curve.log_even_moments, 1):
        if moment > k * (2 * highest + _BEYOND_GRID):
            return [
                f"log_even_moments: ln E[s^{2 * k}] is {moment:.6g}, and the largest ln s is {highest:.6g}"
            ]
        if moment < k * before - _ROUNDING * max(1.0, abs(k * before)):
            return [
                f"log_even_moments: ln E[s^{2 * k}] is {moment:.6g}, less than the moment before it allows"
            ]
        before = moment / k
    return []


def _wrong(key: str, values: Array, test: Callable[[Array], NDArray[np.bool_]], words: str) -> list[str]:
    count = int(np.sum(test(np.asarray(values, float))))
    return [f"{key}: {count} values {words}"] if count else []


def _not_finite(values: Array) -> NDArray[np.bool_]:
    return ~np.isfinite(values)


def _not_a_size(values: Array) -> NDArray[np.bool_]:
    return ~((values >= 0) & (values < math.inf))
