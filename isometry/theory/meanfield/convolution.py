"""Mean-field theory of convolutional layers: which spatial patterns survive depth, and for how long.

A circular convolution with c -> infinity channels, whose weight at kernel offset b has variance
sigma_w^2 v_b / c, sum_b v_b = 1, maps the covariance S(a, a') of pre-activations at positions a, a' by

    S <- A_v * C(S),
    C(S)(a, a') = sigma_w^2 E phi(h_a) phi(h_a') + sigma_b^2,
    (A_v * C)(a, a') = sum_b v_b C(a + b, a' + b)

(Xiao et al. 2018, arXiv 1806.05393, section 2; v uniform there, general in section 3.3). Its fixed point is that
of the fully connected network, q* on the diagonal and q* c* off it. A small deviation e_d(a) = S(a, a + d) - q* c*
decays mode by mode in a: its Fourier component at frequency f is multiplied by chi_c* vhat(f) per layer,

    vhat(f) = sum_b v_b exp(2 pi i f . b / n),     xi_f = -1 / log(chi_c* |vhat(f)|).

A uniform kernel keeps only f = 0, so deep signals become spatially flat; a delta kernel keeps every pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError
from isometry.theory.activations import get_activation
from isometry.theory.meanfield.hermite import covariance_matrix
from isometry.theory.meanfield.variance import ActivationLike, checked_deviation, depth_scale

__all__ = [
    "average_covariance",
    "checked_profile",
    "covariance_recursion",
    "covariance_step",
    "delta_profile",
    "fourier_modes",
    "mode_amplitudes",
    "mode_depth_scales",
    "mode_factors",
    "uniform_covariance",
    "uniform_profile",
]

Array = NDArray[np.float64]

# |vhat| comes from a Fourier transform: closer to one than this is one, and such a mode decays as chi alone says.
ROUNDING = 1e-13


def uniform_profile(kernel_size: int, *, dimensions: int = 2) -> Array:
    """The profile of an ordinary Gaussian kernel: every tap has the same variance.

    Parameters
    ----------
    kernel_size : int
        Taps per axis.
    dimensions : int
        1 or 2 spatial axes.

    Returns
    -------
    (k,) or (k, k) array
        Sums to one.
    """
    shape = (_checked_count(kernel_size, "kernel_size"),) * _checked_dimensions(dimensions)
    return np.full(shape, 1.0 / math.prod(shape))


def delta_profile(kernel_size: int, *, dimensions: int = 2) -> Array:
    """The profile of a delta kernel: all variance on the centre tap, index (k - 1) // 2 on each axis.

    Parameters
    ----------
    kernel_size : int
        Taps per axis.
    dimensions : int
        1 or 2 spatial axes.

    Returns
    -------
    (k,) or (k, k) array
        One at the centre, zero elsewhere.
    """
    shape = (_checked_count(kernel_size, "kernel_size"),) * _checked_dimensions(dimensions)
    profile = np.zeros(shape)
    profile[tuple((taps - 1) // 2 for taps in shape)] = 1.0
    return profile


def checked_profile(profile: ArrayLike) -> Array:
    """The variance profile as a (k,) or (k, k') array that sums to one exactly.

    Raises
    ------
    InputError
        When it holds what is no number, other than one or two axes, a negative entry, or a sum that is not one.
    """
    try:
        values = np.asarray(profile, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"a variance profile holds numbers, got {profile!r}") from None
    if values.ndim not in (1, 2) or values.size == 0:
        raise InputError(f"a variance profile has shape (k,) or (k, k); got shape {values.shape}.")
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError("a variance profile holds variances: finite numbers of zero or more.")
    total = float(values.sum())
    if abs(total - 1.0) > 1e-6:
        raise InputError(
            f"a variance profile sums to one, sigma_w^2 being outside it; got a sum of {total:.6g}. Divide by the sum."
        )
    return values / total


def fourier_modes(profile: ArrayLike, size: int | Sequence[int]) -> NDArray[np.complex128]:
    """vhat(f) = sum_b v_b exp(2 pi i f . b / n), the factor by which one layer multiplies spatial mode f (next to chi).

    Parameters
    ----------
    profile : (k,) or (k, k) array
        Variance of each tap, sum one. Offset zero is index (k - 1) // 2. A kernel larger than the grid wraps around.
    size : int or sequence of int
        Grid: n for n positions per axis, or one number per axis.

    Returns
    -------
    (n,) or (n, n) complex array
        At frequencies f = 0 .. n - 1 per axis, in the order of `numpy.fft.fftfreq`. The singular values of the
        averaging operator A_v are the moduli, each as many times as there are positions (once per displacement).
    """
    values = checked_profile(profile)
    shape = _grid_shape(size, values.ndim)
    # exp(+2 pi i f b / n) from a transform with a minus sign: the taps go to -b.
    folded = np.zeros(shape)
    for offset, variance in _taps(values):
        folded[tuple(-step % count for step, count in zip(offset, shape, strict=True))] += variance
    return np.fft.fftn(folded).astype(np.complex128)


def mode_factors(profile: ArrayLike, size: int | Sequence[int], *, chi: float) -> Array:
    """chi |vhat(f)|, the factor by which one layer shrinks spatial mode f.

    Parameters
    ----------
    profile, size
        As in `fourier_modes`.
    chi : float
        Slope of the c-map at c*: `isometry.theory.meanfield.chi_c`.

    Returns
    -------
    (n,) or (n, n) array
    """
    if not math.isfinite(chi) or chi < 0:
        raise InputError(f"chi must be a finite number of zero or more; got {chi!r}.")
    modulus = np.abs(fourier_modes(profile, size))
    modulus[np.abs(modulus - 1.0) < ROUNDING] = 1.0
    modulus[modulus < ROUNDING] = 0.0
    return chi * modulus


def mode_depth_scales(profile: ArrayLike, size: int | Sequence[int], *, chi: float) -> Array:
    """Depth scale xi_f = -1 / log(chi |vhat(f)|) of every spatial mode, in layers.

    Parameters
    ----------
    profile, size
        As in `fourier_modes`.
    chi : float
        Slope of the c-map at c*: `isometry.theory.meanfield.chi_c`; 1 on the critical line.

    Returns
    -------
    (n,) or (n, n) array
        Infinite where the mode does not decay, zero where one layer removes it. At f = 0 it is that of a fully
        connected network.
    """
    factors = mode_factors(profile, size, chi=chi)
    return np.vectorize(lambda factor: depth_scale(factor - 1.0), otypes=[np.float64])(factors)


def average_covariance(covariance: ArrayLike, profile: ArrayLike, *, transpose: bool = False) -> Array:
    """A_v * S: sum_b v_b S(a + b, a' + b), both positions moving together on the circular grid.

    Parameters
    ----------
    covariance : (n, n) or (n1, n2, n1, n2) array
        S(a, a') on a line or on a plane.
    profile : (k,) or (k, k) array
        Variance of each tap.
    transpose : bool
        Apply the transpose, S(a - b, a' - b): what back-propagation does to the covariance of gradients.

    Returns
    -------
    array
        Of the shape of ``covariance``.
    """
    values = checked_profile(profile)
    matrix = _checked_covariance(covariance, values.ndim)
    result = np.zeros_like(matrix)
    axes = tuple(range(matrix.ndim))
    for offset, variance in _taps(values):
        shift = tuple(step if transpose else -step for step in offset) * 2
        result += variance * np.roll(matrix, shift, axis=axes)
    return result


def covariance_step(
    covariance: ArrayLike,
    profile: ArrayLike,
    *,
    activation: ActivationLike,
    sigma_w: float,
    sigma_b: float,
) -> Array:
    """Covariance of the next layer's pre-activations, A_v * C(S).

    Parameters
    ----------
    covariance : (n, n) or (n1, n2, n1, n2) array
        S(a, a') of this layer, on a line or on a plane.
    profile : (k,) or (k, k) array
        Variance of each tap.
    activation : str, Activation or callable
        phi.
    sigma_w, sigma_b : float
        Standard deviations; the variance of all taps together is sigma_w^2 / channels.

    Returns
    -------
    array
        Of the shape of ``covariance``, with relative errors of about 1e-13.

    Raises
    ------
    InputError
        When the covariance has a wrong shape, is not symmetric, or has a negative variance.
    """
    phi = get_activation(activation)
    weight2 = checked_deviation(sigma_w, "sigma_w") ** 2
    bias2 = checked_deviation(sigma_b, "sigma_b") ** 2
    values = checked_profile(profile)
    matrix = _checked_covariance(covariance, values.ndim)
    positions = math.prod(matrix.shape[: values.ndim])
    second = covariance_matrix(matrix.reshape(positions, positions), phi).reshape(matrix.shape)
    return average_covariance(weight2 * second + bias2, values)


def covariance_recursion(
    covariance: ArrayLike,
    profile: ArrayLike,
    *,
    depth: int,
    activation: ActivationLike,
    sigma_w: float,
    sigma_b: float,
) -> Array:
    """Covariances layer by layer, from the given one through ``depth`` layers.

    Meant for small grids, as a check on `mode_factors`: every layer costs the square of the number of positions.

    Parameters
    ----------
    covariance, profile, activation, sigma_w, sigma_b
        As in `covariance_step`.
    depth : int
        Number of layers.

    Returns
    -------
    (depth + 1, ...) array
        The first is ``covariance``.
    """
    states = [_checked_covariance(covariance, checked_profile(profile).ndim)]
    for _ in range(_checked_count(depth, "depth")):
        states.append(
            covariance_step(states[-1], profile, activation=activation, sigma_w=sigma_w, sigma_b=sigma_b)
        )
    return np.stack(states)


def uniform_covariance(size: int | Sequence[int], *, q: float, c: float, dimensions: int = 2) -> Array:
    """The covariance with variance q at every position and correlation c between any two: the fixed point's form.

    Parameters
    ----------
    size : int or sequence of int
        Grid, per axis.
    q, c : float
        Variance and correlation.
    dimensions : int
        1 or 2 spatial axes.

    Returns
    -------
    (n, n) or (n1, n2, n1, n2) array
    """
    shape = _grid_shape(size, _checked_dimensions(dimensions))
    positions = math.prod(shape)
    return (q * (c + (1.0 - c) * np.eye(positions))).reshape(shape * 2)


def mode_amplitudes(deviation: ArrayLike, displacement: int | Sequence[int]) -> NDArray[np.complex128]:
    """Fourier components over a of e(a, a + d), the quantities that decay independently of each other.

    Parameters
    ----------
    deviation : (n, n) or (n1, n2, n1, n2) array
        Covariance minus its fixed point.
    displacement : int or sequence of int
        d, one number per axis.

    Returns
    -------
    (n,) or (n1, n2) complex array
        In the order of `numpy.fft.fftfreq`.
    """
    values = np.asarray(deviation, dtype=np.float64)
    if values.ndim not in (2, 4):
        raise InputError(
            f"a covariance has two axes on a line and four on a plane; got shape {values.shape}."
        )
    shape = values.shape[: values.ndim // 2]
    steps = (displacement,) if isinstance(displacement, int | np.integer) else tuple(displacement)
    if len(steps) != len(shape):
        raise InputError(f"a displacement on this grid has {len(shape)} numbers; got {displacement!r}.")
    positions = np.indices(shape)
    moved = [(index + step) % count for index, step, count in zip(positions, steps, shape, strict=True)]
    return np.fft.fftn(values[(*positions, *moved)]).astype(np.complex128)


def _taps(profile: Array) -> list[tuple[tuple[int, ...], float]]:
    """(offset b, v_b) for every tap with some variance."""
    centre = [(count - 1) // 2 for count in profile.shape]
    return [
        (tuple(int(i) - c for i, c in zip(index, centre, strict=True)), float(profile[tuple(index)]))
        for index in np.argwhere(profile > 0)
    ]


def _grid_shape(size: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    shape = (size,) * dimensions if isinstance(size, int | np.integer) else tuple(size)
    if len(shape) != dimensions:
        raise InputError(f"the grid has {len(shape)} axes and the profile {dimensions}: they must agree.")
    return tuple(_checked_count(count, "size") for count in shape)


def _checked_covariance(covariance: ArrayLike, dimensions: int) -> Array:
    matrix = np.array(covariance, dtype=np.float64)
    shape = matrix.shape
    if matrix.ndim != 2 * dimensions or shape[:dimensions] != shape[dimensions:]:
        wanted = "(n, n)" if dimensions == 1 else "(n1, n2, n1, n2)"
        raise InputError(
            f"with a profile of {dimensions} axes the covariance has shape {wanted}; got shape {shape}."
        )
    flat = matrix.reshape(math.prod(shape[:dimensions]), -1)
    scale = float(np.max(np.abs(flat), initial=0.0))
    if not np.all(np.isfinite(flat)) or np.any(np.diagonal(flat) < 0):
        raise InputError("a covariance holds finite numbers, with variances of zero or more on its diagonal.")
    if np.max(np.abs(flat - flat.T), initial=0.0) > 1e-9 * scale:
        raise InputError("a covariance is symmetric: S(a, a') = S(a', a).")
    return matrix


def _checked_dimensions(dimensions: int) -> int:
    if dimensions not in (1, 2):
        raise InputError(f"dimensions must be 1 or 2; got {dimensions!r}.")
    return dimensions


def _checked_count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number above zero; got {value!r}.")
    return int(value)
