"""Softmax and normalisation by statistics of the input, or by running ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isometry.jacobian.replay.maps import LinearMap, UnfusedMap, diagonal
from isometry.jacobian.replay.tape import Operation

from .registry import Link, argument, only_argument, rule


class _Softmax(UnfusedMap):
    """p (v - sum p v) along one axis, p = softmax; symmetric."""

    def __init__(self, probabilities: Tensor, axis: int) -> None:
        self._p, self._axis = probabilities, axis + 1

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        scaled = v.reshape(-1, *self._p.shape) * self._p
        return scaled.sub_(self._p * scaled.sum(self._axis, keepdim=True))

    rmatmat = matmat


@rule("_softmax", "_safe_softmax", "softmax")
def _softmax(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    if x.dim() == 0:
        return []
    return [Link(0, 0, (_Softmax(operation.output.detach(), argument(operation, "dim") % x.dim()),))]


class _LogSoftmax(UnfusedMap):
    """v - sum p v along one axis, p = softmax; transposed u - p sum u."""

    def __init__(self, probabilities: Tensor, axis: int) -> None:
        self._p, self._axis = probabilities, axis + 1

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        v = v.reshape(-1, *self._p.shape)
        return v - (v * self._p).sum(self._axis, keepdim=True)

    def rmatmat(self, u: Tensor, overwrite: bool) -> Tensor:
        u = u.reshape(-1, *self._p.shape)
        return u - self._p * u.sum(self._axis, keepdim=True)


@rule("_log_softmax", "log_softmax")
def _log_softmax(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    if x.dim() == 0:
        return []
    return [Link(0, 0, (_LogSoftmax(operation.output.detach().exp(), argument(operation, "dim") % x.dim()),))]


class _Standardise(UnfusedMap):
    """(v - mean v - z mean(z v)) / s: the derivative of z = (x - mean x) / s over some axes; symmetric."""

    def __init__(self, standardised: Tensor, inverse_scale: Tensor, axes: Sequence[int]) -> None:
        self._z, self._inverse = standardised, inverse_scale
        self._axes = tuple(axis + 1 for axis in axes)

    def matmat(self, v: Tensor, overwrite: bool) -> Tensor:
        v = v.reshape(-1, *self._z.shape)
        out = v - v.mean(self._axes, keepdim=True)
        out.sub_(self._z * (v * self._z).mean(self._axes, keepdim=True))
        return out.mul_(self._inverse)

    rmatmat = matmat


def _standardised(x: Tensor, statistics: Sequence[Tensor], axes: Sequence[int]) -> LinearMap:
    """The map of a normalisation with the statistics that it computed, which its derivative formulas use too."""
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    mean, inverse = (statistic.detach().reshape(shape) for statistic in statistics)
    return _Standardise((x - mean) * inverse, inverse, axes)


@rule("native_layer_norm")
def _layer_norm(operation: Operation) -> list[Link]:
    x = only_argument(operation).detach()
    axes = range(x.dim() - len(argument(operation, "normalized_shape")), x.dim())
    maps = [_standardised(x, operation.output[1:3], tuple(axes))]
    weight = argument(operation, "weight")
    if weight is not None:
        maps.append(diagonal(weight.detach(), x.shape))
    return [Link(0, 0, tuple(maps))]


@rule("native_group_norm")
def _group_norm(operation: Operation) -> list[Link]:
    x = only_argument(operation).detach()
    grouped = x.reshape(x.shape[0], argument(operation, "group"), -1)
    maps = [_standardised(grouped, operation.output[1:3], (2,))]
    weight = argument(operation, "weight")
    if weight is not None:
        maps.append(diagonal(weight.detach().reshape(x.shape[1], *[1] * (x.dim() - 2)), x.shape))
    return [Link(0, 0, tuple(maps))]


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update",
)  # fmt: skip
def _batch_norm(operation: Operation) -> list[Link]:
    x = only_argument(operation).detach()
    shape = (x.shape[1], *[1] * (x.dim() - 2))
    weight = argument(operation, "weight")
    factors = x.new_ones(x.shape[1]) if weight is None else weight.detach()
    if argument(operation, "training", False):
        axes = (0, *range(2, x.dim()))
        standardised = _standardised(x, operation.output[1:3], axes)
        return [Link(0, 0, (standardised, diagonal(factors.reshape(shape), x.shape)))]
    eps = argument(operation, "eps", None) or argument(operation, "epsilon")
    variance = argument(operation, "running_var").detach()
    return [Link(0, 0, (diagonal((factors * (variance + eps).rsqrt()).reshape(shape), x.shape),))]
