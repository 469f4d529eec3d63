"""Files of weights: a state dictionary of tensors as .pt/.pth (weights only) or .safetensors. Nothing unpickles."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import LoadError, SpecError
from isometry.training.archives import refuse_bomb

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where training scripts commonly put the state dictionary inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 5
# Bytes that one number repeated may stand for.
_PLENTY = 2**28


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file of weights into the module, every key and shape matching.

    Raises
    ------
    LoadError
        The file is absent, damaged, holds more than tensors, or does not fit the model.
    """
    state = _state_dict(path)
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong += [
        f"{key} is complex in the file and real in the model"
        for key in own
        if key in state and state[key].is_complex() and not own[key].is_complex()
    ]
    if missing or unexpected or wrong:
        parts = [
            f"missing from the file: {_some(missing)}" if missing else "",
            f"unknown to the model: {_some(unexpected)}" if unexpected else "",
            _some(wrong) if wrong else "",
        ]
        raise LoadError(
            f"the weights in {path} do not fit the model: {'; '.join(part for part in parts if part)}"
        )
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        first = (str(error).splitlines() or [""])[0]
        raise LoadError(f"the weights in {path} do not fit the model: {first}") from error


def check_savable(path: Path, *, overwrite: bool) -> None:
    """Raise where weights could not be saved in this file: its ending, its folder, or a file that is there.

    Raises
    ------
    SpecError
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise SpecError(f"{str(path)!r} is no file of weights: its ending is to be .safetensors, .pt or .pth")
    if not path.parent.is_dir():
        raise SpecError(f"there is no folder {str(path.parent)!r} to write {path.name} into")
    if path.exists() and not overwrite:
        raise SpecError(
            f"{str(path)!r} is there already: choose another name, or replace it with --overwrite"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SpecError(f"{str(path)!r} may not be written to: permission denied")
    if path.suffix == ".safetensors":
        _library()


def save_weights(module: nn.Module, path: Path) -> None:
    """Save the state dictionary of the module, whole or not at all; :func:`load_weights` reads it.

    Raises
    ------
    LoadError
        It holds more than tensors.
    OSError
        The file cannot be written.
    """
    import torch

    state = module.state_dict()
    extra = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if extra:
        raise LoadError(f"the state dictionary of the model holds more than tensors: {_some(extra)}")
    # Tied weights are written twice: a file of safetensors has no memory that two share.
    tensors = {key: value.detach().contiguous().clone() for key, value in state.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            _library().save_file(tensors, str(partial))
        else:
            torch.save(tensors, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    import torch

    if not os.path.isfile(path):
        raise SpecError(f"there is no file of weights {str(path)!r}")
    if path.suffix == ".safetensors":
        found: Any = _safetensors(path)
    else:
        refuse_bomb(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise LoadError(
                f"{path} holds more than tensors, or is no file of torch.save; it was not loaded, because loading "
                "it could run code. Save the state dictionary alone: torch.save(model.state_dict(), path)"
            ) from error
        except Exception as error:  # torch.load raises what it likes where a file is damaged
            first = (str(error).splitlines() or [""])[0]
            raise LoadError(
                f"{path} cannot be read as weights (damaged, or another format): {first}"
            ) from error
    if isinstance(found, Mapping):
        for key in _WRAPPERS:
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        raise LoadError(
            f"{path} holds no state dictionary (names -> tensors) but a {type(found).__name__}; "
            "save it with torch.save(model.state_dict(), path)"
        )
    for key, value in found.items():
        if problem := unusual(value):
            raise LoadError(f"{path}: the tensor {key!r} is one {problem}; save dense numbers")
    return found


def unusual(tensor: Tensor) -> str:
    """What keeps a loaded tensor from being a dense array of numbers in memory; empty where nothing does."""
    import torch

    if tensor.is_meta:
        return "without numbers, on the device 'meta'"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"of layout {str(tensor.layout).removeprefix('torch.')}, not dense"
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > max(held, _PLENTY):
        return f"of {tensor.numel():,} numbers, for which the file holds {held:,} bytes"
    return "of quantized numbers" if tensor.is_quantized else ""


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    library = _library()
    try:
        state: Mapping[str, Tensor] = library.load_file(path)
    except Exception as error:
        # The library's own error type is not public.
        raise LoadError(f"{path} cannot be read as safetensors: {error}") from error
    return state


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise LoadError(
            "files of .safetensors need the safetensors package: pip install 'isometry[weights]'"
        ) from error
    return safetensors.torch


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
