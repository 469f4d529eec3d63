"""Which calls of modules an operation ran in: names alone do not tell the calls of a shared module apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn


class ModuleCall(NamedTuple):
    """The ``number``-th call, from 1, of the module ``name``, an instance of ``kind``."""

    name: str
    number: int
    kind: str


class ModuleCalls:
    """The calls that are running, outermost first, while a model runs.

    :meth:`label` is what a tape asks for: a text that stands for the calls that are running, for :meth:`calls`.
    """

    def __init__(self) -> None:
        self._running: tuple[ModuleCall, ...] = ()
        self._labels: dict[tuple[ModuleCall, ...], str] = {}
        self._calls: list[tuple[ModuleCall, ...]] = []
        self._counts: dict[str, int] = {}

    def label(self) -> str:
        """The text that stands for the calls that are running."""
        if self._running not in self._labels:
            self._labels[self._running] = str(len(self._calls))
            self._calls.append(self._running)
        return self._labels[self._running]

    def calls(self, label: str) -> tuple[ModuleCall, ...]:
        """The calls that a text stands for, outermost first."""
        return self._calls[int(label)]

    def count(self, name: str) -> int:
        """How often the module of that name was called."""
        return self._counts.get(name, 0)

    @contextmanager
    def watching(self, module: nn.Module | None) -> Iterator[None]:
        """Count the calls of a module and of all inside it."""
        handles = []
        for name, part in module.named_modules() if module is not None else ():

            def enter(part: nn.Module, _: object, name: str = name) -> None:
                self._counts[name] = self._counts.get(name, 0) + 1
                call = ModuleCall(name, self._counts[name], type(part).__name__)
                self._running = (*self._running, call)

            def leave(_: nn.Module, __: object, ___: object) -> None:
                self._running = self._running[:-1]

            handles.append(part.register_forward_pre_hook(enter, prepend=True))
            handles.append(part.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
