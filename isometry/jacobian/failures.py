"""Errors that PyTorch raises in a model, and the errors of this package that they become."""

from __future__ import annotations

import torch

from isometry.errors import InputError, IsometryError, ModelError

# What PyTorch, and the code of a custom derivative, raise where a way of differentiating does not work.
FAILURES_OF_DERIVATIVES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def first_line(error: Exception | None) -> str:
    """The first line of PyTorch's message, which may have dozens."""
    return str(error).split("\n", 1)[0][:200]


def failed_call(error: Exception, inputs: str) -> Exception:
    """The error to raise where PyTorch or the model's code fails on ``inputs``, described in words."""
    if is_out_of_memory(error):
        return IsometryError(
            "out of memory in one evaluation of the model. Take fewer inputs, or a device with more memory"
        )
    if "does not require grad" in str(error):
        return ModelError(
            "the model calls torch.autograd.grad or backward inside its forward pass, which works neither under "
            "torch.no_grad nor inside torch.func. Take the derivative by torch.func.grad (or vjp, jacrev) there. "
            f"PyTorch says: {first_line(error)}"
        )
    return InputError(
        f"the model fails on {inputs}: {type(error).__name__}: {first_line(error)}. Pass the input exactly "
        "as the model takes it, a batch axis included, and further ones by args= and kwargs=; a function that holds "
        "tensors of its own needs dtype and device to agree with them"
    )


def no_memory_for_one_probe() -> IsometryError:
    """The error where even one probe at a time does not fit."""
    return IsometryError(
        "out of memory with a single probe at a time. Take fewer inputs, a smaller part (source=, target=), or "
        "a device with more memory"
    )


def no_product(error: Exception | None, texts: str) -> ModelError:
    """The error where no backend can differentiate the model.

    ``error`` is PyTorch's, of the first one; ``texts`` those of all together.
    """
    return ModelError(
        f"no Jacobian product works for this model: {_likely_cause(texts)}. PyTorch says: {first_line(error)}"
    )


def _likely_cause(text: str) -> str:
    if "FlexAttention" in text:
        return (
            "it uses flex_attention, which has no derivative on a processor: take another attention "
            "(attn_implementation='sdpa' in transformers)"
        )
    if "TransformType." in text or "HigherOrderOperator" in text:
        return (
            "it uses an operator of the compiler's, as torch.cond or torch.while_loop, which has no derivative without "
            "compilation: write the branch or the loop in Python, of which the one that runs at this input is measured"
        )
    if "use_reentrant" in text:
        return "it uses gradient checkpointing with use_reentrant=True, which has no second derivative: pass False"
    if "in-place" in text:
        return (
            "it changes a tensor in place that belongs to the model (a running statistic in training mode?): call "
            "model.eval()"
        )
    if "inference tensor" in text:
        return (
            "it runs under torch.inference_mode: take that off its forward, or measure the module inside it"
        )
    if "saved tensor hooks" in text:
        return "it uses gradient checkpointing: switch that off for the measurement"
    return "an operation of it has no derivative; source= and target= measure the parts on either side of it"
