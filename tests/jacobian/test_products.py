"""JacobianOperator equals the dense Jacobian, whatever the network, the precision, the chunk and the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from custom_functions import sine
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from isometry.errors import AdjointError, InputError
from isometry.jacobian import JacobianOperator, MatrixOperator


class TiedResidual(nn.Module):
    """One weight under two names, a skip connection and an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu_(self.first(x)))


def running_norm() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


NETWORKS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "more outputs than inputs": (lambda: nn.Sequential(nn.Linear(3, 7), nn.Tanh()), (3,)),
    "convolutions, pooling, batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), running_norm(), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4)
        ),
        (1, 1, 4, 4),
    ),
    "layer norm and GELU": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()), (2, 3, 4)),
    "tied, residual, in place": (TiedResidual, (6,)),
    "group norm, upsampling": (
        lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Upsample(scale_factor=2, mode="bilinear")), (1, 2, 3, 3)
    ),
    "scalar output": (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), (1, 4)),
}  # fmt: skip


def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().eval().to(dtype), torch.randn(shape, dtype=dtype)


def columns(operator: JacobianOperator | MatrixOperator) -> Tensor:
    """J from matmat on the unit vectors."""
    m, n = operator.shape
    unit = torch.eye(n, dtype=operator.dtype).reshape(n, *operator.input_shape)
    return operator.matmat(unit).reshape(n, m).T


def rows(operator: JacobianOperator | MatrixOperator) -> Tensor:
    """J from rmatmat on the unit vectors."""
    m, n = operator.shape
    unit = torch.eye(m, dtype=operator.dtype).reshape(m, *operator.output_shape)
    return operator.rmatmat(unit).reshape(m, n)


@pytest.mark.filterwarnings("ignore:.*looks like a batch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_products_equal_the_dense_jacobian(name: str, dtype: torch.dtype, dense_jacobian) -> None:
    model, x = build(name, dtype)
    operator = JacobianOperator(model, x)
    dense = dense_jacobian(model, x)
    assert operator.shape == tuple(dense.shape)
    assert (operator.dtype, operator.device.type) == (dtype, "cpu")
    assert operator.input_shape == x.shape
    assert operator.output_shape == model(x).shape
    # Sums of a dozen terms over a handful of layers: 50 units of rounding of the largest entry.
    bound = 50 * torch.finfo(dtype).eps * float(dense.abs().max())
    assert torch.allclose(columns(operator), dense, rtol=0, atol=bound)
    assert torch.allclose(rows(operator), dense, rtol=0, atol=bound)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_chunk_changes_nothing_but_memory(chunk: int) -> None:
    model, x = build("convolutions, pooling, batch norm", torch.float64)
    v = torch.randn(7, *x.shape, dtype=torch.float64)
    u = torch.randn(7, *model(x).shape, dtype=torch.float64)
    whole, cut = JacobianOperator(model, x, chunk=7), JacobianOperator(model, x, chunk=chunk)
    # Not bit for bit: a matrix product of another height may sum in another order.
    assert torch.allclose(cut.matmat(v), whole.matmat(v), rtol=1e-13, atol=1e-14)
    assert torch.allclose(cut.rmatmat(u), whole.rmatmat(u), rtol=1e-13, atol=1e-14)
    assert cut.products == whole.products == 14


def test_memory_limit_sets_the_chunk() -> None:
    # Entries of (1, 4, 6, 6) tensors: 576 bytes each in float32.
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()), torch.randn(1, 4, 6, 6)
    chunks = [JacobianOperator(model, x, memory_limit=limit).chunk for limit in (1, 40_000, 2**31)]
    # What goes in and what comes out are alive, and two more for a convolution to work with.
    assert chunks == [1, 40_000 // (4 * 576), 64]

    # Products of torch.func keep six times the largest tensor that an operation makes: here the indices of the pooling,
    # eight bytes each.
    class Same(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z):
            return z.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, u):
            return u

        @staticmethod
        def jvp(ctx, v):
            return v.clone()

    pooled = JacobianOperator(
        lambda z: nn.functional.max_pool2d(Same.apply(z), 1), torch.randn(1, 8, 8), memory_limit=60000
    )
    assert pooled.backend.startswith("torch.func")
    assert pooled.chunk == 60000 // (6 * 8 * 64)


