"""Positive numbers of any size: mantissas in [0.5, 1) times powers of two. Products of thousands keep all digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scales:
    """mantissa * 2^exponent.

    Parameters
    ----------
    mantissa : (r,) float64 Tensor
        In [0.5, 1).
    exponent : (r,) int64 Tensor
    """

    mantissa: Tensor
    exponent: Tensor

    @classmethod
    def ones(cls, count: int, device: torch.device | str = "cpu") -> Scales:
        return cls(torch.ones(count, dtype=torch.float64, device=device),
                   torch.zeros(count, dtype=torch.int64, device=device)).times(1.0)  # fmt: skip

    def times(self, factors: Tensor | float) -> Scales:
        """Each times its positive factor."""
        mantissa, exponent = torch.frexp(self.mantissa * factors)
        return Scales(mantissa, self.exponent + exponent)

    def raised(self, exponent: int) -> Scales:
        """Each times 2^exponent."""
        return Scales(self.mantissa, self.exponent + exponent)

    def __getitem__(self, index: Tensor | slice) -> Scales:
        return Scales(self.mantissa[index], self.exponent[index])

    @property
    def size(self) -> int:
        return int(self.mantissa.numel())

    @property
    def log(self) -> Tensor:
        """ln of each."""
        return torch.log(self.mantissa) + self.exponent.double() * math.log(2)

    @property
    def descending(self) -> Tensor:
        """The order from the largest to the smallest; stable."""
        return torch.argsort(self.log, descending=True, stable=True)

    def over(self, others: Scales) -> Tensor:
        """(r, c): each over each of the others; 0 and inf out of the range of floats."""
        mantissa = torch.log(self.mantissa)[:, None] - torch.log(others.mantissa)
        return torch.exp(mantissa + (self.exponent[:, None] - others.exponent).double() * math.log(2))
