"""The one tensor whose Jacobian is wanted, out of what a model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from isometry.errors import InputError

from .nested import element, listed

Output = str | int | Callable[[Any], Tensor] | None


def select_output(value: Any, output: Output) -> Tensor:
    """The real floating tensor that ``output`` names in a model's value.

    Raises
    ------
    InputError
        Where it is not there, or not a real floating tensor with entries.
    """
    if callable(output):
        value = output(value)
    elif output is not None:
        value = _element(value, output)
    if not isinstance(value, Tensor):
        raise InputError(
            f"the model returned {listed(value)}; choose a tensor with output=, a path such as 'decoder.0.logits', or "
            "a function of what the model returns"
        )
    if value.is_complex():
        raise InputError(
            "the model returned a complex tensor; pass output= with a real view, as torch.view_as_real"
        )
    if not value.is_floating_point():
        raise InputError(f"the model returned {value.dtype}, which cannot be differentiated")
    if value.numel() == 0:
        raise InputError(f"the model returned an empty tensor, shape {tuple(value.shape)}")
    return value


def _element(value: Any, output: str | int) -> Any:
    if isinstance(value, Tensor):
        raise InputError(
            f"output={output!r} names an element, but the model returned one tensor, shape {tuple(value.shape)}; leave "
            "output= out, or pass a function of the tensor"
        )
    try:
        return element(value, output)
    except KeyError:
        raise InputError(
            f"output={output!r} is not in what the model returned: {listed(value)}. A function of what the model "
            "returns does as well"
        ) from None
