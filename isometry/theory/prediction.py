"""The singular-value spectrum of J = D_L W_L ... D_1 W_1 at infinite width, from free probability."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from isometry.errors import InputError
from isometry.spectrum import Curve, Spectrum
from isometry.theory.activations import Activation, get_activation
from isometry.theory.ensemble import Ensemble
from isometry.theory.freeprobability.assembly import Assembly, assemble
from isometry.theory.freeprobability.solver import Law, solve
from isometry.theory.meanfield.layer_variances import LayerVariances, layer_variances


def predict(
    activation: Ensemble | Mapping[str, object] | Activation | str | Callable[..., object],
    depth: int | None = None,
    *,
    weights: str | tuple[str, ...] = "gaussian",
    sigma_w: float | None = None,
    sigma_b: float | None = None,
    q_star: float | None = None,
    widths: tuple[int, ...] | None = None,
    residual: float | None = None,
    q0: float | None = None,
    readout: bool = False,
    points: int = 2000,
) -> Spectrum:
    """The spectrum that mean-field theory and free probability predict; no matrix is sampled.

    ``predict(Ensemble(...))`` or ``predict("tanh", 64, weights="orthogonal", q_star=0.05)``; or what a measurement
    recorded of its network, ``predict(spectrum.provenance["ensemble"])``.

    Parameters
    ----------
    activation : Ensemble, mapping, str, Activation or callable
        A whole ensemble, or one as `Ensemble.to_dict` writes it, or phi as `get_activation` takes it.
    depth : int
        Number L of layers; as many D as W.
    weights : "gaussian", "orthogonal" or one of them per matrix
        First layer first. Gaussian: Var W = sigma_w^2/fan_in; orthogonal: Haar, scaled so that W^T W = sigma_w^2, or
        W W^T = sigma_w^2 where a layer shrinks.
    sigma_w, sigma_b : float, optional
        Standard deviations; ``sigma_b`` is 0 unless given. q is then the stable fixed point, which linear, ReLU and
        leaky ReLU do not need, for their phi' does not depend on it.
    q_star : float, optional
        Alone: the critical point (chi_1 = 1) with this variance of the pre-activations. With ``sigma_w``: the
        variance is this one and the bias is what keeps it.
    widths : tuple of int, optional
        N_0 .. N_L, the read-out's width after them; J is N_L x N_0. Only their ratios matter.
    residual : float, optional
        Strength a of the branch in x_l = x_{l-1} + a phi(h_l), so J = prod_l (1 + a D_l W_l). The law is that of
        large depth at fixed c = sum_l a^2 sigma_w^2 E phi'^2 (Tarnowski et al. 2019, arXiv 1809.08848), with an error
        of order c/L; give a = 1/sqrt(L) for branches of unit strength in all. The variance of h_1 is ``q0``, or else
        ``q_star``, or else the fixed point of the network without the skip, and grows from there.
    q0 : float, optional
        Variance of the first pre-activation: the q-map is followed from there, each layer with its own q.
    readout : bool
        Whether one more matrix W_{L+1} of the same sigma_w follows.
    points : int
        Size of the grid of the curve.

    Returns
    -------
    Spectrum
        Singular values s of J, min(N_0, N_L) of them; mass at zero and point masses are exact, moments m_1 .. m_6 of
        s^2 come from series inversion. ``provenance`` holds the ensemble and ``sigma_w, sigma_b, q_star, chi`` (mean
        growth of squared gradients per layer), ``log_lambda_min`` (None where the support reaches down to zero) and
        ``log_lambda_max``, natural logarithms of the edges.

    Raises
    ------
    InputError
        When the arguments do not describe a network.
    TheoryError
        When the mathematics has no answer: no fixed point, no critical point, no signal.
    ConvergenceError
        When the solver does not converge or its curve fails its own checks; no curve is given then.

    Notes
    -----
    Units whose squared slope is below 1e-260 of the largest count as dead, their share as mass at zero. An orthogonal
    network so isometric that rounding hides the shape of its spectrum (q* of 1e-10 or so) is a point mass at its mean.

    The law is that of infinite width at fixed depth. At width N one draw's mean square fluctuates around it by a
    relative O(sqrt(L)/N), and the largest singular value falls short of the edge as L/N grows.

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
    if isinstance(activation, Mapping):
        activation = Ensemble.from_dict(dict(activation))
    if isinstance(activation, Ensemble):
        if depth is not None:
            raise InputError("predict(ensemble) takes no depth: the ensemble has one.")
        ensemble = activation
        phi = get_activation(ensemble.activation)
    else:
        if depth is None:
            raise InputError("predict(activation, depth) needs the number of layers.")
        phi = get_activation(activation)
        ensemble = Ensemble(
            activation if isinstance(activation, str) else phi, depth, weights=weights, sigma_w=sigma_w,
            sigma_b=sigma_b, q_star=q_star, widths=widths, residual=residual, q0=q0, readout=readout,
        )  # fmt: skip
    variances = layer_variances(ensemble, phi)
    assembly = assemble(ensemble, phi, variances)
    law = solve(assembly.product, points=points)
    shape = None if ensemble.widths is None else (ensemble.widths[-1], ensemble.widths[0])
    return Spectrum(
        curve_of(law, assembly.rank_share),
        method="predicted",
        shape=shape,
        name=_name(ensemble),
        seconds=time.perf_counter() - began,
        provenance=_provenance(ensemble, variances, assembly, law),
    )


def curve_of(law: Law, rank_share: float = 1.0) -> Curve:
    """A law of nonzero lambda as a curve in ln s = (log lambda)/2, with the mass at zero beside it."""
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
    )


def _name(ensemble: Ensemble) -> str:
    weights = ensemble.weights if isinstance(ensemble.weights, str) else "mixed"
    kind = "residual " if ensemble.residual is not None else ""
    return f"{kind}{ensemble.activation_name}, {weights}, {ensemble.depth} layers"


def _provenance(
    ensemble: Ensemble, variances: LayerVariances, assembly: Assembly, law: Law
) -> dict[str, Any]:
    low, high = law.log_edges
    known = not np.isnan(variances.q[0])
    return {
        "ensemble": ensemble.to_dict(),
        "sigma_w": math.sqrt(variances.sigma_w2),
        "sigma_b": math.sqrt(variances.sigma_b2),
        "q_star": variances.q_star,
        "q_first": float(variances.q[0]) if known else None,
        "q_last": float(variances.q[-1]) if known else None,
        "chi": math.exp(assembly.log_chi),
        "log_lambda_min": float(low) if math.isfinite(low) and assembly.rank_share == 1.0 else None,
        "log_lambda_max": float(high),
    }
