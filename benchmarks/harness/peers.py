"""How each peer does the work of a contest, as its documentation would have it and as quickly as it can.

Where a peer takes the matrix as products, it gets those of torch.func that cost least: forward mode for J v, a reverse
pass with its graph kept for J^T u, and vmap for blocks. JAX gets the network as convolutions by matrix product
(:mod:`.jax_network`). Every function stands for one line of a table; imports are inside, for a peer may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

from . import networks
from .contest import Answer


class Products:
    """J v and J^T u of torch.func on columns, (n, k) to (m, k) and back, made anew for each input."""

    def __init__(self, network: dict[str, Any]) -> None:
        self.model, self.x = networks.build(network)
        self.model.requires_grad_(False)

    def at_the_input(self) -> Products:
        """The reverse graph is recorded here, so that its time counts."""
        value, pull = vjp(self.model, self.x)
        self.output_shape = value.shape
        self.shape = (value.numel(), self.x.numel())
        self._push_one = lambda v: jvp(self.model, (self.x,), (v,))[1]
        self._pull_one = lambda u: pull(u)[0]
        self._push, self._pull = vmap(self._push_one), vmap(self._pull_one)
        self.products = 0
        return self

    def forward(self, columns: Tensor) -> Tensor:
        """J V."""
        return self._apply(columns, self.x.shape, self._push_one, self._push)

    def reverse(self, columns: Tensor) -> Tensor:
        """J^T U."""
        return self._apply(columns, self.output_shape, self._pull_one, self._pull)

    def _apply(
        self,
        columns: Tensor,
        shape: torch.Size,
        single: Callable[[Tensor], Tensor],
        block: Callable[[Tensor], Tensor],
    ) -> Tensor:
        with torch.no_grad():
            if columns.dim() == 1 or columns.shape[1] == 1:
                self.products += 1
                out = single(columns.reshape(shape)).reshape(-1)
                return out if columns.dim() == 1 else out[:, None]
            self.products += columns.shape[1]
            rows = columns.T.reshape(-1, *shape)
            parts = [block(part).reshape(part.shape[0], -1) for part in rows.split(64)]
            return torch.cat(parts).T


def dense_jacobian(model: torch.nn.Module, x: Tensor, chunk: int = 256) -> Tensor:
    """J by torch.func.jacrev, (m, n)."""
    return jacrev(model, chunk_size=chunk)(x).reshape(-1, x.numel()).detach()


def jacrev_svdvals(network: dict[str, Any], *, chunk: int = 256) -> Callable[[], Answer]:
    """torch.func.jacrev and torch.linalg.svdvals, in the network's own precision."""
    model, x = networks.build(network)
    model.requires_grad_(False)

    def work() -> Answer:
        values = torch.linalg.svdvals(dense_jacobian(model, x, chunk))
        return {"top": values.numpy(), "products": values.numel()}

    return work


def jacrev_svd_lowrank(
    network: dict[str, Any], *, count: int, sketch: int, iterations: int
) -> Callable[[], Answer]:
    """torch.func.jacrev and torch.svd_lowrank."""
    model, x = networks.build(network)
    model.requires_grad_(False)

    def work() -> Answer:
        torch.manual_seed(0)
        dense = dense_jacobian(model, x)
        values = torch.svd_lowrank(dense, q=min(sketch, *dense.shape), niter=iterations)[1]
        return {"top": values[:count].numpy(), "products": min(dense.shape)}

    return work


def jacrev_randomized_svd(
    network: dict[str, Any], *, count: int, oversample: int, iterations: int
) -> Callable[[], Answer]:
    """torch.func.jacrev and scikit-learn's randomized_svd."""
    from sklearn.utils.extmath import randomized_svd

    model, x = networks.build(network)
    model.requires_grad_(False)

    def work() -> Answer:
        dense = dense_jacobian(model, x).numpy()
        _, values, _ = randomized_svd(
            dense, n_components=count, n_oversamples=oversample, n_iter=iterations, random_state=0
        )
        return {"top": values, "products": min(dense.shape)}

    return work


def scipy_svds(
    network: dict[str, Any], *, solver: str, count: int, tol: float, **options: Any
) -> Callable[[], Answer]:
    """scipy.sparse.linalg.svds with one of its solvers on a LinearOperator, to a relative residual of ``tol``.

    svds hands its solvers the square of its own tolerance, and they compare the residual of J^T J with it, relative to
    s^2: that of the triplet relative to s. So it gets the root of ``tol``.
    """
    from scipy.sparse.linalg import LinearOperator, svds

    products = Products(network)

    def work() -> Answer:
        at = products.at_the_input()

        def forward(columns: np.ndarray) -> np.ndarray:
            return at.forward(torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32))).numpy()

        def reverse(columns: np.ndarray) -> np.ndarray:
            return at.reverse(torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32))).numpy()

        operator = LinearOperator(
            at.shape, matvec=forward, rmatvec=reverse, matmat=forward, rmatmat=reverse, dtype=np.float32
        )
        values = svds(
            operator, k=count, tol=tol**0.5, solver=solver, return_singular_vectors=False, rng=np.random.default_rng(0),
            **options,
        )  # fmt: skip
        return {"top": np.sort(values)[::-1], "products": at.products}

    return work


