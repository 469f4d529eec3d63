"""PyTorch's global random numbers: what a model draws from them, and the caller's state as it was.

The state is one for the whole process. Whether *this* thread draws is seen from its operations, not from the state,
which another thread may change; and a state is restored only where this thread drew, so that what another one has drawn
is not drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Draws(TorchDispatchMode):
    """Watches the operations of this thread, while entered, for one that draws from a global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

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
    before = torch.get_rng_state()
    devices = list(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])
    on_devices = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        yield draws
    finally:
        if draws.seen:
            torch.set_rng_state(before)
            for device, state in zip(devices, on_devices, strict=True):
                torch.cuda.set_rng_state(state, device)
