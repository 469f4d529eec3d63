"""s_min of a product A = A_L ... A_1 by the chain of its inverses: an interval at any condition number, or the cause.

With A as the long by short one of J and J^T, n = min(m, n) and all widths at least n: the factors are taken together
in pieces P_K ... P_1 between cuts of exactly n numbers. With Q_0 = I, a QR of each piece, P_k Q_{k-1} = Q_k R_k, gives
X_k = R_k^-1, and s_min = 1 / ||X_1 ... X_K|| but for errors, which are measured and carried:

- C_k = Q_k^T P_k Q_{k-1} is what X_k should be the inverse of. ``rho_k`` >= ||I - X_k C_k|| is computed from the two
  matrices, from what the products of the factors give for random vectors beside what they gave for the basis, from
  their stated rounding, and from the loss of orthogonality of the Q. Then C_k^-1 = (I - E_k)^-1 X_k.
- The inverses are exchanged for the true ones one after another (a telescoping sum, first exact and then bounded):
  || C_1^-1 ... C_K^-1 - X_1 ... X_K || <= sum_k ||X_1 ... X_{k-1}|| rho_k / (1 - rho_k) ||X_k C_{k+1}^-1 ... C_K^-1||.
  A sum of terms that each hold the condition of one piece: pieces end where theirs exceeds 1e5, so that the condition
  of the whole may be anything. Where no cut has n numbers there is one piece, and it may have a condition of 1e12.
- The last piece may be taller than wide: ||A v||^2 = ||Q^T A v||^2 + ||(I - Q Q^T) A v||^2 makes s_min larger than that
  of Q^T A, by a factor of at most 1 + ||(I - Q Q^T) P_K|| ||C_K^-1||.

Norms of the products of inverses are those of explicit matrices (:mod:`.matrix_norm`). The bounds of ||I - X C|| by
an approximate inverse are those of verification methods (Rump 2010, Acta Numerica 19, 287, section 10). Norms of errors
follow from k Gaussian vectors, sum ||E w||^2 >= ||E||^2 chi^2_k, as in Dixon (1983, SIAM J. Numer. Anal. 20, 812).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from isometry.errors import InputError, NonFiniteError
from isometry.progress import StepProgress

from .chain_factors import EPS, ChainFactor, Step, live_inputs, refuse_gaps
from .matrix_norm import spectral_norm

# Random vectors by which rounding of a piece is measured.
PROBES = 8
# Vectors that go through all factors besides the basis: those, twice as many and one for ||A v||, two that find zeros.
FURTHER_PRODUCTS = 3 * PROBES + 3
# Pieces are to have a condition number of no more than this, and less where factors are rounded to more than float64.
_CONDITION, _LEAST_CONDITION, _MOST_CUTS = 1e5, 4.0, 64
# With so many times that a piece is made again of fewer factors.
_EXCESS = 30.0
# An X_k that is off by more is no inverse.
_INVERSE = 0.5
_POWER_STEPS = 3


@dataclass(frozen=True, eq=False)
class SolvedSmallest:
    """ln of an interval for s_min, or why there is none.

    Parameters
    ----------
    log_lower, log_upper : float
        -inf for 0.
    delta : float
        Probability with which the interval may fail.
    short, long : (n,), (long,) Tensors
        v and u.
    zeros : int
        Singular values that are zero by the pattern of zero rows and columns, or by a width below n.
    singular : bool
        Whether nothing but zero is known from below, and ``log_upper`` is no more than rounding of s_max.
    cause : str
        Why the interval is wider than asked for; empty where it is not.
    """

    log_lower: float
    log_upper: float
    delta: float
    short: Tensor
    long: Tensor
    zeros: int = 0
    singular: bool = False
    cause: str = ""


@dataclass(frozen=True, eq=False)
class _Piece:
    """R, X = R^-1, and their errors, for a piece of which 2^exponent is split off.

    Parameters
    ----------
    basis : (n, width) Tensor
        Q_k, by rows.
    inverse : (n, n) Tensor
        X_k.
    error : float
        rho_k.
    outside : float
        Bound of ||(I - Q Q^T) P_k Q_{k-1}||.
    condition : float
        ||R||_F ||X||_F.
    """

    basis: Tensor
    triangle: Tensor
    inverse: Tensor
    exponent: int
    error: float
    outside: float
    condition: float


@dataclass(frozen=True, eq=False)
class _Deficient:
    """A piece with fewer live entries than n at some cut: its matrix there, by rows of images."""

    images: Tensor


def smallest_by_inverses(
    factors: Sequence[ChainFactor],
    *,
    rtol: float,
    delta: float,
    seed: tuple[int, ...] = (0,),
    device: torch.device | str = "cpu",
    memory_limit: int = 2**31,
    progress: StepProgress | None = None,
) -> SolvedSmallest:
    """s_min of J = J_L ... J_1 between two bounds, or the cause why not.

    Parameters
    ----------
    factors : sequence of ChainFactor
        The first one acts first.
    rtol : float
        Width wanted of the norm of the inverse; what rounding adds is not in it.
    delta : float
        Probability with which the interval may fail.
    seed : tuple of int
        Of the random vectors.
    memory_limit : int
        Bytes for the inverses of the pieces.

    Raises
    ------
    InputError
        Without a factor, where two shapes do not meet, or where the inverses do not fit into the memory limit.
    NonFiniteError
        Where a factor has NaN or inf, or overflows.
    """
    refuse_gaps(factors)
    m, n = factors[-1].shape[0], factors[0].shape[1]
    device = torch.device(device)
    steps = [Step(factor, transposed=m < n) for factor in (reversed(factors) if m < n else factors)]
    run = _Run(steps, min(m, n), delta, seed, device)
    pieces: list[_Piece] = []
    start, ahead = 0, 1
    basis = torch.eye(run.size, dtype=torch.float64, device=device)
    while start < len(run.cuts):
        stop = min(start + ahead, len(run.cuts))
        piece = run.piece(basis, start, stop, len(pieces))
        if isinstance(piece, _Deficient):
            return run.deficient(pieces, piece)
        count, growth = stop - start, math.log(max(piece.condition / run.size, 2.0))
        if count > 1 and piece.condition > run.size * _EXCESS * run.allowed:
            ahead = count // 2
            continue
        if piece.error >= _INVERSE:
            return run.unsolved(
                pieces,
                piece,
                f"{run.place(start, stop)} singular, or of a condition number of {_power(piece.condition)} or more, "
                f"beyond what products of rounding {run.rounding:.0e} carry",
            )
        pieces.append(piece)
        if (len(pieces) + 3) * 8 * run.size**2 > memory_limit:
            raise InputError(
                f"the inverses of {len(pieces)} pieces of {run.size} x {run.size} numbers do not fit into memory_limit "
                f"({memory_limit / 1e9:.3g} GB): raise it, or measure with method='chain'"
            )
        basis, start = piece.basis, stop
        ahead = max(1, min(int(count * math.log(run.allowed) / growth), 2 * count, _MOST_CUTS))
        if progress is not None:
            progress(run.cuts[stop - 1], len(steps))
    return run.interval(pieces, rtol)


class _Run:
    """What the pieces of one chain have in common."""

    def __init__(
        self, steps: Sequence[Step], size: int, delta: float, seed: tuple[int, ...], device: torch.device
    ) -> None:
        self.steps, self.size, self.device = steps, size, device
        widths = [step.factor.shape[1 if step.transposed else 0] for step in steps]
        # Pieces end where the cut has n numbers, and at the end.
        self.cuts = [*(i + 1 for i, width in enumerate(widths[:-1]) if width == size), len(steps)]
        self.generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        self.masks = [live_inputs(step, device) for step in steps]
        self.live = self._live()
        self.rounding = max(step.error for step in steps)
        self.allowed = min(max(1e-4 / self.rounding, _LEAST_CONDITION), _CONDITION)
        self.seed = seed[0]
        # One share of delta for the norm of the inverse, three for the errors of all pieces, two for ||A v||.
        self.delta = delta / 6
        self.quantile = _least_chi_squared(PROBES, self.delta / len(self.cuts))
        self.step_quantile = _least_chi_squared(PROBES, self.delta / len(steps))

    def _live(self) -> list[tuple[int, int]]:
        """How many entries each factor reads that may differ from zero, and how many it writes.

        A random vector of its own for each: entries that shrink from factor to factor do not vanish.
        """
        counts = []
        n = self.steps[0].factor.shape[0 if self.steps[0].transposed else 1]
        live = torch.ones(n, dtype=torch.float64, device=self.device)
        for step, mask in zip(self.steps, self.masks, strict=True):
            read = live if mask is None else live * mask
            live = (step.apply(self._normal(1, read.numel()) * read)[0] != 0).double()
            counts.append((int(read.sum()), int(live.sum())))
        return counts

    def place(self, start: int, stop: int) -> str:
        if len(self.steps) == 1:
            return "J is"
        first, last = (self.cuts[start - 1] if start else 0) + 1, self.cuts[stop - 1]
        if first == last:
            number = len(self.steps) + 1 - first if self.steps[0].transposed else first
            return f"factor {number} of {len(self.steps)} is"
        if self.steps[0].transposed:
            first, last = len(self.steps) + 1 - last, len(self.steps) + 1 - first
        return f"the product of the factors {first} to {last} of {len(self.steps)} is"

    def piece(self, basis: Tensor, start: int, stop: int, number: int) -> _Piece | _Deficient:
        """The piece between two cuts, on the basis that the one before it ended with."""
        first, last = self.cuts[start - 1] if start else 0, self.cuts[stop - 1]
        probes = self._normal(PROBES, self.size)
        stack, exponent = torch.cat([basis, probes @ basis]), 0
        for position in range(first, last):
            read, written = self.live[position]
            if read < self.size:
                mask = self.masks[position]
                return _Deficient(stack[: self.size] if mask is None else stack[: self.size] * mask)
            stack, power = scaled(self.steps[position].apply(stack))
            exponent += power
            if written < self.size:
                return _Deficient(stack[: self.size])
        images = stack[: self.size]
        orthonormal, triangle = torch.linalg.qr(images.T)
        eye = torch.eye(self.size, dtype=torch.float64, device=self.device)
        diagonal = triangle.diagonal().abs()
        condition = math.inf
        if float(diagonal.min()) > 0:
            inverse = torch.linalg.solve_triangular(triangle, eye, upper=True)
            condition = float(torch.linalg.matrix_norm(triangle) * torch.linalg.matrix_norm(inverse))
        if not math.isfinite(condition):
            return _Piece(orthonormal.T, triangle, eye, exponent, math.inf, math.inf, math.inf)
        # The products for random vectors differ from those for the basis by rounding.
        moved = stack[self.size :] - probes @ images
        count = last - first
        delta = self.delta / len(self.cuts)
        size = spectral_norm(triangle, rtol=0.1, delta=delta, seed=self.seed + number).upper
        grown = spectral_norm(inverse, rtol=0.1, delta=delta, seed=self.seed + number).upper
        off = (
            math.sqrt(float((moved * moved).sum()) / self.quantile) + self.rounding * math.sqrt(count) * size
        )
        lost = orthonormal.T @ orthonormal - eye
        skew = float(torch.linalg.matrix_norm(lost))
        left = images.T - orthonormal @ triangle
        outside = float(torch.linalg.matrix_norm(left)) + off
        along = float(torch.linalg.matrix_norm(orthonormal.T @ left + lost @ triangle)) + off
        error = float(torch.linalg.matrix_norm(eye - inverse @ triangle)) + grown * along + 2 * skew
        return _Piece(orthonormal.T, triangle, inverse, exponent, error, outside * grown, condition)

    def interval(self, pieces: Sequence[_Piece], rtol: float) -> SolvedSmallest:
        """s_min from the norm of the product of the inverses and the error that it carries."""
        logs = _interval_norms([piece.inverse for piece in pieces])
        whole, shift = _product([piece.inverse for piece in pieces])
        norm = spectral_norm(whole, rtol=rtol / 4, delta=self.delta, seed=self.seed)
        if len(pieces) == 1:
            logs[0][0] = math.log(norm.upper) + shift
        error = math.exp(min(_carried(logs, [piece.error for piece in pieces], self.size) - shift, 700.0))
        exponent = math.log(2) * sum(piece.exponent for piece in pieces)
        log_lower = exponent - shift - math.log(norm.upper + error)
        y = norm.right
        # Power steps remove what belongs to larger values; ||X y|| / ||y|| never falls by them.
        for _ in range(_POWER_STEPS):
            y = whole.T @ (whole @ y)
            y = y / torch.linalg.vector_norm(y)
        v = whole @ y
        v = v / torch.linalg.vector_norm(v)
        u = y @ pieces[-1].basis
        upper, _ = self.image(v)
        if error < norm.lower:
            outside = pieces[-1].outside / (1 - pieces[-1].error)
            closed = exponent - shift - math.log(norm.lower - error) + math.log1p(outside)
            upper = min(upper, closed)
        upper = max(upper, log_lower)
        cause = ""
        if upper - log_lower > math.log1p(rtol):
            share = error / norm.upper
            cause = (
                f"rounding of the products ({self.rounding:.0e}), carried by the inverses, leaves {share:.1g} of s_min "
                "open"
                if share > rtol / 4
                else f"the norm of the inverse is known to {1 - norm.lower / norm.upper:.1g} only"
            )
        return SolvedSmallest(log_lower, upper, 6 * self.delta, v, u, cause=cause)

    def unsolved(self, before: Sequence[_Piece], piece: _Piece, cause: str) -> SolvedSmallest:
        """ "At most", by the vector that the piece shrinks most."""
        _, _, turn = torch.linalg.svd(piece.triangle)
        return self._at_most(before, turn[-1], cause)

    def deficient(self, before: Sequence[_Piece], piece: _Deficient) -> SolvedSmallest:
        """Zeros that are proved by the pattern."""
        left, _, _ = torch.linalg.svd(piece.images, full_matrices=True)
        found = self._at_most(before, left[:, -1], "")
        most_rank = min(count for pair in self.live for count in pair)
        return SolvedSmallest(
            -math.inf, -math.inf, 0.0, found.short, found.long, zeros=self.size - most_rank, singular=True
        )

    def _at_most(self, before: Sequence[_Piece], vector: Tensor, cause: str) -> SolvedSmallest:
        for piece in reversed(before):
            vector = piece.inverse @ vector
            vector = vector / torch.linalg.vector_norm(vector)
        upper, floor = self.image(vector)
        image = vector[None]
        for step in self.steps:
            image, _ = scaled(step.apply(image))
        length = torch.linalg.vector_norm(image)
        u = image[0] / torch.where(length > 0, length, 1.0)
        return SolvedSmallest(-math.inf, upper, 0.0, vector, u, singular=upper <= floor, cause=cause)

    def image(self, vector: Tensor) -> tuple[float, float]:
        """(ln of a bound of ||A v||, ln of what rounding of products is): by products, for a unit vector.

        Each factor rounds what it gives in proportion to its own size, and the factors after it act on that: where they
        undo one another, rounding is larger than that of A as a whole.
        """
        sizes = []
        image, shift = vector[None], 0.0
        for step in self.steps:
            length = math.log(float(torch.linalg.vector_norm(image)) or 5e-324) + shift
            probes = self._normal(PROBES, image.shape[1])
            # eps times the lengths of the rows: the error of sums has the root of the width in it.
            gain = self._log_norm(step.apply(probes)) - 0.5 * math.log(image.shape[1])
            sizes.append(math.log(step.error) + gain + length)
            image, power = scaled(step.apply(image))
            shift += power * math.log(2)
        value = math.log(float(torch.linalg.vector_norm(image)) or 5e-324) + shift
        # ||A_L ... A_{l + 1}|| for every l, from the end.
        back, shift = self._normal(PROBES, image.shape[1]), 0.0
        terms = [sizes[-1]]
        for step, size in zip(reversed(self.steps[1:]), reversed(sizes[:-1]), strict=True):
            back, power = scaled(Step(step.factor, not step.transposed).apply(back))
            shift += power * math.log(2)
            terms.append(size + self._log_norm(back) + shift)
        noise = float(np.logaddexp.reduce(terms))
        return float(np.logaddexp(value, noise)), noise + math.log(8)

    def _log_norm(self, images: Tensor) -> float:
        """ln of a bound of the norm of a map that takes Gaussian vectors to these."""
        _refuse_non_finite(images)
        length = float(torch.linalg.vector_norm(images))
        return math.log(length or 5e-324) - 0.5 * math.log(self.step_quantile)

    def _normal(self, count: int, length: int) -> Tensor:
        drawn = torch.randn(count, length, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device)


def scaled(block: Tensor) -> tuple[Tensor, int]:
    """The block over a power of two, of order one, and the exponent."""
    _refuse_non_finite(block)
    exponent = int(torch.frexp(block.abs().max()).exponent)
    return torch.ldexp(block, torch.tensor(-exponent, device=block.device)), exponent


def _refuse_non_finite(block: Tensor) -> None:
    if not bool(torch.isfinite(block).all()):
        raise NonFiniteError("a factor of the chain gives NaN or inf, or overflows")


def _product(matrices: Sequence[Tensor]) -> tuple[Tensor, float]:
    """(M, shift): the product is e^shift M, with M of order one."""
    found, shift = matrices[0], 0.0
    for matrix in (None, *matrices[1:]):
        found = found if matrix is None else found @ matrix
        found, exponent = scaled(found)
        shift += exponent * math.log(2)
    return found, shift


def _interval_norms(matrices: Sequence[Tensor]) -> list[list[float]]:
    """ln of the Frobenius norms of the products of the matrices i to j, at [i][j - i]."""
    found = []
    for start in range(len(matrices)):
        product, shift, norms = None, 0.0, []
        for matrix in matrices[start:]:
            product, exponent = scaled(matrix if product is None else product @ matrix)
            shift += exponent * math.log(2)
            norms.append(shift + math.log(float(torch.linalg.matrix_norm(product))))
        found.append(norms)
    return found


def _carried(logs: Sequence[Sequence[float]], errors: Sequence[float], size: int) -> float:
    """ln of the bound of || C_1^-1 ... C_K^-1 - X_1 ... X_K ||, the rounding of the second product included."""
    count = len(errors)

    def norm(first: int, last: int) -> float:
        return logs[first][last - first] if first <= last else 0.0

    beyond = [-math.inf] * (count + 1)
    for start in reversed(range(count)):
        terms = [
            norm(start, k - 1)
            + math.log(errors[k] / (1 - errors[k]))
            + np.logaddexp(norm(k, count - 1), norm(k, k) + beyond[k + 1])
            for k in range(start, count)
        ]
        beyond[start] = float(np.logaddexp.reduce(terms))
    rounded = [
        math.log(size * EPS) + norm(0, k - 1) + norm(k, k) + norm(k + 1, count - 1) for k in range(1, count)
    ]
    return float(np.logaddexp.reduce([beyond[0], *rounded]))


def _least_chi_squared(degrees: int, delta: float) -> float:
    """What chi^2 of so many degrees of freedom exceeds, but with probability ``delta``."""
    return 2 * float(gammaincinv(degrees / 2, delta))


def _power(number: float) -> str:
    return "1e16" if not math.isfinite(number) else f"{number:.0e}"
