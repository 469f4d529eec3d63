"""The factors of a product J = J_L ... J_1 as maps on blocks of row vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from isometry.errors import InputError

EPS = float(torch.finfo(torch.float64).eps)


class ChainFactor(Protocol):
    """A factor J_l as a map on blocks, one vector a row."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m_l, n_l)."""
        ...

    @property
    def rounding(self) -> float:
        """Relative rounding of the factor and of its products."""
        ...

    def forward(self, block: Tensor) -> Tensor:
        """J_l v: (k, n_l) -> (k, m_l)."""
        ...

    def adjoint(self, block: Tensor) -> Tensor:
        """J_l^T u: (k, m_l) -> (k, n_l)."""
        ...


@dataclass(frozen=True, eq=False)
class MatrixFactor:
    """A factor given as a matrix.

    Parameters
    ----------
    matrix : (m, n) Tensor
    rounding : float
        Relative error of its entries.
    """

    matrix: Tensor
    rounding: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return m, n

    def forward(self, block: Tensor) -> Tensor:
        return block @ self.matrix.T

    def adjoint(self, block: Tensor) -> Tensor:
        return block @ self.matrix


@dataclass(frozen=True, eq=False)
class Step:
    """A factor, or its transpose."""

    factor: ChainFactor
    transposed: bool

    @property
    def error_of_sums(self) -> float:
        """Relative error of a product in float64."""
        return EPS * math.sqrt(max(self.factor.shape))

    @property
    def error(self) -> float:
        """Relative error of a product: that of its sums, or the factor's own rounding."""
        return max(self.error_of_sums, self.factor.rounding)

    def apply(self, block: Tensor) -> Tensor:
        return self.factor.adjoint(block) if self.transposed else self.factor.forward(block)


def live_inputs(step: Step, device: torch.device) -> Tensor | None:
    """1 for the entries of a vector that the factor depends on, 0 for its columns of zeros; None without any."""
    m, n = step.factor.shape
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1, n if step.transposed else m, generator=generator, dtype=torch.float64).to(device)
    live = (step.factor.forward if step.transposed else step.factor.adjoint)(random)[0] != 0
    return None if bool(live.all()) else live.double()


def refuse_gaps(factors: Sequence[ChainFactor]) -> None:
    if not factors:
        raise InputError("a chain needs at least one factor")
    for number, (one, after) in enumerate(pairwise(factors), start=1):
        if one.shape[0] != after.shape[1]:
            raise InputError(
                f"factor {number + 1} of the chain takes {after.shape[1]} numbers, and factor {number} gives "
                f"{one.shape[0]}"
            )
