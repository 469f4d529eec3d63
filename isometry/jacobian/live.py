"""`LiveJacobian`: J of a model with its present parameters, from one evaluation, so that products of it can be trained.

A `JacobianOperator` belongs to a copy of the model. This one keeps the graph of y = f(x; theta) itself: J^T u is a
reverse pass through it, which autograd differentiates in theta, and J v the transpose of the linear map u -> J^T u, a
reverse pass through that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import AdjointError, InputError, IsometryError, ModelError

from .checks import refuse_nonfinite_output, refuse_training_mode
from .failures import FAILURES_OF_DERIVATIVES, failed_call, first_line, is_out_of_memory
from .function import module_behind, uncompiled
from .inputs import Wrt, model_inputs
from .numerics import default_device, keeps_torch_state, strict_numerics, torch_warnings_silenced
from .outputs import Output, select_output
from .placement import parameters_and_buffers, working_dtype_and_device
from .product_checks import refuse_coupled_samples
from .random_state import Draws
from .rounding import (
    UNITS_OF_ROUNDING,
    adjoint_difference,
    generic_vectors,
    graph_nodes,
    rounding_by_depth,
)

_NO_SECOND_DERIVATIVE = (
    "a product of this model's Jacobian cannot be differentiated: an operation of it has no second derivative"
)
# Units of rounding by which <J v, u> and <v, J^T u> may differ.
_ADJOINT_UNITS = 200


class LiveJacobian:
    """J = dy/dx at one input x, or at each of a batch, of the model as it is: its parameters stay in the graph.

    Parameters
    ----------
    model, x, args, kwargs, wrt, batched, output :
        As for `JacobianOperator`; the model is evaluated once, in the precision of its parameters, without autocast.
    check : bool
        Whether to test that <J v, u> = <v, J^T u> (two products), so that J^T u is differentiated rightly in u at
        least, and that the samples of a batch are independent (two for each binary digit of B).

    Attributes
    ----------
    shape, input_shape, output_shape, batch, dtype, device, products, rounding :
        As for `JacobianOperator`.

    Raises
    ------
    ModelError
        Batch-norm or dropout in training mode, randomness, coupled samples, half precision, no second derivative.
    AdjointError
        A second derivative that is none of the first.
    InputError, NonFiniteError
        As for `JacobianOperator`.
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
        output: Output = None,
        check: bool = True,
    ) -> None:
        call = uncompiled(model)
        module = module_behind(call)
        refuse_training_mode(module)
        inputs = model_inputs(call, x, args, kwargs, wrt, batched=batched)
        parts = [] if module is None else list(module.modules())
        parameters, buffers = parameters_and_buffers(parts)
        self.dtype, self.device = working_dtype_and_device(parts, [*parameters, *buffers], inputs, None, None)
        _refuse_other_precisions(module, self.dtype)
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in parts)
        with self._numerics():
            inputs = inputs.placed(self.dtype, self.device)
        factories = self.device if torch.get_default_device() != torch.device("cpu") else torch.device("cpu")
        draws = Draws()

        def run() -> Tensor:
            z = inputs.point.detach().clone().requires_grad_()
            positional, named = inputs.at(z)
            with default_device(factories):
                self._point = z
                return select_output(call(*positional, **named), output)

        try:
            with self._numerics(), torch.enable_grad():
                self._value = draws.watched(run, self.device)
        except IsometryError:
            raise
        except Exception as error:
            raise failed_call(error, inputs.in_words) from error
        if draws.seen:
            raise ModelError(
                "the model draws random numbers as it runs (dropout by function, sampling, noise), so it has no one "
                "Jacobian. Call model.eval(), or fix what it draws"
            )
        value, point = self._value, self._point
        if batched and (value.dim() < 1 or value.shape[0] != point.shape[0]):
            raise InputError(
                f"batched=True: {point.shape[0]} inputs gave an output of shape {tuple(value.shape)}, whose first axis "
                "is not the batch. Pass one input, or a model that keeps the batch first"
            )
        with self._numerics():
            refuse_nonfinite_output(value.detach(), module, run)
        self.batch = point.shape[0] if batched else None
        self.input_shape = point.shape[1:] if batched else point.shape
        self.output_shape = value.shape[1:] if batched else value.shape
        self.shape = (self.output_shape.numel(), self.input_shape.numel())
        if 0 in (*self.shape, self.batch):
            raise InputError(f"J is empty: {self.shape[0]} x {self.shape[1]}, {self.batch or 1} inputs")
        eps, operations = torch.finfo(self.dtype).eps, len(graph_nodes(value))
        self.rounding = 2 * max(UNITS_OF_ROUNDING * eps, rounding_by_depth(operations, eps))
        self.products = 0
        self._cotangent: Tensor | None = None
        self._pulled: Tensor | None = None
        if check:
            self._refuse_unlike_products()
            if batched:
                refuse_coupled_samples(self.rmatmat, value)

    # ---- products ----------------------------------------------------------------------------------

    def matmat(self, vectors: Tensor) -> Tensor:
        """J v for a block: (k, [B,] *input_shape) -> (k, [B,] *output_shape), without a graph."""
        return torch.stack([self.forward_product(v) for v in vectors])

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """J^T u for a block: (k, [B,] *output_shape) -> (k, [B,] *input_shape), without a graph."""
        return torch.stack([self.reverse_product(u).detach() for u in vectors])

    def reverse_product(self, u: Tensor, *, create_graph: bool = False) -> Tensor:
        """J^T u, ([B,] *input_shape); with ``create_graph`` as a function of the parameters."""
        self.products += self.batch or 1
        return self._gradient(self._value, self._point, u, create_graph=create_graph)

    def forward_product(self, v: Tensor) -> Tensor:
        """J v, ([B,] *output_shape), without a graph.

        Its gradient in the parameters would be a third derivative of the model, and PyTorch's is wrong for some
        operations, silently (2.13: layer_norm, whose saved statistics count as constants there).
        """
        self.products += self.batch or 1
        if self._pulled is None:
            self._cotangent = torch.zeros_like(self._value, requires_grad=True)
            self._pulled = self._gradient(self._value, self._point, self._cotangent, create_graph=True)
            _refuse_missing_derivative(self._pulled)
        assert self._cotangent is not None
        return self._gradient(self._pulled, self._cotangent, v, create_graph=False)

    def require_parameters(self, value: Tensor) -> None:
        """Raise InputError where a value made of products depends on no tensor that requires a gradient."""
        _refuse_missing_derivative(value)
        for node in graph_nodes(value):
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf is not self._point:
                return
        raise InputError(
            "J depends on no parameter that requires a gradient: all are frozen (requires_grad=False), or enter the "
            "output by addition alone, as biases do. isometry.measure gives the value; to train, unfreeze a weight"
        )

    def _refuse_unlike_products(self) -> None:
        """Raise AdjointError where J v is not that of J^T u."""
        (v,), (u,) = (generic_vectors(like.detach(), 1, seed=3) for like in (self._point, self._value))
        error = adjoint_difference(v, self.forward_product(v), u, self.reverse_product(u))
        allowed = max(_ADJOINT_UNITS * torch.finfo(self.dtype).eps, 16 * self.rounding)
        if not error <= allowed:
            raise AdjointError(
                f"<J v, u> and <v, J^T u> differ by {error:.1e} of their size (allowed {allowed:.1e} in {self.dtype}): "
                "an operation of the model has a wrong second derivative, or leaves a part of it out. A custom "
                "backward is to be differentiable itself"
            )

    def _gradient(self, value: Tensor, of: Tensor, vector: Tensor, *, create_graph: bool) -> Tensor:
        if value.grad_fn is None:
            # The output does not depend on the input, or the product not on the vector.
            return torch.zeros_like(of)
        try:
            with self._numerics(), torch.enable_grad(), torch_warnings_silenced():
                # A caller in inference mode has made a vector that no graph may keep.
                vector = vector.clone() if vector.is_inference() else vector
                (found,) = torch.autograd.grad(
                    value, of, vector, retain_graph=True, create_graph=create_graph, allow_unused=True
                )
        except FAILURES_OF_DERIVATIVES as error:
            if is_out_of_memory(error):
                raise IsometryError(
                    "out of memory in a product of J: it keeps the graph of the model. Take fewer inputs"
                ) from error
            raise ModelError(
                "a product of this model's Jacobian has no derivative: an operation of it has no second derivative (a "
                "fused or custom one, or checkpointing with use_reentrant=True). PyTorch says: "
                + first_line(error)
            ) from error
        return torch.zeros_like(of) if found is None else found

    def _numerics(self) -> Any:
        return strict_numerics(self.device, recurrent=self._recurrent)


def _refuse_missing_derivative(value: Tensor) -> None:
    """Raise ModelError where autograd has recorded an operation that it cannot differentiate again."""
    if any(node.name().endswith("::Error") for node in graph_nodes(value)):
        raise ModelError(f"{_NO_SECOND_DERIVATIVE} (it is marked once_differentiable)")


def _refuse_other_precisions(module: nn.Module | None, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters() if module is not None else ():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}; derivatives of singular values want all parameters in one "
                "precision, float32 or float64. Keep them in float32 and train under autocast, which is off in here"
            )
