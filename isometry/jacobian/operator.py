"""`JacobianOperator`: the Jacobian of a network at a point, as a map on blocks of vectors. J itself is never built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from isometry.errors import AdjointError, InputError, IsometryError

from .backends import choose_products, reverse_products
from .batch_rows import BatchReference, BatchRows, warn_where_the_batch_enters
from .checks import refuse_training_mode
from .chunks import ChunkedProducts, chunk_within
from .evaluation import Evaluation, evaluate
from .function import PointFunction, point_function, uncompiled
from .inputs import Inputs, Wrt, model_inputs
from .numerics import keeps_torch_state, no_collection, strict_numerics
from .outputs import Output
from .private_module import PrivateModule
from .product_checks import (
    adjoint_error,
    checked_rounding,
    expected_rounding,
    linearity_error,
    reverse_alone,
    warn_of_another_derivative,
)
from .random_state import random_state_kept
from .rows import TrackedRun
from .zero import cause_of_zero

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

DEFAULT_MEMORY_LIMIT = 2 * 1024**3


class JacobianOperator:
    """The matrix dy/dx of y = f(x) at one input x (or at each of a batch), flattened to m outputs by n inputs.

    Parameters
    ----------
    model : nn.Module or callable
        f. A module is copied with its weights, and nothing of it is touched: parameters, buffers, gradients, mode,
        hooks. J stays that of the model as it is now, also while another thread trains it. A function is called as it
        is, with the tensors and modules that it refers to: leave those as they are.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        The input: one, exactly as the model takes it; or B of them stacked first with ``batched=True``. None where the
        model takes keywords alone.
    args, kwargs : tuple and mapping, optional
        Further inputs: the model is called as ``model(x, *args, **kwargs)``. Whole numbers and whatever is not
        differentiated stay as they are, but that floating tensors take the dtype and all the device of the measurement.
    wrt : str, int, or sequence of them, optional
        What J is taken with respect to, by position, name or path: ``1``, ``"timestep"``, ``"batch.image"``. Of a
        container all floating tensors are taken. Several are flattened and joined in the order given (``parts``). By
        default ``x`` where it is a floating tensor, else the only floating tensor among the inputs.
    batched : bool
        Whether what is differentiated is (B, *input_shape) with a Jacobian for each sample. The model is called once,
        with the whole batch and all other inputs as they are. One that couples its samples is refused then. Without it,
        everything is one input, a leading batch axis included.
    source, target : str, optional
        Names of modules: J of what leaves ``target`` with respect to what enters ``source``.
    output : str, int, callable, optional
        Which tensor to take where the model returns a tuple, list, dict or object: a key, a position, a path such as
        ``"decoder.0.logits"``, or a function of what it returns.
    dtype : torch.dtype, optional
        float32 or float64; the model's own if not given. The model is copied, not changed.
    device : optional
        Where to evaluate; the model's own if not given.
    chunk : int, optional
        Probes evaluated at once. By default from ``memory_limit``, a number and not the memory that is free, so that
        results repeat.
    memory_limit : int
        Bytes the intermediates of one chunk may take.
    products : {"both", "auto", "reverse"}
        "auto" takes all rows of J at once where there are at most 32 outputs, which is cheaper than a recording; both
        products follow from them, and large weights of the model, which nothing needs any more, are not copied.
        "reverse" asks for J^T u alone, which every model has that trains: ``matmat`` raises ModelError, and
        ``method="exact"`` takes rows of J. A model without a working J v is measured so in any case.
    check : bool
        Whether to test finiteness, determinism, coupling and <J v, u> = <v, J^T u> at construction.
    tf32 : bool
        Whether a GPU may round factors to TF32, 10 bits: faster, and singular values are off by about 1e-3 of s_max,
        which ``rounding`` includes. Without effect on a processor and on float64.

    Attributes
    ----------
    model, x, memory_limit :
        As given; ``options`` has all other arguments too.
    inputs : Inputs
        Everything that the model is called with.
    parts : tuple of InputPart
        Where ``wrt`` joins several tensors: the path, shape and place of each among the n inputs. Else empty.
    shape : (int, int)
        (m, n) of one sample's Jacobian.
    input_shape, output_shape : torch.Size
        Of one sample.
    batch : int or None
        B, or None without a batch.
    products : int
        Jacobian products applied so far, each J v and each J^T u of each sample counting one.
    backend : str
        What makes the products: "replay" of the recorded linear maps; "torch.func (...)", slower, with the first
        operation that has none; "the m rows of J, by autograd"; "reverse products alone (...)", with the reason.
    reverse_only : bool
        Whether there is J^T u alone.
    bytes_per_probe : int
        About the memory that the intermediates of a product take for each probe, of all inputs of the batch together.
    copied_bytes : int
        Memory that the copy of the model takes; operators of its groups of inputs share it. 0 for a function.
    rounding : float
        Relative error of a product by rounding: 8 units, or twice what the checks find, whichever is larger. They
        compare products with those of torch.func, from another evaluation of the model, and test both for linearity
        (:meth:`linearity_test`). It grows with depth, to some 100 units over 1000 layers, and holds what casts inside
        the model round. The effect on J of the rounding of the activations is in it as far as evaluations differ by it.
    zero_cause : str
        Why J is zero, where it is: "layer head.weight is zero". Empty where it is not zero, or nothing was found.
    unit : float
        Unit of rounding of the products: that of ``dtype``; larger with ``tf32``, or where the model casts to a coarser
        type. A singular value below 8 units of s_max is not told from zero.

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

    @keeps_torch_state
    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        x: Any = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        wrt: Wrt = None,
        batched: bool = False,
        source: str | None = None,
        target: str | None = None,
        output: Output = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        chunk: int | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        products: str = "both",
        check: bool = True,
        tf32: bool = False,
    ) -> None:
        if products not in ("both", "auto", "reverse"):
            raise InputError(f'products is "both", "auto" or "reverse"; got {products!r}')
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is at least 1; got {chunk}")
        if memory_limit < 1:
            raise InputError(f"memory_limit is a positive number of bytes; got {memory_limit}")
        refuse_training_mode(model if isinstance(model, nn.Module) else None)
        self.model, self.x, self.memory_limit = model, x, memory_limit
        self.options: dict[str, Any] = {
            "batched": batched, "source": source, "target": target, "output": output, "dtype": dtype,
            "device": device, "chunk": chunk, "memory_limit": memory_limit, "products": products, "check": check,
            "tf32": tf32, "wrt": wrt,
        }  # fmt: skip
        inputs = model_inputs(uncompiled(model), x, args, kwargs, wrt, source=source, batched=batched)
        self._set_up(inputs, None, whole=True)
        # As they are now, whatever becomes of them before a group of inputs is measured.
        self.inputs = inputs.snapshot() if batched else inputs

    def _set_up(
        self, inputs: Inputs, private: PrivateModule | None, *, whole: bool = False, borrow: bool = True
    ) -> None:
        """Linearise at the inputs, by a copy of the model that another operator has made.

        With ``borrow``, a model whose rows are all taken here keeps its large weights in the memory of the original.
        """
        model, options = self.model, self.options
        batched, source, tf32, check, chunk = (
            options[name] for name in ("batched", "source", "tf32", "check", "chunk")
        )
        factories_are_placed = torch.get_default_device() != torch.device("cpu")
        # Whatever the model draws here, the caller's random state stays as it is.
        with strict_numerics(torch.device("cpu")), random_state_kept() as draws, no_collection():
            make = partial(
                point_function, model, source=source, target=options["target"], output=options["output"],
                dtype=options["dtype"], device=options["device"], factories_are_placed=factories_are_placed,
                borrow=borrow and options["products"] == "auto",
            )  # fmt: skip
            if source is None:
                part = make(inputs, private=private)
            else:
                # The model runs up to there.
                with draws:
                    part = make(inputs, private=private)
            # A function may write to tensors of the caller's, which torch.func refuses and autograd does not.
            is_auto = options["products"] == "auto"
            if part.private is not None:
                # The graph of rows, or a recording, tells which tensors of the original it has come to.
                part.private.watches = options["products"] == "reverse"
            tracked = TrackedRun() if is_auto or part.private is not None else None
            evaluation = evaluate(part, batched=batched, source=source, tf32=tf32, run=tracked, draws=draws)
            rows = tracked.products(evaluation) if tracked is not None and is_auto else None
            if rows is None and part.private is not None and not part.private.own():
                self._set_up(inputs, private, whole=whole, borrow=False)
                return
            if rows is not None:
                products = rows
            elif options["products"] == "reverse":
                products = reverse_products(evaluation, "as asked", check=check)
            else:
                by_autograd = (
                    None if part.private is None else partial(cast(TrackedRun, tracked).reverse, evaluation)
                )
                products = choose_products(evaluation, check=check, by_autograd=by_autograd)
                if check and products.reverse_only:
                    warn_of_another_derivative(evaluation, products)
            if part.private is not None:
                if products.reached is None:
                    part.private.watch(evaluation.repeated)
                else:
                    part.private.warn_of(products.reached)
                part.private.watches = rows is not None
            if chunk is None:
                chunk = chunk_within(self.memory_limit, products.bytes_per_probe, part.point.device)
            chunked = ChunkedProducts(evaluation, products, chunk)
            found = expected_rounding(evaluation)
            if check:
                is_module = isinstance(model, nn.Module)
                try:
                    found = checked_rounding(evaluation, chunked, is_module=is_module)
                except AdjointError:
                    reverse = reverse_alone(evaluation, products)
                    if reverse is None:
                        raise
                    products, chunked = reverse, ChunkedProducts(evaluation, reverse, chunk)
                    found = checked_rounding(evaluation, chunked, is_module=is_module)
            if check and whole and (evaluation.batch or 1) > 1:
                made = partial(make, private=part.private)

                def alone(number: int) -> list[Callable[[], PointFunction]]:
                    return [partial(made, one) for one in inputs.sample(number)]

                warn_where_the_batch_enters(evaluation, products.checked, found.relative, alone)
        self.rounding, self.unit = found.relative, found.unit
        v, jv, _, jtu = products.checked
        # Without J v it is zeros here.
        is_zero = not bool((jv != 0).any()) and not bool((jtu != 0).any())
        self.zero_cause = cause_of_zero(evaluation, v) if is_zero else ""
        if part.private is not None and not part.private.release():
            self._set_up(inputs, private, whole=whole, borrow=False)
            return
        self._private = part.private
        self._chunked: ChunkedProducts | BatchRows = chunked
        self._reference: BatchReference | None = None
        self.description, self.parts = part.description, inputs.parts
        self._take_place_of(evaluation)
        self.dtype, self.device = self.point.dtype, self.point.device
        self.backend, self.bytes_per_probe = products.backend, products.bytes_per_probe
        self.reverse_only = products.reverse_only
        self.copied_bytes = 0 if part.private is None else part.private.nbytes
        self.products = 0

    def _take_place_of(self, evaluation: Evaluation) -> None:
        self._evaluation, self.point, self.batch = evaluation, evaluation.point, evaluation.batch
        self.input_shape, self.output_shape = evaluation.input_shape, evaluation.output_shape
        self.shape = (self.output_shape.numel(), self.input_shape.numel())

    @property
    def evaluation(self) -> Evaluation:
        """The function with its point and value."""
        return self._evaluation

    @property
    def chunk(self) -> int:
        """Probes evaluated at once; halved where they do not fit in memory."""
        return self._chunked.chunk

    # ---- products ----------------------------------------------------------------------------------

    @keeps_torch_state
    def matmat(self, vectors: Tensor) -> Tensor:
        """J v for a block: (k, *input_shape) -> (k, *output_shape); with a batch (k, B, ...) on both sides."""
        block = self._block(vectors, self.point.shape, "J v takes")
        return self._counted(self._chunked.matmat(block))

    @keeps_torch_state
    def rmatmat(self, vectors: Tensor) -> Tensor:
        """J^T u for a block: (k, *output_shape) -> (k, *input_shape); with a batch (k, B, ...) on both sides."""
        block = self._block(vectors, self._evaluation.value.shape, "J^T u takes")
        return self._counted(self._chunked.rmatmat(block))

    @keeps_torch_state
    def of_inputs(self, inputs: range) -> JacobianOperator:
        """The operator of some inputs of the batch, with the options of this one.

        Its Jacobians are those that the inputs have in the batch: where the model lets the values of the others in,
        its products are those of the whole batch, and take as long.
        """
        part = copy.copy(self)
        part.inputs = self.inputs.samples(inputs)
        try:
            part._set_up(part.inputs, self._private)
        except IsometryError:
            # What was taken for samples of another input may have been none.
            if not self.inputs.has_others:
                raise
        else:
            if self.batch is None or len(inputs) == self.batch or self._has_rows(inputs, part):
                return part
        rows = slice(inputs.start, inputs.stop)
        whole = self._evaluation
        part._take_place_of(
            replace(whole, point=whole.point[rows], value=whole.value[rows], batch=len(inputs), outputs=[])
        )
        part._reference = None
        part._chunked = BatchRows(self._chunked, len(whole.point), inputs)
        part.rounding, part.unit, part.backend = (
            self.rounding,
            self.unit,
            f"{self.backend}, of the whole batch",
        )
        part.bytes_per_probe, part.zero_cause, part.products = self.bytes_per_probe, self.zero_cause, 0
        part.reverse_only = self.reverse_only
        return part

    def _has_rows(self, inputs: range, part: JacobianOperator) -> bool:
        """Whether the operator of some inputs alone has the Jacobians that they have in the batch."""
        if not (self.options["check"] or self.inputs.has_others):
            return True
        if part.shape != self.shape or part.output_shape != self.output_shape:
            return False
        if self._reference is None:
            self._reference = BatchReference(
                self._chunked, self._evaluation, self.rounding, reverse_only=self.reverse_only
            )
        assert isinstance(part._chunked, ChunkedProducts)
        return self._reference.holds_for(part._chunked, part._evaluation, inputs, part.rounding)

    @keeps_torch_state
    def adjoint_test(self, seed: int = 0) -> float:
        """|<J v, u> - <v, J^T u>| / (|J v| |u| + |v| |J^T u|) for one random pair.

        Raises
        ------
        AdjointError
            Where it is over 200 units of rounding and 16 times ``rounding``. A wrong derivative formula or a mask drawn
            twice is over it by far.
        """
        return adjoint_error(self.matmat, self.rmatmat, self._evaluation, self.rounding, seed)

    @keeps_torch_state
    def linearity_test(self, seed: int = 0) -> float:
        """The rounding that a product accumulates: ||A v + A w - A (v + w)|| over the length of the three.

        v and w are generic vectors with an exact sum; the larger of A = J and A = J^T.
        """
        return linearity_error(self.matmat, self.rmatmat, self._evaluation, seed)

    def to_scipy(self) -> LinearOperator:
        """J as a ``scipy.sparse.linalg.LinearOperator`` of shape (m, n), columns as SciPy has them."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        if self.batch is not None:
            raise InputError("a batch holds several Jacobians; make the operator of one input for SciPy")
        (m, n), kind = self.shape, np.dtype(str(self.dtype).removeprefix("torch."))

        def on_columns(product: Callable[[Tensor], Tensor], shape: torch.Size) -> Callable[[Any], Any]:
            def act(columns: Any) -> Any:
                matrix = np.asarray(columns).reshape(shape.numel(), -1).T
                block = torch.as_tensor(np.ascontiguousarray(matrix, dtype=kind)).to(self.device)
                out = product(block.reshape(-1, *shape)).reshape(block.shape[0], -1).cpu().numpy().T
                return out.reshape(-1) if np.ndim(columns) == 1 else out

            return act

        matmat = on_columns(self.matmat, self.input_shape)
        rmatmat = on_columns(self.rmatmat, self.output_shape)
        return LinearOperator(
            (m, n), matvec=matmat, rmatvec=rmatmat, matmat=matmat, rmatmat=rmatmat, dtype=kind
        )

    def __repr__(self) -> str:
        batch = f", batch {self.batch}" if self.batch is not None else ""
        m, n = self.shape
        return f"<JacobianOperator {m} x {n}{batch} of {self.description}, {self.dtype}, {self.device}>"

    def _counted(self, out: Tensor) -> Tensor:
        self.products += out.shape[0] * (self.batch or 1)
        return out

    def _block(self, vectors: Tensor, shape: torch.Size, what: str) -> Tensor:
        if not isinstance(vectors, Tensor):
            raise InputError(f"{what} a torch.Tensor; got {type(vectors).__name__}")
        if vectors.dim() != len(shape) + 1 or vectors.shape[1:] != shape or vectors.shape[0] == 0:
            expected = ", ".join(str(size) for size in shape)
            raise InputError(
                f"{what} blocks of shape (k, {expected}), probes first; got {tuple(vectors.shape)}"
            )
        return vectors.to(device=self.device, dtype=self.dtype)
