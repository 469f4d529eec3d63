"""A model as a pure function of its input: a private copy of its modules runs, and nothing of the user's is touched.

Parameters and buffers are copied too, so that J stays that of the model as it was: whatever an optimiser, ``.data`` or
another thread does to the weights afterwards, no product changes. It costs one copy of the weights. Where no product
is wanted later, large weights may be *borrowed* instead: the copy then has their memory for as long as it only reads
them, and whether another thread has changed them meanwhile is seen from their versions.

Copied are modules, the containers they hold, and functions, bound methods and plain objects through which they refer
to one another. Any other attribute (a lock, a file, a generator, a trainer) is shared: it need not be copyable.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isometry.errors import FallbackWarning, InputError, IsometryError, ModelError, warn_caller

from .failures import FAILURES_OF_DERIVATIVES, first_line

_Place = tuple[dict[str, Any], str, Tensor]
"""A dict of a module, a name in it, and the tensor to put there."""
_DICTS = (dict, OrderedDict)
_CONTAINERS = (list, deque, set, dict, OrderedDict, defaultdict)
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size})

# Bytes from which on copying a tensor takes longer than watching over it, and those for each module from which on
# copying all of them takes longer than watching the functions that the modules call.
_WORTH_BORROWING, _WORTH_WATCHING = 2**15, 2**17
_SHAPE_AND_KIND = (
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_meta",
    "is_nested", "is_quantized", "is_sparse", "is_sparse_csr", "is_mkldnn", "itemsize", "nbytes",
)  # fmt: skip
# Functions that only read their arguments, and whose result is memory of its own.
_READING = frozenset({
    F.linear, F.bilinear, F.multi_head_attention_forward, torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.add, torch.mul, torch.layer_norm,
    Tensor.matmul, Tensor.mm, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.add, Tensor.__add__, Tensor.__radd__,
    Tensor.mul, Tensor.__mul__, Tensor.__rmul__, F.layer_norm, Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride,
    Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex, Tensor.is_contiguous,
    *(getattr(Tensor, name).__get__ for name in _SHAPE_AND_KIND),
})  # fmt: skip


class PrivateModule:
    """A private copy of a module, evaluated in ``dtype`` on ``device``: each call starts from the same state.

    Parameters
    ----------
    original : nn.Module
    dtype, device : optional
        Of the copies of parameters and buffers; their own if not given, as those of all other tensors.
    borrow : bool
        Whether large tensors keep the memory of the original, until :meth:`own`. One is copied before any function
        but those known to read it gets it.

    Attributes
    ----------
    module : nn.Module
        The copy.
    lock : RLock
        Held by whoever runs the copy, so that two threads may use one operator.
    watches : bool
        Whether the next call looks for tensors of the original that the copy still reaches, if none has: False where
        :meth:`warn_of` is told what a call has used. Calls with borrowed tensors always look.
    """

    def __init__(
        self,
        original: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        *,
        borrow: bool = False,
    ) -> None:
        # Tensors made under inference_mode could not be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            self._copies = _Copies(original, dtype, device, borrow=borrow)
        self.module = self._copies.of(original)
        self.lock = threading.RLock()
        self._watched = self._released = self._stale = self._changed = False
        self.watches = True
        # A scripted module keeps its tensors in C++.
        parts = [part for part in self._copies.modules() if not isinstance(part, torch.jit.ScriptModule)]
        self._attributes = [(part.__dict__, dict(part.__dict__)) for part in parts]
        self._changing = list(_changing_state(parts))

    @property
    def nbytes(self) -> int:
        """Of the tensors that were copied."""
        return self._copies.nbytes

    @property
    def originals(self) -> Container[int]:
        """The identities of the original's parameters and buffers."""
        return self._copies.originals

    def own(self) -> bool:
        """Copy what is borrowed; whether its originals had not been written to (through ``.data`` is not seen)."""
        loans = list(self._copies.borrowed.values())
        for loan in loans:
            self._copies.buy(loan)
        return all(loan.original._version == loan.version for loan in loans)

    def release(self) -> bool:
        """End the use of what is borrowed; whether it was right, as for :meth:`own`. A later call copies it first."""
        self._released = bool(self._copies.borrowed)
        return all(loan.original._version == loan.version for loan in self._copies.borrowed.values())

    def _buy_back(self) -> None:
        """Copy what was borrowed, where it is still what it was; afterwards that it was not is known for good."""
        self._stale = self._stale or not self.own()
        if self._stale:
            raise ModelError(
                "the weights of the model have changed since the rows of J were taken, and no copy of them was kept: "
                "make the operator with products='both'"
            )
        self._released = False

    def counterpart(self, part: nn.Module) -> nn.Module:
        """The copy of one of the original's modules."""
        return self._copies.of(part)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._released:
            self._buy_back()
        if self._changed:
            # An interrupt may have left the copy in any state.
            self._restore_attributes()
        self._changed = True
        clones = {id(tensor): tensor.clone() for _, _, tensor in self._changing}
        for holder, name, tensor in self._changing:
            holder[name] = clones[id(tensor)]
        try:
            if self._copies.borrowed or (self.watches and not self._watched):
                return self._watched_call(*args, **kwargs)
            return self.module(*args, **kwargs)
        except FAILURES_OF_DERIVATIVES:
            # The next call says why, if it fails too.
            self.watches = True
            raise
        finally:
            self._restore_attributes()

    def _restore_attributes(self) -> None:
        """Restore the plain attributes in which a forward pass stores tensors: an attention map, a normalised weight.

        Inside a transform of torch.func such a tensor is a wrapper that is dead afterwards.
        """
        for attributes, old in self._attributes:
            _restore_tensors(attributes, old)
        self._changed = False

    def _watched_call(self, *args: Any, **kwargs: Any) -> Any:
        """A call that finds out whether the copy still reaches tensors of the original, and guards borrowed ones."""
        watch = _Watch(self._copies)
        try:
            with watch:
                value = self.module(*args, **kwargs)
        except Exception as error:
            if watch.found:
                raise InputError(
                    f"the model fails where it uses its tensor {watch.found[0]!r}: it comes to it not through its "
                    f"modules but through another object, which is not copied and not of {self._copies.dtype}. Convert "
                    f"the model first, model.to(dtype) ({type(error).__name__}: {first_line(error)})"
                ) from error
            raise
        first, self._watched = not self._watched, True
        if watch.found and first:
            _warn_of(watch.found[0])
        return value

    def watch(self, run: Callable[[], object]) -> None:
        """``run``, which calls this, where no call has looked for tensors of the original."""
        if not self._watched:
            self.watches = True
            run()

    def warn_of(self, reached: Sequence[Tensor]) -> None:
        """Warn where one of these tensors, which a call has used, is one of the original's."""
        names = [self._copies.originals[id(t)] for t in reached if id(t) in self._copies.originals]
        if names and not self._watched:
            _warn_of(names[0])


