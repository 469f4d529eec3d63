"""Contexts under which a Jacobian is evaluated; every setting is afterwards as it was before.

Many of PyTorch's settings, and Python's filters of warnings, are those of the whole process. If each thread saved and
restored them for itself, one would restore what the other had set. So they are set while any thread asks for them, and
the last one out restores the caller's.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch._C import _functorch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

# PyTorch counts the levels of forward-mode differentiation for the whole process: of two threads that differentiate at
# once one takes the tangents of the other, or ends the process.
_FORWARD_MODE = threading.RLock()
_LONGEST_WAIT = 5.0
_COMPILER = "torch._dynamo"
# Whether a level was still there after that.
_in_vain = False


@contextmanager
def forward_mode_turn() -> Iterator[None]:
    """Forward mode for this thread alone among those that ask for a turn; use it around forward mode of your own.

    A level that a thread has entered without asking is waited for, 5 s at most and once: a caller may measure inside
    his own.
    """
    global _in_vain
    with _FORWARD_MODE:
        until = time.monotonic() + (0.0 if _in_vain else _LONGEST_WAIT)
        while (occupied := _occupied()) and time.monotonic() < until:
            time.sleep(1e-3)
        _in_vain = occupied
        levels, nested = forward_ad._current_level, eager_transforms.JVP_NESTING
        try:
            yield
        finally:
            # Left by an interrupt, a level would refuse forward mode to the whole process.
            while forward_ad._current_level > levels:
                forward_ad.exit_dual_level()
            eager_transforms.JVP_NESTING = min(eager_transforms.JVP_NESTING, nested)


def _occupied() -> bool:
    return forward_ad._current_level >= 0 or eager_transforms.JVP_NESTING > 0


# Of a thread: function transforms, and modes that see every call of PyTorch.
_STACKS: list[tuple[Callable[[], int], Callable[[], object]]] = [
    (_functorch.get_dynamic_layer_stack_depth, _functorch.pop_dynamic_layer_stack),
    (torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
    (torch._C._len_torch_dispatch_stack, lambda: torch._C._pop_torch_dispatch_stack(None)),
]
_P = ParamSpec("_P")
_R = TypeVar("_R")


def keeps_torch_state(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that leaves this thread's gradient modes and function transforms as they were, whatever ends it.

    An interrupt may come when a context has been entered and its block has not begun, or before its exit has begun:
    no context then restores anything.
    """

    @wraps(function)
    def kept(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        gradients, tangents = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        depths = [depth() for depth, _ in _STACKS]
        try:
            return function(*args, **kwargs)
        except Exception:
            raise
        except BaseException as interrupt:
            # Contexts that the traceback holds would restore what they found later, in the midst of others.
            traceback.clear_frames(interrupt.__traceback__)
            raise
        finally:
            # Each in one call: their contexts take several steps.
            torch._C._set_grad_enabled(gradients)
            torch._C._set_fwd_grad_enabled(tangents)
            for (depth, pop), before in zip(_STACKS, depths, strict=True):
                while depth() > before:
                    pop()

    return kept


_D = TypeVar("_D", bound=Hashable)


class _ProcessWide(Generic[_D]):
    """Settings of the whole process, made for the demands of all threads that are inside.

    Parameters
    ----------
    make : callable
        Makes the settings for a set of demands, the innermost of each thread, and leaves on a stack what undoes it.
    """

    def __init__(self, make: Callable[[ExitStack, frozenset[_D]], None]) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._inside: dict[int, list[tuple[object, _D]]] = {}
        # None while settings are being changed, which an interrupt may leave half done.
        self._made: frozenset[_D] | None = frozenset()
        self._undo = ExitStack()

    @contextmanager
    def demanded(self, demand: _D) -> Iterator[None]:
        """The settings for this demand and those of other threads, until the block ends."""
        thread, ticket = threading.get_ident(), object()
        try:
            with self._lock:
                self._inside.setdefault(thread, []).append((ticket, demand))
                self._update()
            yield
        finally:
            try:
                self._leave(thread, ticket)
            except BaseException:
                # Interrupted: what is left of it.
                self._leave(thread, ticket)
                raise

    def _leave(self, thread: int, ticket: object) -> None:
        with self._lock:
            kept = [entry for entry in self._inside.get(thread, []) if entry[0] is not ticket]
            if kept:
                self._inside[thread] = kept
            else:
                self._inside.pop(thread, None)
            self._update()

    def _update(self) -> None:
        wanted = frozenset(entries[-1][1] for entries in self._inside.values())
        if wanted == self._made:
            return
        self._made = None
        self._undo.close()
        if wanted:
            self._undo = ExitStack()
            self._make(self._undo, wanted)
        self._made = wanted


class _Demand(NamedTuple):
    cuda: bool
    recurrent: bool
    tf32: bool


def _make_strict(stack: ExitStack, demands: frozenset[_Demand]) -> None:
    backends: Any = torch.backends
    tf32 = all(demand.tf32 for demand in demands)
    recurrent = {demand.cuda for demand in demands if demand.recurrent}
    # Per backend, not by the one old switch: reading that raises where a user has set a single backend.
    for backend in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        _set(stack, backend, "fp32_precision", "tf32" if tf32 else "ieee")
    for backend in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn):
        _set(stack, backend, "fp32_precision", "ieee")
    stack.callback(backends.mha.set_fastpath_enabled, backends.mha.get_fastpath_enabled())
    backends.mha.set_fastpath_enabled(False)
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    _run_as_written(stack)
    if any(demand.cuda for demand in demands):
        _set(stack, backends.cudnn, "benchmark", False)
        _set(stack, backends.cudnn, "deterministic", True)
    if True in recurrent:
        _set(stack, backends.cudnn, "enabled", False)
    if False in recurrent:
        # Not by torch.backends.mkldnn.flags, which also sets, and warns of, precisions.
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)


