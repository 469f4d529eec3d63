"""What can be measured is; what can not is refused with its own cause, and never by an error of PyTorch's."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isometry.errors import ConvergenceWarning, InputError, ModelError
from isometry.jacobian import JacobianOperator, named_layers
from isometry.measurement import measure

X = torch.linspace(-1, 1, 6).cos()
SPARSE = torch.arange(30.0).reshape(5, 6).remainder(7).relu().to_sparse()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).eval()


def assert_measured(model, x: Tensor, reference, dense_jacobian, **options) -> JacobianOperator:
    operator = JacobianOperator(model, x, **options)
    m, n = operator.shape
    found = (
        operator.matmat(torch.eye(n, dtype=operator.dtype).reshape(n, *operator.input_shape)).reshape(n, m).T
    )
    dense = dense_jacobian(reference, x)
    assert torch.allclose(found.to(dense.dtype), dense, rtol=1e-5, atol=1e-5 * float(dense.abs().max()))
    return operator


# ---- compiled, scripted, frozen ----------------------------------------------------------------------------------

COMPILED = {
    "a module": lambda net: torch.compile(net, backend="eager"),
    "ahead of time": lambda net: torch.compile(net, backend="aot_eager"),
    "in place": lambda net: (net.compile(backend="eager"), net)[1],
    "a part": lambda net: nn.Sequential(torch.compile(net[0], backend="eager"), *net[1:]),
    "a function": lambda net: torch.compile(lambda z: net(z), backend="eager"),
    "whole graph": lambda net: torch.compile(net, backend="eager", fullgraph=True, dynamic=True),
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net, X),
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "for inference": lambda net: torch.jit.optimize_for_inference(torch.jit.script(net)),
    "exported": lambda net: torch.export.export(net, (X,)).module(),
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_models_are_measured_as_they_were_written(name: str, dense_jacobian) -> None:
    model = COMPILED[name](network())
    operator = assert_measured(model, X, network(), dense_jacobian)
    assert operator.backend == "replay"
    # As before, whatever ran in between.
    assert torch.allclose(model(X), network()(X))


def test_names_of_modules_are_those_of_the_module_that_was_compiled(dense_jacobian) -> None:
    net = network()
    compiled = torch.compile(net, backend="eager")
    assert_measured(compiled, X, net[:2], dense_jacobian, target="1")
    assert [layer.name for layer in named_layers(compiled, X)] == ["0", "1", "2"]


# ---- no numbers ------------------------------------------------------------------------------------------------

META = {
    "input": lambda: JacobianOperator(network(), X.to("meta")),
    "all parameters": lambda: JacobianOperator(network().to("meta"), X),
    "one parameter": lambda: JacobianOperator(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, device="meta")), X),
    "a buffer": lambda: JacobianOperator(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, device="meta").eval()), X),
    "everything": lambda: JacobianOperator(network().to("meta"), X.to("meta"), device="meta"),
    "integers": lambda: JacobianOperator(network(), torch.zeros(6, dtype=torch.int64, device="meta"), source="0"),
}  # fmt: skip


@pytest.mark.parametrize("name", META)
def test_meta_tensors_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="hold no numbers"):
        META[name]()


def test_a_default_device_without_numbers_changes_nothing() -> None:
    net = network()
    with torch.device("meta"):
        found = JacobianOperator(net, X).matmat(X[None])
    torch.testing.assert_close(found, JacobianOperator(net, X).matmat(X[None]))


# ---- sparse, complex -------------------------------------------------------------------------------------------

SPARSE_MODELS = {
    "sparse.mm": lambda z: torch.sparse.mm(SPARSE, z[:, None])[:, 0].tanh(),
    "mv": lambda z: torch.mv(SPARSE, z).tanh(),
    "rows": lambda z: (SPARSE.to_sparse_csr() @ z[:, None])[:, 0].tanh(),
    "made inside": lambda z: torch.sparse.mm(torch.diag(z).to_sparse(), z[:, None])[:, 0],
}


@pytest.mark.parametrize("name", SPARSE_MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_matrices_inside(name: str, dense_jacobian) -> None:
    assert_measured(SPARSE_MODELS[name], X, SPARSE_MODELS[name], dense_jacobian)


class FourierLayer(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.polar(torch.linspace(0.5, 2, 4), torch.linspace(0, 3, 4)).to(dtype))

    def forward(self, z: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(z) * self.weight, n=6)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64], ids=str)
def test_complex_weights_between_real_ends(dtype, dense_jacobian) -> None:
    for model in (FourierLayer(), nn.Sequential(nn.Linear(6, 6), FourierLayer(), nn.Tanh()), FourierLayer()):
        operator = assert_measured(model, X, model, dense_jacobian, dtype=dtype)
        assert operator.dtype == (dtype or torch.float32)
    assert JacobianOperator(FourierLayer(torch.complex128), X.double()).dtype == torch.float64


# ---- derivatives inside the model --------------------------------------------------------------------------------


def test_derivatives_inside_the_model(dense_jacobian) -> None:
    net = network()
    inside = {
        "grad": lambda z: torch.autograd.grad(net(z).square().sum(), z)[0],
        "grad of a sum": lambda z: z + torch.autograd.grad(z.sin().sum(), z, create_graph=True)[0],
        "backward": lambda z: (z.sum().backward(), z)[1],
    }
    for model in inside.values():
        with pytest.raises(
            ModelError, match=r"calls torch\.autograd\.grad or backward.*torch\.func\.grad"
        ) as caught:
            JacobianOperator(model, X)
        assert "shape" not in str(caught.value)
    gradient = torch.func.grad(lambda z: net(z).square().sum())
    assert_measured(gradient, X, gradient, dense_jacobian)


def test_checkpointing_that_cannot_be_differentiated_twice_is_named() -> None:
    inner = network()
    with pytest.raises(ModelError, match="use_reentrant=True, which has no second derivative: pass False"):
        JacobianOperator(lambda z: checkpoint(inner, z, use_reentrant=True), X)


def test_checkpointing_in_a_function(dense_jacobian) -> None:
    inner = network()
    assert_measured(lambda z: checkpoint(inner, z, use_reentrant=False), X, inner, dense_jacobian)


# ---- zero ------------------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """A residual network with a head of zeros, and branches that end in zeros, as timm initialises them."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(z + self.branch(z).tanh())


