"""How far rounding moves what is computed: each operation is run once more, on arguments that are off by rounding.

Another order of summation, another kernel or another number of threads changes every intermediate by some units of
rounding. :func:`sensitivity` makes such changes on purpose, inside one run. What the run draws or keeps as a state is
the same in both copies, so that they differ by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Multiples of the sensitivity by which two runs may differ for rounding alone. A sum of n terms, one after another, is
# off by about sqrt(n) / 5 units of its length, where a perturbation changes it by one: this is enough for n = 25,000.
TIMES_SENSITIVITY = 32
# One perturbation of so many entries is as long as another; of a single entry it may happen to be nearly zero.
_ENTRIES = 100


def sensitivity(run: Callable[[Tensor], Tensor], point: Tensor) -> float:
    """||y~ - y||, the largest of a few trials, and at least one unit of rounding of y.

    y is ``run(point)``. y~ is computed beside it, by the same operations with the same random numbers, from the point
    and intermediates multiplied by 1 + eps or 1 - eps, the sign of each entry at random, eps being the unit of the
    entry's type. Whole numbers are left as they are: they may be positions.
    """
    found, entries, seed = 0.0, 0, 0
    while entries < _ENTRIES and seed < 5:
        start = point.detach().clone()
        with _Shadow(seed) as shadow:
            shadow.follow(start)
            out = run(start).detach()
        other = shadow.of(out)
        size = norm(out)
        difference = 0.0 if other is None else length_of_difference(other, out)
        found = max(found, difference, torch.finfo(out.dtype).eps * size)
        entries, seed = entries + out.numel(), seed + 1
    return found


def length_of_difference(a: Tensor, b: Tensor) -> float:
    """||a - b|| over the entries that are finite in both."""
    difference = (a.double() - b.double()).reshape(-1)
    return norm(difference[torch.isfinite(difference)])


def norm(vector: Tensor) -> float:
    """||v||, also where the squares of its entries leave the range of floats."""
    flat = vector.double().reshape(-1)
    size = float(flat.abs().max()) if flat.numel() else 0.0
    # nan and inf stay what they are.
    return size * float((flat / size).norm()) if 0 < size < math.inf else size


class _Shadow(TorchDispatchMode):
    """Runs each operation on what depends on the point a second time, on perturbed copies, the shadows.

    Shadows are kept by storage, so that views and writes in place are followed without further care.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        # The storage of a shadow by the address of the original's; originals are kept, so that addresses stay theirs.
        self._shadows: dict[int, Tensor] = {}
        self._kept: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def follow(self, point: Tensor) -> None:
        """Begin with a perturbed copy of this tensor."""
        self._set(point, self._perturbed(point.clone()))

    def of(self, tensor: Tensor) -> Tensor | None:
        """The perturbed copy of a tensor; None where it has none, since it does not depend on the point."""
        memory = self._shadows.get(storage_of(tensor))
        if memory is None:
            return None
        if memory.dtype != tensor.dtype:
            memory = memory.view(tensor.dtype)
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tensors_in((args, kwargs)) if _plain(t)]
        followed = any(storage_of(t) in self._shadows for t in tensors)
        if not followed:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            for tensor in tensors:
                self._cover(tensor)
        shadows = _mapped((args, kwargs), self._shadow_or_self)
        draws = torch.Tag.nondeterministic_seeded in func.tags
        generator = _generator(kwargs, tensors) if draws else None
        state = generator.get_state() if generator is not None else None
        out = func(*args, **kwargs)
        if generator is not None:
            assert state is not None
            generator.set_state(state)
        try:
            other = func(*shadows[0], **shadows[1])
        except (RuntimeError, IndexError):
            # Its positions or sizes depend on values: the copy goes on as the original.
            other = out
        self._note(out, other)
        return out

    def _note(self, out: Any, other: Any) -> None:
        for made, copy in zip(tensors_in(out), tensors_in(other), strict=False):
            if not _plain(made) or not _plain(copy) or storage_of(made) in self._shadows:
                continue
            if copy is made or copy.shape != made.shape:
                copy = made
            self._set(made, self._perturbed(copy.clone()))

    def _shadow_or_self(self, tensor: Tensor) -> Tensor:
        shadow = self.of(tensor) if _plain(tensor) else None
        return tensor if shadow is None else shadow

    def _cover(self, tensor: Tensor) -> None:
        """Give a tensor that may be written to a copy, unperturbed, where it has none."""
        if storage_of(tensor) not in self._shadows:
            self._set(tensor, tensor.clone())

    def _set(self, tensor: Tensor, copy: Tensor) -> None:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
        memory.copy_(whole[:size])
        self._shadows[storage_of(tensor)] = memory
        memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(copy)
        self._kept.append(tensor.untyped_storage())

    def _perturbed(self, copy: Tensor) -> Tensor:
        if copy.is_complex():
            torch.view_as_real(copy).copy_(self._perturbed(torch.view_as_real(copy).clone()))
            return copy
        if not copy.is_floating_point() or copy.element_size() < 2:
            return copy
        generator = self._generators.get(copy.device)
        if generator is None:
            generator = torch.Generator(copy.device).manual_seed(self._seed)
            self._generators[copy.device] = generator
        factors = torch.empty(copy.shape, dtype=copy.dtype, device=copy.device)
        eps = torch.finfo(copy.dtype).eps
        factors.bernoulli_(0.5, generator=generator).mul_(2 * eps).add_(1 - eps)
        return torch.where(copy == copy.round(), copy, factors.mul_(copy))


def storage_of(tensor: Tensor) -> int:
    """A number that stands for the memory of a tensor, as long as that lives."""
    return tensor.untyped_storage()._cdata


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory that a copy can stand beside."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        # Forward mode makes some in order to compare layouts.
        and not tensor.is_meta
        and not tensor._is_zerotensor()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_quantized
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value


def _generator(kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.Generator:
    """The generator from which an operation draws."""
    given = kwargs.get("generator")
    if given is not None:
        return given
    device = tensors[0].device
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
