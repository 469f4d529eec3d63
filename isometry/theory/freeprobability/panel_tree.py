"""Averages of 1/(w - d(x)) over the Gaussian line, at any distance of w from the values of d. Internal.

The integrand has a pole wherever d(x) = w. When w = r e^{i theta} comes close to the real axis the poles come
close to the line of integration, and a fixed rule fails (Gauss-Hermite with 40 nodes is wrong by 5e-2). Here the
panels of a `PanelRule` are quartered while a pole is close to them. Quartering toward a pole at distance a costs
log4(1/a) rounds, so theta = 1e-10 costs hardly more than theta = 1. Quarters made for one w are kept for the next.
One tree holds the panels of several laws, so that one pass serves many w of many laws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isometry.errors import ConvergenceError
from isometry.theory.freeprobability.panels import NODES, PanelRule, Shape, sample

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Index = NDArray[np.intp]

BRANCHES = 4
# Quarters of quarters down to the resolution of x itself.
DEEPEST = 24
NEGLIGIBLE = 1e-19
# Panels kept (300 bytes each); beyond them the tree is cut down to its roots.
MOST_KEPT = 40_000
# Panels and pairs of a point and a panel in one call (half a GB together); smooth laws need a hundredth of them.
MOST_PANELS = 500_000
MOST_PAIRS = 4_000_000
# Panels summed at once, so that a work array stays in the cache.
CHUNK = 1024
# d/|w| beyond which it might as well be infinite; its square is within the range of floats.
LARGEST_SHARE = 1e150
ONES = np.ones(NODES.size)
NOISY = (
    "averages of 1/(w - phi'^2) need too many panels: phi' has too many zeros, or noise where it is small. Give its "
    "exact derivative, written without cancellation next to its zeros, or a smaller variance."
)


class PanelTree:
    """Panels of several laws with the quarters made so far."""

    def __init__(self, rules: Sequence[PanelRule]) -> None:
        self._rules = tuple(rules)
        self._count = np.array([rule.left.size for rule in rules])
        self._first = np.cumsum(self._count) - self._count
        self._largest = np.array([rule.largest for rule in rules])
        self._mass = np.concatenate([rule.mass for rule in rules])
        self._roots = int(self._count.sum())
        self._size = 0
        self._law = np.empty(0, np.intp)
        self._child = np.empty(0, np.intp)
        self._place, self._shape = np.empty((0, 2)), np.empty((0, 4))
        self._linear = np.empty(0, bool)
        self._d, self._weight = np.empty((0, NODES.size)), np.empty((0, NODES.size))
        law = np.repeat(np.arange(len(self._rules)), self._count)
        left, width, d, weight = (
            np.concatenate([getattr(rule, name) for rule in rules])
            for name in ("left", "width", "d", "weight")
        )
        self._append(law, left, width, d, weight)

    def _append(self, law: Index, left: Array, width: Array, d: Array, weight: Array) -> int:
        """Add panels; the index of the first."""
        if self._size + law.size > MOST_PANELS + self._roots:
            raise ConvergenceError(NOISY)
        start, self._size = self._size, self._size + law.size
        if self._size > self._law.size:
            capacity = max(2 * self._law.size, self._size)
            for name in ("_law", "_child", "_place", "_shape", "_linear", "_d", "_weight"):
                old = getattr(self, name)
                new = np.empty((capacity, *old.shape[1:]), old.dtype)
                new[:start] = old[:start]
                setattr(self, name, new)
        shape, here = Shape.of(d), slice(start, self._size)
        self._law[here], self._child[here], self._linear[here] = law, -1, shape.linear
        self._place[here, 0], self._place[here, 1] = left, width
        for column, values in enumerate((shape.centre, shape.half, shape.log_centre, shape.log_half)):
            self._shape[here, column] = values
        self._d[here], self._weight[here] = d, weight
        return start

    def _children(self, node: Index) -> Index:
        """First of the four children of each panel, (m,), made where they are not there yet."""
        childless = node[self._child[node] < 0]
        if childless.size:
            parent = np.unique(childless)
            law = np.repeat(self._law[parent], BRANCHES)
            width = np.repeat(self._place[parent, 1] / BRANCHES, BRANCHES)
            left = np.repeat(self._place[parent, 0], BRANCHES) + width * np.tile(
                np.arange(BRANCHES), parent.size
            )
            d, weight = np.empty((left.size, NODES.size)), np.empty((left.size, NODES.size))
            for number in np.unique(law):
                own = law == number
                rule = self._rules[number]
                d[own], weight[own] = sample(rule.function, left[own], width[own], rule.fold)
            start = self._append(law, left, width, d, weight)
            self._child[parent] = start + BRANCHES * np.arange(parent.size)
        return self._child[node]

    def sums(
        self, w: ComplexArray, law: Index, *, centre: Array | None = None, logarithm: bool = False
    ) -> ComplexArray:
        """Sums over the panels, (4, n): E w/(w-d), E d/(w-d), E w d/(w-d)^2, 0; and E log(1 - d/w) on request.

        With a ``centre`` c, for a narrow law, the second and fourth are E w e/(w-d) and E e w d/(w-d)^2, e = d/c - 1.

        Parameters
        ----------
        w : (n,) complex array
            Points in the closed upper half-plane, not on the range of d.
        law : (n,) integer array
            Which of the rules each belongs to.
        centre : (n,) array, optional
            nan where it is not wanted.

        Raises
        ------
        ConvergenceError
            When phi' is so noisy that panels grow beyond their bound.
        """
        if self._size > MOST_KEPT + self._roots:
            self._size = self._roots
            self._child[: self._roots] = -1
        log_w, size = np.log(w), np.abs(w)
        count = self._count[law]
        owner = np.repeat(np.arange(w.size), count)
        node = np.arange(owner.size) + np.repeat(self._first[law] - (np.cumsum(count) - count), count)
        gap, far = self._far(w, log_w, size, owner, node)
        # A panel in the tail of the Gaussian adds at most its weight over its distance to sums of order
        # 1/(|w| + max d).
        distance = np.maximum(gap - self._shape[node, 1], np.maximum(np.abs(w.imag), 1e-3 * size)[owner])
        matters = self._mass[node] * (size + self._largest[law])[owner] > NEGLIGIBLE * distance
        chosen = [(owner[far & matters], node[far & matters])]
        owner, node = owner[~far & matters], node[~far & matters]
        for _ in range(DEEPEST):
            if owner.size == 0:
                break
            if owner.size > MOST_PAIRS // BRANCHES:
                raise ConvergenceError(NOISY)
            owner = np.repeat(owner, BRANCHES)
            node = (self._children(node)[:, None] + np.arange(BRANCHES)).ravel()
            _, far = self._far(w, log_w, size, owner, node)
            chosen.append((owner[far], node[far]))
            owner, node = owner[~far], node[~far]
        # The rest, next to a zero of phi' where |w| < 1e-28, holds no mass to speak of.
        chosen.append((owner, node))
        owner, node = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        # w = |w| (cosine + i sine)
        cosine, sine = w.real / size, w.imag / size
        narrow = centre is not None
        columns = np.zeros((w.size, 6 + 5 * narrow + 2 * logarithm))
        for start in range(0, owner.size, CHUNK):
            part = owner[start : start + CHUNK]
            terms = self._terms(w, size, sine, part, node[start : start + CHUNK], centre, logarithm)
            index = part[:, None] * columns.shape[1] + np.arange(columns.shape[1])
            columns += np.bincount(index.ravel(), terms.ravel(), columns.size).reshape(columns.shape)
        turn = cosine + 1j * sine
        r, xr, dr, dxr, drr, dxrr = columns.T[:6]
        share, slope = turn * (xr - 1j * sine * r), dxr - 1j * sine * dr
        rate = turn * (dr - 2.0 * sine**2 * drr - 2j * sine * dxrr)
        own_rate = np.zeros_like(rate)
        if centre is not None:
            r, xr, dr, drr, dxrr = columns.T[6:11]
            slope = np.where(np.isnan(centre), slope, turn * (xr - 1j * sine * r))
            own_rate = turn * (dr - 2.0 * sine**2 * drr - 2j * sine * dxrr)
        rows = [share, slope, rate, own_rate]
        if logarithm:
            # The angle of (w - d)/w.
            rows.append(columns[:, -2] + 1j * columns[:, -1])
        return np.stack(rows)

    def _far(
        self, w: ComplexArray, log_w: ComplexArray, size: Array, owner: Index, node: Index
    ) -> tuple[Array, NDArray[np.bool_]]:
        """|w - centre| of each pair, and whether every pole is far from the panel."""
        shape = self._shape.take(node, axis=0)
        gap = np.abs(w[owner] - shape[:, 0])
        return gap, Shape.far(shape, self._linear[node], gap, log_w[owner], size[owner])

    def _terms(
        self,
        w: ComplexArray,
        size: Array,
        sine: Array,
        owner: Index,
        node: Index,
        centre: Array | None,
        logarithm: bool,
    ) -> Array:
        """What each pair adds to the sums over x, delta and r of which all averages are made, (m, columns).

        With (w - d)/|w| = x + i sine, delta = d/|w| and r = 1/(x^2 + sine^2), in real numbers: w/(w - d) is
        (w/|w|) (x - i sine) r and d/(w - d) is delta (x - i sine) r.
        """
        d, weight = self._d.take(node, axis=0), self._weight.take(node, axis=0)
        inverse_size, sine = (1.0 / size)[owner, None], sine[owner, None]
        x = w.real[owner, None] - d
        x *= inverse_size
        # d/(w - d) is -1 to all digits long before delta^2 overflows.
        delta = d * inverse_size
        if np.max(delta) > LARGEST_SHARE:
            delta, x = np.minimum(delta, LARGEST_SHARE), np.maximum(x, -LARGEST_SHARE)
        square = x * x
        square += sine * sine
        r = 1.0 / square
        weighted = weight * r
        with_d = delta
        with_d *= weighted
        twice = r
        twice *= with_d
        terms = [
            weighted @ ONES,
            _dot(weighted, x),
            with_d @ ONES,
            _dot(with_d, x),
            twice @ ONES,
            _dot(twice, x),
        ]
        if centre is not None:
            c = np.where(np.isnan(centre), 1.0, centre)[owner, None]
            excess = (d - c) / c
            terms += [_dot(weighted, excess), _dot(weighted * excess, x), _dot(with_d, excess)]
            terms += [_dot(twice, excess), _dot(twice * excess, x)]
        if logarithm:
            angle = np.arctan2(sine, x) - np.angle(w)[owner, None]
            terms += [0.5 * _dot(weight, np.log(square)), _dot(weight, angle)]
        return np.stack(terms, axis=1)


def _dot(a: Array, b: Array) -> Array:
    """Sums over the nodes of each panel, (m,)."""
    return np.einsum("pn,pn->p", a, b)
