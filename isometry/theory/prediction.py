"""The singular-value spectrum of J = D_L W_L ... D_1 W_1 at infinite width. Internal but for `predict`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isometry.errors import ConvergenceError, InputError, NonFiniteError, TheoryError
from isometry.spectrum import Curve, Spectrum
from isometry.theory.activations import Activation, get_activation, has_unbounded_slope
from isometry.theory.ensemble import Ensemble
from isometry.theory.finitewidth import finite_width
from isometry.theory.finitewidth.slope_chain import log_signal_value
from isometry.theory.freeprobability.assembly import Assembly, assemble
from isometry.theory.freeprobability.solver import Law, solve
from isometry.theory.meanfield.convolution import checked_profile
from isometry.theory.meanfield.layer_variances import SMALLEST_Q, LayerVariances, layer_variances, layers_of
from isometry.theory.meanfield.signal_direction import has_mean, log_signal_gain

# The place of the signal's direction is a product of means over the units of a layer.
FEWEST_UNITS = 10


def predict(
    ensemble: Ensemble | Mapping[str, object] | Activation | str | Callable[..., object] | None = None,
    depth: int | None = None,
    *,
    points: int = 2000,
    width: int | None = None,
    positions: Sequence[int] = (),
    profile: ArrayLike | None = None,
    **fields: Any,
) -> Spectrum:
    """The singular-value spectrum of an ensemble at infinite width, from mean-field theory and free probability.

    No matrix is sampled for the law. ``predict("tanh", 64, q_star=0.05)`` is short for
    ``predict(Ensemble("tanh", 64, q_star=0.05))``; ``predict(spectrum.provenance["ensemble"])`` takes the network that
    a measurement recorded.

    Parameters
    ----------
    ensemble : Ensemble, mapping, str, Activation or callable
        The network; a mapping is one that `Ensemble.to_dict` wrote. Otherwise the activation phi of an ensemble, as
        `get_activation` takes it (also as ``activation=``), and ``depth`` and ``fields`` are its other fields.
    depth : int, optional
        Number L of layers, with an activation only.
    points : int
        Size of the grid of the curve.
    width : int, optional
        Units of a layer, or channels of a convolution: how far one network of that width strays from the law is
        predicted beside it (see Returns), and the direction of the signal, one in ``width``, has its place in the law
        where that lies apart.
    positions : sequence of int
        Height and width of a convolution's map, with ``width`` its channels.
    profile : (k, k) array, optional
        Variance profile of a convolution's Gaussian kernel, such as `meanfield.convolution.uniform_profile(3)`; by
        default a delta kernel.
    **fields
        The other fields of `Ensemble`, with an activation only: ``weights``, ``sigma_w``, ``sigma_b``, ``q_star``,
        ``widths``, ``residual``, ``q0``, ``readout``.

    Returns
    -------
    Spectrum
        Singular values s of J, min(N_0, N_L) of them; mass at zero and point masses are exact, moments m_1 .. m_6 of
        s^2 come from series inversion. ``provenance`` holds the ensemble and ``sigma_w, sigma_b, q_star, chi`` (mean
        growth of squared gradients per layer), ``log_lambda_min`` (None where the support reaches down to zero) and
        ``log_lambda_max`` (None where phi' is unbounded, and the support), natural logarithms of the edges; and
        ``outside`` where a singular value may lie, or does, outside the law (below). With
        ``width`` it also holds ``finite_width``: mean and standard deviation over networks of ln mean square and of
        ln s_max, the 2.5, 50 and 97.5 % points over networks of ln s at nine quantiles, and how they were found.

    Raises
    ------
    InputError
        When the arguments do not describe a network, or contradict the ensemble that came first.
    TheoryError
        When the mathematics has no answer: no fixed point, no critical point, no signal.
    ConvergenceError
        When the solver does not converge or its curve fails its own checks; no curve is given then.

    Notes
    -----
    Units whose squared slope is below 1e-260 of the largest count as dead, their share as mass at zero. Where phi is
    linear by pieces, slopes with less than 1e-11 of the units and of E phi'^2 are left out. An orthogonal
    network so isometric that rounding hides the shape of its spectrum (q* of 1e-10 or so) is a point mass at its mean.

    The law is that of infinite width at fixed depth. At width N one draw's mean square fluctuates around it by about
    sqrt(L/N), and the largest singular value falls short of the edge as L/N grows: ``width`` says by how much. Its
    sources are closed forms to order 1/N (Hanin and Nica 2018, arXiv 1812.05994; Roberts, Yaida and Hanin 2021, arXiv
    2106.10165) and seeded draws of the ensemble, a few seconds of them, remembered; ``finite_width["source"]`` names
    them.

    A residual network has the exact law of its layers 1 + a D W, for branches of any strength: A = a D W is R-diagonal,
    and the law of |1 + A| is a free additive convolution (Haagerup and Schultz 2007, arXiv math/0605251). At large
    depth and fixed c = sum_l a^2 sigma_w^2 E phi'^2 it is that of Tarnowski et al. 2019 (arXiv 1809.08848). Where phi
    has a mean (ReLU, GELU) one direction is stretched more than the law says, that of the signal: the largest singular
    value is at least 10^``outside["log10_s"]``, and certainly outside the law where ``outside["certain"]``.

    References
    ----------
    Pennington, Schoenholz, Ganguli 2017 (arXiv 1711.04735) and 2018 (arXiv 1802.09979), the master equation; Xiao et
    al. 2018 (arXiv 1806.05393), the same law for convolutions.

    Examples
    --------
    >>> spectrum = predict("relu", 4, weights="orthogonal")
    >>> round(spectrum.s_max**2, 6), spectrum.zero_mass  # 4^4/3^3 and the dead half
    (9.481481, 0.5)
    """
    began = time.perf_counter()
    network = _as_ensemble(ensemble, depth, fields)
    activations = tuple(get_activation(one) for one in network.activations)
    variances = layer_variances(network, activations)
    try:
        assembly = assemble(network, activations, variances)
        law = solve(assembly.product, points=points)
    except (ConvergenceError, NonFiniteError, TheoryError) as error:
        raise type(error)(f"{_name(network)}: {error}") from error
    # At vanishing variance phi' is a constant.
    unbounded = any(has_unbounded_slope(phi) for phi in set(activations)) and bool(np.any(variances.q > 0.0))
    curve = curve_of(law, assembly.rank_share, unbounded=unbounded)
    provenance = _provenance(network, variances, assembly, law, unbounded)
    shape = None if network.widths is None else (network.widths[-1], network.widths[0])
    if width is None and (len(positions) or profile is not None):
        raise InputError(
            "positions and profile describe a convolution of finite width: give width, its channels"
        )
    if width is not None:
        curve, added = _at_width(network, curve, width, positions, profile)
        provenance |= added
        if shape is None:
            size = width * math.prod(positions)
            shape = (size, size)
    return Spectrum(
        curve,
        method="predicted",
        shape=shape,
        name=_name(network),
        seconds=time.perf_counter() - began,
        provenance=provenance | _outside(network, activations, variances, float(law.log_edges[1])),
    )


def _at_width(
    network: Ensemble, curve: Curve, width: int, positions: Sequence[int], profile: ArrayLike | None
) -> tuple[Curve, dict[str, Any]]:
    """The law with the direction of the signal, and the record of how far one network strays from it."""
    width = _whole(width, f"width is a positive whole number of units, got {width!r}")
    named = f"positions are the height and width of a map, whole numbers, got {positions!r}"
    if not isinstance(positions, Sequence) or len(positions) not in (0, 2):
        raise InputError(named)
    map_shape = tuple(_whole(size, named) for size in positions)
    shares = None if profile is None else tuple(map(tuple, checked_profile(profile).tolist()))
    if shares is not None and not map_shape:
        raise InputError(
            "a profile belongs to a convolution: give positions, the height and width of its map"
        )
    found = finite_width(network, curve, width, positions=map_shape, profile=shares)
    signal = log_signal_value(network) if shares is None and width >= FEWEST_UNITS else None
    record: dict[str, Any] = {"width": width, "finite_width": found.to_dict()}
    if signal is not None and math.isfinite(signal):
        below = float(curve.cdf(signal))
        # Apart from the law: less than half a value of the law is expected beyond it.
        if 2 * width * min(below, 1.0 - below) < 1.0:
            curve = curve.with_point_mass(signal, 1.0 / width)
            record["finite_width"]["signal"] = {"log_s": signal, "mass": 1.0 / width}
    return curve, record


def _whole(number: object, what: str) -> int:
    """A positive whole number, numpy's and 8.0 too; what is none is refused with the words given."""
    if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)):
        raise InputError(what)
    if not (math.isfinite(number) and number >= 1 and number == int(number)):
        raise InputError(what)
    return int(number)


