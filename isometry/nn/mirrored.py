"""`mirrored_`: weights by which a ReLU network computes a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.errors import InputError
from isometry.nn import kernels as laws
from isometry.nn.weights import channels_of, check_gain, check_weight, fill_weight


def mirrored_(
    weight: Tensor,
    gain: float = 1.0,
    *,
    position: str = "middle",
    groups: int = 1,
    transposed: bool = False,
    co_isometry: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a weight so that a ReLU network looks linear: [[W0, -W0], [-W0, W0]] with an orthogonal W0.

    On x = (u, v) it gives (z, -z) with z = W0 (u - v); a ReLU makes of it (relu(z), relu(-z)), whose difference is z:
    the next mirrored layer sees a linear map, and a whole network first - middle - ... - last is orthogonal. W0 is
    Haar for dense weights, delta-orthogonal for kernels (of stride 1). For a leaky ReLU of slope a take
    gain = 1/(1 + a).

    Parameters
    ----------
    weight : Tensor
        (N_out, N_in), (c_out, c_in/groups, *k), or (c_in, c_out/groups, *k) if transposed.
    gain : float
        Singular values of W0. The layer itself has 2 gain (sqrt(2) gain for "first" and "last"), and as many zeros.
    position : {"middle", "first", "last"}
        "first" is [[W0], [-W0]], for a layer that reads raw inputs; "last" [W0, -W0], for one that is read out.
    groups : int
        Groups of the convolution, each mirrored on its own.
    transposed : bool
        Whether the weight is that of a transposed convolution.
    co_isometry : bool
        Whether W0 may have fewer outputs than inputs.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.

    Returns
    -------
    Tensor
        `weight`.

    Raises
    ------
    InputError
        When a mirrored side has an odd number of channels, or W0 would lose inputs unasked.

    References
    ----------
    Balduzzi et al. 2017, arXiv 1702.08591; Burkholz and Dubatovka 2019, arXiv 1806.06362.
    """
    check_weight(weight)
    check_gain(gain)
    if position not in laws.MIRRORED_HALVES:
        raise InputError(f"position must be one of {', '.join(laws.MIRRORED_HALVES)}, got {position!r}.")
    inputs, outputs = channels_of(weight, groups, transposed=transposed)
    halves_in, halves_out = laws.MIRRORED_HALVES[position]
    for side, channels, halves in (("input", inputs, halves_in), ("output", outputs, halves_out)):
        if channels % halves:
            raise InputError(
                f"a mirrored layer pairs its {side} channels, so their number per group must be even; got {channels}. "
                'Use position="first" for a layer that reads raw inputs, "last" for one that is read out.'
            )
    if inputs // halves_in > outputs // halves_out and not co_isometry:
        raise InputError(
            f"{inputs // halves_in} inputs do not fit into {outputs // halves_out} outputs of W0 without loss: pass "
            "co_isometry=True, or widen."
        )
    kernels = laws.mirrored_kernels(
        groups, outputs, inputs, tuple(weight.shape[2:]), position=position, generator=generator
    )
    if transposed:
        kernels = kernels.transpose(1, 2)
    return fill_weight(weight, gain * kernels.reshape(weight.shape))
