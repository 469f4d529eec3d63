"""Everything that a model is called with, as a function of the one tensor in it that J is taken with respect to.

A model may take any number of positional and keyword inputs, with tensors in nested containers. One of them, or several
joined to one vector, is differentiated: the point. All others stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InputError

from .nested import is_container, tensors_by_path, with_tensors

Wrt = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class InputPart:
    """One of several tensors that J is taken with respect to: its entries are start, ..., stop - 1 of the n inputs."""

    path: str
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a model, and the paths of those that are differentiated.

    Parameters
    ----------
    args, kwargs :
        As the model takes them.
    names : tuple of str
        Of the positional arguments, for paths: those of the model's signature, positions where it has none.
    wrt : tuple of str
        Paths of the tensors that are differentiated, in the order in which they are joined; empty where J is taken with
        respect to what enters a module.
    batched : bool
        Whether the first axis of these counts samples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]
    wrt: tuple[str, ...]
    batched: bool = False

    # ---- what there is -------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its path."""
        return dict(self.leaves())

    @property
    def first(self) -> Tensor:
        """The first tensor that is differentiated; where none is, the first of all."""
        tensors = self.tensors()
        return tensors[self.wrt[0]] if self.wrt else next(iter(tensors.values()))

    @property
    def has_others(self) -> bool:
        """Whether there are tensors beside the first."""
        return len(self.tensors()) > 1

    @property
    def only_tensor(self) -> Tensor | None:
        """The tensor that is the one argument of the model; None where it takes anything else."""
        alone = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        return self.args[0] if alone else None

    @property
    def description(self) -> str:
        """Shapes and types of all tensors, with their paths where there are several."""
        only, found = self.only_tensor, self.tensors()
        if only is not None:
            return _described(only)
        texts = [f"{path} {_described(tensor)}" for path, tensor in list(found.items())[:6]]
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        return ", ".join(texts) + more

    @property
    def in_words(self) -> str:
        """What the model is called with, for messages."""
        only = self.only_tensor
        if only is None:
            spread = any(isinstance(value, Mapping) for value in self.args)
            hint = " (a mapping is one input; kwargs= passes its entries by keyword)" if spread else ""
            return f"the inputs {self.description} on {self.first.device}{hint}"
        return f"an input of shape {tuple(only.shape)} and type {only.dtype} on {only.device}"

    @property
    def parts(self) -> tuple[InputPart, ...]:
        """Where the tensors that are differentiated lie among the n inputs of one sample; empty where it is one."""
        if len(self.wrt) < 2:
            return ()
        found, start, tensors = [], 0, self.tensors()
        for path in self.wrt:
            shape = tensors[path].shape[1:] if self.batched else tensors[path].shape
            found.append(InputPart(path, shape, start, start + shape.numel()))
            start += shape.numel()
        return tuple(found)

    # ---- as a function of the point ------------------------------------------------------------------------

    @property
    def point(self) -> Tensor:
        """The tensor that is differentiated; several are flattened and joined, sample by sample in a batch."""
        tensors = self.tensors()
        if len(self.wrt) == 1:
            return tensors[self.wrt[0]]
        axis = 1 if self.batched else 0
        flat = [tensors[path][None] if axis == 0 else tensors[path] for path in self.wrt]
        return torch.cat([t.reshape(t.shape[0], -1) for t in flat], dim=1).reshape(
            *self.first.shape[:axis], -1
        )

    def at(self, point: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with ``point`` in them; clones, so that a model that works in place changes nothing here."""
        new: dict[str, Tensor] = {}
        if point is not None and len(self.wrt) == 1:
            new[self.wrt[0]] = point
        elif point is not None:
            tensors = self.tensors()
            for part in self.parts:
                new[part.path] = point[..., part.start : part.stop].reshape(tensors[part.path].shape)

        def put(path: str, tensor: Tensor) -> Tensor:
            return new.get(path, tensor).clone()

        return self._with(put)

    def placed(self, dtype: torch.dtype, device: torch.device) -> Inputs:
        """On a device, floating and complex tensors in a precision; whole numbers stay as they are."""

        def place(_: str, tensor: Tensor) -> Tensor:
            # A clone: of memory of its own, also where it is an expanded view, and whatever happens to it later.
            moved = tensor.detach().to(device).clone()
            if moved.is_complex():
                return moved.to(dtype.to_complex())
            return moved.to(dtype) if moved.is_floating_point() else moved

        return self._replaced(place)

    def snapshot(self) -> Inputs:
        """With copies of all tensors, whatever becomes of them later."""
        return self._replaced(lambda _, tensor: tensor.detach().clone())

    def samples(self, chosen: range) -> Inputs:
        """Those of some samples: of every tensor whose first axis is as long as the batch, these entries.

        Another tensor may happen to have such an axis; whoever takes samples apart compares them with the batch.
        """
        size = self.batch_size

        def part(_: str, tensor: Tensor) -> Tensor:
            along = tensor.dim() > 0 and tensor.shape[0] == size
            return tensor[chosen.start : chosen.stop] if along else tensor

        return self._replaced(part)

    def sample(self, number: int) -> list[Inputs]:
        """One sample of a batch alone: with what belongs to it of the other tensors, and with all of them."""
        own = set(self.wrt or [next(iter(self.tensors()))])
        whole = self._replaced(lambda path, t: t[number : number + 1] if path in own else t)
        return [self.samples(range(number, number + 1)), whole][: 1 + self.has_others]

    @property
    def batch_size(self) -> int:
        """Length of the first axis of the first tensor that is differentiated, or of all."""
        return self.first.shape[0] if self.first.dim() else 0

    def leaves(self) -> Iterator[tuple[str, Tensor]]:
        """Paths and tensors, positional arguments first."""
        for name, value in (*zip(self.names, self.args, strict=True), *self.kwargs.items()):
            yield from tensors_by_path(value, name, objects=False)

    def _with(self, change: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(with_tensors(v, change, name) for name, v in zip(self.names, self.args, strict=True))
        return args, {name: with_tensors(value, change, name) for name, value in self.kwargs.items()}

    def _replaced(self, change: Any) -> Inputs:
        args, kwargs = self._with(change)
        return replace(self, args=args, kwargs=kwargs)


def model_inputs(
    model: Any,
    x: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    wrt: Wrt = None,
    *,
    source: str | None = None,
    batched: bool = False,
) -> Inputs:
    """The arguments of ``model(x, *args, **kwargs)``, and which tensors in them are differentiated.

    Parameters
    ----------
    model : nn.Module or callable
    x : object
        The first positional argument; None where there is none.
    args, kwargs :
        The others.
    wrt : str, int or sequence of them, optional
        A position, a name or a path. Of a container all floating tensors are taken. By default ``x`` where it is a
        tensor, else the only floating tensor there is.
    source : str, optional
        The module from whose input on J is taken, in place of ``wrt``.
    batched : bool
        Whether the first axis of the tensors differentiated counts samples.

    Raises
    ------
    InputError
        Where an argument is given twice or wrongly, or ``wrt`` names no floating tensor; the message lists them.
    """
    if isinstance(args, str | Tensor | Mapping) or not isinstance(args, Sequence):
        raise InputError(
            f"args is a tuple of the positional inputs behind x; got a {type(args).__name__}. Write args=(value,)"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"kwargs maps names to inputs; got a {type(kwargs).__name__}")
    given = {str(name): value for name, value in (kwargs or {}).items()}
    positional = (*(() if x is None else (x,)), *args)
    names = _positional_names(model, len(positional))
    twice = [name for name in names if name in given]
    if twice:
        raise InputError(f"the input {twice[0]!r} is given twice: by its position and in kwargs")
    inputs = Inputs(positional, given, names, (), batched)
    _refuse_arguments_without_tensors(x, inputs)
    if source is not None:
        if wrt is not None:
            raise InputError(
                "wrt= and source= both say what J is taken with respect to: an input of the model, or what enters one "
                "of its modules. Give one of them"
            )
        return inputs
    found = _default(x, inputs) if wrt is None else _named(wrt, inputs)
    chosen = replace(inputs, wrt=found)
    if batched:
        _refuse_unlike_batches(chosen)
    return chosen


def _positional_names(model: Any, count: int) -> tuple[str, ...]:
    """The names of the first positional parameters of a model, positions where they are not known."""
    try:
        parameters = list(
            inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
        )
    except (TypeError, ValueError, AttributeError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return tuple(known[k] if k < len(known) else str(k) for k in range(count))


def _refuse_arguments_without_tensors(x: Any, inputs: Inputs) -> None:
    paths = [path for path, _ in inputs.leaves()]
    known = isinstance(x, Tensor) or (is_container(x) and paths)
    if x is not None and not known:
        raise InputError(
            f"the input is a {type(x).__name__}; pass a torch.Tensor (torch.as_tensor converts), or a tuple, list or "
            "dict of them"
        )
    if not paths:
        raise InputError("there is no tensor among the inputs; give x, args= or kwargs= with one")
    twice = next((path for number, path in enumerate(paths) if path in paths[:number]), None)
    if twice is not None:
        raise InputError(f"two inputs have the path {twice!r}; rename a key of their containers")


def _default(x: Any, inputs: Inputs) -> tuple[str, ...]:
    floating = [path for path, tensor in inputs.tensors().items() if tensor.is_floating_point()]
    if isinstance(x, Tensor) and (x.is_floating_point() or not floating):
        return (inputs.names[0],)
    if len(floating) != 1:
        several = "there are several floating tensors" if floating else "there is no floating tensor"
        raise InputError(
            f"{several} among the inputs: {_listed(inputs)}. Name what J is taken with respect to by wrt=, or a module "
            "by source="
        )
    return (floating[0],)


def _named(wrt: str | int | Sequence[str | int], inputs: Inputs) -> tuple[str, ...]:
    chosen = [wrt] if isinstance(wrt, str | int) else list(wrt)
    if not chosen or not all(isinstance(one, str | int) and not isinstance(one, bool) for one in chosen):
        raise InputError(f"wrt names inputs by position, name or path, one or several; got {wrt!r}")
    found: list[str] = []
    for one in chosen:
        for path in _paths(one, inputs):
            if path in found:
                raise InputError(f"wrt names the input {path!r} twice")
            found.append(path)
    return tuple(found)


def _paths(one: str | int, inputs: Inputs) -> list[str]:
    """The paths of the floating tensors that one name stands for."""
    first, *rest = str(one).split(".")
    if first.isascii() and first.isdigit() and int(first) < len(inputs.names):
        first = inputs.names[int(first)]
    name, tensors = ".".join([first, *rest]), inputs.tensors()
    inside = [path for path in tensors if path == name or path.startswith(f"{name}.")]
    if not inside:
        raise InputError(f"wrt={one!r} is not among the inputs: {_listed(inputs)}")
    floating = [path for path in inside if tensors[path].is_floating_point()]
    if not floating:
        raise InputError(
            f"wrt={one!r} is of type {tensors[inside[0]].dtype}, which cannot be differentiated; the inputs are "
            f"{_listed(inputs)}. For token numbers measure from the embeddings, with source= naming the module "
            "they enter"
        )
    return floating


def _refuse_unlike_batches(inputs: Inputs) -> None:
    tensors = inputs.tensors()
    shapes = {path: tensors[path].shape for path in inputs.wrt}
    if any(not shape for shape in shapes.values()):
        raise InputError("batched=True needs a leading batch axis; the input is a scalar")
    if len({shape[0] for shape in shapes.values()}) > 1:
        texts = ", ".join(f"{path} {tuple(shape)}" for path, shape in shapes.items())
        raise InputError(f"batched=True: the inputs of wrt= have first axes of different lengths: {texts}")


def _listed(inputs: Inputs) -> str:
    texts = [f"{path} {_described(tensor)}" for path, tensor in list(inputs.tensors().items())[:12]]
    more = len(inputs.tensors()) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
