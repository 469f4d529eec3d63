"""`Spectrum`: the distribution of the min(m, n) singular values of J, and how it came to be known.

The one language both sides of the program speak: a measurement fills it with quadrature nodes, a
prediction with a curve, and nothing downstream asks which. s is a singular value of J, lambda = s^2 an
eigenvalue of J J^T. The |m - n| zeros that a rectangular shape forces are not part of the distribution;
they are reported apart as ``null_dimension``.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isometry.errors import InputError

from .error_model import NO_PROBES, ErrorModel
from .extremes import Extremes
from .formatting import plain
from .plotting import report_package
from .quadrature import Quadrature
from .reported import summary_of, text_of_quantile, verdict_of
from .spectral_numbers import SpectralNumbers
from .summary import Summary

Array = NDArray[np.float64]


class Spectrum(SpectralNumbers):
    """The singular-value distribution of a Jacobian, measured or predicted.

    Parameters
    ----------
    distribution : Quadrature, LogValues or Curve
        The distribution itself, in ln s.
    method : str
        "exact", "lanczos", "randomized", "chain", "predicted", or the user's own word.
    shape : (int, int), optional
        (m, n): outputs and inputs of J. None for a prediction at infinite width.
    extremes : Extremes, optional
        Extreme values with residuals, where they were computed.
    name : str
        What reports call it.
    products : int
        Jacobian-vector and vector-Jacobian products spent.
    seconds : float
        Wall time spent.
    provenance : mapping
        How it was measured or predicted: plain JSON values (model, input, dtype, device, seed, versions,
        ensemble, ...).

    Examples
    --------
    >>> spectrum = Spectrum.from_singular_values([3.0, 1.0, 1.0, 0.0])
    >>> round(spectrum.mean_square, 9), float(spectrum.quantile(0.5)), spectrum.zero_mass
    (2.75, 1.0, 0.25)
    """

    @classmethod
    def from_singular_values(
        cls,
        singular_values: ArrayLike,
        *,
        shape: tuple[int, int] | None = None,
        floor: float = 0.0,
        method: str = "exact",
        name: str = "",
    ) -> Spectrum:
        """The spectrum of known singular values.

        Parameters
        ----------
        singular_values : (d,) or (inputs, d) array
            All min(m, n) singular values of each input's J.
        shape : (int, int), optional
            (m, n); (d, d) if not given.
        floor : float
            Values at or below it count as zero.
        """
        values = np.atleast_2d(np.asarray(singular_values, float))
        if values.ndim != 2 or values.size == 0:
            raise InputError(f"singular values are a (d,) or (inputs, d) array; got {values.shape}")
        values = -np.sort(-values, axis=1)
        inputs, count = values.shape
        if shape is not None and min(shape) != count:
            raise InputError(
                f"a {shape[0]} x {shape[1]} Jacobian has {min(shape)} singular values; got {count}. Leave the "
                f"{abs(shape[0] - shape[1])} zeros that the shape forces out"
            )
        nodes = values[:, None, :]
        noise = 8 * np.finfo(float).eps * values[:, :1]
        return cls(
            Quadrature(
                nodes,
                np.full(nodes.shape, 1.0 / count),
                np.full(inputs, float(floor)),
                np.ones(nodes.shape, bool),
                ErrorModel(NO_PROBES, dimension=count),
            ),
            method=method,
            shape=shape or (count, count),
            extremes=Extremes(
                values, np.broadcast_to(noise, values.shape).copy(),
                values[:, -1], noise[:, 0], values[:, -1] > floor,
            ),
            name=name,
        )  # fmt: skip

    # ---- showing it --------------------------------------------------------------------------------

    @cached_property
    def reported(self) -> Summary:
        """The numbers that reports show, computed once. Every rendering of a spectrum takes them from here."""
        return summary_of(self)

    @property
    def partial(self) -> bool:
        """Whether it is a part of a measurement that was interrupted."""
        return self.stopped.get("reason") == "interrupted"

    def verdict(self, low: float = 0.5, high: float = 2.0) -> str:
        """One sentence: is this dynamical isometry, perhaps up to a scale outside of [low, high]?

        The scale is the root mean square s; the spread, the share within a factor of two of it, decides.
        """
        return verdict_of(self, low, high)

    def to_dict(self) -> dict[str, Any]:
        """The reported numbers as plain JSON values; None stands for what is unknown, infinite or below the floor.

        Numbers that leave the range of floats are None and stand in the fields named ``log10_...``.
        """
        return self.reported.json()

    def rows(self) -> list[tuple[str, str]]:
        """The short table as (label, text) pairs: what every rendering of a spectrum shows."""
        return self.reported.rows()

    def quantile_text(self, p: float) -> str:
        """A quantile as a person reads it: '< floor' below the floor, a power of ten outside the float range."""
        return text_of_quantile(self, p)

    def summary(self) -> dict[str, float]:
        """The main numbers, flat, under names that any logger takes: every value is a float.

        ``s_max``, ``s_max_residual``, ``s_min``, ``s_min_residual``, ``s_min_upper_bound``, ``condition_number``,
        ``mean_square``, ``mean_square_stderr``, ``log10_mean_square``, ``variance``, ``quantile_0.01`` to
        ``quantile_0.99``, ``scale`` (the root mean square) and ``spread`` (the fraction within a factor of two of it),
        ``isometry``, the fraction of the singular values in [0.5, 2], with ``isometry_stderr`` and
        its limits of 95 % ``isometry_lower`` and ``isometry_upper``, ``zero_mass``, ``floor``, ``inputs``, ``probes``,
        ``null_dimension``, ``products``, ``seconds``. They are the names of `to_dict` and of ``isometry table``.

        nan stands for what is not known (a quantile below the floor, a fraction whose lower end is, an s_min that is
        not resolved, the error of one probe) and for what leaves the range of floats. A 0 is a zero.

        Examples
        --------
        >>> numbers = Spectrum.from_singular_values([2.0, 1.0, 1.0, 1e-20], floor=1e-9).summary()
        >>> numbers["s_max"], numbers["quantile_0.5"], numbers["quantile_0.01"], numbers["isometry"]
        (2.0, 1.0, nan, 0.75)
        """
        return self.reported.flat()

    def __str__(self) -> str:
        return plain(self.reported.text(), keep="\n")

    def __repr__(self) -> str:
        return plain(f"<Spectrum {self.name or self.method}: {self.verdict()}>")

    def _repr_html_(self) -> str:
        return self.reported.html()

    def plot(self, ax: Any = None, *, kind: str = "density", **options: Any) -> Any:
        """Draw the density of log10 s, or with ``kind="cdf"`` the cdf with its band, into a Matplotlib ``ax`` (a new
        one if None) and return it. Options are those of `isometry.report.plot_density` and `isometry.report.plot_cdf`.
        """
        if kind not in ("density", "cdf"):
            raise InputError(f'kind is "density" or "cdf"; got {kind!r}')
        report = report_package()
        return (report.plot_density if kind == "density" else report.plot_cdf)(self, ax=ax, **options)