def test_each_of_a_batch_has_its_own_jacobian(dense_jacobian) -> None:
    model, _ = build("convolutions, pooling, batch norm", torch.float64)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    operator = JacobianOperator(model, x, batched=True)
    assert (operator.batch, operator.shape) == (3, (4, 16))
    assert (operator.input_shape, operator.output_shape) == ((1, 4, 4), (4,))
    v, u = torch.randn(5, *x.shape, dtype=torch.float64), torch.randn(5, 3, 4, dtype=torch.float64)
    jv, jtu = operator.matmat(v), operator.rmatmat(u)
    assert (jv.shape, jtu.shape) == ((5, 3, 4), (5, 3, 1, 4, 4))
    for b in range(3):
        dense = dense_jacobian(model, x[b : b + 1])
        assert torch.allclose(jv[:, b], v[:, b].reshape(5, 16) @ dense.T, rtol=1e-12, atol=1e-13)
        assert torch.allclose(jtu[:, b].reshape(5, 16), u[:, b] @ dense, rtol=1e-12, atol=1e-13)
    assert operator.products == 2 * 5 * 3


def test_a_batch_as_one_input_is_block_diagonal_and_said() -> None:
    model = nn.Linear(3, 2).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="looks like a batch of 2 independent samples"):
        operator = JacobianOperator(model, x)
    assert operator.shape == (4, 6)
    assert torch.equal(columns(operator), torch.block_diag(model.weight, model.weight).detach())


def test_products_count_what_the_user_applied() -> None:
    operator = JacobianOperator(nn.Linear(4, 4), torch.randn(4))
    assert operator.products == 0
    operator.matmat(torch.randn(5, 4))
    assert operator.products == 5
    operator.rmatmat(torch.randn(2, 4))
    assert operator.products == 7


def test_a_function_scales_and_composes_as_its_jacobian_does(dense_jacobian) -> None:
    x = torch.randn(4, dtype=torch.float64)
    weight = torch.randn(3, 4, dtype=torch.float64)

    def inner(z: Tensor) -> Tensor:
        return torch.tanh(weight @ z)

    def outer(y: Tensor) -> Tensor:
        return torch.stack([y.prod(), y.square().sum()])

    chained = columns(JacobianOperator(lambda z: outer(inner(z)), x))
    parts = columns(JacobianOperator(outer, inner(x))) @ columns(JacobianOperator(inner, x))
    assert torch.allclose(chained, parts, rtol=1e-13, atol=1e-14)
    # A power of two scales without rounding.
    assert torch.equal(columns(JacobianOperator(lambda z: 4 * inner(z), x)), 4 * dense_jacobian(inner, x))


