"""Writes in place: the content of a written storage becomes a value of its own.

Once a storage has been written to, its content is one flat value, and each later read from it, through whatever view,
is a gather from that value. Operations that were recorded with the old content get a copy of it before the write.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .tape import HeldValue, NoRule, Operation, TapeWriter, flat_tensors, map_tensors


@dataclass(frozen=True, eq=False)
class _Content:
    """The flat value of a written storage (None: independent of the input), its entries, and the number of writes.

    Entries are real numbers: a complex one is two of them.
    """

    value: int | None
    size: int
    version: int
    # Keeps the address from being used for another storage.
    tensor: Tensor


class WrittenMemory:
    """The storages that were written in place during a run.

    Parameters
    ----------
    tape : TapeWriter
        Where gathers are written to.
    """

    def __init__(self, tape: TapeWriter) -> None:
        self._tape = tape
        self.contents: dict[int, _Content] = {}
        self._origins: dict[int, HeldValue] = {}
        self._origins_known = 0
        # Operations by the storages of their tensors; made at the first write, which most networks never do.
        self._users: dict[int, list[Operation]] | None = None

    def value_of(self, tensor: Tensor) -> int | None:
        """The number of the value that a tensor holds now; None where it does not depend on the input."""
        held = self._tape.held.get(id(tensor))
        content = self.contents.get(_storage(tensor))
        if content is None:
            return None if held is None else held.value
        if held is None or held.version != content.version:
            held = HeldValue(tensor, self._read(content, tensor), content.version)
            self._tape.held[id(tensor)] = held
        return held.value

    def version_of(self, tensor: Tensor) -> int:
        """How often the storage of a tensor has been written to."""
        content = self.contents.get(_storage(tensor)) if self.contents else None
        return content.version if content else 0

    def note_user(self, operation: Operation) -> None:
        """Remember which storages a new operation refers to."""
        if self._users is not None:
            self._add_user(self._users, operation)

    def copy_for_users(self, target: Tensor) -> Tensor | None:
        """Give the operations that refer to the storage of ``target`` a copy of its present content.

        Returns the copy of ``target`` itself; None where none of them has it.
        """
        storage = _storage(target)
        if self._users is None:
            self._users = {}
            for operation in self._tape.operations:
                self._add_user(self._users, operation)
        # With the originals, so that no identity is used twice.
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def copied(_: int, tensor: Tensor) -> Tensor:
            if _storage(tensor) != storage:
                return tensor
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.clone(), tensor
            return copies[id(tensor)][0]

        for operation in self._users.pop(storage, []):
            operation.args, operation.kwargs = map_tensors(operation.args, operation.kwargs, copied)
            operation.tensors = flat_tensors(operation.args, operation.kwargs)
            operation.output = map_tensors((operation.output,), {}, copied)[0][0]
        return copies[id(target)][0] if id(target) in copies else None

    def write(self, target: Tensor, value: int) -> None:
        """The storage of ``target`` now holds ``value`` where ``target`` lies in it."""
        storage = _storage(target)
        content = self.contents.get(storage)
        if content is None:
            content = self._before_the_first_write(target)
        if _is_in_order(target, content.size):
            now: int = value
        else:
            places = _places(target, content.size)
            whole = places.numel() == content.size
            now = self._tape.add_gather(value, _inverse(places, content.size), places.numel())
            if content.value is not None and not whole:
                kept = torch.arange(content.size)
                kept[places] = -1
                self._tape.add_gather(content.value, kept, content.size, result=now)
        self.contents[storage] = _Content(now, content.size, content.version + 1, target)
        self._tape.held[id(target)] = HeldValue(target, value, content.version + 1)

    def _add_user(self, users: dict[int, list[Operation]], operation: Operation) -> None:
        for tensor in (*operation.tensors, *flat_tensors((operation.output,), {})):
            users.setdefault(_storage(tensor), []).append(operation)

    def _before_the_first_write(self, target: Tensor) -> _Content:
        size = target.untyped_storage().nbytes() // _real_type(target).itemsize
        # The first tensor that was followed in a storage is the one it was made for; later ones are views.
        origin = self._first_held().get(_storage(target))
        if origin is None:
            return _Content(None, size, 0, target)
        if _real_type(origin.tensor) != _real_type(target):
            raise NoRule("memory seen as two types of number")
        if _is_in_order(origin.tensor, size):
            return _Content(origin.value, size, 0, target)
        assert origin.value is not None
        places = _places(origin.tensor, size)
        now = self._tape.add_gather(origin.value, _inverse(places, size), places.numel())
        return _Content(now, size, 0, target)

    def _first_held(self) -> dict[int, HeldValue]:
        """The first tensor followed in each storage; searched from where the last search ended."""
        for held in itertools.islice(self._tape.held.values(), self._origins_known, None):
            self._origins.setdefault(_storage(held.tensor), held)
        self._origins_known = len(self._tape.held)
        return self._origins

    def _read(self, content: _Content, tensor: Tensor) -> int | None:
        if content.value is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return None
        if _real_type(tensor) != _real_type(content.tensor):
            raise NoRule("memory seen as two types of number")
        if tensor.is_conj() or tensor.is_neg():
            raise NoRule("memory seen as conjugate or negative")
        if _is_in_order(tensor, content.size):
            return content.value
        return self._tape.add_gather(content.value, _places(tensor, content.size), content.size)


def _real_type(tensor: Tensor) -> torch.dtype:
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _inverse(places: Tensor, size: int) -> Tensor:
    """For each of ``size`` entries its position in ``places``, or -1."""
    inverse = torch.full((size,), -1)
    inverse[places] = torch.arange(places.numel())
    return inverse


def _is_in_order(tensor: Tensor, size: int) -> bool:
    """Whether a tensor is all ``size`` real numbers of its storage in row-major order."""
    count = tensor.numel() * (2 if tensor.is_complex() else 1)
    return count == size and tensor.storage_offset() == 0 and tensor.is_contiguous()


def _places(tensor: Tensor, size: int) -> Tensor:
    """The positions of the numbers of a tensor in its storage, counted in real numbers, in row-major order."""
    with torch.utils._python_dispatch._disable_current_modes():
        shape, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        if tensor.is_complex():
            shape, stride, offset = (*shape, 2), (*(2 * step for step in stride), 1), 2 * offset
        return torch.arange(size).as_strided(shape, stride, offset).reshape(-1).clone()
