"""Block Golub-Kahan with thick restart: a bounded space that holds the leading singular triplets of A.

Two orthonormal bases V (short side) and U (long side) grow together so that

    A V = U H        and        A^T U = V H^T + F G,

H small and square, F the next block, orthonormal and orthogonal to V. With H = X S Y^T the Ritz triplet
(U x, s, V y) satisfies A v = s u exactly, and A^T u - s v = F (G x): its residual costs nothing. To restart, V Y and
U X are cut to the triplets worth keeping; both relations stay true as they are, so F is the next block again
(augmented restart: Baglama & Reichel 2005, SIAM J. Sci. Comput. 27, 19; by blocks: Baglama & Reichel 2006, BIT 46,
Suppl. 1; Golub, Luk & Overton 1981, ACM TOMS 7, 149). Every block is orthogonalised against the whole basis, twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .blocks import ShortSide, random_block

Array = NDArray[np.float64]
# Vectors there is room for at first.
_FIRST_ROOM = 96


@dataclass(frozen=True)
class RitzTriplets:
    """The singular triplets of H for each of B inputs, descending.

    Parameters
    ----------
    values : (B, j) array
        s; each is at most the singular value of A of its rank.
    left, right : (B, j, j) arrays
        X and Y, one triplet a column.
    coupling : (B, f, j) array
        G X: column i is A^T u_i - s_i v_i in the basis F of the next block.
    """

    values: Array
    left: Array
    right: Array
    coupling: Array

    @property
    def residuals(self) -> Array:
        """(B, j) norms of A^T u - s v; A v = s u holds exactly."""
        return np.linalg.norm(self.coupling, axis=1)


class BlockKrylov:
    """The space and its two relations, for each of B inputs; see the module.

    Parameters
    ----------
    side : ShortSide
        A.
    start : (width, B, short) tensor
        The first block, made orthonormal here.
    capacity : int
        Vectors that each basis may hold, the next block not counted.
    seed, first_input : int
        For the random vectors that stand in where a block has become linearly dependent.
    room : int
        Vectors that there is room for at first; it doubles when it ends.
    deflation_basis : (B, p, short) tensor, optional
        Orthonormal rows to stay orthogonal to on the short side: A is then A (I - W^T W).
    """

    def __init__(
        self,
        side: ShortSide,
        start: Tensor,
        capacity: int,
        *,
        seed: int = 0,
        first_input: int = 0,
        room: int = _FIRST_ROOM,
        deflation_basis: Tensor | None = None,
    ) -> None:
        self.side = side
        self.size = 0
        self._deflation_basis = deflation_basis
        self._free = side.short - (0 if deflation_basis is None else deflation_basis.shape[1])
        self.capacity = min(capacity, self._free)
        self._seed, self._first_input, self._blocks = seed, first_input, 0
        first = min(self.capacity, room)
        self._right, self._left = (
            torch.empty(side.batch, first, length, dtype=side.dtype, device=side.device)
            for length in (side.short, side.long)
        )
        self._h = np.zeros((side.batch, first, first))
        self._largest = np.zeros(side.batch)
        start = start.transpose(0, 1)[:, : self._free]
        self.next, _, _ = self._orthonormalised(start, None, deflation_basis=deflation_basis, product=False)
        self._g = np.zeros((side.batch, start.shape[1], 0))
        self.start_width = start.shape[1]

    @property
    def width(self) -> int:
        """Vectors of the next block: 0 where the basis fills its space."""
        return int(self.next.shape[1])

    @property
    def dimension(self) -> int:
        """Of the space that V can fill: the short side, less the rank of ``deflation_basis``."""
        return self._free

    @property
    def complete(self) -> bool:
        """Whether V spans the whole short side (less ``deflation_basis``): the triplets are then all there are."""
        return self.size == self._free

    @property
    def right(self) -> Tensor:
        """(B, size, short): V, by rows."""
        return self._right[:, : self.size]

    @property
    def left(self) -> Tensor:
        """(B, size, long): U, by rows."""
        return self._left[:, : self.size]

    def expand(self) -> None:
        """One block more: A and A^T once each on ``width`` vectors of every input."""
        old, width = self.size, self.width
        size = old + width
        if size > self.capacity:
            raise ValueError(f"{size} vectors do not fit into a capacity of {self.capacity}")
        self._reserve(size)
        self._right[:, old:size] = self.next
        image = self.side.apply(self.next.transpose(0, 1)).transpose(0, 1)
        block, along, remainder = self._orthonormalised(image, self.left)
        self._left[:, old:size] = block
        # Column c of H: what A v_c has along U.
        self._h[:, :old, old:size] = along.transpose(0, 2, 1)
        self._h[:, old:size, old:size] = remainder.transpose(0, 2, 1)
        self.size = size
        back = self.side.adjoint(block.transpose(0, 1)).transpose(0, 1)
        if self.complete:
            self.next = self.next[:, :0]
            self._g = np.zeros((self.side.batch, 0, size))
            return
        kept = min(width, self._free - size)
        following, _, remainder = self._orthonormalised(
            back, self.right, deflation_basis=self._deflation_basis
        )
        # Near the end fewer directions are left than vectors came: the others are rounding.
        self.next = following[:, :kept]
        self._g = np.zeros((self.side.batch, kept, size))
        self._g[:, :, old:] = remainder.transpose(0, 2, 1)[:, :kept]

    def ritz(self) -> RitzTriplets:
        """The triplets of the space as it stands."""
        x, s, y = np.linalg.svd(self._h[:, : self.size, : self.size])
        return RitzTriplets(s, x, y.transpose(0, 2, 1), self._g @ x)

    def vectors(self, triplets: RitzTriplets, count: int) -> tuple[Tensor, Tensor]:
        """(u, v) of the first ``count`` triplets, by rows: (B, count, long) and (B, count, short)."""
        left = self._tensor(triplets.left[:, :, :count].transpose(0, 2, 1)) @ self.left
        return left, self.right_vectors(triplets, count)

    def right_vectors(self, triplets: RitzTriplets, count: int) -> Tensor:
        """v of the first ``count`` triplets, by rows: (B, count, short)."""
        return self._tensor(triplets.right[:, :, :count].transpose(0, 2, 1)) @ self.right

    def restart(self, triplets: RitzTriplets, keep: int) -> None:
        """Cut the bases to the first ``keep`` triplets."""
        left, right = self.vectors(triplets, keep)
        self._left[:, :keep], self._right[:, :keep] = left, right
        self.size = keep
        self._h[:] = 0.0
        diagonal = np.arange(keep)
        self._h[:, diagonal, diagonal] = triplets.values[:, :keep]
        self._g = triplets.coupling[:, :, :keep]

    def augment(self, block: Tensor) -> None:
        """Add the (B, k, short) ``block`` to the next one: directions that the space misses.

        Directions of the next block in which no triplet has a residual beyond rounding make room for them.
        """
        turn, sizes, _ = np.linalg.svd(self._g, full_matrices=True)
        live = int((sizes > self.side.noise_floor(self._largest)[:, None]).sum(axis=1).max())
        self.next = self._tensor(turn[:, :, :live].transpose(0, 2, 1)) @ self.next
        self._g = turn[:, :, :live].transpose(0, 2, 1) @ self._g
        block = block[:, : self._free - self.size - self.width]
        taken = torch.cat([self.right, self.next], dim=1)
        fresh, _, _ = self._orthonormalised(
            block, taken, deflation_basis=self._deflation_basis, product=False
        )
        self.next = torch.cat([self.next, fresh], dim=1)
        self._g = np.pad(self._g, [(0, 0), (0, fresh.shape[1]), (0, 0)])

    def _reserve(self, size: int) -> None:
        """Room for ``size`` vectors, doubled when it ends: most spaces stay far below their capacity."""
        present = self._h.shape[-1]
        if size <= present:
            return
        more = min(max(size, 2 * present), self.capacity) - present
        self._right = torch.cat(
            [self._right, self._right.new_empty(self.side.batch, more, self.side.short)], dim=1
        )
        self._left = torch.cat(
            [self._left, self._left.new_empty(self.side.batch, more, self.side.long)], dim=1
        )
        self._h = np.pad(self._h, [(0, 0), (0, more), (0, more)])

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.side.device, self.side.dtype)

    def _draw(self, count: int, length: int) -> Tensor:
        """(B, count, length) random rows, others for every block."""
        block = random_block(
            count,
            self.side,
            self._seed,
            first_input=self._first_input,
            stream=1000 + self._blocks,
            length=length,
        )
        return block.transpose(0, 1)

    def _orthonormalised(
        self,
        block: Tensor,
        basis: Tensor | None,
        *,
        deflation_basis: Tensor | None = None,
        product: bool = True,
    ) -> tuple[Tensor, Array, Array]:
        """An orthonormal block orthogonal to the basis and ``deflation_basis``; (B, k, j) and (B, k, k) coefficients:

        block = along @ basis + remainder @ result, rows everywhere; the part along ``deflation_basis`` is dropped.
        Directions that are rounding (of the largest ``product`` seen) are replaced by random ones with a coefficient of
        zero.
        """
        self._blocks += 1
        # The size of a deep product may be 1e-30: its square must not underflow.
        scale = block.abs().amax(dim=(1, 2), keepdim=True)
        block = block / torch.where(scale > 0, scale, 1.0)
        others = [other for other in (basis, deflation_basis) if other is not None and other.shape[1]]
        rows = block.shape[1]
        along = block.new_zeros(block.shape[0], rows, 0 if basis is None else basis.shape[1])
        remainder: Tensor | None = None
        passes, extra = 2, 3
        while passes:
            passes -= 1
            for other in others:
                overlap = block @ other.transpose(1, 2)
                block = block - overlap @ other
                if other is basis:
                    along = along + (overlap if remainder is None else remainder @ overlap)
            q, r = torch.linalg.qr(block.transpose(1, 2))
            block = q.transpose(1, 2)
            step = r.transpose(1, 2)
            if remainder is None:
                # Sorted by size, so that what is rounding stands last.
                x, s, y = torch.linalg.svd(step.double())
                size = s * scale[:, :, 0].double()
                largest = size.amax(dim=1)
                if product:
                    self._largest = np.maximum(self._largest, largest.cpu().numpy())
                    largest = torch.from_numpy(self._largest).to(size)
                # What is kept although it is rounding lies in the span of a basis that is orthonormal to rounding only:
                # normalised, it would magnify the loss of orthogonality block after block.
                rounding = 8 * self.side.eps * largest
                gone = (size <= rounding[:, None]) | (s <= 0)
                block = y.to(block.dtype) @ block
                remainder = (x * torch.where(gone, 0.0, s)[:, None, :]).to(block.dtype)
                if bool(gone.any()):
                    block = torch.where(gone[:, :, None], self._draw(rows, block.shape[-1]), block)
                    # Random vectors have not met the basis yet.
                    passes += 1
            else:
                remainder = remainder @ step
                kept = r.diagonal(dim1=1, dim2=2).abs().amin() if passes == 0 else 1.0
                # "Twice is enough" for what was not rounding itself: a row that shrank again needs another pass.
                if kept < 0.5 and extra:
                    passes, extra = 1, extra - 1
        assert remainder is not None
        factor = scale.double().cpu().numpy()
        return block, along.double().cpu().numpy() * factor, remainder.double().cpu().numpy() * factor