def _warn_of(name: str) -> None:
    warn_caller(
        f"the model comes to its tensor {name!r} not through its modules but through another object, which is not "
        "copied: leave the weights as they are until the measurement has ended",
        FallbackWarning,
    )


@dataclass(frozen=True, eq=False)
class _Loan:
    """A tensor with the memory of an original, and the version that the original had."""

    tensor: Tensor
    original: Tensor
    version: int


class _Copies:
    """The copies of everything that belongs to a module, by the identity of the originals.

    Attributes
    ----------
    originals : dict
        id of each parameter and buffer of the original -> its name.
    nbytes : int
        Of the tensors copied.
    borrowed : dict
        id of each tensor with the memory of an original -> the loan.
    """

    def __init__(
        self,
        original: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        *,
        borrow: bool = False,
    ) -> None:
        self.dtype, self._device = dtype, device
        self._borrow = borrow and _is_worth_watching(original)
        self.borrowed: dict[int, _Loan] = {}
        # With the originals, so that no identity is used twice.
        self._known: dict[int, tuple[Any, Any]] = {}
        self._replaced = self.nbytes = 0
        self.originals: dict[int, str] = {}
        for path, part in original.named_modules():
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self.originals[id(tensor)] = f"{path}.{name}" if path else name
                    self._placed(tensor)
        # A queue and no recursion: trees may be deeper than Python's stack.
        self._empty: list[tuple[nn.Module, nn.Module]] = []
        self.of(original)
        while self._empty:
            self._fill(*self._empty.pop())

    def modules(self) -> list[nn.Module]:
        """The modules that were copied, as copies."""
        return [made for _, made in self._known.values() if isinstance(made, nn.Module)]

    def of(self, value: Any) -> Any:
        """The copy of a value, or the value itself where it is shared."""
        kind = type(value)
        if kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, value))):
            return value
        if id(value) in self._known:
            made = self._known[id(value)][1]
            self._replaced += made is not value
            return made
        if issubclass(kind, nn.Parameter):
            return self._placed(value)
        if issubclass(kind, Tensor):
            return self._tensor(value, None, None)
        if issubclass(kind, nn.Module):
            return self._module(value)
        if kind in _CONTAINERS:
            return self._container(value)
        if kind is types.FunctionType:
            return self._function(value)
        return self._if_replaced(value, lambda: self._other(value, kind))

    def _keep(self, value: Any, made: Any) -> Any:
        self._known[id(value)] = (value, made)
        return made

    def _if_replaced(self, value: Any, make: Callable[[], Any]) -> Any:
        """``make()`` where something in it is a copy, else the value itself."""
        before = self._replaced
        made = make()
        return self._keep(value, value if self._replaced == before else made)

    def _placed(self, tensor: Tensor) -> Tensor:
        """The copy of a parameter or buffer, in the precision and on the device wanted."""
        if id(tensor) in self._known:
            return self.of(tensor)
        dtype = self.dtype
        if dtype is not None and tensor.is_complex():
            dtype = dtype.to_complex()
        elif not tensor.is_floating_point():
            dtype = None
        return self._tensor(tensor, dtype, self._device)

    def _tensor(self, tensor: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
        self._replaced += 1
        if self._borrow and _is_large(tensor) and _can_be_borrowed(tensor, dtype, device):
            # A version of its own, unlike that of detach().
            loan = _Loan(tensor.data, tensor, tensor._version)
            self.borrowed[id(loan.tensor)] = loan
            return self._keep(tensor, loan.tensor)
        same = dtype in (None, tensor.dtype) and device in (None, tensor.device) and not tensor.is_inference()
        # The same, in a third of the time.
        made: Tensor = (
            tensor.detach().clone() if same else tensor.detach().to(device=device, dtype=dtype, copy=True)
        )
        self.nbytes += made.numel() * made.element_size() if made.layout == torch.strided else 0
        return self._keep(tensor, made)

    def buy(self, loan: _Loan) -> None:
        """Give a borrowed tensor memory of its own, whoever holds it."""
        if self.borrowed.pop(id(loan.tensor), None) is not None:
            with torch.inference_mode(False), torch.no_grad():
                loan.tensor.data = loan.tensor.clone()
            self.nbytes += loan.tensor.nbytes

    def _module(self, part: nn.Module) -> Any:
        self._replaced += 1
        if type(part).__name__ == "OptimizedModule" and isinstance(
            getattr(part, "_orig_mod", None), nn.Module
        ):
            # What torch.compile made of a module; its Jacobian is that of the module.
            return self._keep(part, self.of(part._orig_mod))
        if isinstance(part, torch.jit.ScriptModule):
            scripted = copy.deepcopy(part).to(self._device, self.dtype)
            for parameter in scripted.parameters():
                parameter.requires_grad_(False)
                self.nbytes += parameter.nbytes
            return self._keep(part, scripted)
        try:
            made = object.__new__(type(part))
        except TypeError:
            # A module that is a list or a dict as well, say.
            return self._keep(part, part)
        self._empty.append((part, made))
        return self._keep(part, made)

    def _fill(self, part: nn.Module, made: nn.Module) -> None:
        # Lists of the items: another thread may be running the module.
        for tensor in list(part._buffers.values()):
            if tensor is not None:
                self._placed(tensor)
        for name in copyreg._slotnames(type(part)):  # type: ignore[attr-defined]
            if hasattr(part, name):
                object.__setattr__(made, name, self.of(getattr(part, name)))
        attributes = made.__dict__
        for name, value in list(part.__dict__.items()):
            kind = type(value)
            if kind in _PLAIN:
                attributes[name] = value
            elif kind in _DICTS and not value and name in _OF_EVERY_MODULE:
                attributes[name] = kind()
            else:
                attributes[name] = self.of(value)
        # Module.compile() keeps a function of the original here.
        attributes.pop("_compiled_call_impl", None)

    def _container(self, value: Any) -> Any:
        made = self._keep(value, value.copy())
        if not value:
            return made
        if isinstance(value, dict):
            for key, item in list(value.items()):
                made[key] = self.of(item)
        else:
            items = [self.of(item) for item in list(value)]
            made.clear()
            made.update(items) if isinstance(made, set) else made.extend(items)
        return made

    def _function(self, function: types.FunctionType) -> Any:
        """A function with copies in its closure and its defaults, which may refer to itself."""
        if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        code, scope = function.__code__, function.__globals__
        made = self._keep(function, types.FunctionType(code, scope, function.__name__, None, cells or None))
        before = self._replaced
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):
                # A cell may be empty.
                cell.cell_contents = self.of(original.cell_contents)
        made.__defaults__ = self.of(function.__defaults__)
        made.__kwdefaults__ = self.of(function.__kwdefaults__)
        made.__dict__.update(function.__dict__)
        return made if self._replaced > before else self._keep(function, function)

    def _other(self, value: Any, kind: Any) -> Any:
        """A tuple, a bound method, a partial, a weak reference or a plain object of copies."""
        if issubclass(kind, tuple):
            items = [self.of(item) for item in value]
            if hasattr(kind, "_make"):
                return kind._make(items)
            return tuple(items) if kind is tuple else value
        if kind is types.MethodType:
            return types.MethodType(self.of(value.__func__), self.of(value.__self__))
        if kind is functools.partial:
            keywords = {name: self.of(item) for name, item in value.keywords.items()}
            return functools.partial(self.of(value.func), *map(self.of, value.args), **keywords)
        if kind is weakref.ref or kind in _PROXIES:
            # The method of a proxy is bound to what it stands for.
            target = value() if kind is weakref.ref else getattr(value.__repr__, "__self__", None)
            make: Any = weakref.ref if kind is weakref.ref else weakref.proxy
            return make(self.of(target)) if id(target) in self._known else value
        return self._object(value)

    def _object(self, value: Any) -> Any:
        """A plain object with an attribute that is a module or a parameter; every other one is shared."""
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return value
        if type(attributes) is not dict or isinstance(value, types.ModuleType):
            return value
        if not any(issubclass(type(held), nn.Module | nn.Parameter) for held in list(attributes.values())):
            return value
        try:
            made = copy.copy(value)
            made.__dict__.update({})
        except IsometryError:
            raise
        except Exception:
            return value
        self._keep(value, made)
        made.__dict__.update({name: self.of(held) for name, held in list(attributes.items())})
        return made