class Int8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(24).reshape(4, 6).to(torch.int8))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear((20 * z).to(torch.int8).int(), self.weight.int()).float()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(6))

    def forward(self, z: Tensor) -> Tensor:
        return self.gamma * z


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    nn.init.constant_(model[0].bias, -100.0)
    return model


ZERO = {
    "head": (Mixer(), "layer head.weight is zero"),
    "scale": (nn.Sequential(nn.Linear(6, 6), Scale()), r"layer 1\.gamma is zero"),
    "int8": (Int8(), r"cut off from the input by aten\._to_copy to torch\.int8"),
    "int8 in a network": (nn.Sequential(nn.Linear(6, 6), Int8()), "in module '1', which has no derivative"),
    "round": (lambda z: z.mul(8).round().div(8), r"by aten\.round"),
    "sign": (nn.Sequential(nn.Linear(6, 6), type("Sign", (nn.Module,), {"forward": lambda _, z: z.sign()})()),
             r"by aten\.sign in module '1'"),
    "units": (dead(), r"module '1' \(ReLU\) cuts off all its units"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO)
def test_a_zero_jacobian_has_its_cause(name: str) -> None:
    model, cause = ZERO[name]
    with pytest.warns(ConvergenceWarning, match=f"s_max is 0: .*{cause}"):
        spectrum = measure(model, X, progress=False)
    assert spectrum.s_max == 0


def test_a_dynamically_quantised_model_has_its_cause() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        float_model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
        model = torch.ao.quantization.quantize_dynamic(float_model, {nn.Linear}, dtype=torch.qint8)
    with pytest.warns(ConvergenceWarning, match="quantized.linear_dynamic"):
        measure(model, X[None], progress=False)


def test_a_jacobian_that_is_not_zero_has_no_cause() -> None:
    assert JacobianOperator(network(), X).zero_cause == ""


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh())
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.first(checkpoint(self.inner, self.first(x), use_reentrant=self.use_reentrant))


def test_gradient_checkpointing_inside_a_module() -> None:
    """Measured, or refused with what to pass instead."""
    torch.manual_seed(0)
    model, x = Checkpointed(False).double(), torch.randn(6, dtype=torch.float64)
    found = JacobianOperator(model, x).matmat(torch.eye(6, dtype=torch.float64)).T
    expected = torch.autograd.functional.jacobian(lambda z: model.first(model.inner(model.first(z))), x)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ModelError, match=r"use_reentrant=True.*pass False"):
        JacobianOperator(Checkpointed(True).double(), x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::isometry.errors.FallbackWarning")
def test_a_branch_of_the_compilers_is_named() -> None:
    def model(z: Tensor) -> Tensor:
        return torch.cond(z.sum() > 0, torch.sin, torch.cos, (z,))

    with pytest.raises(ModelError, match=r"an operator of the compiler's, as torch\.cond"):
        JacobianOperator(model, torch.ones(40))


def test_the_report_says_when_products_are_slow_and_why() -> None:
    spectrum = measure(lambda z: torch.linalg.matrix_exp(z), torch.eye(6), progress=False)
    assert spectrum.provenance["products_by"] == "replay, with torch.func for linalg_matrix_exp"
    assert ("slow products", spectrum.provenance["products_by"]) in spectrum.reported.rows()
    assert spectrum.to_dict()["slow_products"] == spectrum.provenance["products_by"]
    plain = measure(nn.Linear(6, 6), torch.ones(6), progress=False)
    assert "slow products" not in dict(plain.reported.rows())
