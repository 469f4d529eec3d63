"""`predict_from_layers`: the spectrum of a given network if its layers were free of each other.

The factors are the layers of one network, trained or not: the singular values of every weight, and the slopes phi'(h)
of every activation at one input. Their free product (`isometry.theory.freeprobability.discrete`) is the law of J if the
singular vectors of neighbouring layers are independent. Compared with a measurement by `isometry.compare`, it tests
whether the layers of the network are free.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isometry.depth.chain import CONVOLUTIONS, WEIGHTED, Step, applied, steps_of
from isometry.errors import InputError, IsometryError, ModelError
from isometry.estimators import exact, lanczos
from isometry.jacobian import JacobianOperator, keeps_torch_state, refuse_training_mode
from isometry.nn.convolution import conv_singular_values
from isometry.nn.layers import ConvolutionLayer, DenseLayer
from isometry.spectrum import Spectrum
from isometry.theory.freeprobability.discrete import Factor, free_product

# Layers without a formula: dense up to this shorter side, Lanczos quadrature beyond.
DENSE_SIDE = 1500
PROBES, STEPS = 8, 40


@keeps_torch_state
def predict_from_layers(
    model: nn.Module, x: Tensor, *, blocks: Sequence[str] = (), bins: int | None = None, name: str = ""
) -> Spectrum:
    """The law of the singular values of J at ``x`` if the layers of ``model`` were free of each other.

    Parameters
    ----------
    model : nn.Module
        A chain of layers: `torch.nn.Sequential` (nested as well), the reference networks of `isometry.nn`, or a single
        layer. It is not changed.
    x : Tensor
        One input, exactly as the model takes it.
    blocks : sequence of str
        Names of modules that are no chain inside (a residual block, an attention layer) and are to be taken as one
        factor, by the singular values of their own Jacobian at this input. The branches of `isometry.nn.ResNet` are
        taken so without being named.
    bins : int, optional
        See :func:`isometry.theory.freeprobability.discrete.free_product`.
    name : str
        What reports call the result.

    Returns
    -------
    Spectrum
        A prediction whose provenance lists the factors (``layers``) and the narrowest width met (``width``: features
        or channels between input and output), which `isometry.compare` reads.

    Raises
    ------
    ModelError
        When the order of the layers in a module is not known. Also for dropout or batch-norm in training mode.
    ConvergenceError
        When the free product does not converge.

    Notes
    -----
    Linear layers use the singular values of their weight; circular convolutions those by Fourier transform (Sedghi,
    Gupta and Long 2019, arXiv 1805.10408); whatever acts elementwise (activations, batch-norm in evaluation) its
    slopes; anything else the singular values of its Jacobian, dense up to a shorter side of 1500, beyond by Lanczos
    quadrature. A layer with singular values all equal (delta-orthogonal) is a number and costs nothing.

    Examples
    --------
    >>> chain = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Tanh(), torch.nn.Linear(40, 40))
    >>> spectrum = predict_from_layers(chain, torch.ones(40))
    >>> spectrum.shape, spectrum.provenance["width"]
    ((40, 40), 40)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"predict_from_layers walks the layers of an nn.Module; got {type(model).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"predict_from_layers takes the input as a floating-point tensor; got {kind}")
    refuse_training_mode(model)
    began = time.perf_counter()
    names = {module_name for module_name, _ in model.named_modules()}
    for block in blocks:
        if block not in names:
            raise InputError(
                f"there is no module {block!r} in this model; blocks are names of model.named_modules()"
            )
    own = copy.deepcopy(model).to(torch.float64)
    point = x.detach().to(torch.float64)
    factors: list[Factor] = []
    layers: list[dict[str, Any]] = []
    outputs: list[int] = []
    with torch.no_grad():
        for step in steps_of("", own, frozenset(blocks)):
            output = applied(step, point)
            factor, how = _factor(step, point, output)
            factors.append(factor)
            layers.append({"name": step.name, "factor": how, "rows": factor.rows, "columns": factor.columns})
            if isinstance(step.module, WEIGHTED):
                outputs.append(int(step.module.weight.shape[0]))
            point = output
    if not factors or (len(factors) == 1 and layers[0]["factor"].startswith("Jacobian")):
        raise ModelError(
            f"this model ({type(model).__name__}) has no layers to walk: "
            + ("it is empty" if not factors else "it is one module whose inside is not known")
            + ". Build it as torch.nn.Sequential of its layers"
        )
    spectrum = free_product(factors, bins=bins)
    return replace(
        spectrum,
        name=name,
        seconds=time.perf_counter() - began,
        provenance={
            "model": type(model).__name__,
            "input": f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}",
            "own_layers": True,
            # The layers between input and output: the sizes of these two are in the shape of J.
            "width": min(outputs[:-1] or outputs, default=None),
            "layers": layers,
        },
    )


# The former name.
predict_for = predict_from_layers

# ---- factors -------------------------------------------------------------------------------------------


def _factor(step: Step, point: Tensor, output: Tensor) -> tuple[Factor, str]:
    """The singular values of the layer's Jacobian at this input, and the name of their source."""
    make = partial(Factor.from_values, rows=output.numel(), columns=point.numel(), name=step.name)
    module = step.module
    if isinstance(module, nn.Linear | DenseLayer):
        return make(torch.linalg.svdvals(module.weight).numpy(force=True)), "weight"
    if isinstance(module, ConvolutionLayer):
        size = point.shape[-len(module.kernel_size) :]
        return make(conv_singular_values(module.weight, size).numpy()), "circular convolution"
    if isinstance(module, CONVOLUTIONS) and _is_circular_same(module):
        values = conv_singular_values(
            module.weight,
            point.shape[2 - module.weight.dim() :],
            groups=module.groups,
            dilation=module.dilation,
        )
        return make(values.numpy()), "circular convolution"
    try:
        operator = JacobianOperator(lambda t: step.function(t.clone()), point, check=False)
        slopes = _elementwise_slopes(operator)
        if slopes is not None:
            return make(slopes), "slopes"
        measured = (
            exact(operator)
            if min(operator.shape) <= DENSE_SIDE
            else lanczos(operator, seed=0, probes=PROBES, steps=STEPS, top=1)
        )
    except IsometryError as error:
        raise ModelError(f"the Jacobian of layer {step.name!r} can not be had: {error}") from error
    law = measured.quadrature
    rows = law.nodes.shape[0] * law.nodes.shape[1]
    return make(
        law.nodes_above_floor.ravel(), weights=law.weights.ravel() / rows
    ), f"Jacobian ({measured.method})"


def _is_circular_same(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution wraps around and keeps the size of the map: block-circulant."""
    if module.padding_mode != "circular" or any(stride != 1 for stride in module.stride):
        return False
    if isinstance(module.padding, str):
        return module.padding == "same"
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return all(2 * p == r for p, r in zip(module.padding, reach, strict=True))


def _elementwise_slopes(operator: JacobianOperator) -> np.ndarray | None:
    """The diagonal of a Jacobian that is diagonal (in row-major order of both tensors), None for any other."""
    if operator.shape[0] != operator.shape[1]:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(operator.input_shape, generator=generator, dtype=torch.float64).to(operator.point)
    slopes, image = operator.matmat(torch.stack([torch.ones_like(probe), probe])).flatten(1)
    error = (image - slopes * probe.flatten()).abs().max()
    return slopes.numpy(force=True) if bool(error <= 1e-9 * image.abs().max()) else None
