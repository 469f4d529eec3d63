"""Free probability: the law of a product of random layers, from the product of their S-transforms. Never torch.

Public are `free_product` and its `Factor`; `isometry.theory.predict` calls the rest, which is internal.
"""

from __future__ import annotations

from isometry.theory.freeprobability.discrete import Factor, free_product

__all__ = ["Factor", "free_product"]
