"""What the figures that set theory beside sampled networks share: critical networks, their inputs, their curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn

import isometry
from isometry.nn import MLP, VanillaCNN

Array = NDArray[np.float64]


def ensemble_of(activation: str, depth: int, weights: str, q_star: float) -> isometry.Ensemble:
    """The critical ensemble: chi_1 = 1 at q*; ReLU and linear networks have only one critical point."""
    point = isometry.critical_point(activation, q_star=q_star)
    return isometry.Ensemble(
        activation, depth, weights=weights, sigma_w=point.sigma_w, sigma_b=point.sigma_b, q_star=q_star
    )


def network(ensemble: isometry.Ensemble, size: int, *, seed: int, kind: type[nn.Module] = MLP) -> nn.Module:
    """A network of an ensemble, of this width or number of channels, in float64."""
    options = {
        "activation": ensemble.activation_name, "init": _init(ensemble, kind), "sigma_w": ensemble.sigma_w,
        "sigma_b": ensemble.sigma_b, "seed": seed, "dtype": torch.float64,
    }  # fmt: skip
    return kind(ensemble.depth, size, **options)


def _init(ensemble: isometry.Ensemble, kind: type[nn.Module]) -> str:
    if ensemble.weights == "gaussian":
        return "gaussian"
    return "delta_orthogonal" if kind is VanillaCNN else "orthogonal"


def stationary_input(ensemble: isometry.Ensemble, *shape: int, seed: int) -> Tensor:
    """A Gaussian input whose mean square brings the first pre-activations to the variance q*."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean_square = (ensemble.q_star - ensemble.sigma_b**2) / ensemble.sigma_w**2
    return x * math.sqrt(mean_square / float(x.square().mean()))


def light(spectrum: isometry.Spectrum, count: int = 10) -> isometry.Spectrum:
    """The spectrum with the residuals of its largest values only, for a small file."""
    e = spectrum.extremes
    if e is None:
        return spectrum
    return replace(
        spectrum, extremes=replace(e, top=e.top[:, :count], top_residual=e.top_residual[:, :count])
    )


def log_histogram(spectrum: isometry.Spectrum, low: float, high: float, cells: int) -> tuple[Array, Array]:
    """(edges in log10 s, mass per decade in each cell) between two values of log10 s."""
    edges = np.linspace(low, high, cells + 1)
    mass = np.diff(spectrum.distribution.cdf(edges * math.log(10)))
    return edges, mass / np.diff(edges)


def log_curve(spectrum: isometry.Spectrum, low: float, high: float, points: int = 800) -> tuple[Array, Array]:
    """(log10 s, density per decade) of a prediction's continuous part between two values of log10 s."""
    edges = np.linspace(low, high, points + 1)
    logs = edges * math.log(10)
    cdf = spectrum.distribution.cdf(logs)
    for place, mass in zip(*spectrum.distribution.point_masses, strict=True):
        cdf = cdf - mass * (place <= logs)
    return 0.5 * (edges[1:] + edges[:-1]), np.diff(cdf) / np.diff(edges)


def power_ticks(ax: Axes, low: float, high: float) -> None:
    """Label log10 s on the x axis by s, as powers of ten or as plain numbers where the range is short."""
    from isometry.report.log_axis import label_log_axis

    ax.set_xlim(low, high)
    label_log_axis(ax)
