"""Linear maps of single operations, with their transposes, on blocks of probes. Internal."""

from .convolution import Convolution, single_taps
from .differentiated import Differentiated
from .entrywise import Diagonal, Identity, Multiple, diagonal
from .gather import Gather, Scatter, gather
from .kernel import Geometry, without_idle_taps
from .linear_map import LinearMap, UnfusedMap, elements
from .matrix_products import BatchedLeftProduct, BatchedRightProduct, RightProduct
from .sums import Sum, broadcast

__all__ = [
    "BatchedLeftProduct", "BatchedRightProduct", "Convolution", "Diagonal", "Differentiated", "Gather", "Geometry",
    "Identity", "LinearMap", "Multiple", "RightProduct", "Scatter", "Sum", "UnfusedMap", "broadcast", "diagonal",
    "elements", "gather", "single_taps", "without_idle_taps",
]  # fmt: skip
