"""Derivatives of functions given without one: complex step where it works, differences elsewhere. Internal.

The complex step, phi'(h) = Im phi(h + i e) / e with e = 1e-100, is exact to rounding for a function analytic
on each piece and written with operations that know complex numbers (Squire and Trapp 1998, SIAM Review 40,
110). It is silently wrong for functions that drop the imaginary part (abs, casts), so it is used only where
it agrees with differences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]

COMPLEX_STEP = 1e-100
# Truncation of the nine-point rule (step^8 phi^(9) / 630) and rounding (1e-16 / step) meet near here for tanh.
STEP = 0.012
STENCIL = 9
SAMPLES = 97


def sample_points(kinks: Sequence[float] = ()) -> Array:
    """Points at which a function is tried, away from round numbers and from the kinks."""
    points = np.concatenate([np.linspace(-6.03, 6.01, SAMPLES), [-1.1e-3, 1.7e-3]])
    for kink in kinks:
        points = points[np.abs(points - kink) > 1e-3]
    return points


def checked_values(function: Callable[..., object], kinks: Sequence[float] = ()) -> Array:
    """Values at `sample_points`.

    Raises
    ------
    InputError
        When the function fails on an array, does not act elementwise, or is not finite and real.
    """
    points = sample_points(kinks)
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(function(points))
            alone = np.asarray(function(points[10:11]))
    except Exception as error:
        raise InputError(
            f"the activation failed on a numpy array of shape {points.shape}: {type(error).__name__}: {error}. It must "
            "be a function of float64 arrays, elementwise."
        ) from error
    if values.shape != points.shape or alone.shape != (1,):
        raise InputError(
            f"the activation must act elementwise: it got an array of shape {points.shape} and returned {values.shape}."
        )
    if (
        not np.issubdtype(values.dtype, np.number)
        or np.iscomplexobj(values)
        or not np.all(np.isfinite(values))
    ):
        raise InputError("the activation must return finite real numbers for h between -6 and 6.")
    if abs(float(values[10]) - float(alone[0])) > 1e-12 * max(1.0, abs(float(alone[0]))):
        raise InputError(
            "the activation must act elementwise: its value at one point changes with the other points of the array "
            "(softmax and normalisations are not activations in the sense of mean-field theory)."
        )
    return values.astype(np.float64)


def numerical_derivative(function: Callable[..., object], *, kinks: Sequence[float] = ()) -> ArrayFunction:
    """phi' as a function of arrays, from values of phi alone.

    Parameters
    ----------
    function : callable
        phi, elementwise on (n,) arrays; complex arrays too if it is to be exact to rounding.
    kinks : sequence of float
        Points that no difference may straddle.
    """
    points = sample_points(kinks)
    difference = difference_derivative(function, kinks=kinks)

    def complex_step(h: Array) -> Array:
        return np.asarray(function(np.asarray(h) + 1j * COMPLEX_STEP)).imag / COMPLEX_STEP

    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error")
            exact = complex_step(points)
    except Exception:
        return difference
    rough = difference(points)
    if np.shape(exact) != points.shape:
        return difference
    # Beside a kink that was not declared the differences are the wrong ones; a lost imaginary part is wrong all over.
    wrong = np.abs(exact - rough) > 1e-7 * (1.0 + np.abs(rough))
    return difference if np.count_nonzero(wrong) > points.size // 16 else complex_step


def difference_derivative(function: Callable[..., object], *, kinks: Sequence[float] = ()) -> ArrayFunction:
    """phi' by nine-point differences that never reach across a kink.

    Three stencils are tried at each point, in the middle and to either side, and the one kept is the one whose
    seven-point value agrees best with it: no difference straddles a kink that was not declared. The error is of order
    1e-13 max|phi| away from kinks and 1e-11 within 0.05 of a kink, for a phi that varies on the scale of one.
    """
    edges = np.array([-np.inf, *sorted(kinks), np.inf])
    offsets = np.arange(STENCIL)
    weights = np.array([_weights(offsets, centre) for centre in range(STENCIL)])
    # The same with the two nodes left out that are farthest from the point.
    fewer = np.zeros_like(weights)
    for centre in range(STENCIL):
        kept = np.sort(np.argsort(np.abs(offsets - centre), kind="stable")[: STENCIL - 2])
        fewer[centre, kept] = _weights(kept, centre)

    def derivative(h: Array) -> Array:
        points = np.asarray(h, dtype=np.float64)
        piece = np.searchsorted(edges, points, side="right") - 1
        lower, upper = edges[piece], edges[piece + 1]
        step = np.minimum(STEP * np.maximum(1.0, np.abs(points) / 50.0), (upper - lower) / (STENCIL + 1))
        # A power of two, so that the nodes are spaced exactly as the weights assume.
        step = np.exp2(np.floor(np.log2(step)))
        room_left = np.minimum(np.floor((points - lower) / step * (1 - 1e-12)), STENCIL - 1)
        room_right = np.minimum(np.floor((upper - points) / step * (1 - 1e-12)), STENCIL - 1)
        best, doubt = np.zeros_like(points), np.full(points.shape, np.inf)
        for wanted in (STENCIL // 2, 0, STENCIL - 1):
            centre = np.clip(wanted, STENCIL - 1 - room_right, room_left).astype(int)
            nodes = points[:, None] + step[:, None] * (offsets - centre[:, None])
            values = np.asarray(function(nodes.ravel()), dtype=np.float64).reshape(nodes.shape)
            values = values - values[np.arange(points.size), centre][:, None]
            estimate = np.einsum("ij,ij->i", values, weights[centre]) / step
            error = np.abs(estimate - np.einsum("ij,ij->i", values, fewer[centre]) / step)
            # The middle one is better by its symmetry, unless it is worse by far.
            better = error < (doubt if wanted == STENCIL // 2 else 1e-2 * doubt)
            better &= (doubt > 1e-9 * (1.0 + np.abs(best))) | (wanted == STENCIL // 2)
            best, doubt = np.where(better, estimate, best), np.where(better, error, doubt)
        return best

    return derivative


def _weights(nodes: NDArray[np.int64], centre: int) -> Array:
    """Weights with which values at the nodes give the slope at ``centre``, exact for the polynomial through all."""
    powers = np.vander(nodes - centre, nodes.size, increasing=True).T.astype(np.float64)
    return np.linalg.solve(powers, np.eye(nodes.size)[1])


def derivative_disagrees(
    function: ArrayFunction, derivative: ArrayFunction, kinks: Sequence[float] = ()
) -> tuple[float, float, float] | None:
    """(h, given, by differences) where a given derivative is most wrong, or None when it is right.

    A few points may disagree without harm: they sit beside a kink that was not declared.
    """
    points = sample_points(kinks)
    given = np.asarray(derivative(points), dtype=np.float64)
    rough = difference_derivative(function, kinks=kinks)(points)
    error = np.abs(given - rough) / (1.0 + np.abs(rough))
    if np.count_nonzero(error > 1e-5) <= points.size // 8:
        return None
    worst = int(np.argmax(error))
    return float(points[worst]), float(given[worst]), float(rough[worst])
