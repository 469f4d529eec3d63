"""Comparing the products of a replay with those of torch.func, before the replay is used."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from isometry.jacobian.rounding import adjoint_difference, explained, relative_difference


class Disagreement(Exception):
    """A recorded map that is not the Jacobian. The text gives the difference."""


def compare(
    what: str,
    found: Tensor,
    expected: Tensor,
    unit: float,
    nonlinear: float,
    sensitivity: Callable[[], float],
) -> float:
    """The relative difference of two computations of a product.

    Parameters
    ----------
    what : str
        For the message.
    found, expected : Tensor
    unit, nonlinear, sensitivity :
        As :func:`isometry.jacobian.rounding.explained` has them.

    Raises
    ------
    Disagreement
        Where rounding does not explain the difference, or they are not finite at different places.
    """
    difference = relative_difference(found, expected)
    if difference and not explained(difference, unit, nonlinear, sensitivity):
        raise Disagreement(f"{what} differs from that of torch.func by {difference:.1e} of its length")
    return difference


def compare_adjoint(
    v: Tensor,
    jv: Tensor,
    u: Tensor,
    jtu: Tensor,
    unit: float,
    nonlinear: float,
    sensitivity: Callable[[], float],
) -> float:
    """|<J v, u> - <v, J^T u>| relative to its size; raises Disagreement where rounding does not explain it."""
    difference = adjoint_difference(v, jv, u, jtu)
    if difference and not explained(difference, unit, nonlinear, sensitivity):
        raise Disagreement(f"<J v, u> and <v, J^T u> differ by {difference:.1e} of their size")
    return difference
