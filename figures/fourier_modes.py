"""How deep each spatial pattern gets: depth scale per Fourier mode for three variance profiles.

Left: on a line of 16 positions, xi_f = -1 / log(chi_c* |vhat(f)|) of Xiao et al. 2018 (arXiv 1806.05393) against the
decay read off the full recursion of the 16 x 16 covariance, tanh in the chaotic phase. Right: on a plane of 32 x 32
positions close to the critical line, the share of modes whose depth scale exceeds a depth. With a uniform kernel only
the spatial mean gets through; with a delta kernel everything does.

    python figures/fourier_modes.py            # two layers per rate, into out/figures: seconds
    python figures/fourier_modes.py --full     # six layers, the committed figure: half a minute
"""

from __future__ import annotations

import math

import h5py
import numpy as np
import stage

from isometry.report import house_style
from isometry.theory.meanfield import c_star, chi_c, fixed_point
from isometry.theory.meanfield.convolution import (
    covariance_recursion,
    delta_profile,
    mode_amplitudes,
    mode_depth_scales,
    uniform_covariance,
    uniform_profile,
)

NAME = "fourier_modes"
SIGMA_W2, SIGMA_B2 = 2.5, 0.2
POSITIONS, DISPLACEMENT, STEP = 16, 3, 1e-5
PLANE, PLANE_CHI = 32, 0.999
PEAKED = np.array([1.0, 4.0, 1.0]) / 6.0

# label, profile on a line, profile on a plane, colour, marker
KERNELS = {
    "uniform": ("uniform (1, 1, 1)/3", uniform_profile(3, dimensions=1), uniform_profile(3), "#D55E00", "o"),
    "peaked": ("peaked (1, 4, 1)/6", PEAKED, np.outer(PEAKED, PEAKED), "#009E73", "s"),
    "delta": ("delta (0, 1, 0)", delta_profile(3, dimensions=1), delta_profile(3), "#0072B2", "^"),
}


def recursion_scales(profile: np.ndarray, layers: int) -> np.ndarray:
    """(POSITIONS // 2 + 1,) depth scales in layers, from the decay of small waves through the covariance recursion."""
    point = {"activation": "tanh", "sigma_w": math.sqrt(SIGMA_W2), "sigma_b": math.sqrt(SIGMA_B2)}
    q = fixed_point("tanh", point["sigma_w"], point["sigma_b"])
    c = c_star("tanh", point["sigma_w"], point["sigma_b"])
    rest = uniform_covariance(POSITIONS, q=q, c=c, dimensions=1)
    # All frequencies at once: to first order they do not mix.
    position = np.arange(POSITIONS)
    wave = np.zeros((POSITIONS, POSITIONS))
    wave[0, DISPLACEMENT] = 1.0
    wave = wave + wave.T
    up, down = (
        covariance_recursion(rest + sign * STEP * wave, profile, depth=layers, **point)
        for sign in (1.0, -1.0)
    )
    amplitudes = np.abs([mode_amplitudes(u - d, DISPLACEMENT) for u, d in zip(up, down, strict=True)])
    rates = np.log(amplitudes[-1] / amplitudes[0]) / layers
    return -1.0 / rates[: position.size // 2 + 1]


def compute(full: bool) -> None:
    """Depth scales by formula and by recursion, into an HDF5 file that says what they are."""
    chi = chi_c("tanh", math.sqrt(SIGMA_W2), math.sqrt(SIGMA_B2))
    with h5py.File(stage.places(NAME, full)[0], "w") as file:
        file.attrs["source"] = "figures/fourier_modes.py"
        file.attrs["activation"], file.attrs["sigma_w2"], file.attrs["sigma_b2"] = "tanh", SIGMA_W2, SIGMA_B2
        file.attrs["chi_c"], file.attrs["plane_chi"] = chi, PLANE_CHI
        for name, (_, line, plane, _, _) in KERNELS.items():
            group = file.create_group(name)
            group["profile_line"], group["profile_plane"] = line, plane
            # A fine grid for the curve: vhat depends on f / n only.
            group["xi_curve"] = mode_depth_scales(line, 512, chi=chi)[:257]
            group["xi_theory"] = mode_depth_scales(line, POSITIONS, chi=chi)[: POSITIONS // 2 + 1]
            group["xi_recursion"] = recursion_scales(line, 6 if full else 2)
            group["xi_plane"] = mode_depth_scales(plane, PLANE, chi=PLANE_CHI)
            group["xi_curve"].attrs["meaning"] = "depth scale in layers at f/n = 0, 1/512 .. 1/2"
            group["xi_recursion"].attrs["meaning"] = (
                "depth scale in layers at f/n = 0, 1/16 .. 1/2, from the recursion"
            )
            group["xi_plane"].attrs["meaning"] = "depth scale in layers of each mode of a 32 x 32 plane"


def draw(full: bool) -> None:
    """Both panels, from the file alone."""
    import matplotlib.pyplot as plt

    data, path = stage.places(NAME, full)
    with h5py.File(data) as file, house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.3), layout="constrained")
        for name, (label, _, _, color, marker) in KERNELS.items():
            group = file[name]
            curve, measured = group["xi_curve"][()], group["xi_recursion"][()]
            left.plot(np.linspace(0.0, 0.5, curve.size), curve, color=color, label=label)
            left.plot(
                np.linspace(0.0, 0.5, measured.size),
                measured,
                marker,
                color=color,
                mfc="white",
                mew=1.6,
                ms=6,
            )
            scales = np.sort(group["xi_plane"][()].ravel())
            # Share of modes with a longer scale than each depth; the flat mode is always the last to go.
            share = 1.0 - np.arange(scales.size) / scales.size
            depth = np.concatenate([[0.5], np.maximum(scales, 0.5), [scales[-1]]])
            right.plot(
                depth, np.concatenate([[1.0], share, [1e-9]]), color=color, drawstyle="steps-pre", label=label
            )
        left.set(yscale="log", ylim=(0.2, 60.0), xlim=(-0.01, 0.51))
        left.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        left.minorticks_off()
        chi = float(file.attrs["chi_c"])
        left.set(
            title=rf"tanh, $\sigma_w^2={SIGMA_W2}$, $\sigma_b^2={SIGMA_B2}$, $\chi_{{c^*}}={chi:.4f}$",
            xlabel="spatial frequency $f/n$  (cycles per position)",
            ylabel=r"depth scale $\xi_f$  (layers)",
        )
        left.legend(loc="upper right", bbox_to_anchor=(1.0, 0.83), borderaxespad=0.0)
        left.text(0.0, 0.25, "lines: theory\nmarkers: covariance recursion,\n16 positions", fontsize=10)
        right.set(xscale="log", yscale="log", xlim=(0.5, 2000.0), ylim=(7e-4, 1.4))
        right.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        right.set_yticks([1, 0.1, 0.01, 1 / PLANE**2], ["1", "0.1", "0.01", f"1/{PLANE**2}"])
        right.minorticks_off()
        right.set(
            title=rf"{PLANE} × {PLANE} plane, $\chi_{{c^*}}={float(file.attrs['plane_chi'])}$",
            xlabel=r"depth $L$  (layers)",
            ylabel=r"share of modes with $\xi_f > L$",
        )
        stage.save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    stage.main(__doc__, compute, draw)
