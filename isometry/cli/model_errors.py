"""Errors that a model raises in its own forward pass, as a message of the command line."""

from __future__ import annotations

import click


def explain_model_error(error: Exception, inputs: str) -> click.ClickException | None:
    """The message for what a model raised in its own forward; None where it was not the model that raised."""
    # The entry point reports out of memory; torch reports a bad device.
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return None
    step, frames = error.__traceback__, []
    while step is not None:
        frames.append(step.tb_frame.f_code)
        step = step.tb_next
    if not any(code.co_name == "_call_impl" and "torch" in code.co_filename for code in frames):
        return None
    first = (str(error).strip().splitlines() or ["(no message)"])[0]
    return click.ClickException(
        f"the model raised {type(error).__name__} on {inputs}: {first}. If the shape is wrong, see "
        "--input; the first axis counts inputs unless --no-batch-axis is given"
    )
