"""The order-to-chaos plane: depth scale of tanh, and the critical lines of seven activations.

Left: depth xi_c over which two inputs can be told apart in a tanh network, on the axes of Xiao et al. 2018 (arXiv
1806.05393); it diverges on the critical line. Right: where chi_1 = 1 for other activations. Broken lines are critical
points whose variance is not stable; ReLU and the linear network have a single point each.

    python figures/phase_diagram.py            # coarse grid, into out/figures: under half a minute
    python figures/phase_diagram.py --full     # the committed figure: some minutes
"""

from __future__ import annotations

import math

import h5py
import numpy as np
import stage

from isometry.report import house_style
from isometry.theory.meanfield import critical_point, fixed_point, xi_c

NAME = "phase_diagram"
SIGMA_W2, SIGMA_B2 = (0.5, 3.0), (0.0, 0.25)
LARGEST_XI = 100.0

# Okabe and Ito's colours.
LINES = {
    "tanh": ("tanh", "#0072B2"),
    "hard_tanh": ("hard tanh", "#D55E00"),
    "elu": ("ELU", "#009E73"),
    "selu": ("SELU", "#CC79A7"),
    "erf_scaled": ("erf, unit slope", "#56B4E9"),
    "gelu": ("GELU", "#E69F00"),
    "silu": ("SiLU", "#000000"),
}
POINTS = {"relu": ("ReLU", "s"), "linear": ("linear", "D")}


def compute(full: bool) -> None:
    """Depth scales on a grid, and the critical lines, into an HDF5 file that says what they are."""
    columns, rows = (76, 51) if full else (26, 14)
    weights, biases = np.linspace(*SIGMA_W2, columns), np.linspace(*SIGMA_B2, rows)
    scale = np.zeros((rows, columns))
    for row, bias in enumerate(biases):
        for column, weight in enumerate(weights):
            sigma_w, sigma_b = math.sqrt(weight), math.sqrt(bias)
            q = fixed_point("tanh", sigma_w, sigma_b)
            scale[row, column] = xi_c("tanh", sigma_w, sigma_b, q=q)
    with h5py.File(stage.places(NAME, full)[0], "w") as file:
        file.attrs["source"] = "figures/phase_diagram.py"
        plane = file.create_group("tanh_plane")
        plane["sigma_w2"], plane["sigma_b2"], plane["xi_c"] = weights, biases, scale
        plane["sigma_w2"].attrs["meaning"] = "weight variance times fan_in, columns of xi_c"
        plane["sigma_b2"].attrs["meaning"] = "bias variance, rows of xi_c"
        plane["xi_c"].attrs["meaning"] = "-1 / log chi_c*, in layers; infinite on the critical line"
        for name in (*LINES, *POINTS):
            variances = np.geomspace(1e-6, 40.0, 160) if name in LINES else [1.0]
            points = [critical_point(name, q_star=float(q)) for q in variances]
            group = file.create_group(f"critical_lines/{name}")
            for field in ("q_star", "sigma_w2", "sigma_b2", "chi_1", "stable"):
                group[field] = np.array([getattr(point, field) for point in points])


def draw(full: bool) -> None:
    """Both panels, from the file alone."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke

    data, path = stage.places(NAME, full)
    with h5py.File(data) as file, house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.3), layout="constrained")
        plane = {name: plane_data[()] for name, plane_data in file["tanh_plane"].items()}
        lines = {
            name: {field: values[()] for field, values in group.items()}
            for name, group in file["critical_lines"].items()
        }

        levels = np.geomspace(1.0, LARGEST_XI, 17)
        shown = np.clip(plane["xi_c"], 1.0, LARGEST_XI)
        field = left.contourf(
            plane["sigma_w2"],
            plane["sigma_b2"],
            shown,
            levels=levels,
            norm=LogNorm(1.0, LARGEST_XI),
            cmap="cividis",
        )
        # Without this the thin lines between filled areas show through in some viewers.
        field.set_edgecolor("face")
        left.plot(lines["tanh"]["sigma_w2"], lines["tanh"]["sigma_b2"], color="white", lw=4)
        left.plot(lines["tanh"]["sigma_w2"], lines["tanh"]["sigma_b2"], color="black", lw=2)
        halo = [withStroke(linewidth=2.5, foreground="#333333")]
        for x, y, words in (
            (0.62, 0.185, "ordered\n$c^*=1$\ngradients vanish"),
            (1.93, 0.025, "chaotic\n$c^*<1$\ngradients explode"),
        ):
            left.text(x, y, words, color="white", fontsize=11, path_effects=halo)
        bar = figure.colorbar(field, ax=left, ticks=[1, 3, 10, 30, 100], pad=0.02)
        bar.ax.set_yticklabels(["≤ 1", "3", "10", "30", "≥ 100"])
        bar.ax.minorticks_off()
        bar.set_label(r"depth scale $\xi_c$  (layers)")
        left.set(title="tanh", xlim=SIGMA_W2, ylim=SIGMA_B2)
        left.grid(False)

        for name, (label, color) in LINES.items():
            line = lines[name]
            style = "-" if line["stable"].all() else (0, (4, 2))
            above = name == "erf_scaled"
            right.plot(
                line["sigma_w2"],
                line["sigma_b2"],
                linestyle=style,
                color=color,
                lw=1.4 if above else 2.2,
                label=label,
            )
        for name, (label, marker) in POINTS.items():
            point = lines[name]
            right.plot(
                point["sigma_w2"],
                point["sigma_b2"],
                marker,
                color="#555555",
                ms=7,
                clip_on=False,
                label=label,
                ls="none",
            )
        right.set(title=r"critical lines, $\chi_1 = 1$", xlim=(0.3, 4.2), ylim=SIGMA_B2)
        right.legend(loc="upper right", fontsize=9.5, borderaxespad=0.2)
        right.text(3.05, 0.085, "broken line:\n$q^*$ unstable", fontsize=10)
        for axes in (left, right):
            axes.set_xlabel(r"weight variance $\sigma_w^2$  (× fan-in)")
            axes.set_ylabel(r"bias variance $\sigma_b^2$")
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
