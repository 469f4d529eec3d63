"""Convolutions with a constant kernel."""

from __future__ import annotations

from isometry.jacobian.replay.maps import Convolution, Geometry, without_idle_taps
from isometry.jacobian.replay.tape import Operation

from .registry import Link, argument, only_argument, rule, tensors


@rule("convolution", "_convolution")
def _convolution(operation: Operation) -> list[Link]:
    x = only_argument(operation)
    weight = tensors(operation)[1].detach()
    axes = weight.dim() - 2

    def per_axis(name: str) -> tuple[int, ...]:
        given = tuple(argument(operation, name))
        return given * axes if len(given) == 1 else given

    geometry = Geometry(
        per_axis("stride"),
        per_axis("padding"),
        per_axis("dilation"),
        bool(argument(operation, "transposed")),
        per_axis("output_padding"),
        int(argument(operation, "groups")),
    )
    source, result = tuple(x.shape[1:]), tuple(operation.output.shape[1:])
    weight, geometry = without_idle_taps(weight, geometry, source[1:], result[1:])
    return [Link(0, 0, (Convolution(weight, geometry, source, result),))]
