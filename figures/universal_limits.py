"""The two universal limits: deep orthogonal networks at fixed variance of the squared singular values.

Depth to infinity with orthogonal weights, chi_1 = 1 and Var s^2 = s0^2 held fixed, so that q* goes to zero with the
depth: the law of the singular values then depends on the activation through its class alone (Pennington, Schoenholz
and Ganguli 2018, arXiv 1802.09979, section 4). Slopes exactly 0 or 1 (hard-tanh) give the Bernoulli limit, S(x) =
exp(-s0^2 x/(1+x)), with a point mass 1 - s0^2 at s = exp(s0^2/2) and values down to zero; smooth activations (tanh,
erf) give S(x) = exp(-s0^2 x), bounded away from zero. Left and middle: the law at depths 4, 16, 64 and its limit, for
s0^2 = 1/4, over the singular values of one network of width 1000 and depth 64 (grey). Right: Wasserstein-1 distance
of the law at depth L to the limit, in units of the root mean square of s: the smooth class approaches as 1/sqrt(L).

    python figures/universal_limits.py           # networks of width 300: half a minute
    python figures/universal_limits.py --full    # of width 1000: two minutes on one core
"""

from __future__ import annotations

import math

import numpy as np
import sampled_networks as networks
import stage
from scipy.optimize import brentq
from scipy.special import erfinv

import isometry
from isometry.errors import ConvergenceError
from isometry.theory import gaussian_average, get_activation
from isometry.theory.freeprobability.product import FreeProduct
from isometry.theory.freeprobability.solver import solve
from isometry.theory.prediction import curve_of

NAME = "universal_limits"
SHOWN, DEPTHS, SAMPLED = (4, 16, 64), tuple(2**k for k in range(1, 11)), 64
VARIANCES = (0.25, 2.0)
CLASSES = {"hard_tanh": "bernoulli", "tanh": "smooth", "erf_scaled": "smooth"}
TITLES = {"hard_tanh": "hard-tanh", "tanh": "tanh", "erf_scaled": "erf"}
COLOURS = (stage.SKY, stage.ORANGE, stage.GREEN)


def limit(kind: str, variance: float) -> isometry.Spectrum:
    """The limit law: z(t) = (1 + t)/t exp(s0^2 t), or exp(s0^2 t/(1 + t)) for the Bernoulli class."""
    atoms = ((variance, 1.0 - variance),) if kind == "bernoulli" and variance < 1 else ()
    product = FreeProduct(
        0.0, np.array([1.0]), np.array([1.0]),
        linear=variance if kind == "smooth" else 0.0, fraction=variance if kind == "bernoulli" else 0.0, atoms=atoms,
    )  # fmt: skip
    return isometry.Spectrum(curve_of(solve(product)), method="limit", name=f"{kind} limit {variance:g}")


def q_star_for(activation: str, depth: int, variance: float) -> float:
    """The q* at which Var s^2 = L (E phi'^4 / (E phi'^2)^2 - 1) of a critical orthogonal network is `variance`."""
    if activation == "hard_tanh":
        return float(0.5 / erfinv(depth / (depth + variance)) ** 2)
    slope = get_activation(activation).derivative

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        second, fourth = (gaussian_average(lambda h, k=k: slope(h) ** k, q) for k in (2, 4))
        return depth * (fourth / second**2 - 1.0) - variance

    return math.exp(brentq(excess, -16.0, 3.0, xtol=1e-12))


def law_at(activation: str, depth: int, variance: float) -> isometry.Spectrum:
    """The predicted law at finite depth."""
    return isometry.predict(
        activation, depth, weights="orthogonal", q_star=q_star_for(activation, depth, variance)
    )


def compute(full: bool) -> None:
    """Distances to the limits at every depth, and one network of each class."""
    width = 1000 if full else 300
    store = isometry.open_store(stage.places(NAME, full)[0], "w")
    for activation, kind in CLASSES.items():
        for variance in VARIANCES:
            goal = limit(kind, variance)
            distances = [_distance(activation, depth, variance, goal) for depth in DEPTHS]
            print(f"{activation} s0^2 = {variance:g}: W1", np.round(distances, 6), flush=True)
            store.add_series(
                f"{activation} {variance:g}", {"depth": np.array(DEPTHS), "wasserstein": np.array(distances)},
                {"class": kind, "variance": variance},
            )  # fmt: skip
            if variance != VARIANCES[0]:
                continue
            store.add(goal, f"{activation} limit")
            for depth in SHOWN:
                store.add(law_at(activation, depth, variance), f"{activation} {depth}")
    for activation in ("hard_tanh", "tanh"):
        ensemble = networks.ensemble_of(
            activation, SAMPLED, "orthogonal", q_star_for(activation, SAMPLED, VARIANCES[0])
        )
        x = networks.stationary_input(ensemble, width, seed=1)
        model = networks.network(ensemble, width, seed=0)
        measured = isometry.measure(model, x, "exact", progress=False)
        store.add(networks.light(measured), f"{activation} measured")
        print(activation, isometry.compare(measured, store[f"{activation} {SAMPLED}"]).verdict(), flush=True)


