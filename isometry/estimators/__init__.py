"""Operators -> spectra. Each takes anything with ``shape``, ``matmat`` and ``rmatmat``, and never sees a model.

Public is what `__all__` lists; everything else in the modules of this package is internal.
"""

from .blocks import Operator
from .chain import chain
from .chain_factors import ChainFactor, MatrixFactor
from .exact import exact
from .golub_kahan import golub_kahan
from .lanczos import lanczos
from .probe_rules import ProbeRules, measure_probes, merge, probe_groups
from .quadrature import gauss_rules
from .randomized import randomized
from .smallest import smallest_singular_value
from .smallest_interval import SmallestSingularValue
from .triplets import LeadingTriplets, leading_triplets

__all__ = [
    "ChainFactor", "LeadingTriplets", "MatrixFactor", "Operator", "ProbeRules", "SmallestSingularValue", "chain",
    "exact", "gauss_rules", "golub_kahan", "lanczos", "leading_triplets", "measure_probes", "merge", "probe_groups",
    "randomized", "smallest_singular_value",
]  # fmt: skip
