"""Choosing the backend of Jacobian products: a checked replay of the recorded linear maps, else torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isometry.errors import FallbackWarning, IsometryError

from .evaluation import Evaluation
from .failures import first_line, is_out_of_memory, no_memory_for_one_probe, no_product
from .numerics import torch_warnings_silenced
from .replay import Disagreement, NoRule, checked_replay
from .rounding import generic_vectors
from .torch_func import Candidates, matmat_candidates, rmatmat_candidates

# Tensors of the size of the largest intermediate that are alive at once for each probe, measured on deep conv nets.
_LIVE_TENSORS = 6


@dataclass(frozen=True, eq=False)
class Products:
    """Both products of a Jacobian on blocks.

    Parameters
    ----------
    matmat, rmatmat : callable
        J v, (k, \\*input) -> (k, \\*output), and J^T u.
    backend : str
        "replay", or "torch.func (...)" with the reason why it is not a replay.
    bytes_per_probe : int
        About the memory that the intermediates of a product take for each probe.
    checked : tuple of Tensor
        (v, J v, u, J^T u) of random vectors: those that a replay was compared with torch.func at, or first products.
    recorded : bool
        Whether products are a replay.
    error : float
        How far products of a replay are off by rounding, relative.
    casts : bool
        Whether the recorded run makes tensors of a coarser type than the input.
    """

    matmat: Callable[[Tensor], Tensor]
    rmatmat: Callable[[Tensor], Tensor]
    backend: str
    bytes_per_probe: int
    checked: tuple[Tensor, ...] = ()
    recorded: bool = False
    error: float = 0.0
    casts: bool = False


def choose_products(evaluation: Evaluation, *, check: bool = True) -> Products:
    """The products of a replay that agrees with torch.func, else those of torch.func.

    Parameters
    ----------
    evaluation : Evaluation
    check : bool
        Whether to refuse a function whose second evaluation differs.

    Raises
    ------
    ModelError
        Where two evaluations differ, or no backend can differentiate the function.
    """
    try:
        return _replay(evaluation, check=check)
    except NoRule as missing:
        reason = f"no linear map for {missing}"
    except Disagreement as wrong:
        reason = f"the recorded map is wrong: {wrong}"
        warnings.warn(f"{reason}. Products come from torch.func instead", FallbackWarning, stacklevel=4)
    return _torch_func(evaluation, reason, check=check)


def _replay(evaluation: Evaluation, *, check: bool) -> Products:
    on_output = evaluation.refuse_random if check else None
    try:
        with evaluation.numerics(), torch_warnings_silenced():
            replay = checked_replay(
                evaluation.function,
                evaluation.point,
                evaluation.value,
                unit=evaluation.unit,
                on_output=on_output,
            )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise no_memory_for_one_probe() from error
        raise
    return Products(
        replay.matmat,
        replay.rmatmat,
        "replay",
        replay.bytes_per_probe,
        replay.checked,
        True,
        replay.error,
        replay.casts,
    )


def _torch_func(evaluation: Evaluation, reason: str, *, check: bool) -> Products:
    if check:
        evaluation.refuse_random(evaluation.repeated())
        if not torch.equal(evaluation.outputs[-1], evaluation.value):
            evaluation.refuse_random(evaluation.repeated())
    function, point, value = evaluation.function, evaluation.point, evaluation.value
    (u,), (v,) = generic_vectors(value, 1, seed=1), generic_vectors(point, 1, seed=2)
    rmatmat, jtu = _first_working(rmatmat_candidates(function, point), evaluation, u)
    matmat, jv = _first_working(matmat_candidates(function, point, value), evaluation, v)
    size = _LIVE_TENSORS * _largest_tensor(evaluation)
    return Products(matmat, rmatmat, f"torch.func ({reason})", size, (v, jv, u, jtu))


def _first_working(
    candidates: Candidates, evaluation: Evaluation, vector: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The first product that works on one vector, and what it gives; a FallbackWarning where it is not the fastest."""
    first: Exception | None = None
    texts: list[str] = []
    for note, make in candidates:
        try:
            with evaluation.numerics(), torch_warnings_silenced():
                product = make()
                (found,) = product(vector[None])
        except IsometryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise no_memory_for_one_probe() from error
            first = first or error
            texts.append(str(error))
            if "mutate a captured Tensor" in str(error):
                # Plain autograd would run it, and change what belongs to the caller at every product.
                break
            continue
        if note is not None:
            warnings.warn(f"{note} ({first_line(first)})", FallbackWarning, stacklevel=6)
        return product, found
    raise no_product(first, "; ".join(texts)) from first


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