def _run_as_written(stack: ExitStack) -> None:
    """Compiled modules and functions run as they were written.

    Where the compiler is not loaded yet, which takes a second, nothing is compiled yet; a model may still load it.
    """

    def set_stance() -> None:
        stack.enter_context(torch.compiler.set_stance("force_eager"))

    if _COMPILER in sys.modules:
        set_stance()
        return
    finder = _AfterImport(_COMPILER, set_stance)
    # Before it is there, so that no interrupt leaves it.
    stack.callback(finder.leave)
    sys.meta_path.insert(0, finder)


class _AfterImport(MetaPathFinder):
    """Calls a function right after the first import of a module, while it stands in ``sys.meta_path``."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def leave(self) -> None:
        """Stand there no longer."""
        while self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The specification that Python finds, for this module alone."""
        if fullname != self._name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    self._then()

            spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec


_STRICT = _ProcessWide(_make_strict)


@contextmanager
def strict_numerics(device: torch.device, *, recurrent: bool = False, tf32: bool = False) -> Iterator[None]:
    """Full float32 precision, deterministic kernels, and only operations that can be differentiated.

    - TF32 and bfloat16 products are off: their 1e-3 error would be read as singular values. TF32 is on only where it
      is asked for.
    - Attention goes through its mathematical formula: the fused kernels have no forward-mode derivative
      (pytorch issue 128971), and neither has the fused encoder layer.
    - Recurrent layers leave their fused kernels (oneDNN, cuDNN), which have no forward-mode derivative and no
      second derivative either.
    - Autocast, inference mode and gradients are off, new tensors are on the processor unless said otherwise, and NumPy
      does not raise.
    - Compiled modules and functions run as they were written: a compiled graph keeps intermediates from the recording.

    Parameters
    ----------
    device : torch.device
        Where the model is evaluated.
    recurrent : bool
        Whether the model holds a fused recurrent layer.
    tf32 : bool
        Whether convolutions and matrix products on a GPU may round their factors to 10 bits.
    """
    gradients = torch.is_grad_enabled()
    try:
        with ExitStack() as stack:
            stack.enter_context(_STRICT.demanded(_Demand(device.type == "cuda", recurrent, tf32)))
            for kind in {"cpu", device.type}:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(default_device(torch.device("cpu")))
            stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
            torch._C._set_grad_enabled(False)
            yield
    finally:
        # Never off: Python may close the context of an interrupted block after those around it.
        if gradients:
            torch._C._set_grad_enabled(True)


def default_device(device: torch.device) -> Any:
    """A context in which new tensors are made on that device; nothing is entered where they are anyway."""
    return nullcontext() if torch.get_default_device() == device else device


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for reference cycles, which would traverse the growing tape again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _silence(stack: ExitStack, demands: frozenset[tuple[type[Warning], ...]]) -> None:
    stack.enter_context(warnings.catch_warnings())
    # Of operations that vmap runs one by one, a line on standard error each, past Python's filters. PyTorch does not
    # tell the setting: it is its own default again afterwards.
    set_warning: Any = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    stack.callback(set_warning, True)
    set_warning(False)
    for category in {category for demand in demands for category in demand}:
        warnings.simplefilter("ignore", category)


_SILENCE = _ProcessWide(_silence)


def torch_warnings_silenced() -> Any:
    """Without torch's warnings of its own slow paths and, at the first jvp, of its own old code."""
    return warnings_silenced(UserWarning, DeprecationWarning, FutureWarning)


def warnings_silenced(*categories: type[Warning]) -> Any:
    """A context without warnings of these categories."""
    return _SILENCE.demanded(categories)


def _set(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    """Set an attribute until the stack unwinds."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
