"""Free probability: the law of a product of random layers, from the product of their S-transforms. Never torch."""

from __future__ import annotations
