"""`device_of`: the device that a user names."""

from __future__ import annotations

from isometry.errors import InputError


def device_of(name: str | None) -> str:
    """The device of that name; the current GPU, else the processor, where there is no name.

    Raises
    ------
    InputError
        When this process has no such device.
    """
    import torch

    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"there is no device {wanted!r} here ({reason}); take cpu, or leave the device out."
        ) from error
    return wanted
