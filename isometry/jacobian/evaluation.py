"""One evaluation y = f(x): the function with its value at the point, and the settings of every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from isometry.errors import InputError, IsometryError

from .checks import refuse_nonfinite_output, refuse_random
from .failures import failed_call
from .function import PointFunction
from .numerics import strict_numerics, torch_warnings_silenced
from .perturbation import sensitivity
from .random_state import Draws
from .rounding import relative_difference


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A function evaluated at a point.

    Parameters
    ----------
    function : callable
        Pure: Tensor -> Tensor.
    point, value : Tensor
        x and f(x), both with the batch axis first if there is a batch.
    batch : int or None
        The number of samples with a Jacobian each, None where the point is one input.
    module : nn.Module or None
        The module behind the function, for messages.
    recurrent : bool
        Whether it holds fused recurrent layers.
    tf32 : bool
        Whether products may round their factors to TF32.
    inputs : str
        What the model is called with, for messages.
    draws : bool
        Whether the evaluation drew from PyTorch's random numbers.
    outputs : list of Tensor
        f(x) of later evaluations.
    originals : container of int
        Identities of the parameters and buffers of the model that the function should not come to.
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor
    value: Tensor
    batch: int | None
    module: nn.Module | None
    recurrent: bool
    tf32: bool
    inputs: str = "an input"
    draws: bool = False
    outputs: list[Tensor] = field(default_factory=list)
    originals: Container[int] = ()

    @property
    def input_shape(self) -> torch.Size:
        """Shape of one sample's input."""
        return self.point.shape if self.batch is None else self.point.shape[1:]

    @property
    def output_shape(self) -> torch.Size:
        """Shape of one sample's output."""
        return self.value.shape if self.batch is None else self.value.shape[1:]

    @property
    def unit(self) -> float:
        """The relative rounding of the factors of a product."""
        dtype = self.point.dtype
        return 2.0**-10 if self.tf32 and dtype == torch.float32 else torch.finfo(dtype).eps

    def numerics(self) -> AbstractContextManager[None]:
        """The settings under which the function and its products are evaluated."""
        return strict_numerics(self.point.device, recurrent=self.recurrent, tf32=self.tf32)

    def repeated(self) -> Tensor:
        """f(x) evaluated once more."""
        return _value(self.function, self.point, self.numerics(), self.inputs)

    def refuse_random(self, other: Tensor) -> None:
        """Raise ModelError where the output of another evaluation differs by more than rounding."""
        refuse_random(self.value, other, lambda: self.sensitivity, draws=self.draws)
        self.outputs.append(other)

    @property
    def noise(self) -> float:
        """The largest relative difference of successive later outputs.

        The first evaluation is left out: in a new process it may differ from all others by the order of its sums.
        """
        return max((relative_difference(b, a) for a, b in pairwise(self.outputs)), default=0.0)

    @cached_property
    def sensitivity(self) -> float:
        """By how much rounding moves f(x), in the norm."""
        with self.numerics(), torch_warnings_silenced():
            return sensitivity(self.function, self.point)


def evaluate(
    part: PointFunction,
    *,
    batched: bool = False,
    source: str | None = None,
    tf32: bool = False,
    run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None,
    draws: Draws | None = None,
) -> Evaluation:
    """The evaluation of a function at its point.

    Parameters
    ----------
    part : PointFunction
    batched : bool
        Whether the first axis of the point holds samples with a Jacobian each.
    source : str, optional
        The module that the point enters, for messages.
    tf32 : bool
        Whether products on a GPU may round their factors to TF32.
    run : callable, optional
        Called with the function and the point for the value; the function itself is called if not given.
    draws : Draws, optional
        What is to see whether the evaluation draws random numbers.

    Raises
    ------
    InputError
        Where the first axes are not those of a batch, J is empty, or the model fails on the input.
    NonFiniteError
        Where the output holds NaN or inf.
    """
    point = part.point
    if batched and point.dim() < 1:
        raise InputError("batched=True needs a leading batch axis; the input is a scalar")
    size = part.inputs.batch_size
    if batched and source is not None and point.shape[0] != size:
        raise InputError(
            f"batched=True: what enters {source!r} has shape {tuple(point.shape)}, whose first axis is "
            f"not the batch of {size}; choose another source="
        )
    batch = point.shape[0] if batched else None
    tf32 = tf32 and point.device.type == "cuda"
    draws = Draws() if draws is None else draws
    first = part.function if run is None else partial(run, part.function)

    def numerics() -> AbstractContextManager[None]:
        return strict_numerics(point.device, recurrent=part.recurrent, tf32=tf32)

    value = draws.watched(lambda: _value(first, point, numerics(), part.inputs.in_words), point.device)
    if batched and (value.dim() < 1 or value.shape[0] != batch):
        raise InputError(
            f"batched=True: {batch} inputs gave an output of shape {tuple(value.shape)}, whose first axis "
            "is not the batch. Pass one input, or a model that keeps the batch first"
        )
    made = Evaluation(
        part.function,
        point,
        value.detach(),
        batch,
        part.module,
        part.recurrent,
        tf32,
        part.inputs.in_words,
        draws.seen,
        originals=() if part.private is None else part.private.originals,
    )
    m, n = made.output_shape.numel(), made.input_shape.numel()
    if m == 0 or n == 0:
        raise InputError(f"J is empty: {m} x {n}")
    with made.numerics():
        refuse_nonfinite_output(value, part.module, lambda: part.function(point))
    return made


def _value(
    function: Callable[[Tensor], Tensor], point: Tensor, numerics: AbstractContextManager[None], inputs: str
) -> Tensor:
    try:
        with numerics:
            return function(point)
    except IsometryError:
        raise
    except Exception as error:
        raise failed_call(error, inputs) from error
