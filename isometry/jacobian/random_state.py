"""PyTorch's global random numbers: what a model draws from them, and the caller's state as it was.

The state is one for the whole process. Whether *this* thread draws is seen from its operations, not from the state,
which another thread may change; and a state is restored only where this thread drew, so that what another one has drawn
is not drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


class Draws(TorchDispatchMode):
    """Watches the operations of this thread, while entered, for one that draws from a global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def watched(self, run: Callable[[], Result], device: torch.device) -> Result:
        """What ``run`` returns; where the global states have changed meanwhile it runs again, watched.

        To watch each operation costs more than a small one takes: only a changed state asks which thread drew.
        """
        if device.type in ("cpu", "cuda"):
            before, ended = _states(), False
            try:
                found = run()
                ended = True
            finally:
                changed = not all(map(torch.equal, before, _states()))
                # An error or an interrupt is not run again.
                self.seen = self.seen or (changed and not ended)
            if not changed:
                return found
        with self:
            return run()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            self.seen = True
        return func(*args, **kwargs)


@contextmanager
def random_state_kept() -> Iterator[Draws]:
    """The caller's random state is afterwards as it was where the `Draws` that is given has seen a draw.

    What another thread draws from the same state in the meantime is then drawn again; where nothing was seen the state
    is left alone.
    """
    draws = Draws()
    before, *on_devices = _states()
    try:
        yield draws
    finally:
        if draws.seen:
            torch.set_rng_state(before)
            for device, state in enumerate(on_devices):
                torch.cuda.set_rng_state(state, device)


def _states() -> list[Tensor]:
    """The state of the processor's generator, and of each GPU's where CUDA is in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
