"""`MLP`: the dense reference network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from isometry.errors import InputError
from isometry.nn.layers import DenseLayer
from isometry.nn.network import (
    Design,
    Network,
    arguments_of_ensemble,
    require_positive,
    residual_strength,
)
from isometry.nn.options import DENSE_INITS
from isometry.theory.ensemble import Ensemble


class MLP(Network):
    """Dense network x_l = phi(W_l x_{l-1} + b_l), on vectors (N_0,) or (B, N_0).

    Parameters
    ----------
    depth : int
        Number L of layers in the trunk.
    width : int or sequence of int
        N, or N_0 .. N_L (depth + 1 numbers) for a network that changes its width.
    activation : str or torch.nn.Module
        phi.
    init : {"orthogonal", "gaussian", "mirrored"}
        Haar (W^T W = sigma_w^2, or W W^T where a layer shrinks), independent entries of variance sigma_w^2 / N_{l-1},
        or looks-linear (for ReLU and leaky ReLU, even widths).
    sigma_w, sigma_b, q_star : float, optional
        As for `VanillaCNN`.
    residual : float, optional
        Strength a of a residual branch x_l = x_{l-1} + a phi(h_l); None is no branch.
    in_features : int, optional
        Gives the network a stem: a Gaussian layer to N_0 with the activation, scaled to pre-activations of variance
        q* for inputs of mean square 1.
    num_classes : int, optional
        Gives the network a linear head.
    checkpoint_segments, generator, seed, dtype, device :
        As for `VanillaCNN`.

    Raises
    ------
    InputError, TheoryError
        As `VanillaCNN`.

    Examples
    --------
    >>> model = MLP(depth=3, width=(8, 16, 16, 4), activation="relu", init="gaussian", sigma_w=2**0.5, seed=0)
    >>> model(torch.zeros(5, 8)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        depth: int,
        width: int | Sequence[int],
        activation: str | nn.Module = "tanh",
        init: str = "orthogonal",
        *,
        sigma_w: float | None = None,
        sigma_b: float | None = None,
        q_star: float | None = None,
        residual: float | None = None,
        in_features: int | None = None,
        num_classes: int | None = None,
        checkpoint_segments: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        require_positive("depth", depth)
        widths = _widths(width, depth)
        if residual is not None:
            residual = residual_strength(residual, depth)
            if len(set(widths)) > 1:
                raise InputError(f"a residual network has one width only, got {widths}.")
        if init == "mirrored" and any(width % 2 for width in widths):
            raise InputError(
                f"mirrored layers come in pairs of units: all widths must be even, got {widths}."
            )
        design = Design.of(
            depth, activation, init, DENSE_INITS, sigma_w=sigma_w, sigma_b=sigma_b, q_star=q_star,
            generator=generator, seed=seed, dtype=dtype, device=device,
        )  # fmt: skip
        layers = []
        for (inputs, outputs), run in itertools.groupby(itertools.pairwise(widths)):
            layers += design.layers(DenseLayer, len(list(run)), outputs, inputs)
        stem = None
        if in_features is not None:
            require_positive("in_features", in_features)
            weight = design.gaussian_weight(widths[0], in_features, (), design.first_variance**0.5)
            stem = DenseLayer(weight, torch.zeros(widths[0], **design.placed), activation=design.activation())
        super().__init__(
            design, stem, layers, None if num_classes is None else design.head(widths[-1], num_classes),
            feature_axes=1, widths=None if len(set(widths)) == 1 else widths, checkpoint_segments=checkpoint_segments,
        )  # fmt: skip
        if residual is not None:
            self._add_branches(residual)

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, width: int | None = None, **options: Any) -> MLP:
        """Network drawn from an `Ensemble`; `width` is needed where the ensemble has no widths."""
        if width is None and ensemble.widths is None:
            raise InputError("this ensemble is square of any width: give the width of the network to draw.")
        arguments = arguments_of_ensemble(
            ensemble, {"orthogonal": "orthogonal"}, options, widths_allowed=True
        )
        chosen = ensemble.widths if ensemble.widths is not None else width
        return cls(**arguments, width=chosen, residual=ensemble.residual)  # type: ignore[arg-type]


def _widths(width: int | Sequence[int], depth: int) -> tuple[int, ...]:
    widths = (width,) * (depth + 1) if isinstance(width, int) else tuple(width)
    if len(widths) != depth + 1:
        raise InputError(f"width must be one number or depth + 1 = {depth + 1} numbers, got {len(widths)}.")
    for entry in widths:
        require_positive("width", entry)
    return widths
