"""A product of factors as basis^T diag(e^g) T, and one QR of it after some factors more.

The basis has orthonormal rows, the scales g are logarithms, T is well-conditioned (Stewart 1995; Bai, Lee, Li & Xu
2011). Columns are sorted by scale before an unpivoted QR (Tomas, Chang, Scalettar & Bai 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.errors import NonFiniteError

from .chain_factors import Step
from .wide_scales import Scales

# Rows of T that are updated together, and the ratio of scales below which they have nothing to do with one another.
_ROWS, _LN_NEGLIGIBLE = 128, -48.0
# Pivots below so many units per square root of the length are zero to rounding.
_ZERO_UNITS = 16.0
# Entries need no sorting where none is so many times as large as one before it.
_ALIKE = 16.0
# A perturbation of a factor, in units of rounding times the square root of the length of its sums, and times its own
# rounding.
_UNITS, _TIMES_ROUNDING = 2.0, 2.0
# Random directions of the error of a factor, and of a block, where half of them go.
DIRECTIONS, MOST_DIRECTIONS = 4, 16
# Between two QRs lengths of vectors may differ so much.
_MOST_GRADED = 1e6


@dataclass(frozen=True, eq=False)
class GradedProduct:
    """basis^T diag(scales) rows, with an orthonormal basis of row vectors, (r, length)."""

    basis: Tensor
    scales: Scales
    rows: Tensor

    @classmethod
    def identity(cls, size: int, device: torch.device) -> GradedProduct:
        eye = torch.eye(size, dtype=torch.float64, device=device)
        return cls(eye, Scales.ones(size, device), eye)


@dataclass(frozen=True, eq=False)
class ErrorSamples:
    """Errors of the vectors of a basis: sum_q weights[s, q, i] directions[q] for vector i of sample s.

    Parameters
    ----------
    directions : (q, length) Tensor
    weights : (samples, q, r) Tensor
    """

    directions: Tensor
    weights: Tensor

    @classmethod
    def none(cls, samples: int, product: GradedProduct) -> ErrorSamples:
        r, length = product.basis.shape
        return cls(product.basis.new_zeros(0, length), product.basis.new_zeros(samples, 0, r))


class GradedBlock:
    """The vectors of a basis with factors applied, each of length one, and their scales.

    With ``errors``, samples of the error of the factors go along: the rounding of each is drawn at random in proportion
    to its rows, and the factors after it act on what there is.

    Attributes
    ----------
    sizes : (length,) Tensor
        Lengths of the rows of the last factor, as the vectors see them.
    lengths : (k,) Tensor
        What the last factor did to the length of each vector.
    growth : Scales
        What all factors did, (k,).
    shrunk : float
        The least of ``lengths``, over what the sizes of the rows let expect; below rounding a vector is noise.
    """

    def __init__(
        self,
        product: GradedProduct,
        errors: ErrorSamples | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._count = product.basis.shape[0]
        self.scales, self.rows = product.scales, product.rows
        self.growth = Scales.ones(self._count, product.basis.device)
        self.shrunk, self.applied, self.error = 1.0, 0, 0.0
        self._generator = generator
        self._stack = product.basis
        if errors is not None:
            self._weights = errors.weights
            if errors.directions.shape[0]:
                self._stack = torch.cat([product.basis, errors.directions])
        # Lengths relative to those of the block as a whole.
        self._relative = product.basis.new_ones(self._count)

    @property
    def vectors(self) -> Tensor:
        return self._stack[: self._count]

    @property
    def errors(self) -> ErrorSamples:
        """Of the vectors; of those that are not zero."""
        relative = torch.where(self._relative > 0, self._relative, 1.0)
        return ErrorSamples(self._stack[self._count :], self._weights / relative)

    def apply(self, step: Step, mask: Tensor | None) -> None:
        """Apply a factor, and drop the entries that the next one does not depend on."""
        image = step.apply(self._stack)
        if mask is not None:
            image = image * mask
        vectors = image[: self._count]
        self.sizes, self.lengths = lengths_of(vectors, dim=0), lengths_of(vectors, dim=1)
        if not bool(torch.isfinite(self.lengths).all()):
            raise NonFiniteError("a factor of the chain gives NaN or inf, or overflows")
        divisor = torch.where(self.lengths > 0, self.lengths, 1.0)
        self.scales, self.growth = self.scales.times(divisor), self.growth.times(divisor)
        whole = lengths_of(self.sizes[None], dim=1) / math.sqrt(max(self._count, 1))
        whole = torch.where(whole > 0, whole, 1.0)
        if self._generator is None:
            self._stack = image / divisor[:, None]
        else:
            self._stack = self._with_errors(step, image, divisor, whole, self._generator)
        self._relative = self._relative * (self.lengths / whole)
        if self.lengths.numel() and float(self.lengths.min()) < 1e-6 * float(self.lengths.max()):
            expected = lengths_of(self.vectors * self.sizes, dim=1)
            self.shrunk = min(
                self.shrunk, float((self.lengths / torch.where(expected > 0, expected, 1.0)).min())
            )
        self.applied += 1
        self.error = max(self.error, step.error)

    def _with_errors(
        self, step: Step, image: Tensor, divisor: Tensor, whole: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The vectors of length one, the samples behind them, and new ones for this factor."""
        old, count = image.shape[0], self._count
        kept = torch.arange(old - count)
        larger = 1.0
        if kept.numel() > MOST_DIRECTIONS:
            # Half of independent terms, each larger by the root of two, vary as all do.
            kept, larger = (
                torch.randperm(kept.numel(), generator=generator)[: kept.numel() // 2],
                math.sqrt(2),
            )
        stack = image.new_empty(count + kept.numel() + DIRECTIONS, image.shape[1])
        torch.div(image[:count], divisor[:, None], out=stack[:count])
        last = count + kept.numel()
        if kept.numel():
            stack[count:last] = image[count:][kept.to(image.device)] * (larger / whole)
        rounding = max(_UNITS * step.error_of_sums, _TIMES_ROUNDING * step.factor.rounding)
        profile = self.sizes * (rounding / math.sqrt(max(count, 1) * DIRECTIONS) / whole)
        stack[last:] = _normal((DIRECTIONS, profile.numel()), generator, profile) * profile
        fresh = _normal((self._weights.shape[0], DIRECTIONS, count), generator, profile) * self._relative
        self._weights = torch.cat([self._weights[:, kept.to(image.device)], fresh], dim=1)
        return stack

    @property
    def graded(self) -> bool:
        """Whether lengths have become so different that errors must not be carried on without a QR."""
        live = self._relative[self._relative > 0]
        return bool(live.numel()) and float(live.max()) > _MOST_GRADED * float(live.min())

    @property
    def live(self) -> int:
        """Entries that are not zero in all vectors."""
        return int((self.sizes > 0).sum())


@dataclass(frozen=True, eq=False)
class Renewal:
    """A product with an orthonormal basis again.

    Parameters
    ----------
    product : GradedProduct
    kept : (k,) Tensor
        Numbers of the vectors that were not zero, in the order of their scales.
    coefficients : (r, k) Tensor
        These vectors in the new basis.
    chosen : (r,) Tensor
        Which of those the basis is of.
    dependence : float
        How dependent the vectors were: 1 for orthogonal ones.
    entries : (live,) Tensor or None
        The order of entries in which the QR was done.
    reflectors : pair of Tensors
        Of the QR, as LAPACK keeps them.
    """

    product: GradedProduct
    kept: Tensor
    coefficients: Tensor
    chosen: Tensor
    dependence: float
    entries: Tensor | None
    reflectors: tuple[Tensor, Tensor]

    def onto_basis(self, vectors: Tensor) -> Tensor:
        """(r, q): Q^T of the (q, length) vectors, by reflections: to the rounding of each entry, not of the whole."""
        columns = (vectors if self.entries is None else vectors[:, self.entries]).T
        count = self.product.basis.shape[0]
        if count == 0 or columns.shape[1] == 0:
            return vectors.new_zeros(count, columns.shape[1])
        return torch.ormqr(*self.reflectors, columns, left=True, transpose=True)[:count]


def renewed(block: GradedBlock, rank: int | None) -> Renewal:
    """The product with an orthonormal basis again.

    Vectors go in the order of their scales, and entries in that of their sizes, which makes the QR stable row by row
    (Cox & Higham 1998, Math. Comp. 67, 335). With ``rank``, so many directions are left; without, all that are not
    rounding.
    """
    kept = torch.nonzero(block.lengths > 0).flatten()
    kept = kept[block.scales[kept].descending]
    columns, scales = block.vectors[kept].T, block.scales[kept]
    entries = _by_size(block.sizes)
    sizes = block.sizes
    if entries is not None:
        columns, sizes = columns[entries], sizes[entries]
    chosen, basis, upper, reflectors = _independent(block, columns, sizes, block.lengths[kept], rank)
    count = basis.shape[1]
    coefficients = upper
    if count < kept.numel():
        # The others are combinations of those chosen before them.
        others = torch.ones(kept.numel(), dtype=torch.bool, device=kept.device)
        others[chosen] = False
        before = torch.cumsum(~others, 0)[others]
        inside = torch.arange(count, device=kept.device)[:, None] < before
        coefficients = columns.new_zeros(count, kept.numel())
        coefficients[:, chosen] = upper[:, : chosen.numel()]
        coefficients[:, others] = (basis.T @ columns[:, others]) * inside
    pivots = upper.diagonal().abs()
    mine = scales[chosen[:count]]
    rows = _updated(coefficients / pivots[:, None], mine, scales, block.rows[kept])
    vectors = basis.T
    if entries is not None:
        vectors = columns.new_zeros(count, block.vectors.shape[1])
        vectors[:, entries] = basis.T
    dependence = 1 / float(pivots.min()) if count else 1.0
    product = GradedProduct(vectors, mine.times(pivots), rows)
    return Renewal(product, kept, coefficients, chosen[:count], dependence, entries, reflectors)


def _by_size(sizes: Tensor) -> Tensor | None:
    """The entries that are not zero, the largest first; None where all are, and nearly in that order."""
    if sizes.numel() and bool(((sizes > 0) & (sizes <= _ALIKE * torch.cummin(sizes, 0).values)).all()):
        return None
    return torch.argsort(sizes, descending=True, stable=True)[: int((sizes > 0).sum())]


def _qr(columns: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(Q, R, reflectors) of the narrow QR, columns of Q contiguous."""
    count = min(columns.shape)
    packed, factors = torch.geqrf(columns)
    upper = torch.tril(packed.T[:, :count]).T
    packed = packed[:, :count]
    return torch.linalg.householder_product(packed, factors), upper, (packed, factors)


def _updated(upper: Tensor, mine: Scales, scales: Scales, rows: Tensor) -> Tensor:
    """diag(1 / mine) upper diag(scales) rows, without what lies too many decades apart to matter."""
    found = rows.new_empty(mine.size, rows.shape[1])
    logs = scales.log
    for start in range(0, mine.size, _ROWS):
        part = slice(start, start + _ROWS)
        near = torch.nonzero(logs >= mine[part].log.min() + _LN_NEGLIGIBLE)
        stop = int(near[-1]) + 1
        # Columns before the first row are zero; ratios above 1 belong to entries that are zero.
        ratios = scales[start:stop].over(mine[part]).T.clamp(max=1.0)
        found[part] = (upper[part, start:stop] * ratios) @ rows[start:stop]
    return found


def _independent(
    block: GradedBlock, columns: Tensor, sizes: Tensor, lengths: Tensor, rank: int | None
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(chosen, Q, R, reflectors): numbers of columns that are independent of those before them, and their QR."""
    chosen = torch.arange(columns.shape[1], device=columns.device)
    while True:
        basis, upper, reflectors = _qr(columns if chosen.numel() == columns.shape[1] else columns[:, chosen])
        count = basis.shape[1]
        pivots = upper.diagonal().abs()
        if rank is None:
            # Rounding is in proportion to the rows.
            noise = _ZERO_UNITS * block.error * lengths_of(basis * sizes[:, None], dim=0)
            small = pivots * lengths[chosen[:count]] <= noise
        else:
            small = torch.zeros(count, dtype=torch.bool, device=columns.device)
            small[torch.argsort(pivots)[: count - rank]] = True
        if not bool(small.any()):
            return chosen, basis, upper, reflectors
        first = int(torch.nonzero(small)[0])
        rest = upper[first:, first:].abs() * lengths[chosen[first:]]
        if bool(small[first:].all()) and (rank is not None or bool((rest <= noise[first:, None]).all())):
            return chosen[:first], basis[:, :first], upper[:first, :first], reflectors
        # What lies along a direction of noise may be real in the columns after it.
        chosen = torch.cat([chosen[:first], chosen[first + 1 :]])


def lengths_of(matrix: Tensor, *, dim: int) -> Tensor:
    """Euclidean lengths, whose squares may leave the range of floats."""
    # Sums of squares are taken along contiguous rows; torch.linalg.vector_norm over columns takes six times as long.
    lengths = torch.sqrt((matrix * matrix).sum(dim))
    if not lengths.numel() or 1e-150 < float(lengths.min()) <= float(lengths.max()) < 1e150:
        return lengths
    largest = (
        matrix.abs().amax(dim=dim, keepdim=True) if matrix.numel() else matrix.sum(dim=dim, keepdim=True)
    )
    unit = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(matrix / unit, dim=dim) * unit.squeeze(dim)


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
