"""The one tensor whose Jacobian is wanted, out of what a model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from isometry.errors import InputError

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
        raise InputError(f"the model returned {_choices(value)}; choose a tensor with output=")
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
    try:
        # A dict first by its keys: "values" and "items" are names of its methods as well.
        named = not isinstance(output, int) and hasattr(value, output)
        by_key = not named or (isinstance(value, Mapping) and output in value)
        return value[output] if by_key else getattr(value, str(output))
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"output={output!r} is not in what the model returned: {_choices(value)}") from error


def _choices(value: Any) -> str:
    if isinstance(value, dict):
        return f"a {type(value).__name__} with keys {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} elements (0 to {len(value) - 1})"
    return f"a {type(value).__name__}"
