"""Products of perturbed factors beside the product itself, in the coordinates of its bases.

Between two QRs the vectors Y of a basis go through some factors and become R in the next basis Q. A perturbed product
takes R + Q^T E, where E is the error that rounding (and more) of each factor makes, carried through the factors that
follow. So it costs QRs, and no factor is applied again. What of E lies outside the span of Q goes on to the next
factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .chain_factors import MatrixFactor, Step
from .graded_product import ErrorSamples, GradedBlock, GradedProduct, Renewal, renewed

# Below this share of an error nothing of it lies outside the span of a basis.
_INSIDE = 1e-12


def followed(products: Sequence[GradedProduct], block: GradedBlock, renewal: Renewal) -> list[GradedProduct]:
    """The perturbed products after the factors of the block."""
    kept, coefficients, errors = renewal.kept, renewal.coefficients, block.errors
    inside = renewal.onto_basis(errors.directions).T
    growth = block.growth[kept]
    top = int(growth.exponent.max()) if growth.size else 0
    grown = torch.ldexp(growth.mantissa, growth.exponent - top)[:, None]
    found = []
    for product, weights in zip(products, errors.weights, strict=True):
        # Transposed, for LAPACK leaves R so that its columns are contiguous.
        matrix = coefficients.new_zeros(block.rows.shape[0], coefficients.shape[0])
        matrix[kept] = torch.addmm(coefficients.T, weights[:, kept].T, inside) * grown
        own = GradedBlock(product)
        own.apply(Step(MatrixFactor(matrix.T), transposed=False), None)
        after = renewed(own, coefficients.shape[0]).product
        found.append(GradedProduct(after.basis, after.scales.raised(top), after.rows))
    return found


def outside_errors(block: GradedBlock, renewal: Renewal) -> ErrorSamples:
    """The errors of the new basis outside its span."""
    basis, errors = renewal.product.basis, block.errors
    directions, weights = errors.directions, errors.weights
    outside = directions - (directions @ basis.T) @ basis
    if not float(outside.norm()) > _INSIDE * float(directions.norm()) or basis.shape[0] == 0:
        return ErrorSamples.none(weights.shape[0], renewal.product)
    # E R^-1 for the errors E of the vectors that the basis is of.
    chosen = weights[:, :, renewal.kept[renewal.chosen]]
    upper = renewal.coefficients[:, renewal.chosen]
    return ErrorSamples(outside, torch.linalg.solve_triangular(upper, chosen, upper=True, left=False))
