"""Networks of finite width about their law: the spread that `isometry.predict(width=)` predicts against that of draws.

Networks of `isometry.nn`, dense (widths 50 to 1,000) and convolutional (4 x 4 map), ReLU, tanh and hard-tanh, Gaussian
and orthogonal weights, each measured exactly in double precision at an input of the stationary mean square. Above,
observed over predicted standard deviations over networks: of ln of the mean square, of ln s_max, and of ln |J u|^2 for
one direction u (to order 1/N; for Gaussian ReLU sqrt(5 L/N), Hanin and Nica 2018, arXiv 1812.05994). Below,
against depth over width: the observed means less the predicted ones in standard deviations of one network, and the
share of networks whose quantiles of ln s lie inside the predicted 95 % bands. Bars are one standard error of the
observation; predictions from draws have an error of their own, 1/sqrt(2 draws) of a standard deviation. The file holds
every network: its seed, ln mean square, ln s_max, ln |J u|^2, and ln s at nine levels.

    python figures/finite_width.py           # widths to 100, 40 draws: a minute
    python figures/finite_width.py --full    # widths to 1,000: an hour on one core; continues where it was stopped
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sampled_networks as networks
import stage
import torch

import isometry
from isometry.errors import InputError
from isometry.nn import MLP, VanillaCNN
from isometry.theory.finitewidth.slope_chain import log_mean_square
from isometry.theory.meanfield.convolution import uniform_profile

NAME = "finite_width"
# The file holds single precision.
ROUNDING = 1e-5
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
DRAWS = {16: 200, 50: 400, 60: 24, 100: 400, 200: 200, 500: 40, 1000: 16}


@dataclass(frozen=True)
class Kind:
    """An ensemble but for depth and width: its law, how it is drawn, and the depths and widths that are measured."""

    activation: str
    weights: str
    q_star: float
    label: str
    colour: str
    side: int = 0
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000)
    depths: tuple[int, ...] = (4, 16)

    @property
    def name(self) -> str:
        """Its name in the file."""
        return f"{'CNN' if self.side else 'MLP'} {self.activation} {self.weights} q {self.q_star:g}"

    def ensemble(self, depth: int) -> isometry.Ensemble:
        """The critical ensemble, given inputs of one mean square."""
        return networks.ensemble_of(self.activation, depth, self.weights, self.q_star)


KINDS = (
    Kind("relu", "gaussian", 1.0, "ReLU, Gaussian", stage.ORANGE),
    Kind("relu", "orthogonal", 1.0, "ReLU, orthogonal", stage.VERMILION),
    Kind("tanh", "gaussian", 0.5, "tanh, Gaussian", stage.SKY),
    Kind("tanh", "orthogonal", 0.2, "tanh, orthogonal", stage.PURPLE),
    Kind("hard_tanh", "orthogonal", 0.5, "hard-tanh, orthogonal", stage.GREEN, sizes=(50, 100, 200)),
    Kind("tanh", "gaussian", 0.5, "tanh, Gaussian, deep", stage.BLUE, sizes=(50,), depths=(64, 256)),
    Kind("tanh", "orthogonal", 0.2, "tanh, CNN, delta", "#8C564B", side=4, sizes=(16, 60)),
    Kind("relu", "orthogonal", 1.0, "ReLU, CNN, delta", "#7F7F7F", side=4, sizes=(16, 60)),
    Kind("tanh", "gaussian", 0.5, "tanh, CNN, Gaussian", stage.BLACK, side=4, sizes=(16, 60)),
)


# The deep networks of a kind are kept with the others.
NAMES = list(dict.fromkeys(kind.name for kind in KINDS))


def cases(full: bool) -> list[tuple[Kind, int, int]]:
    """(kind, depth, width or channels), the cheapest first."""
    found = [
        (kind, depth, size)
        for kind in KINDS for depth in kind.depths for size in kind.sizes
        if full or (size <= 100 and depth <= 16)
    ]  # fmt: skip
    return sorted(found, key=lambda case: case[1] * (case[2] * max(case[0].side, 1) ** 2) ** 3)


def rows_of(store: isometry.Store, what: str, kind: Kind, depth: int, size: int) -> dict[str, Any]:
    """Columns of one case in a series; empty where it holds none."""
    if what not in store.series_names():
        return {}
    columns = store.series(what).columns
    chosen = (
        (columns["kind"] == NAMES.index(kind.name)) & (columns["depth"] == depth) & (columns["size"] == size)
    )
    return {key: column[chosen] for key, column in columns.items()} if chosen.any() else {}


def add_rows(
    store: isometry.Store, what: str, kind: Kind, depth: int, size: int, rows: list[dict[str, Any]]
) -> None:
    """Append the rows of a case to a series; its column "kind" counts the names in its attributes."""
    place = {"kind": np.int32(NAMES.index(kind.name)), "depth": np.int32(depth), "size": np.int32(size)}
    columns = {key: np.array([{**place, **row}[key] for row in rows]) for key in (*place, *rows[0])}
    if what in store.series_names():
        store.append_series(what, columns)
    else:
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        store.add_series(what, columns, {"kinds": NAMES, "versions": versions})


def compute(full: bool) -> None:
    """Networks of every case, then the prediction for each."""
    store = isometry.open_store(stage.places(NAME, full)[0], "a")
    for case in cases(full):
        kind, depth, size = case
        if not rows_of(store, "drawn", *case):
            began = time.process_time()
            rows = [one_network(*case, seed) for seed in range(DRAWS[size] if full else 40)]
            add_rows(store, "drawn", *case, rows)
            seconds = time.process_time() - began
            print(f"{kind.name} depth {depth} size {size}: {len(rows)} networks, {seconds:.0f} s", flush=True)
    for case in cases(full):
        if not rows_of(store, "predicted", *case):
            add_rows(store, "predicted", *case, [predicted(*case)])


def one_network(kind: Kind, depth: int, size: int, seed: int) -> dict[str, Any]:
    """The numbers of one network."""
    ensemble = kind.ensemble(depth)
    model = networks.network(ensemble, size, seed=seed, kind=VanillaCNN if kind.side else MLP)
    shape = (size, kind.side, kind.side) if kind.side else (size,)
    x = networks.stationary_input(ensemble, *shape, seed=10_000 + seed)
    spectrum = isometry.measure(model, x, "exact", progress=False)
    # A direction at one position: what reaches the others is left out of the mean of those that start there.
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(20_000 + seed), dtype=torch.float64)
    with torch.no_grad():
        image = torch.func.jvp(model, (x,), (u / u.norm(),))[1]
    with np.errstate(divide="ignore"):
        logs = np.log(10) * np.asarray(spectrum.log10_quantile(LEVELS))
    numbers = {
        "log_mean_square": spectrum.distribution.log_moment(2),
        "log_s_max": float(np.log(spectrum.s_max)),
        "log_direction": float(image.square().sum().log()),
    }
    numbers |= {f"log_s {level:g}": value for level, value in zip(LEVELS, logs, strict=True)}
    return {"seed": np.int32(seed)} | {key: np.float32(value) for key, value in numbers.items()}


def predicted(kind: Kind, depth: int, size: int) -> dict[str, Any]:
    """What is predicted for networks of a case; nan where prediction is refused, a band's end below rounding -inf."""
    ensemble = replace(kind.ensemble(depth), q0=kind.q_star)
    options: dict[str, Any] = {}
    if kind.side:
        options["positions"] = (kind.side, kind.side)
        if kind.weights == "gaussian":
            options["profile"] = uniform_profile(3)
    began = time.process_time()
    found: dict[str, Any] = {}
    try:
        found = isometry.predict(ensemble, width=size, **options).provenance["finite_width"]
    except InputError as error:
        print(f"{kind.name} depth {depth} size {size}: {error}", flush=True)
    seconds = time.process_time() - began
    row: dict[str, Any] = {"seconds": seconds, "draws": np.int32(found.get("draws", 0))}
    row["closed"] = found.get("closed_mean_square", False)
    unknown = {"mean": np.nan, "std": np.nan}
    numbers = {name: found.get(name) or unknown for name in ("log_mean_square", "log_s_max")}
    if kind.side:
        numbers["log_direction"] = unknown
    else:
        one = log_mean_square(ensemble, (size,) * (depth + 1), one_direction=True)
        numbers["log_direction"] = {"mean": one.mean, "std": one.std}
    for name, number in numbers.items():
        row |= {f"{name} {key}": value for key, value in number.items()}
    for level in LEVELS:
        low, _, high = found.get("log_s_quantiles", {}).get(f"{level:g}", (np.nan,) * 3)
        row |= {
            f"low {level:g}": -np.inf if low is None else low,
            f"high {level:g}": -np.inf if high is None else high,
        }
    print(f"{kind.name} depth {depth} size {size}: {seconds:.1f} s, {found.get('source')}", flush=True)
    return row