def _distance(activation: str, depth: int, variance: float, goal: isometry.Spectrum) -> float:
    """Wasserstein-1 distance to the limit; nan where the solver gives no law, and a line that says so."""
    try:
        return isometry.compare(law_at(activation, depth, variance), goal).raw.wasserstein
    except ConvergenceError as error:
        print(f"left out, {activation} at depth {depth}: {error}", flush=True)
        return math.nan


def draw(full: bool) -> None:
    """A panel for each class, and one of distances."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11.4, 4.3), layout="constrained")
        for ax, activation, kind in zip(axes, ("hard_tanh", "tanh"), ("Bernoulli", "Smooth"), strict=False):
            _spectra(ax, store, activation)
            ax.set(
                title=f"{kind} class: {TITLES[activation]}", xlabel="singular value s", ylabel="density of s"
            )
        _distances(axes[2], store)
        stage.save(figure, path)
        plt.close(figure)


def _density(spectrum: isometry.Spectrum, edges: np.ndarray) -> np.ndarray:
    """Mean density of s in cells, point masses left out."""
    with np.errstate(divide="ignore"):
        logs = np.log(edges)
    cdf = spectrum.distribution.cdf(logs)
    for place, mass in zip(*spectrum.distribution.point_masses, strict=True):
        cdf = cdf - mass * (place <= logs)
    return np.diff(cdf) / np.diff(edges)


def _spectra(ax, store: isometry.store.Store, activation: str) -> None:
    measured, goal = store[f"{activation} measured"], store[f"{activation} limit"]
    laws = [store[f"{activation} {depth}"] for depth in SHOWN]
    high = 1.04 * max(law.s_max for law in (*laws, goal))
    low = 0.0 if activation == "hard_tanh" else 0.9 * min(law.s_min for law in (*laws, goal))
    cells = np.linspace(low, high, 61)
    density = _density(measured, cells)
    atoms = [atom for atom in laws[-1].atoms if atom[0] > 0]
    for s, mass in atoms:
        # The directions that no saturated unit touches are one point mass in the measurement as well.
        cell = int(np.searchsorted(cells, s * (1 - 1e-9))) - 1
        density[cell] = max(density[cell] - mass / (cells[1] - cells[0]), 0.0)
    ax.stairs(density, cells, fill=True, color="#c4c4c4", label=f"measured, depth {SAMPLED}")
    fine = np.linspace(max(low, 1e-4), high, 900)
    middle = 0.5 * (fine[1:] + fine[:-1])
    for law, colour, text in zip(
        (*laws, goal), (*COLOURS, stage.BLACK), (*(f"depth {depth}" for depth in SHOWN), "limit"), strict=True
    ):  # fmt: skip
        ax.plot(
            middle, _density(law, fine), color=colour, lw=1.6, ls="--" if text == "limit" else "-", label=text
        )
        for s, mass in law.atoms:
            if s > 0:
                ax.plot([s, s], [0, mass], color=colour, lw=1.4, transform=ax.get_xaxis_transform())
                ax.plot([s], [mass], "^", ms=6, color=colour, transform=ax.get_xaxis_transform())
    ax.set_xlim(low, high)
    if activation == "hard_tanh":
        ax.set_ylim(0, 1.6)
        ax.text(
            0.68, 0.82, "triangles:\nmass of the\npoint at the\nupper end", fontsize=9, transform=ax.transAxes
        )
    else:
        ax.set_ylim(0, 2.1)
    ax.legend(loc="upper left", fontsize=9.5)


def _distances(ax, store: isometry.store.Store) -> None:
    for activation, colour, marker in zip(
        CLASSES, (stage.BLUE, stage.VERMILION, stage.PURPLE), "osD", strict=True
    ):
        for variance, line in zip(VARIANCES, ("-", ":"), strict=True):
            columns = store.series(f"{activation} {variance:g}").columns
            known = np.isfinite(columns["wasserstein"])
            ax.plot(
                columns["depth"][known], columns["wasserstein"][known], line, color=colour, marker=marker, ms=4, lw=1.4,
                label=f"{TITLES[activation]}, $s_0^2$ = {variance:g}",
            )  # fmt: skip
    for begin, first, power, text in ((250.0, 0.013, 1.0, "∝ 1/depth"), (30.0, 0.45, 0.5, "∝ 1/√depth")):
        ends = np.array([begin, 1500.0])
        ax.plot(ends, first * 2 * ends**-power, color="#888888", lw=1.2, ls="--")
        ax.text(1600, first * 2 * 1500**-power, text, color="#555555", fontsize=9.5, va="center")
    ax.set_xlim(1.5, 20_000)
    ax.set_ylim(1e-6, 0.5)
    ax.set(xscale="log", yscale="log", xlabel="depth, layers", ylabel="Wasserstein-1 distance to the limit",
           title="Approach to the limits")  # fmt: skip
    ax.legend(loc="lower left", fontsize=9)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
