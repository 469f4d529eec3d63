"""An axis whose data are log10 s and whose labels are values of s.

Matplotlib's own logarithmic scale needs s itself, which a deep network drives out of the range of floats, and
labels a narrow range (0.9 to 1.1) badly.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, Locator, MaxNLocator

# Below so many decades ticks sit at round values of s, above at powers of ten.
NARROW = 1.2


class LogValueLocator(Locator):
    """Ticks at round values of s over a narrow range, at whole powers of ten over a wide one."""

    def __call__(self) -> list[float]:
        assert self.axis is not None, "Matplotlib attaches a locator to its axis before it asks for ticks"
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Positions, in log10 s, of the ticks between two values of log10 s."""
        low, high = min(vmin, vmax), max(vmin, vmax)
        if high - low < NARROW and max(abs(low), abs(high)) < 290:
            return _narrow_ticks(low, high)
        ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 3, 5, 10]).tick_values(low, high)
        return sorted({float(round(tick)) for tick in ticks})


class LogMinorLocator(Locator):
    """Ticks at 2, 3, ... 9 within each decade, where there is room for them."""

    def __call__(self) -> list[float]:
        assert self.axis is not None, "Matplotlib attaches a locator to its axis before it asks for ticks"
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Positions, in log10 s, of the minor ticks between two values of log10 s."""
        low, high = min(vmin, vmax), max(vmin, vmax)
        if not NARROW <= high - low <= 8:
            return []
        decades = range(math.floor(low), math.ceil(high))
        return [float(decade + math.log10(digit)) for decade in decades for digit in range(2, 10)]


class LogValueFormatter(Formatter):
    """Labels a position log10 s by s: 0.5, 2; powers of ten throughout where one of the labels needs it."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = sorted(self.axis.get_view_interval()) if self.axis is not None else (x, x)
        readable = low >= -2.5 and high <= 3.5
        if readable or (high - low < NARROW and max(abs(low), abs(high)) < 290):
            return f"{10**x:.6g}"
        power = f"{round(x):d}" if abs(x - round(x)) < 1e-9 else f"{x:.4g}"
        return f"$10^{{{power}}}$"


def _narrow_ticks(low: float, high: float) -> list[float]:
    if high - low > 0.5:
        # Equal steps in s crowd at the upper end of more than half a decade.
        decades = range(math.floor(low), math.ceil(high) + 1)
        values = [digit * 10.0**decade for decade in decades for digit in (1, 1.5, 2, 3, 5, 7)]
    else:
        values = list(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(10**low, 10**high))
    return [math.log10(value) for value in values if value > 0]


def label_log_axis(ax: Axes, *, upright: bool = False) -> None:
    """Let the x axis of ``ax`` (its y axis with ``upright``), whose data are log10 s, show values of s."""
    axis = ax.yaxis if upright else ax.xaxis
    axis.set_major_locator(LogValueLocator())
    axis.set_minor_locator(LogMinorLocator())
    axis.set_major_formatter(LogValueFormatter())