def test_half_precision_is_lifted_and_the_dtype_is_the_users_choice(dense_jacobian) -> None:
    model, x = build("layer norm and GELU", torch.float32)
    x = x[:1, 0]
    half = JacobianOperator(nn.Linear(4, 4).bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32
    double = JacobianOperator(model, x, dtype=torch.float64)
    assert double.dtype == torch.float64
    reference = dense_jacobian(model.double(), x.double())
    assert torch.allclose(columns(double), reference, rtol=1e-13, atol=1e-14)
    with pytest.raises(InputError, match=r"float32 or torch\.float64; got torch\.float16"):
        JacobianOperator(model, x, dtype=torch.float16)


def test_adjoint_test_measures_rounding_and_catches_a_wrong_derivative() -> None:
    model, x = build("convolutions, pooling, batch norm", torch.float64)
    assert JacobianOperator(model, x).adjoint_test(seed=3) < 1e-14

    with pytest.raises(AdjointError, match="not of one matrix"):
        JacobianOperator(sine(1.5).apply, torch.randn(5))


def test_the_linearity_test_sees_rounding_grow_with_depth() -> None:
    """A product of a shallow network is good to a few units; a random walk over 256 times as many layers adds more."""
    found = {}
    for depth in (2, 512):
        torch.manual_seed(0)
        network = nn.Sequential(*[nn.Linear(24, 24, bias=False) for _ in range(depth)])
        for layer in network:
            nn.init.orthogonal_(layer.weight)
        operator = JacobianOperator(network, torch.randn(24))
        found[depth] = operator.linearity_test() / torch.finfo(torch.float32).eps
        # Found with one other pair of vectors: two lengths of 24 random errors are within a factor of two.
        expected = max(8, 2 * found[depth]) * torch.finfo(torch.float32).eps
        assert 0.5 * expected < operator.rounding < 2 * expected
    assert 0 < found[2] < 4
    # The square root of 256 is 16; the first layer's share and the sums of 24 terms leave a factor of three.
    assert 16 / 3 < found[512] / found[2] < 16 * 3
    # A power of two rounds nothing, whatever the vectors.
    assert JacobianOperator(lambda z: 4 * z.flip(0), torch.ones(4)).linearity_test() == 0


# ---- SciPy's view ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_svds_finds_the_singular_values_of_the_dense_jacobian(dtype: torch.dtype, dense_jacobian) -> None:
    model, x = build("convolutions, pooling, batch norm", dtype)
    linear = JacobianOperator(model, x).to_scipy()
    dense = dense_jacobian(model, x).double().numpy()
    assert linear.shape == dense.shape
    assert linear.dtype == np.dtype(str(dtype).removeprefix("torch."))
    found = np.sort(svds(linear, k=3, return_singular_vectors=False, random_state=0))[::-1]
    reference = np.linalg.svd(dense, compute_uv=False)[:3]
    # ARPACK works on J^T J: the square root of a relative rounding error, times s_max over s_3.
    bound = np.sqrt(torch.finfo(dtype).eps) * reference[0]
    assert found == pytest.approx(reference, abs=0.1 * bound)


def test_scipys_vectors_and_columns_are_the_same_products(dense_jacobian) -> None:
    model, x = build("more outputs than inputs", torch.float64)
    operator = JacobianOperator(model, x)
    linear, dense = operator.to_scipy(), dense_jacobian(model, x).numpy()
    v, u = np.arange(3.0), np.arange(7.0)
    assert linear.matvec(v) == pytest.approx(dense @ v, rel=1e-13)
    assert linear.matvec(v[:, None]) == pytest.approx((dense @ v)[:, None], rel=1e-13)
    assert linear.rmatvec(u) == pytest.approx(dense.T @ u, rel=1e-13)
    assert linear.matmat(np.eye(3)) == pytest.approx(dense, rel=1e-13)
    assert linear.rmatmat(np.eye(7)) == pytest.approx(dense.T, rel=1e-13)
    assert (linear.T @ (linear @ v)) == pytest.approx(dense.T @ dense @ v, rel=1e-12)


def test_a_batch_has_no_single_scipy_operator() -> None:
    with pytest.raises(InputError, match="several Jacobians"):
        JacobianOperator(nn.Linear(3, 3), torch.randn(2, 3), batched=True).to_scipy()


# ---- an explicit matrix ------------------------------------------------------------------------------------


def test_matrix_operator_is_its_matrix() -> None:
    a = torch.randn(4, 6, dtype=torch.float64)
    operator = MatrixOperator(a)
    assert torch.equal(columns(operator), a)
    assert torch.equal(rows(operator), a)
    assert operator.products == 10
    batch = MatrixOperator(torch.stack([a, 2 * a]))
    v = torch.randn(3, 2, 6, dtype=torch.float64)
    assert batch.shape == (4, 6)
    assert torch.allclose(batch.matmat(v)[:, 1], 2 * v[:, 1] @ a.T, rtol=1e-14, atol=1e-14)
    assert batch.rmatmat(torch.randn(3, 2, 4, dtype=torch.float64)).shape == (3, 2, 6)
    with pytest.raises(InputError, match="not empty"):
        MatrixOperator(torch.zeros(0, 3))


# ---- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: products on a GPU are not tested here"
)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:.*looks like a batch")
def test_a_gpu_gives_the_same_jacobian(name: str, dense_jacobian) -> None:
    model, x = build(name, torch.float32)
    operator = JacobianOperator(model, x, device="cuda")
    m, n = operator.shape
    assert operator.device.type == "cuda"
    found = operator.matmat(torch.eye(n).reshape(n, *operator.input_shape)).reshape(n, m).T.cpu()
    dense = dense_jacobian(model, x)
    # TF32 would miss by 1e-3; full float32 stays within the bound of the test on the CPU.
    assert torch.allclose(
        found, dense, rtol=0, atol=50 * torch.finfo(torch.float32).eps * float(dense.abs().max())
    )
    assert next(model.parameters(), torch.empty(0)).device.type == "cpu"


def test_some_inputs_of_a_batch_have_the_operator_they_would_have_alone() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    whole = JacobianOperator(torch.tanh, x, batched=True, dtype=torch.float64, memory_limit=10**6)
    part = whole.of_inputs(range(1, 3))
    assert (part.batch, part.dtype, part.memory_limit) == (2, torch.float64, 10**6)
    v = torch.randn(3, 5, 4, dtype=torch.float64)
    assert torch.equal(part.matmat(v[:, 1:3]), whole.matmat(v)[:, 1:3])
