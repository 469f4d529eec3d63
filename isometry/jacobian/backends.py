"""Choosing the backend of Jacobian products: a checked replay of the recorded linear maps, else torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isometry.errors import FallbackWarning, IsometryError, ModelError, warn_caller

from .evaluation import Evaluation
from .failures import (
    FAILURES_OF_DERIVATIVES,
    first_line,
    is_out_of_memory,
    no_memory_for_one_probe,
    no_product,
)
from .numerics import torch_warnings_silenced
from .replay import Disagreement, NoRule, checked_replay
from .rounding import generic_vectors, relative_difference
from .torch_func import Candidate, matmat_candidates, rmatmat_candidates

# A relative difference of two computations of one product that rounding does not make.
_NOT_ROUNDING = 0.1
# Tensors of the size of the largest intermediate that are alive at once for each probe, measured on deep conv nets.
_LIVE_TENSORS = 6

Reverse = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Products:
    """Both products of a Jacobian on blocks.

    Parameters
    ----------
    matmat, rmatmat : callable
        J v, (k, \\*input) -> (k, \\*output), and J^T u.
    backend : str
        "replay", or "torch.func (...)" with the reason why it is not a replay, or "reverse products alone (...)".
    bytes_per_probe : int
        About the memory that the intermediates of a product take for each probe.
    checked : tuple of Tensor
        (v, J v, u, J^T u) of random vectors: those that a replay was compared with torch.func at, or first products.
        J v is not a product but zeros with ``reverse_only``.
    recorded : bool
        Whether products are a replay.
    error : float
        How far products of a replay are off by rounding, relative.
    casts : bool
        Whether the recorded run makes tensors of a coarser type than the input.
    reverse_only : bool
        Whether there is no J v.
    reached : tuple of Tensor, optional
        The original's tensors that the function has come to; None where that is not known.
    """

    matmat: Callable[[Tensor], Tensor]
    rmatmat: Callable[[Tensor], Tensor]
    backend: str
    bytes_per_probe: int
    checked: tuple[Tensor, ...] = ()
    recorded: bool = False
    error: float = 0.0
    casts: bool = False
    reverse_only: bool = False
    reached: tuple[Tensor, ...] | None = None

    def without_forward(self, evaluation: Evaluation, reason: str) -> Products:
        """The same, as :func:`reverse_products` has it: J v raises ModelError."""
        v, _, u, jtu = self.checked
        return replace(
            self, matmat=_no_forward_product(reason), backend=f"reverse products alone ({reason})",
            checked=(v, torch.zeros_like(evaluation.value), u, jtu), recorded=False, reverse_only=True,
        )  # fmt: skip


def choose_products(
    evaluation: Evaluation, *, check: bool = True, by_autograd: Reverse | None = None
) -> Products:
    """The products of a replay that agrees with torch.func, else those of torch.func, else J^T u alone.

    Parameters
    ----------
    evaluation : Evaluation
    check : bool
        Whether to refuse a function whose second evaluation differs.
    by_autograd : callable, optional
        J^T u and f(x) by autograd, to compare a replay with.

    Raises
    ------
    ModelError
        Where two evaluations differ, or no backend can differentiate the function.
    """
    try:
        return _replay(evaluation, check=check, by_autograd=by_autograd)
    except NoRule as missing:
        reason = f"no linear map for {missing}"
    except Disagreement as wrong:
        reason = f"the recorded map is wrong: {wrong}"
        warn_caller(f"{reason}. Products come from torch.func instead", FallbackWarning)
    reverse = reverse_products(evaluation, reason, check=check)
    try:
        return _with_forward(evaluation, reverse, reason)
    except ModelError as missing:
        cause = missing.__cause__
        reason = first_line(cause if isinstance(cause, Exception) else missing)
    warn_caller(
        f"this model has a reverse derivative alone ({reason}): method='exact' measures it, from rows of J",
        FallbackWarning,
    )
    return reverse.without_forward(evaluation, f"neither forward mode nor a second derivative: {reason}")


def _replay(evaluation: Evaluation, *, check: bool, by_autograd: Reverse | None) -> Products:
    on_output = evaluation.refuse_random if check else None
    try:
        with evaluation.numerics(), torch_warnings_silenced():
            replay = checked_replay(
                evaluation.function,
                evaluation.point,
                evaluation.value,
                unit=evaluation.unit,
                on_output=on_output,
                by_autograd=by_autograd,
                asked_for=evaluation.originals,
            )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise no_memory_for_one_probe() from error
        raise
    names = replay.by_torch_func
    return Products(
        replay.matmat,
        replay.rmatmat,
        "replay" + (f", with torch.func for {', '.join(names)}" if names else ""),
        replay.bytes_per_probe,
        replay.checked,
        True,
        replay.error,
        replay.casts,
        reached=replay.reached,
    )


def reverse_products(evaluation: Evaluation, reason: str, *, check: bool = True) -> Products:
    """J^T u by torch.func, or by plain autograd; J v raises ModelError.

    Raises
    ------
    ModelError
        Where two evaluations differ, or neither differentiates the function.
    """
    if check:
        evaluation.refuse_random(evaluation.repeated())
        if not torch.equal(evaluation.outputs[-1], evaluation.value):
            evaluation.refuse_random(evaluation.repeated())
    point, value = evaluation.point, evaluation.value
    (u,), (v,) = generic_vectors(value, 1, seed=1), generic_vectors(point, 1, seed=2)
    rmatmat, jtu = _first_working(rmatmat_candidates(evaluation.function, point), evaluation, u)
    size = _LIVE_TENSORS * _largest_tensor(evaluation)
    made = Products(_no_forward_product(reason), rmatmat, "", size, (v, torch.zeros_like(value), u, jtu))
    return made.without_forward(evaluation, reason)


def _with_forward(evaluation: Evaluation, reverse: Products, reason: str) -> Products:
    """The same with J v by torch.func, or by double backward; raises ModelError where no way works."""
    v, _, u, jtu = reverse.checked
    candidates = matmat_candidates(evaluation.function, evaluation.point, evaluation.value)
    matmat, jv = _first_working(candidates, evaluation, v)
    return replace(
        reverse, matmat=matmat, backend=f"torch.func ({reason})", checked=(v, jv, u, jtu), reverse_only=False
    )


def _no_forward_product(reason: str) -> Callable[[Tensor], Tensor]:
    def refuse(_: Tensor) -> Tensor:
        raise ModelError(
            f"there is no product J v of this model ({reason}), which Golub-Kahan and all that stands on it need: take "
            "method='exact', which builds J from its rows J^T u, or measure a part, with source= and target="
        )

    return refuse


def _first_working(
    candidates: list[Candidate], evaluation: Evaluation, vector: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The first product that works on one vector, and what it gives; a FallbackWarning where it is not the fastest."""
    first: Exception | None = None
    texts: list[str] = []
    for note, make, batched in candidates:
        try:
            with evaluation.numerics(), torch_warnings_silenced():
                product = make()
                (found,) = product(vector[None])
                if batched:
                    _refuse_wrong_batching(product, vector, found)
        except IsometryError:
            raise
        except FAILURES_OF_DERIVATIVES as error:
            if is_out_of_memory(error):
                raise no_memory_for_one_probe() from error
            first = first or error
            texts.append(str(error))
            if "mutate a captured Tensor" in str(error):
                # Plain autograd would run it, and change what belongs to the caller at every product.
                break
            continue
        if note is not None:
            warn_caller(f"{note} ({first_line(first)})", FallbackWarning)
        return product, found
    raise no_product(first, "; ".join(texts)) from first


def _refuse_wrong_batching(product: Callable[[Tensor], Tensor], vector: Tensor, found: Tensor) -> None:
    """Raise RuntimeError where a vector has another product beside others than alone.

    vmap over the reverse pass of cdist mixes the probes (PyTorch 2.13).
    """
    beside = product(torch.stack([torch.roll(vector.reshape(-1), 1).reshape(vector.shape), vector]))[1]
    if relative_difference(beside, found) > _NOT_ROUNDING:
        raise RuntimeError("vmap over a derivative of this model mixes the probes")


def _largest_tensor(evaluation: Evaluation) -> int:
    """Bytes of the largest tensor on the way to f(x), of all samples of the batch together."""
    with evaluation.numerics(), _LargestTensor() as watch:
        evaluation.function(evaluation.point)
    return max(watch.largest, evaluation.point.nbytes, evaluation.value.nbytes)


class _LargestTensor(TorchDispatchMode):
    """Watches the operations inside it for the largest tensor they make."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.layout == torch.strided:
                self.largest = max(self.largest, made.nbytes)
        return out
