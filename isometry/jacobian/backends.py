"""Choosing the backend of Jacobian products: a checked replay of the recorded linear maps, else torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isometry.errors import FallbackWarning, IsometryError

from .checks import refuse_random
from .evaluation import Evaluation
from .failures import first_line, is_out_of_memory, no_memory_for_one_probe, no_product
from .numerics import torch_warnings_silenced
from .replay import Disagreement, NoRule, checked_replay
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
        (v, J v, u, J^T u) where the products of v and u were compared with torch.func; else empty.
    """

    matmat: Callable[[Tensor], Tensor]
    rmatmat: Callable[[Tensor], Tensor]
    backend: str
    bytes_per_probe: int
    checked: tuple[Tensor, ...] = ()


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
    # The recorded run is the second evaluation.
    on_output = partial(refuse_random, evaluation.value) if check else None
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
    return Products(replay.matmat, replay.rmatmat, "replay", replay.bytes_per_probe, replay.checked)


def _torch_func(evaluation: Evaluation, reason: str, *, check: bool) -> Products:
    if check:
        refuse_random(evaluation.value, evaluation.repeated())
    function, point, value = evaluation.function, evaluation.point, evaluation.value
    rmatmat = _first_working(rmatmat_candidates(function, point), evaluation, like=value)
    matmat = _first_working(matmat_candidates(function, point, value), evaluation, like=point)
    size = _LIVE_TENSORS * _largest_tensor(evaluation)
    return Products(matmat, rmatmat, f"torch.func ({reason})", size)


def _first_working(
    candidates: Candidates, evaluation: Evaluation, *, like: Tensor
) -> Callable[[Tensor], Tensor]:
    """The first product that works on one vector; a FallbackWarning where it is not the fastest."""
    first: Exception | None = None
    for note, make in candidates:
        try:
            with evaluation.numerics(), torch_warnings_silenced():
                product = make()
                product(torch.ones_like(like)[None])
        except IsometryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise no_memory_for_one_probe() from error
            first = first or error
            if "mutate a captured Tensor" in str(error):
                # Plain autograd would run it, and change what belongs to the caller at every product.
                break
            continue
        if note is not None:
            warnings.warn(f"{note} ({first_line(first)})", FallbackWarning, stacklevel=6)
        return product
    raise no_product(first) from first


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
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.nbytes)
        return out
