"""The derivative of one operation by torch.func, for operations that have no map of their own.

Complex values are pairs of real numbers, (k, \\*S, 2). PyTorch's gradient of a complex tensor is that of its real and
imaginary parts as a complex number, so that its reverse product is the transpose of J on such pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from isometry.jacobian.failures import FAILURES_OF_DERIVATIVES, is_out_of_memory
from isometry.jacobian.numerics import forward_mode_turn, torch_warnings_silenced
from isometry.jacobian.rounding import generic_vectors, relative_difference

from .linear_map import UnfusedMap

_Product = Callable[[Tensor], Tensor]
# Products of a vector alone and beside others differ by less, unless vmap has a wrong rule.
_NOT_ROUNDING = 1e-3


class Differentiated(UnfusedMap):
    """The Jacobian of a function of one tensor at a point.

    Parameters
    ----------
    function : callable
        Pure: Tensor -> Tensor, real or complex.
    point : Tensor
    """

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        with torch.enable_grad():
            value, pull = vjp(function, point)[:2]
        self._source, self._result = _Pairs(point), _Pairs(value)

        def reverse(u: Tensor) -> Tensor:
            return self._source.pairs(pull(self._result.numbers(u))[0])

        def forward(v: Tensor) -> Tensor:
            with forward_mode_turn():
                return self._result.pairs(jvp(function, (point,), (self._source.numbers(v),))[1])

        def twice_reverse(v: Tensor) -> Tensor:
            start = torch.zeros(self._result.shape, dtype=self._result.dtype, device=point.device)
            with torch.enable_grad():
                return vjp(reverse, start)[1](v)[0]

        self._reverse = _first_right([vmap(reverse), _one_by_one(reverse)], self._result.random(1))
        ways = [vmap(forward), vmap(twice_reverse), _one_by_one(forward), _one_by_one(twice_reverse)]
        self._forward = _first_right(ways, self._source.random(2))

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._made(self._forward, v.reshape(-1, *self._source.shape))

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        """See :class:`LinearMap`."""
        return self._made(self._reverse, u.reshape(-1, *self._result.shape))

    @staticmethod
    def _made(product: _Product, block: Tensor) -> Tensor:
        with torch_warnings_silenced():
            return product(block).detach().clone(memory_format=torch.contiguous_format)


class _Pairs:
    """A value as real numbers: itself, or (\\*S, 2) for a complex one."""

    def __init__(self, value: Tensor) -> None:
        self._complex = value.is_complex()
        self.shape = (*value.shape, 2) if self._complex else tuple(value.shape)
        self.dtype = value.dtype.to_real() if self._complex else value.dtype
        self._device = value.device

    def numbers(self, pairs: Tensor) -> Tensor:
        return torch.view_as_complex(pairs.contiguous()) if self._complex else pairs

    def pairs(self, numbers: Tensor) -> Tensor:
        return torch.view_as_real(numbers.resolve_conj()) if self._complex else numbers

    def random(self, seed: int) -> Tensor:
        return generic_vectors(torch.empty(self.shape, dtype=self.dtype, device=self._device), 2, seed)


def _one_by_one(product: _Product) -> _Product:
    return lambda block: torch.stack([product(vector) for vector in block])


def _first_right(products: list[_Product], block: Tensor) -> _Product:
    """The first product that works, and makes of a block what it makes of its vectors alone."""
    first: Exception | None = None
    for product in products:
        try:
            with torch_warnings_silenced():
                both, alone = product(block), product(block[1:])
        except FAILURES_OF_DERIVATIVES as error:
            if is_out_of_memory(error):
                raise
            first = first or error
            continue
        if not bool(torch.isfinite(alone).all()) or relative_difference(both[1:], alone) < _NOT_ROUNDING:
            return product
    raise first or RuntimeError("no product of one operation")
