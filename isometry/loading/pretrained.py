"""`hf:DIRECTORY`: a model of transformers from its config.json and .safetensors, without a network and without code.

Nothing in the directory is run or unpickled: the class is one of the installed transformers, and weights are read from
.safetensors alone. Without any the weights are random.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import LoadError, SpecError

if TYPE_CHECKING:
    from torch import nn

_LARGEST_CONFIG = 10**7
# What the configuration asks for is bounded before anything is made: its numbers are whatever somebody wrote.
_MOST_LAYERS, _MOST_RANDOM_BYTES = 10_000, 16 * 1024**3


def pretrained_model(directory: Path) -> nn.Module:
    """The model of a directory, in evaluation mode.

    Raises
    ------
    SpecError
        Where there is no such directory, or no config.json in it.
    LoadError
        Where transformers cannot be imported, or the model cannot be made as the configuration and the weights say.
    """
    config = _configuration(directory)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights and any(directory.glob("*.bin")):
        raise LoadError(
            f"{directory} holds pickled weights alone (.bin), which could run code when they are loaded: save them as "
            "safetensors, model.save_pretrained(directory, safe_serialization=True)"
        )
    # Before it is imported: nothing is looked for in a hub, kernels included.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import transformers

            kind = _model_class(transformers, config)
            made = transformers.AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            _refuse_size(kind, made, weights)
            # The written formula: attention that the configuration names may come from elsewhere.
            how = {"attn_implementation": "eager", "local_files_only": True, "trust_remote_code": False}
            if not weights:
                return kind._from_config(made, attn_implementation="eager").eval()
            model, said = kind.from_pretrained(
                directory, use_safetensors=True, output_loading_info=True, **how
            )
    except (SpecError, LoadError):
        raise
    except ImportError as error:
        raise import_error("transformers", error) from error
    except Exception as error:  # transformers raises what it likes where a configuration is wrong
        if isinstance(true_cause(error), ImportError) or "import" in str(error).lower():
            raise import_error("transformers", error) from error
        raise LoadError(
            f"transformers cannot make a model of {directory}: {type(error).__name__}: {first_line(error)}"
        ) from error
    wrong = {name: sorted(map(str, said.get(name) or ())) for name in ("missing_keys", "mismatched_keys")}
    for name, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise LoadError(
                f"the weights in {directory} do not fit {kind.__name__}: {name.replace('_', ' ')} "
                f"{', '.join(keys[:4])}{more}, which would be random"
            )
    module: nn.Module = model.eval()
    return module


def import_error(library: str, error: BaseException) -> LoadError:
    """The error where a library cannot be imported, with the cause at the end of its chain."""
    cause = true_cause(error)
    text = f"{type(cause).__name__}: {first_line(cause)}"
    hint = "install it for this torch"
    if "torchvision" in text and library != "torchvision":
        hint = (
            "the torchvision here does not fit this torch: install the torchvision of this torch, or uninstall it, "
            f"which {library} does without"
        )
    return LoadError(
        f"{library} cannot be imported here ({text}): {hint}, or name the model by a file, path/to/file.py:callable"
    )


def torchvision_hint(error: BaseException) -> str:
    """What to do where an error came from a torchvision that was built for another torch; "" where it did not.

    What imports it says no more than that an import of its own failed: transformers does so for each of its models.
    """
    cause = true_cause(error)
    text = first_line(cause)
    if "torchvision" not in text or isinstance(cause, ModuleNotFoundError):
        return ""
    said = "" if cause is error else f", because of {type(cause).__name__}: {text}"
    return (
        f"{said}. The torchvision here does not fit this torch: install the torchvision of this torch, or uninstall "
        "it, which most libraries do without"
    )


def true_cause(error: BaseException) -> BaseException:
    """The exception from which the others followed."""
    seen = {id(error)}
    while True:
        deeper = error.__cause__ or error.__context__
        if deeper is None or id(deeper) in seen:
            return error
        seen.add(id(deeper))
        error = deeper


def first_line(error: BaseException) -> str:
    """The first line of a message."""
    return (str(error).strip().splitlines() or ["(no message)"])[0][:300]


def _configuration(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not os.path.isdir(directory):
        raise SpecError(f"there is no directory {str(directory)!r}")
    if not os.path.isfile(path):
        raise SpecError(f"{directory} holds no config.json; save a model there by model.save_pretrained")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise LoadError(f"{path} has more than {_LARGEST_CONFIG} bytes, which no configuration has")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds a {type(found).__name__}, not a configuration")
    if "auto_map" in found:
        raise LoadError(
            f"{path} asks for code of its own (auto_map), which is not run: name the model by a file, "
            "path/to/file.py:callable, that builds it"
        )
    parts = list(_parts(found))
    if any(
        "/" in str(part.get(name))
        for part in parts
        for name in ("_attn_implementation", "attn_implementation")
    ):
        raise LoadError(
            f"{path} asks for an attention kernel from a hub, which is not loaded: take that key out"
        )
    if any(part.get("quantization_config") for part in parts):
        raise LoadError(
            f"{path} says that the weights are quantised: save the model in float32 or bfloat16 first"
        )
    deepest = max((depth for part in parts for depth in _depths(part)), default=0)
    if deepest > _MOST_LAYERS:
        raise LoadError(f"{path} asks for {deepest} layers; {_MOST_LAYERS} are the most that are made")
    return found


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration and those inside it."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _parts(value)


def _depths(config: dict[str, Any]) -> list[int]:
    names = [
        name for name in config if "layers" in name or "depth" in name or name in ("n_layer", "num_blocks")
    ]
    return [config[name] for name in names if isinstance(config[name], int)]


def _model_class(transformers: Any, config: dict[str, Any]) -> Any:
    names = config.get("architectures") or []
    for name in names if isinstance(names, list) else []:
        kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    if names:
        raise LoadError(
            f"config.json asks for {names!r}, which the transformers {transformers.__version__} here does not have"
        )
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    known = transformers.AutoConfig.for_model(str(config.get("model_type")))
    return MODEL_MAPPING[type(known)]


def _refuse_size(kind: Any, config: Any, weights: list[Path]) -> None:
    """Raise LoadError where the configuration asks for far more numbers than the files hold."""
    import torch

    with torch.device("meta"):
        parameters = sum(p.numel() for p in kind(config).parameters())
    if not weights:
        if 4 * parameters > _MOST_RANDOM_BYTES:
            raise LoadError(
                f"config.json asks for {parameters:,} random parameters, and there are no weights"
            )
        return
    held = sum(path.stat().st_size for path in weights)
    # A quarter of a byte for each is less than any format takes.
    if parameters > 4 * held + 10**6:
        raise LoadError(f"config.json asks for {parameters:,} parameters, and the weights are {held:,} bytes")
