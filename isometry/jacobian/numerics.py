"""The settings under which a Jacobian is evaluated, put back as they were afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def strict_numerics(device: torch.device, *, recurrent: bool = False) -> Iterator[None]:
    """Full float32 precision, deterministic kernels, and only operations that can be differentiated.

    - TF32 and bfloat16 products are off: their 1e-3 error would be read as singular values.
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
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        # Switching oneDNN off and on again warns about a setting that is not touched here.
        warnings.filterwarnings("ignore", message=".*TF32 behavior.*")
        precision = torch.get_float32_matmul_precision()
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.set_float32_matmul_precision, precision)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.set_float32_matmul_precision("highest")
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=not recurrent, benchmark=False, deterministic=True, allow_tf32=False
                )
            )
        elif recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield
