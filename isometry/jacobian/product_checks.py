"""Checks of Jacobian products: that both are of one matrix, that samples are independent, and how far they round."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from isometry.errors import AdjointError, FallbackWarning, ModelError

from .chunks import ChunkedProducts
from .evaluation import Evaluation

Product = Callable[[Tensor], Tensor]

# Units of rounding of s_max that a product of a shallow network may be off by.
_UNITS_OF_ROUNDING = 8
# Units of rounding by which <J v, u> and <v, J^T u> may differ.
_ADJOINT_UNITS = 200


def expected_rounding(evaluation: Evaluation) -> float:
    """The relative error of a product of a shallow network by rounding."""
    return _UNITS_OF_ROUNDING * evaluation.unit


def checked_rounding(evaluation: Evaluation, products: ChunkedProducts, *, is_module: bool) -> float:
    """The relative error of a product by rounding, after all checks of the products have passed.

    It is twice the nonlinearity of the vectors that were tried, at least :func:`expected_rounding`.

    Parameters
    ----------
    evaluation : Evaluation
    products : ChunkedProducts
    is_module : bool
        Whether the model is a module, which may take a batch: a warning says so where the input looks like one.
    """
    if products.products.checked:
        # Each product of a replay was compared with that of torch.func: they are of one matrix.
        v, jv, u, jtu = products.products.checked
        products.refuse_nonfinite(jv, v[None], transposed=False)
        products.refuse_nonfinite(jtu, u[None], transposed=True)
        (w,) = _whole_numbers(evaluation.point, 1, seed=0)
        found = _nonlinearity(torch.cat([jv[None], products.matmat(torch.stack([w, v + w]))]))
    else:
        adjoint_error(products.matmat, products.rmatmat, evaluation)
        found = nonlinearity(products.matmat, evaluation)
    if evaluation.batch is not None:
        refuse_coupled_samples(products.matmat, evaluation.point)
    elif is_module:
        _warn_of_a_batch(evaluation, products)
    return max(expected_rounding(evaluation), 2 * found)


def adjoint_error(matmat: Product, rmatmat: Product, evaluation: Evaluation, seed: int = 0) -> float:
    """|<J v, u> - <v, J^T u>| / (|J v| |u| + |v| |J^T u|) for one random pair.

    Raises
    ------
    AdjointError
        Where it is over 200 units of rounding: a wrong derivative formula, or a mask drawn twice, is over it by far.
    """
    point, value = evaluation.point, evaluation.value
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    u = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(point)
    jv, jtu = matmat(v[None])[0].double(), rmatmat(u[None])[0].double()
    v, u = v.double(), u.double()
    # Each factor is scaled first: a deep network's products may be 1e-30 or 1e30.
    scale = max(float(jv.abs().max()) or 1.0, float(jtu.abs().max()) or 1.0)
    left, right = float((jv / scale * u).sum()), float((jtu / scale * v).sum())
    size = float((jv / scale).norm() * u.norm() + (jtu / scale).norm() * v.norm())
    error = abs(left - right) / size if size > 0 else 0.0
    bound = _ADJOINT_UNITS * evaluation.unit
    if not error <= bound:
        raise AdjointError(
            f"<J v, u> and <v, J^T u> differ by {error:.1e} of their size (allowed {bound:.1e} in {point.dtype}): "
            "the forward and the reverse product are not of one matrix. Likely causes: the model draws random "
            "numbers (call model.eval()), it runs partly under torch.no_grad, a custom derivative is wrong, or the "
            "network amplifies rounding (try dtype=torch.float64)"
        )
    return error


def nonlinearity(matmat: Product, evaluation: Evaluation, seed: int = 0) -> float:
    """||J v + J w - J (v + w)|| over the length of the three: the rounding that a product accumulates."""
    v, w = _whole_numbers(evaluation.point, 2, seed)
    return _nonlinearity(matmat(torch.stack([v, w, v + w])))


def _nonlinearity(out: Tensor) -> float:
    """||J v + J w - J (v + w)|| over the length of the three, which ``out`` holds."""
    out = out.double()
    out = out / (float(out.abs().max()) or 1.0)
    return float((out[0] + out[1] - out[2]).norm() / max(float(out.norm()), 1e-300))


def _whole_numbers(like: Tensor, count: int, seed: int) -> Tensor:
    """Vectors of small whole numbers, whose sums are not rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 65, (count, *like.shape), generator=generator).to(like)


def refuse_coupled_samples(matmat: Product, point: Tensor, seed: int = 0) -> None:
    """Raise ModelError where a tangent in some samples of a batch changes the outputs of others.

    Parameters
    ----------
    matmat : callable
        Tangents (1, B, *input_shape) -> (1, B, *output_shape).
    point : (B, *input_shape) tensor
    """
    size = point.shape[0]
    if size < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    tangent = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    number = torch.arange(size, device=point.device)
    # Any two samples differ in some binary digit of their numbers, so that one mask moves one and not the other.
    digits = [(number >> digit) & 1 == 1 for digit in range((size - 1).bit_length())]
    for moved in (side for chosen in digits for side in (chosen, ~chosen)):
        mask = moved.reshape(-1, *[1] * (point.dim() - 1))
        out = matmat((tangent * mask)[None])[0]
        if bool((out[~moved] != 0).any()):
            raise ModelError(
                "the model couples the samples of a batch (a change in one moves the output of another), so no sample "
                "has a Jacobian of its own. Call model.eval() if batch statistics do it; or leave batched=True out "
                "to measure the one big Jacobian of the whole batch"
            )


def _warn_of_a_batch(evaluation: Evaluation, products: ChunkedProducts) -> None:
    """Warn where the one input looks like a batch of independent samples."""
    point, value = evaluation.point, evaluation.value
    size = point.shape[0] if point.dim() > 1 else 0
    if size < 2 or value.dim() < 1 or value.shape[0] != size:
        return
    try:
        refuse_coupled_samples(products.matmat, point)
    except ModelError:
        return
    warnings.warn(
        f"the input's first axis looks like a batch of {size} independent samples: this is the one block-diagonal "
        "Jacobian of all of them. Pass batched=True for a Jacobian each",
        FallbackWarning,
        stacklevel=5,
    )