def draw(full: bool) -> None:
    """Five panels and a legend."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    store = isometry.open_store(data)
    with plt.style.context(stage.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13.5, 8.6), layout="constrained")
        names = {
            "log_mean_square": "ln of the mean square",
            "log_s_max": "ln s_max",
            "log_direction": "ln |Ju|²",
        }
        for kind, depth, size in cases(full):
            theory, found = (rows_of(store, what, kind, depth, size) for what in ("predicted", "drawn"))
            if theory and found and np.isfinite(theory["log_s_max mean"][0]):
                show(axes, kind, depth, size, theory, found)
        for ax, (key, label) in zip(axes[0], names.items(), strict=True):
            ends = np.array([0.8 * ax.dataLim.x0, 1.25 * ax.dataLim.x1])
            ax.plot(ends, ends, color="#999999", lw=1, zorder=0)
            closed = " (order 1/N)" if key == "log_direction" else ""
            ax.set(xscale="log", yscale="log", title=f"standard deviation of {label}", ylabel="observed")
            ax.set(xlabel=f"predicted{closed}")
        axes[1, 0].axhline(0.0, color="#999999", lw=1, zorder=0)
        axes[1, 0].set(xscale="log", xlabel="depth / width", ylabel="standard deviations of one network")
        axes[1, 0].set(title="observed less predicted mean", ylim=(-1.05, 1.05))
        axes[1, 1].axhline(0.95, color="#999999", lw=1, zorder=0)
        axes[1, 1].set(xscale="log", xlabel="depth / width", ylabel="share of networks", ylim=(0.6, 1.01))
        axes[1, 1].set(title="quantiles of ln s inside their 95 % bands")
        for kind in KINDS:
            axes[1, 2].plot([], [], "s" if kind.side else "o", color=kind.colour, label=kind.label)
        axes[1, 2].plot([], [], "o", color="#555555", label="ln of the mean square, in closed form")
        axes[1, 2].plot([], [], "o", color="#555555", mfc="white", label="... or ln s_max, with draws")
        axes[1, 2].set_axis_off()
        axes[1, 2].legend(loc="center left", fontsize=10, title="squares: 4 x 4 map, size its channels")
        stage.save(figure, path)
        plt.close(figure)


def show(axes: Any, kind: Kind, depth: int, size: int, theory: Any, found: Any) -> None:
    """One case in every panel."""
    marker = {"fmt": "s" if kind.side else "o", "color": kind.colour, "ms": 5, "lw": 1}
    for ax, name in zip(axes[0], ("log_mean_square", "log_s_max", "log_direction"), strict=True):
        # The largest value of hard-tanh networks may be a point mass, which has no spread.
        if not theory[f"{name} std"][0] > ROUNDING:
            continue
        values = found[name][np.isfinite(found[name])].astype(float)
        std, expected = values.std(ddof=1), theory[f"{name} std"][0]
        filled = theory["closed"][0] if name == "log_mean_square" else name == "log_direction"
        face = {} if filled else {"mfc": "white"}
        ax.errorbar(expected, std, std / np.sqrt(2 * (values.size - 1)), **marker, **face)
        if name != "log_direction":
            offset = (values.mean() - theory[f"{name} mean"][0]) / std
            axes[1, 0].errorbar(depth / size, offset, 1 / np.sqrt(values.size), **marker, **face)
    inside = []
    for level in LEVELS:
        values, low, high = (
            found[f"log_s {level:g}"],
            theory[f"low {level:g}"][0],
            theory[f"high {level:g}"][0],
        )
        if np.isfinite(low) and np.isfinite(values).all():
            inside.append(np.mean((low - ROUNDING <= values) & (values <= high + ROUNDING)))
    if inside:
        error = np.sqrt(0.95 * 0.05 / len(found["seed"]))
        axes[1, 1].errorbar(depth / size, np.mean(inside), error, **marker)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
