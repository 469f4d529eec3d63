"""`JacobianOperator`: the Jacobian of a network at a point, as a map on blocks of vectors.

Products come from a recording of the network's linear maps (:mod:`.replay`), or, where an operation has none, from
torch.func (:mod:`.products`); here they are chosen, checked, cut into chunks and counted. J itself is never built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isometry.errors import (
    AdjointError,
    FallbackWarning,
    InputError,
    IsometryError,
    ModelError,
    NonFiniteError,
)

from .checks import refuse_coupled_samples, refuse_nonfinite_output, refuse_random, refuse_training_mode
from .function import Output, failed_call, first_line, is_out_of_memory, point_function
from .numerics import no_collection, strict_numerics
from .products import Backends, Product, forward_backends, reverse_backends
from .replay import Disagreement, NoRule, checked_replay, first_nonfinite

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

DEFAULT_MEMORY_LIMIT = 2 * 1024**3
# Tensors of the size of the largest intermediate that are alive at once for each probe, measured on deep conv nets.
_LIVE_TENSORS = 6
# What a product of a shallow network may be off by, in units of rounding of s_max.
_UNITS_OF_ROUNDING = 8
# Beyond this many probes at once a processor gains nothing more from batching.
_MOST_AT_ONCE = {"cpu": 64, "cuda": 1024}


class JacobianOperator:
    """The matrix dy/dx of y = f(x) at one input x (or at each of a batch), flattened to m outputs by n inputs.

    Parameters
    ----------
    model : nn.Module or callable
        f. A module keeps its parameters, buffers, gradients and mode exactly as they are.
    x : Tensor
        The input: one, exactly as the model takes it; or B of them stacked first with ``batched=True``.
    batched : bool
        Whether ``x`` is (B, *input_shape) with a Jacobian for each sample. A model that couples its samples is
        refused then. Without it, everything in ``x`` is one input, a leading batch axis included.
    source, target : str, optional
        Names of modules: J of what leaves ``target`` with respect to what enters ``source``.
    output : str, int, callable, optional
        Which tensor to take where the model returns a tuple, list, dict or object.
    dtype : torch.dtype, optional
        float32 or float64; the model's own if not given. The model is copied, not changed.
    device : optional
        Where to evaluate; the model's own if not given.
    chunk : int, optional
        Probes evaluated at once. By default from ``memory_limit``, which is a number and not what happens to be
        free, so that results repeat bit for bit.
    memory_limit : int
        Bytes the intermediates of one chunk may take.
    check : bool
        Whether to test finiteness, determinism, coupling and <J v, u> = <v, J^T u> at once.
    tf32 : bool
        Whether a GPU may round factors to TF32, 10 bits: faster, and singular values are off by about 1e-3 of s_max,
        which ``rounding`` then says. Without effect on a processor and on float64.

    Attributes
    ----------
    model, x, memory_limit :
        As given; ``options`` has all other arguments too.
    shape : (int, int)
        (m, n) of one sample's Jacobian.
    input_shape, output_shape : torch.Size
        Of one sample.
    batch : int or None
        B, or None without a batch.
    products : int
        Jacobian products applied so far, each J v and each J^T u of each sample counting one.
    backend : str
        How products are made: "replay" of the recorded linear maps, or "torch.func (...)" with the first operation that
        has none.
    bytes_per_probe : int
        About what the intermediates of a product take for each probe, of all inputs of the batch together.
    rounding : float
        Relative error of a product by rounding: 8 units, or twice what :meth:`linearity_test` finds for the vectors
        that the products were checked with. It grows with depth, to some 100 units over 1000 layers. What the
        rounding of the activations does to J is not in it.

    Raises
    ------
    ModelError
        Batch-norm or dropout in training mode, randomness, coupled samples, nothing differentiable.
    InputError
        An input, output, name or device that cannot be used.
    NonFiniteError
        NaN or inf in the output or in a product.
    AdjointError
        The forward and reverse products do not belong to one matrix.

    Examples
    --------
    >>> operator = JacobianOperator(torch.nn.Linear(3, 2), torch.zeros(3))
    >>> operator.shape, operator.matmat(torch.eye(3)).shape
    ((2, 3), torch.Size([3, 2]))
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        x: Tensor,
        *,
        batched: bool = False,
        source: str | None = None,
        target: str | None = None,
        output: Output = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        chunk: int | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        check: bool = True,
        tf32: bool = False,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is at least 1; got {chunk}")
        if memory_limit < 1:
            raise InputError(f"memory_limit is a positive number of bytes; got {memory_limit}")
        refuse_training_mode(model if isinstance(model, nn.Module) else None)
        self.model, self.x, self.memory_limit = model, x, memory_limit
        self.options: dict[str, Any] = {
            "batched": batched, "source": source, "target": target, "output": output, "dtype": dtype,
            "device": device, "chunk": chunk, "memory_limit": memory_limit, "check": check, "tf32": tf32,
        }  # fmt: skip
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        # Whatever the model draws while it is tried out, the caller's random state stays as it is.
        with torch.random.fork_rng(devices=list(devices)), no_collection():
            part = point_function(
                model, x, source=source, target=target, output=output, dtype=dtype, device=device
            )
            self._function = part.function
            self.point = part.point
            self.description = part.description
            self._recurrent, self._tf32 = part.recurrent, tf32 and part.point.device.type == "cuda"
            self._forward: Product
            self._reverse: Product
            self._module = part.module
            if batched and self.point.dim() < 1:
                raise InputError("batched=True needs a leading batch axis; the input is a scalar")
            if batched and source is not None and self.point.shape[0] != x.shape[0]:
                raise InputError(
                    f"batched=True: what enters {source!r} has shape {tuple(self.point.shape)}, whose first axis is "
                    f"not the batch of {x.shape[0]}; choose another source="
                )
            self.batch: int | None = self.point.shape[0] if batched else None
            value = self._evaluate()
            if batched and (value.dim() < 1 or value.shape[0] != self.batch):
                raise InputError(
                    f"batched=True: {self.batch} inputs gave an output of shape {tuple(value.shape)}, whose first axis "
                    "is not the batch. Pass one input, or a model that keeps the batch first"
                )
            self.input_shape = self.point.shape[1:] if batched else self.point.shape
            self.output_shape = value.shape[1:] if batched else value.shape
            self.shape = (self.output_shape.numel(), self.input_shape.numel())
            if 0 in self.shape:
                raise InputError(f"J is empty: {self.shape[0]} x {self.shape[1]}")
            self.dtype, self.device = self.point.dtype, self.point.device
            self.chunk = chunk or 1
            self.products = 0
            self.rounding = _UNITS_OF_ROUNDING * self._unit()
            with self._numerics():
                refuse_nonfinite_output(value, part.module, lambda: self._function(self.point))
            self._value = value.detach()
            pair = self._choose_backend(memory_limit if chunk is None else None, check=check)
            if check:
                # Each product of a replay has been held against that of torch.func: they are of one matrix.
                if pair:
                    v, jv, u, jtu = pair
                    self._refuse_nonfinite(jv, v[None], self._forward)
                    self._refuse_nonfinite(jtu, u[None], self._reverse)
                    (w,) = self._whole_numbers(1, seed=0)
                    others = self.matmat(torch.stack([w, v + w]))
                    nonlinearity = _nonlinearity(torch.cat([jv[None], others]))
                else:
                    self.adjoint_test()
                    nonlinearity = self.linearity_test()
                self.rounding = max(self.rounding, 2 * nonlinearity)
                if batched:
                    refuse_coupled_samples(lambda v: self._apply(self._forward, v), self.point)
                elif isinstance(model, nn.Module):
                    self._warn_of_a_batch()
            self.products = 0

    # ---- products ----------------------------------------------------------------------------------

    def matmat(self, vectors: Tensor) -> Tensor:
        """J v for a block: (k, *input_shape) -> (k, *output_shape); with a batch (k, B, ...) on both sides."""
        block = self._block(vectors, self.point.shape, "J v takes")
        return self._apply(self._forward, block)

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """J^T u for a block: (k, *output_shape) -> (k, *input_shape); with a batch (k, B, ...) on both sides."""
        block = self._block(vectors, self._value.shape, "J^T u takes")
        return self._apply(self._reverse, block)

    def of_inputs(self, inputs: range) -> JacobianOperator:
        """The operator of some inputs of the batch, with the options of this one."""
        return JacobianOperator(self.model, self.x[inputs.start : inputs.stop], **self.options)

    def adjoint_test(self, seed: int = 0) -> float:
        """|<J v, u> - <v, J^T u>| / (|J v| |u| + |v| |J^T u|) for one random pair; raises AdjointError if it is large.

        The bound is 200 units of rounding: a wrong derivative formula, or a mask drawn twice, misses it by far.
        """
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(self.point.shape, generator=generator, dtype=torch.float64).to(self.point)
        u = torch.randn(self._value.shape, generator=generator, dtype=torch.float64).to(self.point)
        return self._refuse_other_adjoint(v, self.matmat(v[None])[0], u, self.rmatmat(u[None])[0])

    def linearity_test(self, seed: int = 0) -> float:
        """||J v + J w - J (v + w)|| over the length of the three: the rounding that a product collects on its way."""
        v, w = self._whole_numbers(2, seed)
        return _nonlinearity(self.matmat(torch.stack([v, w, v + w])))

    def _whole_numbers(self, count: int, seed: int) -> Tensor:
        """Vectors of small whole numbers, whose sums are not rounded."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-64, 65, (count, *self.point.shape), generator=generator).to(self.point)

    def to_scipy(self) -> LinearOperator:
        """J as a ``scipy.sparse.linalg.LinearOperator`` of shape (m, n), columns as SciPy has them."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        if self.batch is not None:
            raise InputError("a batch holds several Jacobians; make the operator of one input for SciPy")
        (m, n), kind = self.shape, np.dtype(str(self.dtype).removeprefix("torch."))

        def product(apply: Product, shape: torch.Size) -> Callable[[Any], Any]:
            def act(columns: Any) -> Any:
                matrix = np.asarray(columns).reshape(shape.numel(), -1).T
                block = torch.as_tensor(np.ascontiguousarray(matrix, dtype=kind)).to(self.device)
                out = apply(block.reshape(-1, *shape)).reshape(block.shape[0], -1).cpu().numpy().T
                return out.reshape(-1) if np.ndim(columns) == 1 else out

            return act

        forward, reverse = product(self.matmat, self.input_shape), product(self.rmatmat, self.output_shape)
        return LinearOperator(
            (m, n), matvec=forward, rmatvec=reverse, matmat=forward, rmatmat=reverse, dtype=kind
        )

    def __repr__(self) -> str:
        batch = f", batch {self.batch}" if self.batch is not None else ""
        m, n = self.shape
        return f"<JacobianOperator {m} x {n}{batch} of {self.description}, {self.dtype}, {self.device}>"

    # ---- how -----------------------------------------------------------------------------------------

    def _unit(self) -> float:
        """What a factor of a product is rounded by, relatively."""
        return 2.0**-10 if self._tf32 and self.dtype == torch.float32 else torch.finfo(self.dtype).eps

    def _numerics(self) -> Any:
        return strict_numerics(self.point.device, recurrent=self._recurrent, tf32=self._tf32)

    def _evaluate(self) -> Tensor:
        try:
            with torch.no_grad(), self._numerics():
                return self._function(self.point)
        except Exception as error:
            raise failed_call(error, self.point) from error

    def _largest_tensor(self) -> int:
        """Bytes of the largest tensor made on the way to f(x), per batch, not per probe."""
        with torch.no_grad(), self._numerics(), _LargestTensor() as watch:
            self._function(self.point)
        return max(watch.largest, self.point.nbytes, self._value.nbytes)

    def _most_within(self, memory_limit: int, bytes_per_probe: int) -> int:
        fitting = memory_limit // max(bytes_per_probe, 1)
        return int(max(1, min(fitting, _MOST_AT_ONCE.get(self.point.device.type, 64))))

    def _choose_backend(self, memory_limit: int | None, *, check: bool) -> tuple[Tensor, ...]:
        """Products from a recording that has been held against torch.func, or from torch.func.

        What was recorded is the second evaluation, which shows whether the model is random.

        Gives the vectors v, J v, u, J^T u of that comparison. With a memory limit the chunk follows from what the
        backend keeps for each probe.
        """
        try:
            with torch.no_grad(), self._numerics(), _torch_silent():
                look = partial(refuse_random, self._value) if check else lambda _: None
                replay = checked_replay(
                    self._function, self.point, self._value, unit=self._unit(), on_output=look
                )
        except NoRule as missing:
            reason = f"no linear map for {missing}"
        except Disagreement as wrong:
            reason = f"the recorded map is wrong: {wrong}"
            warnings.warn(f"{reason}. Products come from torch.func instead", FallbackWarning, stacklevel=3)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise _too_large() from error
            raise
        else:
            self.backend, self._reverse, self._forward = "replay", replay.rmatmat, replay.matmat
            self.bytes_per_probe = replay.bytes_per_probe
            if memory_limit is not None:
                self.chunk = self._most_within(memory_limit, self.bytes_per_probe)
            return replay.checked
        self.backend = f"torch.func ({reason})"
        if check:
            refuse_random(self._value, self._evaluate())
        self._reverse = self._choose(reverse_backends(self._function, self.point), self._value)
        self._forward = self._choose(forward_backends(self._function, self.point, self._value), self.point)
        self.bytes_per_probe = _LIVE_TENSORS * self._largest_tensor()
        if memory_limit is not None:
            self.chunk = self._most_within(memory_limit, self.bytes_per_probe)
        return ()

    def _choose(self, candidates: Backends, like: Tensor) -> Product:
        """The first backend that works on one vector; a FallbackWarning names it where it is not the fastest."""
        first: Exception | None = None
        for note, make in candidates:
            try:
                with torch.no_grad(), self._numerics(), _torch_silent():
                    product = make()
                    product(torch.ones_like(like)[None])
            except IsometryError:
                raise
            except (NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise _too_large() from error
                first = first or error
                if "mutate a captured Tensor" in str(error):
                    # Plain autograd would run it, and change what belongs to the caller at every product.
                    break
                continue
            if note is not None:
                warnings.warn(f"{note} ({first_line(first)})", FallbackWarning, stacklevel=4)
            return product
        raise ModelError(
            f"no Jacobian product works for this model: {_likely_cause(first)}. PyTorch says: {first_line(first)}"
        ) from first

    def _apply(self, product: Product, block: Tensor) -> Tensor:
        """Apply a product chunk by chunk; out of memory halves the chunk, and that is said."""
        parts, start, count = [], 0, block.shape[0]
        with torch.no_grad(), self._numerics():
            while start < count:
                piece = block[start : start + self.chunk]
                try:
                    with _torch_silent():
                        part = product(piece)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(piece.shape[0], error)
                    continue
                self._refuse_nonfinite(part, piece, product)
                parts.append(part)
                start += piece.shape[0]
        self.products += count * (self.batch or 1)
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _refuse_nonfinite(self, out: Tensor, block: Tensor, product: Product) -> None:
        """Raise where a product holds NaN or inf, naming the module and operation that made the first."""
        if bool(torch.isfinite(out).all()):
            return
        first = ""
        if self.backend == "replay" and bool(torch.isfinite(block).all()):
            with torch.no_grad(), self._numerics(), _torch_silent():
                reverse = product == self._reverse
                found = first_nonfinite(self._function, self.point, self._module, block, transposed=reverse)
            first = f"; the first that makes one is {found}" if found else ""
        raise NonFiniteError(
            f"a Jacobian product holds NaN or inf although the output is finite{first}: an intermediate left the range "
            f"of {self.dtype}, or a derivative is infinite at this input. Try dtype=torch.float64, or another input"
        )

    def _halve(self, tried: int, error: Exception) -> None:
        """Half of what was tried, which may be less than a chunk."""
        if tried == 1:
            raise _too_large() from error
        self.chunk = (tried + 1) // 2
        if self.point.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory: going on with {self.chunk} probes at a time", FallbackWarning, stacklevel=4
        )

    def _block(self, vectors: Tensor, shape: torch.Size, what: str) -> Tensor:
        if not isinstance(vectors, Tensor):
            raise InputError(f"{what} a torch.Tensor; got {type(vectors).__name__}")
        if vectors.dim() != len(shape) + 1 or vectors.shape[1:] != shape or vectors.shape[0] == 0:
            expected = ", ".join(str(size) for size in shape)
            raise InputError(
                f"{what} blocks of shape (k, {expected}), probes first; got {tuple(vectors.shape)}"
            )
        return vectors.to(device=self.device, dtype=self.dtype)

    def _refuse_other_adjoint(self, v: Tensor, jv: Tensor, u: Tensor, jtu: Tensor) -> float:
        """The error of <J v, u> = <v, J^T u>; raises where it is large."""
        v, jv, u, jtu = v.double(), jv.double(), u.double(), jtu.double()
        # Each factor is scaled first: a deep network's products may be 1e-30 or 1e30.
        scale_jv, scale_jtu = float(jv.abs().max()) or 1.0, float(jtu.abs().max()) or 1.0
        scale = max(scale_jv, scale_jtu)
        left, right = float((jv / scale * u).sum()), float((jtu / scale * v).sum())
        size = float((jv / scale).norm() * u.norm() + (jtu / scale).norm() * v.norm())
        error = abs(left - right) / size if size > 0 else 0.0
        bound = 200 * self._unit()
        if not error <= bound:
            raise AdjointError(
                f"<J v, u> and <v, J^T u> differ by {error:.1e} of their size (allowed {bound:.1e} in {self.dtype}): "
                "the forward and the reverse product are not of one matrix. Likely causes: the model draws random "
                "numbers (call model.eval()), it runs partly under torch.no_grad, a custom derivative is wrong, or the "
                "network amplifies rounding (try dtype=torch.float64)"
            )
        return error

    def _warn_of_a_batch(self) -> None:
        """Say so where what was passed as one input looks like a batch of independent ones."""
        size = self.point.shape[0] if self.point.dim() > 1 else 0
        if size < 2 or self._value.dim() < 1 or self._value.shape[0] != size:
            return
        try:
            refuse_coupled_samples(lambda v: self._apply(self._forward, v), self.point)
        except ModelError:
            return
        warnings.warn(
            f"the input's first axis looks like a batch of {size} independent samples: this is the one block-diagonal "
            "Jacobian of all of them. Pass batched=True for a Jacobian each",
            FallbackWarning,
            stacklevel=3,
        )


def _nonlinearity(out: Tensor) -> float:
    """||J v + J w - J (v + w)|| over the length of the three, which ``out`` holds."""
    out = out.double()
    out = out / (float(out.abs().max()) or 1.0)
    return float((out[0] + out[1] - out[2]).norm() / max(float(out.norm()), 1e-300))


class _LargestTensor(TorchDispatchMode):
    """Watches the operations inside it for the largest tensor they make."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's guard against it costs several microseconds for each operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.nbytes)
        return out


@contextmanager
def _torch_silent() -> Iterator[None]:
    """torch warns of its own slow paths and, on the first jvp, of its own old code; what matters is said by us."""
    with warnings.catch_warnings():
        for category in (UserWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def _too_large() -> IsometryError:
    return IsometryError(
        "out of memory with a single probe at a time. Take fewer inputs, a smaller part (source=, target=), or "
        "a device with more memory"
    )


def _likely_cause(error: Exception | None) -> str:
    text = str(error)
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
    return (
        "an operation of it has neither a forward-mode nor a second derivative, or is not differentiable at all; "
        "source= and target= measure the parts on either side of it"
    )