def skerch_ssvd(network: dict[str, Any], *, count: int, sketch: int) -> Callable[[], Answer]:
    """skerch.algorithms.ssvd (Halko-Martinsson-Tropp recovery): one sketch and one pass back, no power iteration."""
    from skerch.algorithms import ssvd
    from skerch.linops import BaseLinOp

    products = Products(network)

    class Jacobian(BaseLinOp):
        def matmul(self, columns: Tensor) -> Tensor:
            return products.forward(columns)

        def rmatmul(self, rows: Tensor) -> Tensor:
            return products.reverse(rows.T).T

    def work() -> Answer:
        at = products.at_the_input()
        size = min(sketch, *at.shape)
        _, values, _ = ssvd(Jacobian(at.shape), "cpu", torch.float32, size, recovery_type="hmt")
        return {"top": values[:count].numpy(), "products": at.products}

    return work


def cola_lanczos(network: dict[str, Any], *, probes: int, steps: int) -> Callable[[], Answer]:
    """cola's Lanczos on J^T J for a block of start vectors; its Jacobian operator knows J v and J^T u."""
    import cola
    from cola.linalg.decompositions.lanczos import lanczos

    model, x = networks.build(network)
    model.requires_grad_(False)

    def flat(z: Tensor) -> Tensor:
        return model(z.reshape(x.shape)).reshape(-1)

    def work() -> Answer:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(x.numel(), probes, generator=generator)
        with torch.no_grad():
            jacobian = cola.ops.Jacobian(flat, x.reshape(-1))
            gram = cola.PSD(jacobian.T @ jacobian)
            _, tridiagonal, _ = lanczos(gram, start_vector=start, max_iters=steps, tol=1e-30)
        # cola vectorises its tridiagonal operator over the probes; the entries are (probes, steps, 1).
        ends, middle = tridiagonal.alpha.reshape(probes, -1), tridiagonal.beta.reshape(probes, -1)
        return _rules_of_squares(
            (torch.diag_embed(middle) + torch.diag_embed(ends, 1) + torch.diag_embed(ends, -1)).numpy()
        )

    return work


def curvlinops_lanczos(network: dict[str, Any], *, probes: int, steps: int) -> Callable[[], Answer]:
    """curvlinops' fast_lanczos on J^T J, probe after probe (it has no blocks); its Jacobian is one in parameters.

    The input is therefore made the parameter of a module that adds it to a batch of one zero.
    """
    from curvlinops import JacobianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, x = networks.build(network)
    model.requires_grad_(False)

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(x.clone())
            self.model = model

        def forward(self, zeros: Tensor) -> Tensor:
            return self.model(self.shift + zeros)

    shifted = Shifted()

    def work() -> Answer:
        torch.manual_seed(0)
        data = [(torch.zeros(1, *x.shape), torch.zeros(1))]
        jacobian = JacobianLinearOperator(shifted, [shifted.shift], data, check_deterministic=False)
        gram = jacobian.adjoint() @ jacobian
        nodes, weights = [], []
        for _ in range(probes):
            values, vectors = fast_lanczos(gram, steps)
            nodes.append(values.clamp_min(0).sqrt().flip(0).numpy())
            weights.append(vectors[0].square().flip(0).numpy())
        return {
            "nodes": np.stack(nodes),
            "weights": np.stack(weights),
            "top": np.stack(nodes).max(keepdims=True)[0],
        }

    return work


def matfree_bidiagonal(network: dict[str, Any], *, probes: int, steps: int) -> Callable[[], Answer]:
    """matfree's bidiag under jax.vmap and jax.jit, on the network linearised once by jax.linearize."""
    import jax
    import jax.numpy as jnp
    from matfree.decomp import bidiag

    from .jax_network import circular_cnn

    function, x = circular_cnn(network)
    decompose = bidiag(steps)

    @jax.jit
    def bidiagonals(point: jax.Array, start: jax.Array) -> jax.Array:
        push = jax.linearize(function, point)[1]
        return jax.vmap(lambda v: decompose(push, v).J_small)(start)

    def work() -> Answer:
        start = jax.random.normal(jax.random.PRNGKey(0), (probes, x.size))
        matrices = np.asarray(bidiagonals(jnp.asarray(x), start), dtype=np.float64)
        _, nodes, right = np.linalg.svd(matrices)
        return {
            "nodes": nodes, "weights": right[:, :, 0] ** 2, "top": nodes.max(keepdims=True)[0],
            "products": 2 * probes * steps,
        }  # fmt: skip

    return work


def _rules_of_squares(tridiagonal: np.ndarray) -> Answer:
    """Gauss rules in s from tridiagonal matrices of J^T J, (k, steps, steps)."""
    squares, vectors = np.linalg.eigh(tridiagonal.astype(np.float64))
    nodes = np.sqrt(np.maximum(squares, 0.0))[:, ::-1]
    return {
        "nodes": nodes, "weights": (vectors[:, 0] ** 2)[:, ::-1], "top": nodes.max(keepdims=True)[0],
        "products": 2 * nodes.size,
    }  # fmt: skip