def _changing_state(parts: list[nn.Module]) -> Iterator[_Place]:
    """Where the modules keep the tensors that a call may change."""
    # An embedding with max_norm rescales its weight in place whenever it is called.
    rescaled = {id(p) for part in parts if part.__dict__.get("max_norm") for p in part.parameters()}
    for part in parts:
        yield from ((part._buffers, name, t) for name, t in part._buffers.items() if t is not None)
        for name, tensor in part._parameters.items():
            if tensor is not None and id(tensor) in rescaled:
                yield part._parameters, name, tensor


def _is_worth_watching(original: nn.Module) -> bool:
    """Whether watching over the large tensors of a model takes less time than copying them."""
    large = {id(t): t.nbytes for t in (*original.parameters(), *original.buffers()) if _is_large(t)}
    return sum(large.values()) >= _WORTH_WATCHING * sum(1 for _ in original.modules())


def _is_large(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.nbytes >= _WORTH_BORROWING


def _can_be_borrowed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and dtype in (None, tensor.dtype)
        and device in (None, tensor.device)
        and not tensor.is_inference()
    )


class _Watch(TorchFunctionMode):
    """Watches the functions called inside it for tensors of the original, and copies borrowed ones that they may write.

    Attributes
    ----------
    found : list of str
        Names of the tensors of the original that a function was given.
    """

    def __init__(self, copies: _Copies) -> None:
        super().__init__()
        self._copies, self._originals, self._borrowed = copies, copies.originals, copies.borrowed
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        originals, borrowed = self._originals, self._borrowed
        for argument in (*args, *kwargs.values()) if kwargs else args:
            # Most arguments are one tensor: a model calls some hundred functions, and this is run for each.
            kind = type(argument)
            for item in argument if kind is tuple or kind is list else (argument,):
                if id(item) in originals:
                    self.found.append(originals[id(item)])
                elif id(item) in borrowed and (func not in _READING or (kwargs and "out" in kwargs)):
                    self._copies.buy(borrowed[id(item)])
        return func(*args, **kwargs) if kwargs else func(*args)


def _restore_tensors(attributes: dict[str, Any], old: dict[str, Any]) -> None:
    if (
        len(attributes) == len(old)
        and all(map(is_, attributes, old))
        and all(map(is_, attributes.values(), old.values()))
    ):
        return
    for name in [name for name in attributes if name not in old]:
        if _holds_tensors(attributes[name]):
            del attributes[name]
    for name, value in old.items():
        now = attributes.get(name)
        if now is not value and (_holds_tensors(value) or _holds_tensors(now)):
            attributes[name] = value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(isinstance(item, Tensor) for item in (value if isinstance(value, list | tuple) else [value]))
