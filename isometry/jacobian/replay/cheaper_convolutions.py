"""Replacing the convolutions of a graph by cheaper forms of the same maps: single taps, and Fourier blocks."""

from __future__ import annotations

from typing import Any

from .graph import Edge, Graph
from .maps import Convolution, Identity, LinearMap, single_taps

# The blocks of one frequency each take more memory than the taps: as many layers are replaced as fit in this.
_FOURIER_BYTES = 2**28


def use_single_taps(graph: Graph) -> None:
    """Replace, in place, kernels with a single tap that is not zero by a gather and a matrix over channels.

    The other taps are exact zeros and are not multiplied.
    """
    edges: list[Edge] = []
    # New values get negative numbers.
    new_value = -1
    gathers: dict[Any, LinearMap] = {}
    single = single_taps([edge.map for edge in graph.edges if isinstance(edge.map, Convolution)])
    for edge in graph.edges:
        if not isinstance(edge.map, Convolution) or id(edge.map) not in single:
            edges.append(edge)
            continue
        moved, matrix = edge.map.as_single_tap(*single[id(edge.map)], gathers)
        if isinstance(moved, Identity):
            edge.map = matrix
        else:
            edges.append(Edge(edge.source, new_value, moved, edge.operation, edge.module))
            edge.source, edge.map, new_value = new_value, matrix, new_value - 1
        edges.append(edge)
    graph.edges = edges


def use_fourier_blocks(graph: Graph) -> None:
    """Replace, in place, circular convolutions by one matrix for each frequency where that is fewer operations."""
    left = _FOURIER_BYTES
    for edge in graph.edges:
        if left > 0 and isinstance(edge.map, Convolution):
            made = edge.map.as_fourier()
            if made is not None:
                edge.map = made
                left -= made.nbytes
