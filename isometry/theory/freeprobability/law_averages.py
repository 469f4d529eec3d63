"""Averages of 1/(w - d) and related functions over one or several laws of d, in one pass. Internal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isometry.theory.freeprobability.branches import lower_log_of_sum
from isometry.theory.freeprobability.panel_tree import PanelTree
from isometry.theory.freeprobability.panels import PanelRule

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Relative variance of d below which its spread is summed apart from its mean.
NARROW = 1e-2


class Law(Protocol):
    """The part of `SlopeLaw` that averages need."""

    @property
    def values(self) -> Array: ...
    @property
    def masses(self) -> Array: ...
    @property
    def zero_mass(self) -> float: ...
    @property
    def continuous(self) -> PanelRule | None: ...
    @property
    def mean(self) -> float: ...
    @property
    def relative_variance(self) -> float: ...


@dataclass(frozen=True)
class Averages:
    """Averages at points w, complex arrays of the shape of w.

    Parameters
    ----------
    one_plus_m : w h, without cancellation near m = -1
    one_plus_m_nonzero : the same without the mass at d = 0
    m
    m_rate : d m / d log w, also that of w h
    ratio_excess : m/(h E d) - 1, without cancellation for a narrow law
    ratio_rate : d log(m/h) / d log w
    log_ratio_branch : (m/E d, h), whose arguments say which logarithm of m/h is meant
    logarithm : Phi, the branch that vanishes at infinity, where it was asked for

    Nothing here is a square of 1/(w - d), which would leave the range of floats at |w| = 1e-154.
    """

    one_plus_m: ComplexArray
    one_plus_m_nonzero: ComplexArray
    m: ComplexArray
    m_rate: ComplexArray
    ratio_excess: ComplexArray
    ratio_rate: ComplexArray
    log_ratio_branch: tuple[ComplexArray, ComplexArray]
    logarithm: ComplexArray | None = None


class LawAverages:
    """Averages over several laws, each w with a law of its own."""

    def __init__(self, laws: Sequence[Law]) -> None:
        most = max(law.values.size for law in laws)
        # A value of 0 with a mass of 0 adds nothing.
        self._values, self._masses = np.zeros((len(laws), most)), np.zeros((len(laws), most))
        for index, law in enumerate(laws):
            self._values[index, : law.values.size] = law.values
            self._masses[index, : law.values.size] = law.masses
        self._zero_mass = np.array([law.zero_mass for law in laws])
        self._mean = np.array([law.mean for law in laws])
        self._narrow = np.array([law.relative_variance < NARROW for law in laws])
        self._tilted = self._masses * (self._values / self._mean[:, None] - 1.0)
        rules = [law.continuous for law in laws if law.continuous is not None]
        has_rule = np.array([law.continuous is not None for law in laws])
        # Where in the tree a law is; -1 for one of point masses alone.
        self._rule = np.where(has_rule, np.cumsum(has_rule) - 1, -1)
        self._centre = np.where(self._narrow, self._mean, np.nan)[has_rule]
        self._tree = PanelTree(rules) if rules else None

    def __call__(
        self, w: ComplexArray, law: NDArray[np.intp] | None = None, *, logarithm: bool = False
    ) -> Averages:
        """Averages at points w of the closed upper half-plane, off the support where w is real.

        Parameters
        ----------
        w : complex array
            (n, K), a column for each of the K laws, or of the shape of ``law``.
        law : integer array, optional
            Which law each w belongs to.
        logarithm : bool
            Whether Phi is wanted.
        """
        law = np.arange(self._mean.size) if law is None else law
        log = np.zeros(w.shape, complex) if logarithm else None
        sums = np.zeros((4, *w.shape), complex)
        if self._values.size:
            self._add_point_masses(w, law, sums, log)
        if self._tree is not None:
            self._add_continuous(self._tree, w, law, sums, log)
        nonzero, second, rate, second_rate = sums
        mean, zero_mass, narrow = self._mean[law], self._zero_mass[law], self._narrow[law]
        whole, m_rate = nonzero + zero_mass, -rate
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            # Where h or m vanishes (at zeros on the real axis between values of d) the ratio has no value to give.
            if not np.all(narrow):
                m = second
                excess = w * m / (mean * whole) - 1.0
                ratio_rate = m_rate / m - m_rate / whole + 1.0
            if np.any(narrow):
                # second = E w (d/mean - 1)/(w - d), to which the zeros add -1 each.
                spread = second - zero_mass
                own_excess = spread / whole
                own_m = mean * (whole + spread) / w
                own_rate = (-second_rate - own_excess * m_rate) / (whole + spread)
                if np.all(narrow):
                    m, excess, ratio_rate = own_m, own_excess, own_rate
                else:
                    m, excess = np.where(narrow, own_m, m), np.where(narrow, own_excess, excess)
                    ratio_rate = np.where(narrow, own_rate, ratio_rate)
        return Averages(whole, nonzero, m, m_rate, excess, ratio_rate, (m / mean, whole / w), log)

    def _add_point_masses(
        self, w: ComplexArray, law: NDArray[np.intp], sums: ComplexArray, log: ComplexArray | None
    ) -> None:
        values, masses, tilted = self._values[law], self._masses[law], self._tilted[law]
        difference = w[..., None] - values
        share, slope = w[..., None] / difference, values / difference
        # In a narrow law m and h E d differ by little, and the difference is summed; in the tail of a wide one m is
        # small beside h, and m is.
        narrow = self._narrow[law]
        sums[0] += (share * masses).sum(axis=-1)
        sums[1] += np.where(narrow, (share * tilted).sum(axis=-1), (slope * masses).sum(axis=-1))
        sums[2] += (share * slope * masses).sum(axis=-1)
        sums[3] += np.where(narrow, (share * slope * tilted).sum(axis=-1), 0.0)
        if log is not None:
            # Im(-d/w) >= 0 in the upper half-plane, so the principal logarithm is the right branch.
            excess = -values / w[..., None]
            logs = lower_log_of_sum(excess.conj(), (difference / w[..., None]).conj()).conj()
            log += (logs * masses).sum(axis=-1)

    def _add_continuous(
        self,
        tree: PanelTree,
        w: ComplexArray,
        law: NDArray[np.intp],
        sums: ComplexArray,
        log: ComplexArray | None,
    ) -> None:
        rule = np.broadcast_to(self._rule[law], w.shape)
        own = rule >= 0
        centre = None if np.all(np.isnan(self._centre)) else self._centre[rule[own]]
        more = tree.sums(w[own], rule[own], centre=centre, logarithm=log is not None)
        sums[:, own] += more[:4]
        if log is not None:
            log[own] += more[4]
