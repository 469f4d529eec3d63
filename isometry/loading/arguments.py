"""All inputs of a model as the command line names them: `--input`, `--input-ids` and `--arg NAME=VALUE`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import LoadError, SpecError
from isometry.loading.images import ImageOptions
from isometry.loading.inputs import FILES, LoadedInput, array_file, generator_of, load_input, normal
from isometry.loading.models import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor, nn

ARG_HELP = (
    "A further input, by keyword or by position from 1: a number, true, false, none, a shape such as 77x32 (standard "
    "normal, stacked as --input is), a .npy, .npz or .pt file as it is, or a text. May be repeated."
)
IDS_HELP = (
    "Token numbers: N random ones, or those of a .npy, .npz, .pt or .txt file. They go in as input_ids where the model "
    "takes that, else as its first input; measure from what enters a module, with --source."
)
_LARGEST_TEXT = 10**8
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class LoadedCall:
    """What a model is called with: ``model(x, *args, **kwargs)``, without x where that is None.

    ``batched``, ``description`` and ``stationary`` are those of :class:`isometry.loading.LoadedInput`.
    """

    x: Tensor | None
    batched: bool
    description: str
    stationary: bool = False
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        """For messages."""
        if self.x is None or self.args or self.kwargs:
            return f"the inputs {self.description}"
        return f"an input of shape {tuple(self.x.shape)}"


def load_call(
    spec: str | None,
    model: LoadedModel,
    *,
    arguments: Sequence[str] = (),
    ids: str | None = None,
    images: ImageOptions | None = None,
    count: int | None,
    seed: int,
    batch_axis: bool = True,
) -> LoadedCall:
    """The inputs of a model.

    Parameters
    ----------
    spec, model, count, seed, batch_axis :
        As for :func:`isometry.loading.load_input`.
    arguments : sequence of str
        See ``ARG_HELP``.
    ids : str, optional
        See ``IDS_HELP``.
    images : ImageOptions, optional
        How images are made tensors.

    Raises
    ------
    SpecError, LoadError
        An unknown form, a missing file, a name given twice.
    """
    by_place, kwargs, texts = _named_arguments(arguments, count or 1, seed, batch_axis)
    tokens = None if ids is None else _tokens(ids, model.module, count, seed, batch_axis)
    takes_ids = tokens is not None and _takes(model.module, "input_ids")
    if tokens is not None and takes_ids:
        if "input_ids" in kwargs:
            raise SpecError("input_ids is given twice: by --input-ids and by --arg")
        kwargs["input_ids"] = tokens.tensor
    if tokens is not None and not takes_ids and spec is not None:
        raise SpecError(
            "--input and --input-ids are both the first input of this model: leave one of them out, or name the other "
            "by --arg"
        )
    own_shape = model.input_shape is not None and tokens is None
    if spec is not None or own_shape or not (kwargs or by_place or tokens):
        found = load_input(spec, model, count=count, seed=seed, batch_axis=batch_axis, images=images)
    else:
        found = None
    if found is None and tokens is not None and not takes_ids:
        found = tokens
    first = found or tokens
    described = [first.description] if first is not None else []
    return LoadedCall(
        None if found is None else found.tensor,
        first.batched if first is not None else batch_axis,
        ", ".join([*described, *texts]),
        found.stationary if found is not None else False,
        _positional(by_place),
        kwargs,
    )


def _named_arguments(
    arguments: Sequence[str], count: int, seed: int, batch_axis: bool
) -> tuple[dict[int, Any], dict[str, Any], list[str]]:
    by_place: dict[int, Any] = {}
    kwargs: dict[str, Any] = {}
    texts = []
    for number, text in enumerate(arguments):
        name, equals, value = text.partition("=")
        place = int(name) if re.fullmatch("[1-9][0-9]?", name) else None
        if not equals or (place is None and not name.isidentifier()):
            raise SpecError(f"--arg {text!r} is not an input: write NAME=VALUE, or PLACE=VALUE from 1")
        if name in kwargs or place in by_place:
            raise SpecError(f"--arg {name} is given twice")
        found = _value(value, count, seed + number + 1, batch_axis)
        if place is None:
            kwargs[name] = found
        else:
            by_place[place] = found
        texts.append(text)
    return by_place, kwargs, texts


def _positional(by_place: Mapping[int, Any]) -> tuple[Any, ...]:
    missing = next((place for place in range(1, len(by_place) + 1) if place not in by_place), None)
    if missing is not None:
        raise SpecError(f"--arg {max(by_place)}=... stands behind the input {missing}, which is not given")
    return tuple(by_place[place] for place in sorted(by_place))


def _value(text: str, count: int, seed: int, batch_axis: bool) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if re.fullmatch(r"\d+(x\d+)+", text):
        return normal(tuple(map(int, text.split("x"))), count, seed, batch_axis).tensor
    path = Path(text)
    if path.suffix in FILES:
        if not os.path.isfile(path):
            raise SpecError(f"there is no input file {text!r}")
        return array_file(path)
    return text


def _takes(module: nn.Module, name: str) -> bool:
    try:
        return name in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return False


def _tokens(text: str, module: nn.Module, count: int | None, seed: int, batch_axis: bool) -> LoadedInput:
    import torch

    size = _vocabulary(module)
    if re.fullmatch("[0-9]+", text):
        if int(text) < 1:
            raise SpecError("--input-ids takes a number of tokens of at least 1")
        if size is None:
            raise SpecError(
                "--input-ids draws token numbers below the size of the vocabulary, and this model has neither "
                "config.vocab_size nor an Embedding: give a file of token numbers"
            )
        drawn = torch.randint(size, (count or 1, int(text)), generator=generator_of(seed))
        return LoadedInput(
            drawn if batch_axis else drawn[0], batch_axis, f"{text} random tokens of {size}, seed {seed}"
        )
    path = Path(text)
    if not os.path.isfile(path):
        raise SpecError(f"--input-ids {text!r} is neither a number of tokens nor a file that there is")
    found = _text_file(path) if path.suffix == ".txt" else array_file(path)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or found.dim() == 0:
        raise LoadError(f"{path} holds {found.dtype} of shape {tuple(found.shape)}, not token numbers")
    found = found.long()
    if found.numel() and (int(found.min()) < 0 or (size is not None and int(found.max()) >= size)):
        raise LoadError(
            f"{path} holds token numbers from {int(found.min())} to {int(found.max())}; the vocabulary has {size}"
        )
    if found.dim() == 1 and batch_axis:
        found = found[None]
    if count is None:
        return LoadedInput(found, batch_axis and found.shape[0] == 1, path.name)
    if found.shape[0] < count:
        raise SpecError(f"--inputs {count}: {path} has shape {tuple(found.shape)}")
    return LoadedInput(found[:count], True, f"{path.name}, first {count}")


def _vocabulary(module: nn.Module) -> int | None:
    from torch import nn

    known = getattr(getattr(module, "config", None), "vocab_size", None)
    if isinstance(known, int) and known > 0:
        return known
    embedding = next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)
    return None if embedding is None else embedding.num_embeddings


def _text_file(path: Path) -> Tensor:
    import torch

    if path.stat().st_size > _LARGEST_TEXT:
        raise LoadError(f"{path} has more than {_LARGEST_TEXT} bytes: save the token numbers as .npy")
    try:
        rows = [
            [int(word) for word in line.replace(",", " ").split()] for line in path.read_text().splitlines()
        ]
        rows = [row for row in rows if row]
        return torch.tensor(rows[0] if len(rows) == 1 else rows)
    except (ValueError, IndexError, RuntimeError) as error:
        raise LoadError(f"{path} holds no token numbers in rows of one length: {str(error)[:200]}") from error
