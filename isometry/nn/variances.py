"""sigma_w, sigma_b and q* of a network: as given, or at the critical point of its activation. Internal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isometry.errors import InputError, IsometryWarning, TheoryError, warn_caller
from isometry.nn.activations import make_activation

if TYPE_CHECKING:
    from isometry.theory.activations import Activation

_HOMOGENEOUS = ("linear", "relu", "leaky_relu")


@dataclass(frozen=True)
class Variances:
    """sigma_w and sigma_b (standard deviations) of a layer, and the variance q of its pre-activations.

    ``q_star`` is None where the theory names no stationary variance: an activation it does not know, a homogeneous
    one (ReLU), for which every variance is stationary, or a point where the variance decays to zero or explodes.
    """

    sigma_w: float
    sigma_b: float
    q_star: float | None


def is_homogeneous(activation: str | Activation) -> bool:
    """Whether phi(a h) = a phi(h) for a > 0 (linear, ReLU, leaky ReLU), so that no variance is special."""
    name = activation if isinstance(activation, str) else activation.name
    return name.partition("(")[0] in _HOMOGENEOUS


def choose_variances(
    activation: str | Activation | None,
    *,
    sigma_w: float | None,
    sigma_b: float | None,
    q_star: float | None,
    depth: int,
) -> Variances:
    """sigma_w, sigma_b and q* as given; those left out come from the critical line chi_1 = 1.

    Parameters
    ----------
    activation : str, Activation or None
        phi, by name or as the theory has it; None for a function the theory does not know, which then needs `sigma_w`.
    sigma_w, sigma_b, q_star : float or None
        ``sigma_w`` (with ``sigma_b``, 0 if left out) is used as given. ``sigma_b`` alone, or ``q_star`` alone, selects
        that point of the critical line. The default is q* = 1/depth: for a smooth odd phi the
        variance of squared singular values is then about 8/depth (Pennington et al. 2018,
        arXiv 1802.09979, section 4), so isometry improves with depth.
    depth : int
        Number of layers.

    Raises
    ------
    InputError
        When q* comes with sigma_w or sigma_b, or a function unknown to the theory comes without sigma_w.
    TheoryError
        When the activation has no critical point there.

    Warns
    -----
    IsometryWarning
        When the critical point is an unstable fixed point (GELU, SiLU) from which a signal drifts within that depth.
    """
    for name, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b), ("q_star", q_star)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number of zero or more, got {value!r}.")
    if q_star is not None and (sigma_w is not None or sigma_b is not None):
        raise InputError(
            "give q_star (a point of the critical line) or sigma_w and sigma_b, not both: each fixes the other."
        )
    if sigma_w is not None:
        sigma_b = 0.0 if sigma_b is None else sigma_b
        return Variances(sigma_w, sigma_b, _stationary_variance(activation, sigma_w, sigma_b))
    if activation is None:
        raise InputError(
            "this activation has no name in the theory, so its critical point is not known: give sigma_w (and "
            "sigma_b), or take them from isometry.theory's critical_point of your own Activation."
        )
    from isometry.theory.meanfield import critical_point  # late: scipy is not needed where sigma_w is given

    if sigma_b is None and q_star is None:
        q_star = 1.0 / depth
    try:
        point = critical_point(activation, q_star=q_star) if q_star is not None else None
        point = critical_point(activation, sigma_b=sigma_b) if point is None else point
    except TheoryError as error:
        raise TheoryError(
            f"{error} To build the network anyway give sigma_w (and sigma_b), or another q_star."
        ) from error
    if (point.q_slope - 1.0) * depth > 1.0:
        warn_caller(
            f"the critical point of {point.activation} at q* = {point.q_star:.4g} is an unstable fixed point of the "
            f"variance (slope {point.q_slope:.4g}): over {depth} layers the signal drifts away from it. Give sigma_w "
            "and sigma_b to choose another point, or a smaller q_star.",
            IsometryWarning,
        )
    stationary = None if is_homogeneous(activation) or point.q_star == 0 else float(point.q_star)
    return Variances(float(point.sigma_w), float(point.sigma_b), stationary)


def mirrored_gain(activation: str) -> float:
    """Gain 1/(1 + slope) at which mirrored layers are isometric, for phi(z) - phi(-z) = (1 + slope) z.

    Raises
    ------
    InputError
        When the activation is neither ReLU nor leaky ReLU.
    """
    if activation.partition("(")[0] not in ("relu", "leaky_relu"):
        raise InputError(
            f"mirrored layers make ReLU and leaky ReLU look linear; the activation is {activation!r}. Use "
            "delta_orthogonal (orthogonal for dense layers)."
        )
    return 1.0 / (1.0 + float(getattr(make_activation(activation)(), "negative_slope", 0.0)))


def _stationary_variance(activation: str | Activation | None, sigma_w: float, sigma_b: float) -> float | None:
    if activation is None or sigma_w == 0 or (is_homogeneous(activation) and sigma_b == 0):
        return None
    from isometry.theory.meanfield import fixed_point

    try:
        q_star = fixed_point(activation, sigma_w, sigma_b)
    except TheoryError:
        return None
    return q_star if q_star > 0 else None