def _as_ensemble(
    given: Ensemble | Mapping[str, object] | Activation | str | Callable[..., object] | None,
    depth: int | None,
    fields: dict[str, Any],
) -> Ensemble:
    """The ensemble that came first, or the one of an activation, a depth and other fields."""
    if given is None:
        given = fields.pop("activation", None)
    if isinstance(given, Mapping):
        return _as_ensemble(Ensemble.from_dict(given), depth, fields)
    if isinstance(given, Ensemble):
        extra = [*(["depth"] if depth is not None else []), *fields]
        if extra:
            raise InputError(
                f"predict(ensemble) takes no {extra[0]}: the ensemble has one. Use dataclasses.replace(ensemble, "
                f"{extra[0]}=...) for another."
            )
        return given
    if given is None or depth is None:
        raise InputError("predict needs an Ensemble, or an activation and a depth, the number of layers.")
    activation = given if isinstance(given, (str, tuple, list)) else get_activation(given)
    return Ensemble(activation, depth, **fields)


def curve_of(law: Law, rank_share: float = 1.0, *, unbounded: bool = False) -> Curve:
    """A law of nonzero lambda as a curve in ln s = (log lambda)/2, with the mass at zero beside it.

    ``unbounded`` says that the support has no upper end, though the law's grid has one.
    """
    places = [0.5 * place for place, _ in law.atoms]
    masses = [mass * rank_share for _, mass in law.atoms]
    if rank_share < 1.0:
        places, masses = [-np.inf, *places], [1.0 - rank_share, *masses]
    return Curve(
        0.5 * law.log_lambda,
        rank_share * law.cdf,
        2.0 * rank_share * law.density,
        np.array(places, float),
        np.array(masses, float),
        tuple(float(moment) for moment in law.log_moments + math.log(rank_share)),
        unbounded=unbounded,
    )


