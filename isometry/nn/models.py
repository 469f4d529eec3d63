"""Reference networks: the vanilla CNN of Xiao et al. 2018, its dense and its residual relatives.

Each is a trunk of `depth` equal layers x_l = phi(W_l x_{l-1} + b_l), without normalisation, optionally between a stem
that brings an image to a small map of c channels and a linear head. Without `in_channels` there is no stem and without
`num_classes` no head: the bare trunk, whose Jacobian J = D_L W_L ... D_1 W_1 is square. `ensemble` describes the trunk
to `isometry.theory`, so that the same object is measured and predicted.

All weights are drawn in float64, many layers at a time, in the order trunk, stem, head; a seed therefore gives the same
trunk with and without stem and head. Ten thousand layers of 16 channels take about two seconds to build.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from isometry.errors import InputError
from isometry.nn.convolutional import ConvolutionalNetwork
from isometry.nn.mlp import MLP
from isometry.nn.network import arguments_of_ensemble, residual_strength
from isometry.theory.ensemble import Ensemble

__all__ = ["MLP", "ResNet", "VanillaCNN"]


class VanillaCNN(ConvolutionalNetwork):
    """Deep CNN without normalisation or skip connections (Xiao et al. 2018, arXiv 1806.05393).

    Parameters
    ----------
    depth : int
        Number L of circular convolutions in the trunk, each followed by the activation.
    channels : int
        Channels c of the trunk.
    activation : str or torch.nn.Module
        phi: a name (`isometry.nn.activations.ACTIVATION_NAMES`) or a module.
    init : {"delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored"}
        Law of the trunk's kernels: Algorithm 2, Algorithm 1, independent Gaussian entries of variance
        sigma_w^2 / (c k^2), or looks-linear (for ReLU and leaky ReLU, c even).
    sigma_w, sigma_b : float, optional
        Standard deviations of weights and biases; an orthogonal kernel is multiplied by sigma_w. ``sigma_w`` without
        ``sigma_b`` has no biases. ``sigma_b`` alone, or neither, means the critical point, for neither at
        q* = ``q_star``. Mirrored kernels take sigma_w = 1/(1 + slope) and sigma_b = 0.
    q_star : float, optional
        Stationary variance of the pre-activations at which the network is critical; 1/depth by default.
    kernel_size : int
        Taps k along each axis; for even k the centre is (k-1)//2.
    profile : sequence of float, optional
        Variance fractions over the taps of a Gaussian kernel, k of them (used along both axes) or k x k, summing to 1.
    in_channels : int, optional
        Channels of the image. Gives the network a stem: 3x3 zero-padded Gaussian convolutions with the activation,
        one per entry of ``stem_strides``. Its first layer turns images of mean square 1 into pre-activations of
        variance q*, so that the trunk is stationary from its first layer.
    num_classes : int, optional
        Gives the network a linear head on the features, which are first divided by their root mean square.
    stem_strides : sequence of int
        Strides of the stem; ``(1, 2, 2)`` is the stem of the paper's demonstration (28 x 28 to 7 x 7).
    head : {"flatten", "pool"}
        Whether the head reads all of the last map or its average over positions.
    image_size : int or (int, int), optional
        Height and width of the input; needed by a head that flattens.
    checkpoint_segments : int, optional
        Activation checkpointing of the trunk, see `isometry.nn.layers.Trunk`; None decides by the input.
    seed : int, optional
        Seed of the random draws; or give a ``generator``. With neither the global seed of torch is used.
    dtype, device : optional
        Of the parameters. Draws are float64 on the CPU (or the generator's device) in any case.

    Attributes
    ----------
    stem, trunk, head : torch.nn.Module or None
        ``trunk`` is a chain of `ConvolutionLayer` (``weight``, ``bias``, ``activation``), named ``trunk.0`` ....
    ensemble : Ensemble or None
        The trunk as an `Ensemble`; None where the theory does not know the law or the activation.

    Raises
    ------
    InputError
        When an argument is out of range or unknown.
    TheoryError
        When the activation has no critical point where one is asked for.

    Examples
    --------
    >>> import torch
    >>> model = VanillaCNN(depth=50, channels=8, activation="tanh", sigma_w=1.02, seed=0)
    >>> model(torch.zeros(8, 6, 6)).shape
    torch.Size([8, 6, 6])
    """

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, channels: int, **options: Any) -> VanillaCNN:
        """Network drawn from an `Ensemble`: its Gaussian or orthogonal law becomes that of the kernels.

        Parameters
        ----------
        ensemble : Ensemble
            Square (no widths), one weight law, no residual branch, no read-out.
        channels : int
            Channels of the trunk.
        **options
            Further arguments of the class; ``init`` may pick "orthogonal_conv" for an orthogonal law.

        Raises
        ------
        InputError
            When the ensemble is not one of a vanilla CNN.
        """
        if ensemble.residual is not None:
            raise InputError(
                "this ensemble has a residual branch: use ResNet.from_ensemble or MLP.from_ensemble."
            )
        return cls(
            **arguments_of_ensemble(ensemble, {"orthogonal": "delta_orthogonal"}, options), channels=channels
        )


class ResNet(ConvolutionalNetwork):
    """Residual CNN without normalisation, x_l = x_{l-1} + a phi(K_l * x_{l-1} + b_l).

    The network of Tarnowski et al. 2019 (arXiv 1809.08848) with convolutions. Its spectrum depends at large depth on
    c = sum_l a^2 sigma_w^2 E phi'^2 alone; the default a = 1/sqrt(depth) keeps c at 1 for a critical sigma_w. (Not so
    the signal of an activation with a mean: that of ReLU grows like exp(const sqrt(depth)), Yang and Schoenholz 2017,
    arXiv 1712.08969; the head divides it out.)

    Parameters
    ----------
    residual : float, optional
        Strength a of the branches; 1/sqrt(depth) when left out.
    depth, channels, activation, init, **options :
        As for `VanillaCNN`. The variance of the pre-activations grows along the trunk, so q* names only the point of
        the critical line from which sigma_w and sigma_b are taken, and the variance of the first pre-activation.

    Raises
    ------
    InputError, TheoryError
        As `VanillaCNN`; also when `residual` is not a finite number other than zero.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        activation: str | nn.Module = "tanh",
        init: str = "delta_orthogonal",
        *,
        residual: float | None = None,
        **options: Any,
    ) -> None:
        strength = residual_strength(residual, depth)
        super().__init__(depth, channels, activation, init, **options)
        self._add_branches(strength)

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, channels: int, **options: Any) -> ResNet:
        """Network drawn from an `Ensemble` with a residual branch; see `VanillaCNN.from_ensemble`."""
        if ensemble.residual is None:
            raise InputError("this ensemble has no residual branch: use VanillaCNN.from_ensemble.")
        arguments = arguments_of_ensemble(ensemble, {"orthogonal": "delta_orthogonal"}, options)
        return cls(**arguments, channels=channels, residual=ensemble.residual)
