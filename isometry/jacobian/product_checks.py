"""Checks of Jacobian products: that both are of one matrix, that samples are independent, and how far they round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isometry.errors import AdjointError, ConvergenceWarning, FallbackWarning, ModelError, warn_caller

from .backends import Products
from .chunks import ChunkedProducts
from .evaluation import Evaluation
from .finite_differences import contradicts_forward, contradicts_reverse
from .numerics import torch_warnings_silenced
from .perturbation import storage_of, tensors_in
from .reference import reference_rmatmat, sensitivity_of_matmat, sensitivity_of_rmatmat
from .replay import module_names
from .rounding import (
    UNITS_OF_A_CAST,
    UNITS_OF_ROUNDING,
    adjoint_difference,
    explained,
    generic_vectors,
    nonlinearity,
    relative_difference,
    with_sum,
)

Product = Callable[[Tensor], Tensor]

# Units of rounding that depth alone explains: some hundred over a thousand layers.
_UNITS_BY_DEPTH = 2**14
# Units of rounding by which <J v, u> and <v, J^T u> may differ.
_ADJOINT_UNITS = 200


@dataclass(frozen=True)
class Rounding:
    """How far products are off by rounding.

    Parameters
    ----------
    relative : float
        Of the length of a product.
    unit : float
        8 of it are the least size, relative to s_max, of a singular value that is not rounding.
    """

    relative: float
    unit: float


def expected_rounding(evaluation: Evaluation) -> Rounding:
    """That of a shallow network."""
    return Rounding(UNITS_OF_ROUNDING * evaluation.unit, evaluation.unit)


def checked_rounding(evaluation: Evaluation, products: ChunkedProducts, *, is_module: bool) -> Rounding:
    """How far products are off by rounding, after all checks of the products have passed.

    It is twice the largest of: the nonlinearity of J v and of J^T u; the differences of these products from others that
    are computed in another way or at another time; the difference of repeated outputs of the model; and at least
    :func:`expected_rounding`. A ConvergenceWarning names the cast where the model computes in a coarser type than the
    input's.

    Parameters
    ----------
    evaluation : Evaluation
    products : ChunkedProducts
    is_module : bool
        Whether the model is a module, which may take a batch: a warning says so where the input looks like one.
    """
    made = products.products
    v, jv, u, jtu = made.checked
    products.refuse_nonfinite(jv, v[None], transposed=False)
    products.refuse_nonfinite(jtu, u[None], transposed=True)
    error = made.error if made.recorded else _error_of_torch_func(evaluation, products)
    if evaluation.batch is not None:
        refuse_coupled_samples(*_one_product(evaluation, products))
    elif is_module:
        _warn_of_a_batch(evaluation, products)
    expected = expected_rounding(evaluation)
    found = max(expected.relative, 2 * error, 2 * evaluation.noise)
    units = found / evaluation.unit
    may_cast = units > UNITS_OF_A_CAST and (made.casts or not made.recorded)
    cast = _first_cast(evaluation, u) if may_cast else ""
    if not cast and units <= _UNITS_BY_DEPTH:
        # The rounding of a deep network falls on the directions that grow, and leaves small singular values alone.
        return Rounding(found, expected.unit)
    kind = str(evaluation.point.dtype).removeprefix("torch.")
    warn_caller(
        f"products in {kind} are known to {found:.1e} of their length: "
        f"{cast or 'large terms cancel, or rounding grows from layer to layer'}. "
        "Residuals, floors and bands include it",
        ConvergenceWarning,
    )
    return Rounding(found, found / UNITS_OF_ROUNDING)


def _error_of_torch_func(evaluation: Evaluation, products: ChunkedProducts) -> float:
    """The relative error of products by rounding: they repeat, are linear, and are of one matrix as far as it allows.

    Raises
    ------
    ModelError
        Where a product differs from one made before by more than rounding.
    AdjointError
        Where the forward and the reverse product are not of one matrix.
    """
    at, unit = evaluation, evaluation.unit
    made = products.products
    v, jv, u, jtu = made.checked
    reverse = products.rmatmat(with_sum(u, generic_vectors(at.value, 1, seed=4)[0]))

    def of_rmatmat() -> float:
        with at.numerics(), torch_warnings_silenced():
            return sensitivity_of_rmatmat(at.function, at.point, u, jtu)

    def of_matmat() -> float:
        with at.numerics(), torch_warnings_silenced():
            return max(sensitivity_of_matmat(at.function, at.point, v, jv), of_rmatmat())

    both = [("J^T u", reverse, jtu, of_rmatmat)]
    if not made.reverse_only:
        forward = products.matmat(with_sum(v, generic_vectors(at.point, 1, seed=3)[0]))
        both.insert(0, ("J v", forward, jv, of_matmat))
    found = [nonlinearity(now) for _, now, _, _ in both]
    # A product that draws random numbers is not linear: how linear it is explains nothing here.
    for name, now, before, moved in both:
        difference = relative_difference(now[0], before)
        if difference and not explained(difference, unit, 0.0, moved):
            raise ModelError(
                f"two computations of one product {name} differ by {difference:.1e} of its length, which rounding does "
                "not explain: the derivative of the model draws random numbers, or it keeps a state. Call "
                "model.eval(), or fix what it draws, before measuring"
            )
        found.append(difference)
    if made.reverse_only:
        return max(found)
    return max(*found, _adjoint_error(at, (v, forward[0], u, reverse[0]), sum(found), of_matmat))


def adjoint_error(
    matmat: Product, rmatmat: Product, evaluation: Evaluation, rounding: float, seed: int = 0
) -> float:
    """|<J v, u> - <v, J^T u>| / (|J v| |u| + |v| |J^T u|) for one random pair.

    Raises
    ------
    AdjointError
        Where it is over 200 units of rounding and 16 times ``rounding``.
    """
    (v,), (u,) = (generic_vectors(like, 1, seed) for like in (evaluation.point, evaluation.value))
    pairs = v, matmat(v[None])[0], u, rmatmat(u[None])[0]
    error = adjoint_difference(*pairs)
    _refuse_unlike_products(error, evaluation, rounding, lambda: 0.0)
    return error


def _adjoint_error(
    evaluation: Evaluation, pairs: tuple[Tensor, ...], nonlinear: float, sensitivity: Callable[[], float]
) -> float:
    """The relative error of a product that <J v, u> and <v, J^T u> show."""
    error = adjoint_difference(*pairs)
    _refuse_unlike_products(error, evaluation, nonlinear, sensitivity)
    # Of an error in a generic direction the inner product shows one part in sqrt(m).
    return 2 * error * math.sqrt(evaluation.value.numel())


def _refuse_unlike_products(
    error: float, evaluation: Evaluation, nonlinear: float, sensitivity: Callable[[], float]
) -> None:
    """Raise AdjointError where rounding does not explain that <J v, u> and <v, J^T u> differ."""
    bound = _ADJOINT_UNITS * evaluation.unit
    if error <= bound or explained(error, evaluation.unit, nonlinear, sensitivity):
        return
    raise AdjointError(
        f"<J v, u> and <v, J^T u> differ by {error:.1e} of their size (allowed {bound:.1e} in "
        f"{evaluation.point.dtype}): the forward and the reverse product are not of one matrix. Likely causes: the "
        "model draws random numbers (call model.eval()), it runs partly under torch.no_grad, or a custom derivative is "
        "wrong"
    )


def linearity_error(matmat: Product, rmatmat: Product, evaluation: Evaluation, seed: int = 0) -> float:
    """||A v + A w - A (v + w)|| over the length of the three, the larger of A = J and A = J^T."""
    pairs = ((matmat, evaluation.point), (rmatmat, evaluation.value))
    return max(nonlinearity(product(with_sum(*generic_vectors(like, 2, seed)))) for product, like in pairs)


def _first_cast(evaluation: Evaluation, u: Tensor) -> str:
    """The first operation of f or J^T u in a coarser type, with its module; "" where there is none."""
    at = evaluation
    with (
        at.numerics(),
        torch_warnings_silenced(),
        module_names(at.module) as current,
        _Casts(at.point.dtype, current) as casts,
    ):
        casts.follow(at.point, u)
        reference_rmatmat(at.function, at.point, u)
    return casts.first


class _Casts(TorchDispatchMode):
    """Watches the operations on what depends on some tensors for the first result in a coarser type."""

    def __init__(self, dtype: torch.dtype, current_module: Callable[[], str]) -> None:
        super().__init__()
        self.first = ""
        self._dtype, self._current_module = dtype, current_module
        # Storages of what is followed, and the tensors themselves, so that no storage is used again.
        self._followed: set[int] = set()
        self._kept: list[Tensor] = []

    def follow(self, *tensors: Tensor) -> None:
        """Count these tensors among those whose operations are watched."""
        self._followed |= {storage_of(tensor) for tensor in tensors}
        self._kept += tensors

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = (tensor for tensor in tensors_in((args, kwargs)) if tensor.layout == torch.strided)
        if self.first or not any(storage_of(tensor) in self._followed for tensor in given):
            return out
        made_here = [made for made in tensors_in(out) if made.layout == torch.strided]
        self.follow(*made_here)
        for made in made_here:
            if self.first or not made.is_floating_point():
                continue
            if torch.finfo(made.dtype).eps > torch.finfo(self._dtype).eps:
                name = self._current_module()
                where = f"module {name!r}" if name else "the model"
                kind = str(made.dtype).removeprefix("torch.")
                self.first = f"{where} computes in {kind} (first by {func})"
        return out


def reverse_alone(evaluation: Evaluation, products: Products) -> Products | None:
    """J^T u alone, where J v is not of the same matrix and finite differences say that J^T u is right; else None.

    An implicit derivative by a hook, or a custom function, may have a correct reverse pass and a second derivative
    that leaves a part out.
    """
    v, jv, *_ = products.checked
    if products.reverse_only or contradicts_reverse(evaluation, products.rmatmat) is not False:
        return None
    if not contradicts_forward(evaluation, v, jv):
        return None
    warn_caller(
        "the forward product of this model, or its second derivative, leaves out a part of J, as finite differences "
        "show; the reverse product does not: method='exact' measures it, from rows of J",
        FallbackWarning,
    )
    return products.without_forward(evaluation, "forward products leave out a part of J")


def warn_of_another_derivative(evaluation: Evaluation, products: Products) -> None:
    """Warn where J^T u, with no J v to compare it with, is not the transpose of what finite differences show."""
    if contradicts_reverse(evaluation, products.rmatmat):
        warn_caller(
            "the reverse derivative of this model differs from finite differences of its output, and there is no "
            "forward one to compare it with. This is the matrix that its backward pass has: right where that differs "
            "on purpose (straight-through, one step of an implicit layer); else a custom backward is wrong",
            FallbackWarning,
        )


def _one_product(evaluation: Evaluation, products: ChunkedProducts) -> tuple[Product, Tensor]:
    """J v with the point, or J^T u with the value where there is no J v: what couples samples couples them in both."""
    if products.products.reverse_only:
        return products.rmatmat, evaluation.value
    return products.matmat, evaluation.point


def refuse_coupled_samples(product: Product, like: Tensor, seed: int = 0) -> None:
    """Raise ModelError where a vector in some samples of a batch has a product in others.

    Parameters
    ----------
    product : callable
        J v of tangents (1, B, *input_shape), or J^T u of (1, B, *output_shape).
    like : (B, *shape) tensor
        The input, or the output.
    """
    size = like.shape[0]
    if size < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    number = torch.arange(size, device=like.device)
    # Any two samples differ in some binary digit of their numbers, so that one mask moves one and not the other.
    digits = [(number >> digit) & 1 == 1 for digit in range((size - 1).bit_length())]
    for moved in (side for chosen in digits for side in (chosen, ~chosen)):
        mask = moved.reshape(-1, *[1] * (like.dim() - 1))
        out = product((vector * mask)[None])[0]
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
        refuse_coupled_samples(*_one_product(evaluation, products))
    except ModelError:
        return
    warn_caller(
        f"the input's first axis looks like a batch of {size} independent samples: this is the one block-diagonal "
        "Jacobian of all of them. Pass batched=True for a Jacobian each",
        FallbackWarning,
    )
