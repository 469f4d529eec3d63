"""Contexts under which a Jacobian is evaluated; every setting is afterwards as it was before."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# PyTorch counts the levels of forward-mode differentiation for the whole process: of two threads that differentiate at
# once one takes the tangents of the other.
ONE_FORWARD_MODE = threading.RLock()


@contextmanager
def strict_numerics(device: torch.device, *, recurrent: bool = False, tf32: bool = False) -> Iterator[None]:
    """Full float32 precision, deterministic kernels, and only operations that can be differentiated.

    - TF32 and bfloat16 products are off: their 1e-3 error would be read as singular values. TF32 is on only where it
      is asked for.
    - Attention goes through its mathematical formula: the fused kernels have no forward-mode derivative
      (pytorch issue 128971), and neither has the fused encoder layer.
    - Recurrent layers leave their fused kernels (oneDNN, cuDNN), which have no forward-mode derivative and no
      second derivative either.
    - Autocast is off.

    Parameters
    ----------
    device : torch.device
        Where the model is evaluated.
    recurrent : bool
        Whether the model holds a fused recurrent layer.
    tf32 : bool
        Whether convolutions and matrix products on a GPU may round their factors to 10 bits.
    """
    backends: Any = torch.backends
    with warnings.catch_warnings(), ExitStack() as stack:
        # Switching oneDNN off and on again warns about a setting that is not touched here.
        warnings.filterwarnings("ignore", message=".*TF32 behavior.*|.*TF32 acceleration.*")
        # Per backend, not by the one old switch: reading that raises where a user has set a single backend.
        for backend in (
            backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
            backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
        ):  # fmt: skip
            on_gpu = backend not in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
            _set(stack, backend, "fp32_precision", "tf32" if tf32 and on_gpu else "ieee")
        stack.callback(backends.mha.set_fastpath_enabled, backends.mha.get_fastpath_enabled())
        backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            _set(stack, backends.cudnn, "benchmark", False)
            _set(stack, backends.cudnn, "deterministic", True)
            if recurrent:
                _set(stack, backends.cudnn, "enabled", False)
        elif recurrent:
            stack.enter_context(backends.mkldnn.flags(enabled=False))
        yield


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for reference cycles, which would traverse the growing tape again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def torch_warnings_silenced() -> Iterator[None]:
    """Without torch's warnings of its own slow paths and, at the first jvp, of its own old code."""
    with warnings.catch_warnings():
        for category in (UserWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def _set(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    """Set an attribute until the stack unwinds."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