def _name(ensemble: Ensemble) -> str:
    weights = ensemble.weights if isinstance(ensemble.weights, str) else "mixed"
    kind = "residual " if ensemble.residual is not None else ""
    return f"{kind}{ensemble.activation_name}, {weights}, {ensemble.depth} layers"


def _outside(
    ensemble: Ensemble, activations: tuple[Activation, ...], variances: LayerVariances, log_edge: float
) -> dict[str, Any]:
    """What is known of singular values outside the law: ``outside``, for a residual network of phi with a mean.

    One direction is no share of infinitely many, but it is the largest singular value. `signal_direction` bounds it
    from below.
    """
    if ensemble.residual is None:
        return {}
    first = float(variances.q[0])
    if math.isnan(first):
        first = ensemble.q0 or ensemble.q_star or float(variances.sigma_w2[0] + variances.sigma_b2[0])
    if not any(has_mean(phi, max(first, SMALLEST_Q)) for phi in set(activations)):
        return {}
    layers = layers_of(ensemble, activations, variances.sigma_w2, variances.sigma_b2)
    log_gain = log_signal_gain(layers, ensemble.residual, first)
    if ensemble.readout:
        log_gain += 0.5 * math.log(float(variances.sigma_w2[-1]))
    return {"outside": {"log10_s": log_gain / math.log(10.0), "certain": log_gain > 0.5 * log_edge}}


def _one_or_all(values: np.ndarray) -> float | list[float]:
    return float(values[0]) if values.size == 1 else [float(value) for value in values]


def _provenance(
    ensemble: Ensemble, variances: LayerVariances, assembly: Assembly, law: Law, unbounded: bool
) -> dict[str, Any]:
    low, high = law.log_edges
    known = not np.isnan(variances.q[0])
    return {
        "ensemble": ensemble.to_dict(),
        "sigma_w": _one_or_all(np.sqrt(variances.sigma_w2)),
        "sigma_b": _one_or_all(np.sqrt(variances.sigma_b2)),
        "q_star": variances.q_star,
        "q_first": float(variances.q[0]) if known else None,
        "q_last": float(variances.q[-1]) if known else None,
        "chi": math.exp(assembly.log_chi),
        "log_lambda_min": float(low) if math.isfinite(low) and assembly.rank_share == 1.0 else None,
        "log_lambda_max": None if unbounded else float(high),
    }
