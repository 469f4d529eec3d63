"""Pictures of the report page along the depth of a network, or along the steps of its training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from isometry.report.canvas import house_style
from isometry.report.drawing import color_of, remember
from isometry.report.histories import History
from isometry.report.log_axis import label_log_axis
from isometry.report.page_pictures import Picture, picture, small_figure
from isometry.report.quantile_bands import draw_bands
from isometry.spectrum.block_profile import BlockProfile

Array = NDArray[np.float64]

# Of more blocks, the smallest and the largest value of each of this many stretches are drawn: the picture resolves no
# more.
STRETCHES = 300


def profile_pictures(profile: BlockProfile, *, name: str) -> list[Picture]:
    """Gain of each block, mean square of the product so far, and the product's singular values at some depths."""
    pictures = [_gain_picture(profile, name=name), _product_picture(profile, name=name)]
    if len(profile.running) > 1:
        depths = sorted(profile.running)
        with house_style():
            figure, ax = small_figure()
            draw_bands(ax, depths, [profile.running[depth] for depth in depths])
            ax.set_xscale("log")
            ax.set_xticks(depths, [str(depth) for depth in depths])
            ax.minorticks_off()
            ax.set_xlabel("blocks so far")
        pictures.append(
            picture(
                figure, name=f"{name}-product", heading="Singular values of the product so far",
                description=f"Quantiles of the singular values of the product of the first "
                f"{', '.join(map(str, depths))} blocks.",
            )
        )  # fmt: skip
    return pictures


def history_picture(history: History, *, name: str) -> Picture:
    """Quantile bands of s against the training step."""
    with house_style():
        figure, ax = small_figure()
        draw_bands(ax, history.steps, history.spectra)
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = history.spectra[0], history.spectra[-1]
    return picture(
        figure,
        name=name,
        heading="Singular values over training steps",
        description=f"Quantiles at {len(history.steps)} steps from {history.steps[0]} to {history.steps[-1]}. The "
        f"median goes from {first.quantile_text(0.5)} to {last.quantile_text(0.5)}.",
    )


def _gain_picture(profile: BlockProfile, *, name: str) -> Picture:
    number = np.arange(1, len(profile) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chi = np.log10(profile.chi)
        # Two standard errors of log10 chi.
        error = 2 * profile.chi_stderr / profile.chi / np.log(10)
    kept = seen_blocks(chi, profile.at_fault())
    with house_style():
        figure, ax = small_figure()
        color, other = color_of(0, 2), color_of(1, 2)
        marker = "o" if len(kept) <= 60 else ""
        ax.axhline(0.0, color="#555555", linewidth=1, linestyle=":")
        (gain,) = ax.plot(
            number[kept], _finite(profile.log10_gain[kept]), color=other, linewidth=1.2, linestyle="--"
        )
        (own,) = ax.plot(number[kept], _finite(chi[kept]), color=color, marker=marker, linewidth=1.4)
        low, high = _finite(chi - error)[kept], _finite(chi + error)[kept]
        ax.fill_between(number[kept], low, high, color=color, alpha=0.25, linewidth=0)
        remember(ax, own, "χ of the block by itself, with two standard errors")
        remember(ax, gain, "gain within the network")
        _mark_fault(ax, profile)
        _depth_axis(ax, "factor on mean s² (log scale)")
    return picture(
        figure,
        name=f"{name}-chi",
        heading="Gain of each block",
        description=f"chi of each of {len(profile)} blocks. {profile.verdict()}.",
    )


def _product_picture(profile: BlockProfile, *, name: str) -> Picture:
    number = np.arange(len(profile) + 1)
    value = np.concatenate([[0.0], profile.log10_mean_square])
    error = np.concatenate([[0.0], 2 * profile.log10_mean_square_stderr])
    fault = profile.at_fault()
    kept = seen_blocks(value, None if fault is None else fault + 1)
    with house_style():
        figure, ax = small_figure()
        color = color_of(0, 2)
        marker = "o" if len(kept) <= 60 else ""
        ax.axhline(0.0, color="#555555", linewidth=1, linestyle=":")
        (line,) = ax.plot(number[kept], _finite(value[kept]), color=color, marker=marker)
        low, high = _finite(value - error)[kept], _finite(value + error)[kept]
        ax.fill_between(number[kept], low, high, color=color, alpha=0.25, linewidth=0)
        remember(ax, line, "mean s² of the product, with two standard errors")
        _mark_fault(ax, profile)
        _depth_axis(ax, "mean s² so far (log scale)")
    return picture(
        figure,
        name=f"{name}-mean",
        heading="Mean s² of the product so far",
        description=f"From 1 at the input to its value behind {len(profile)} blocks. {profile.verdict()}.",
    )


def seen_blocks(values: Array, always: int | None) -> NDArray[np.int64]:
    """Which of many places to draw: the smallest and largest value of each stretch, both ends, and ``always``."""
    if values.size <= 2 * STRETCHES:
        return np.arange(values.size)
    kept = {0, values.size - 1} | ({always} if always is not None else set())
    comparable = np.nan_to_num(values, nan=0.0, neginf=-1e300, posinf=1e300)
    for places in np.array_split(np.arange(values.size), STRETCHES):
        kept |= {int(places[comparable[places].argmin()]), int(places[comparable[places].argmax()])}
    return np.array(sorted(kept))


def _mark_fault(ax: Axes, profile: BlockProfile) -> None:
    fault = profile.at_fault()
    if fault is not None:
        line = ax.axvline(fault + 1, color=color_of(3, 4), linewidth=1.5, alpha=0.8)
        remember(ax, line, f"block at fault: {profile.blocks[fault]}")


def _depth_axis(ax: Axes, label: str) -> None:
    low, high = ax.get_ylim()
    # At least a tenth of a decade is shown, so that a factor within a few percent of one looks like one.
    middle = 0.5 * (low + high)
    half = max(0.5 * (high - low), 0.05)
    ax.set_ylim(middle - half, middle + half)
    label_log_axis(ax, upright=True)
    ax.set_ylabel(label)
    ax.set_xlabel("block")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _finite(values: Array) -> Array:
    """Infinite logarithms as nan, which leaves gaps in the line."""
    return np.where(np.isfinite(values), values, np.nan)
