"""`critical_init_` of whole networks: gains against closed forms, by what a run shows, and bits where it is undone."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isometry
from isometry.depth import critical_init as module_under_test
from isometry.depth import improvement
from isometry.depth.activation_gains import unit_gain
from isometry.depth.flow_structure import FlowStructure
from isometry.errors import InputError, ModelError, NotImprovedError
from isometry.jacobian import Dataflow, JacobianOperator
from isometry.nn import init
from isometry.nn.activations import ACTIVATION_NAMES, make_activation

# Rows of weights that were drawn in float64 and rounded once; norms of up to 64 of them.
FLOAT32 = 1e-6
C = 0.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(build, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build().eval()


def row_norm(weight: torch.Tensor) -> float:
    return float(weight.detach().double().flatten(1).square().sum(1).mean().sqrt())


def gains(report) -> dict[str, float]:
    return {weight.name: weight.gain for weight in report.weights}


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor)
    }


def average(function) -> float:
    """E f(z), z ~ N(0, 1)."""
    # The trapezoidal rule is exact to rounding for functions that are analytic and fall like a Gaussian.
    nodes = np.linspace(-12.0, 12.0, 4801)
    masses = np.exp(-(nodes**2) / 2)
    return float(masses @ function(nodes) / masses.sum())


class Block(nn.Module):
    """x + relu(A x): the residual block that a chain's gains make explode."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.r = nn.ReLU()

    def forward(self, x):
        return x + self.r(self.a(x))


class GptBlock(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        length, width = x.shape
        q, k, v = self.qkv(self.n1(x)).view(length, 3, self.heads, -1).permute(1, 2, 0, 3)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(length, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class SwiGlu(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.value(x))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class LlamaBlock(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.n1, self.n2, self.mlp = RmsNorm(width), RmsNorm(width), SwiGlu(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x):
        h = self.n1(x)
        weights = (self.q(h) @ self.k(h).transpose(-1, -2) / 4).softmax(-1)
        x = x + self.o(weights @ self.v(h))
        return x + self.mlp(self.n2(x))


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.b1, self.b2 = (nn.BatchNorm2d(outputs) if norm else nn.Identity() for _ in range(2))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x):
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        return F.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class ConvResNet(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(
            *[ConvBlock(8, 8 * s, s, norm) for s in (1, 1, 2)], ConvBlock(16, 16, 1, norm)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((-2, -1)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.merge = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = F.relu(self.enter(x))
        u = F.relu(self.up(F.relu(self.down(a))))
        return self.leave(F.relu(self.merge(torch.cat([u, a], 1))))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.leave = nn.Conv2d(20, 8, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(F.relu(x))], 1)
        return self.leave(x)


# ---- gains ---------------------------------------------------------------------------------------------------


def test_fifty_residual_blocks_become_isometric():
    model = made(lambda: nn.Sequential(*[Block(16) for _ in range(50)]))
    report = isometry.critical_init_(model, torch.randn(16, generator=seeded(1)), generator=seeded())
    assert report.kind == "network"
    assert dict(report.found) == {"residual sum": 50}
    assert report.before.s_max > 1e4
    # exp(c^2) = 1.06 on average for branches without mean, less for these.
    assert 0.9 < report.after.mean_square < 1.3
    assert report.after.s_max < 2
    # c / (D E relu(sqrt(2) z) / sqrt(1)) times sqrt(2): the means 1/sqrt(pi) of the branches add up to c.
    expected = math.sqrt(2) * C * math.sqrt(math.pi) / 50
    for block, weight in zip(model, report.weights, strict=True):
        assert row_norm(block.a.weight) == pytest.approx(expected, rel=FLOAT32)
        assert weight.gain == pytest.approx(expected)
        assert weight.role == "last of a branch"
        assert not block.a.bias.any()
    assert "residual sum" in str(report)
    assert "left alone" not in str(report)


def test_a_network_that_overflows_is_cured():
    model = made(lambda: nn.Sequential(*[Block(8) for _ in range(4)]))
    with torch.no_grad():
        for block in model:
            block.a.weight.mul_(1e12)
    report = isometry.critical_init_(model, torch.ones(8), generator=seeded())
    assert report.before.mean_square > 1e60
    assert 0.9 < report.after.mean_square < 1.3


def test_a_chain_is_filled_as_from_its_modules():
    def chain():
        return nn.Sequential(*[m for _ in range(24) for m in (nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())])

    model, other = made(chain), made(chain)
    report = isometry.critical_init_(model, torch.randn(1, 2, 4, 4, generator=seeded(1)), generator=seeded())
    init.critical_init_(other, generator=seeded())
    assert report.kind == "chain"
    assert bits(model) == bits(other)


def test_a_chain_is_seen_in_a_forward_of_its_own():
    class Vgg(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.middle, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(32, 4)

        def forward(self, x):
            return self.head(F.relu(self.middle(self.features(x))).flatten(1))

    model = made(Vgg)
    report = isometry.critical_init_(model, torch.randn(1, 3, 4, 4, generator=seeded(1)), generator=seeded())
    assert report.kind == "chain"
    assert gains(report) == pytest.approx(dict.fromkeys(gains(report), math.sqrt(2)))
    assert len(report.weights) == 3


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoders(norm_first):
    layer = lambda: nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=True)  # noqa: E731
    model = made(lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False))
    report = isometry.critical_init_(model, torch.randn(1, 4, 16, generator=seeded(1)), generator=seeded())
    assert (report.found["residual sum"], report.found["attention"], report.found["normalisation"]) == (
        4,
        2,
        4,
    )
    for one in model.layers:
        for block in one.self_attn.in_proj_weight.detach().double().split(16):
            values = torch.linalg.svdvals(block)
            torch.testing.assert_close(values, torch.ones_like(values), atol=FLOAT32, rtol=0)
        assert row_norm(one.linear1.weight) == pytest.approx(math.sqrt(2), rel=FLOAT32)
        for last in (one.self_attn.out_proj, one.linear2):
            assert row_norm(last.weight) == pytest.approx(C / math.sqrt(4), rel=FLOAT32)
        assert not one.self_attn.in_proj_bias.any()
        assert not one.linear2.bias.any()
    assert 0.5 < report.after.mean_square < 2
    assert report.after.spread_bounds()[0] > report.before.spread_bounds()[0]
    assert "normalisations" in report.left_alone


def test_hand_written_attention_and_gates():
    model = made(lambda: nn.Sequential(LlamaBlock(), LlamaBlock()))
    report = isometry.critical_init_(model, torch.randn(4, 16, generator=seeded(1)), generator=seeded())
    role = {weight.name: weight.role for weight in report.weights}
    assert [role[f"0.{name}.weight"] for name in "qkvo"] == ["query or key"] * 2 + [
        "value",
        "last of a branch",
    ]
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    slope = lambda z: (1 + np.exp(-z) * (1 + z)) / (1 + np.exp(-z)) ** 2  # noqa: E731
    size = average(lambda z: silu(z) ** 2) + average(lambda z: slope(z) ** 2)
    found = gains(report)
    assert found["1.mlp.gate.weight"] == found["1.mlp.value.weight"] == 1
    assert found["1.mlp.out.weight"] == pytest.approx(C / 2 / math.sqrt(size), rel=1e-9)
    assert found["1.q.weight"] == found["1.k.weight"] == found["1.v.weight"] == 1
    assert found["1.o.weight"] == pytest.approx(C / 2)


def test_last_layers_of_zero_make_the_identity():
    model = made(lambda: nn.Sequential(GptBlock(), GptBlock()))
    x = torch.randn(5, 16, generator=seeded(1))
    report = isometry.critical_init_(model, x, residual="zero", generator=seeded())
    assert torch.equal(model(x), x)
    assert {w.name for w in report.weights if w.gain == 0} == {
        f"{i}.{n}.weight" for i in (0, 1) for n in ("out", "down")
    }
    assert gains(report)["0.qkv.weight"] == 1
    # All blocks of the packed projection are orthogonal, each by itself.
    values = torch.linalg.svdvals(model[0].qkv.weight.detach().double().reshape(3, 16, 16))
    torch.testing.assert_close(values, torch.ones_like(values), atol=FLOAT32, rtol=0)


def test_a_layer_before_a_relu_is_not_set_to_zero():
    model = made(lambda: nn.Sequential(Block(8), Block(8)))
    report = isometry.critical_init_(
        model, torch.randn(8, generator=seeded(1)), residual="zero", generator=seeded()
    )
    assert all(weight.gain > 0 for weight in report.weights)
    assert "no gradients" in report.left_alone["0.a.weight"]


def test_residual_network_with_shortcut():
    model = made(ConvResNet)
    report = isometry.critical_init_(model, torch.randn(1, 3, 4, 4, generator=seeded(1)), generator=seeded())
    found = gains(report)
    assert report.found["residual sum"] == 3
    assert report.found["shortcut sum"] == 1
    for name, gain in found.items():
        expected = (
            1.0 if name.startswith(("head", "blocks.2.shortcut")) else C / 2 if "c2" in name else math.sqrt(2)
        )
        assert gain == pytest.approx(expected), name
    # The average over the 2 x 2 map divides it by 4, which the report names.
    assert report.after.mean_square > 10 * report.before.mean_square
    assert any("average over positions" in why for why in report.left_alone.values())


def test_batch_norm_in_evaluation_mode():
    model = made(lambda: ConvResNet(norm=True))
    with torch.no_grad():
        model.blocks[0].b1.running_var.fill_(1.5)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    report = isometry.critical_init_(model, torch.randn(1, 3, 4, 4, generator=seeded(1)), generator=seeded())
    for block in model.blocks:
        torch.testing.assert_close(block.b2.weight.detach(), torch.full_like(block.b2.weight, C / 2))
        torch.testing.assert_close(block.b1.weight.detach(), torch.ones_like(block.b1.weight))
        assert row_norm(block.c2.weight) == pytest.approx(1, rel=FLOAT32)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert "running statistics of batch-norm" in report.left_alone


def test_u_net_and_dense_net():
    model = made(UNet)
    report = isometry.critical_init_(model, torch.randn(1, 3, 4, 4, generator=seeded(1)), generator=seeded())
    assert report.found == {"concatenation": 1}
    expected = {f"{name}.weight": math.sqrt(2) for name in ("enter", "down", "up", "merge")} | {
        "leave.weight": 1.0
    }
    assert gains(report) == pytest.approx(expected)
    assert 0.3 < report.after.mean_square < 3
    assert report.before.mean_square < 0.02
    model = made(DenseBlock)
    report = isometry.critical_init_(model, torch.randn(1, 8, 3, 3, generator=seeded(1)), generator=seeded())
    assert report.found == {"concatenation": 3}
    expected = {f"layers.{i}.weight": math.sqrt(2) for i in range(3)} | {"leave.weight": 1.0}
    assert gains(report) == pytest.approx(expected)


def test_gated_layers_without_normalisation_are_named():
    model = made(lambda: nn.Sequential(SwiGlu(), SwiGlu()))
    report = isometry.critical_init_(model, torch.randn(16, generator=seeded(1)), generator=seeded())
    assert "normalisation before it" in report.left_alone["1"]
    assert "0" not in report.left_alone


@pytest.mark.parametrize("form", ["glu", "chunk"])
def test_packed_gates(form):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 32), nn.Linear(16, 8)

        def forward(self, x):
            if form == "glu":
                return self.down(F.glu(self.up(x)))
            gate, value = self.up(x).chunk(2, -1)
            return self.down(torch.sigmoid(gate) * value)

    report = isometry.critical_init_(made(Packed), torch.randn(8, generator=seeded(1)), generator=seeded())
    logistic = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    size = average(lambda z: logistic(z) ** 2) + average(lambda z: (logistic(z) * (1 - logistic(z))) ** 2)
    assert report.weights[0].role == "gate and value"
    assert report.weights[1].gain == pytest.approx(1 / math.sqrt(size), rel=1e-9)


def test_factors_that_the_model_has_count():
    class Tenth(nn.Module):
        def __init__(self, gamma):
            super().__init__()
            self.f, self.gamma = nn.Linear(8, 8), nn.Parameter(torch.full((8,), gamma))

        def forward(self, x):
            return torch.add(x, self.gamma * self.f(torch.tanh(x)), alpha=0.5)

    for gamma, expected in ((1.0, C / math.sqrt(2) / 0.5), (1e-3, 1.0), (0.0, 1.0)):
        model = made(lambda gamma=gamma: nn.Sequential(Tenth(gamma), Tenth(gamma)))
        report = isometry.critical_init_(model, torch.randn(8, generator=seeded(1)), generator=seeded())
        # The layer behind the tanh makes up for its slope: here it is the last of the branch as well.
        assert report.weights[0].gain == pytest.approx(expected * unit_gain("tanh"), rel=1e-9)
        assert float(model[0].gamma.detach()[0]) == pytest.approx(gamma)


def test_branches_inside_branches_and_paths_side_by_side():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            y = torch.tanh(self.a(x))
            y = y + self.b(torch.tanh(y))
            return x + self.c(y)

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return F.relu(self.a(x)) + F.relu(self.b(x))

    report = isometry.critical_init_(made(Nested), torch.randn(8, generator=seeded(1)), generator=seeded())
    # One sum at each level: the inner one is not counted among those of the outer.
    assert gains(report)["c.weight"] == pytest.approx(C)
    assert gains(report)["b.weight"] == pytest.approx(C * unit_gain("tanh"))
    report = isometry.critical_init_(made(Parallel), torch.randn(8, generator=seeded(1)), generator=seeded())
    assert report.found == {"parallel sum": 1}
    assert gains(report) == pytest.approx({"a.weight": 1.0, "b.weight": 1.0})


def test_gates_of_a_highway_network_are_named():
    class Highway(nn.Module):
        def __init__(self):
            super().__init__()
            self.t, self.h = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            share = torch.sigmoid(self.t(x))
            return share * torch.tanh(self.h(x)) + (1 - share) * x

    report = isometry.critical_init_(made(Highway), torch.randn(8, generator=seeded(1)), generator=seeded())
    assert report.found["gated sum"] == 1
    assert any("gate" in why for why in report.left_alone.values())


def test_matrices_of_other_modules_either_way_round():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shift = nn.Parameter(torch.randn(8, 24)), nn.Parameter(torch.ones(24))
            self.second = nn.Parameter(torch.randn(8, 24))

        def forward(self, x):
            return F.linear(torch.relu(torch.addmm(self.shift, x, self.first)), self.second)

    model = made(Free)
    report = isometry.critical_init_(model, torch.randn(1, 8, generator=seeded(1)), generator=seeded())
    assert gains(report) == pytest.approx({"first": math.sqrt(2), "second": 1.0})
    # Of x W the columns of W are the rows of the layer.
    assert row_norm(model.first.t()) == pytest.approx(math.sqrt(2), rel=FLOAT32)
    assert row_norm(model.second) == pytest.approx(1.0, rel=FLOAT32)
    assert not model.shift.any()


def test_activations_of_every_name_are_read_off_the_run():
    for name in (*ACTIVATION_NAMES, "leaky_relu(0.2)"):
        model = made(lambda name=name: nn.Sequential(nn.Linear(4, 4), make_activation(name)()))
        structure = FlowStructure(Dataflow.of(JacobianOperator(model, torch.ones(4))))
        read = {"erf_scaled": "erf", "leaky_relu": "leaky_relu(0.01)"}.get(name, name)
        expected = [] if name == "linear" else [read]
        assert [
            structure.activation[n] for n, k in enumerate(structure.kind) if k == "activation"
        ] == expected, name


def test_constants_before_an_activation_count():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.b(torch.tanh(0.5 * self.a(x)))

    report = isometry.critical_init_(made(Scaled), torch.randn(8, generator=seeded(1)), generator=seeded())
    assert gains(report)["a.weight"] == pytest.approx(2 * unit_gain("tanh"))


def test_hand_written_activations():
    class Written(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.a, self.b, self.function = nn.Linear(8, 8), nn.Linear(8, 8), function

        def forward(self, x):
            return x + self.b(self.function(self.a(x)))

    forms = {
        "silu": lambda x: x * torch.sigmoid(x),
        "gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
        "gelu ": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu  ": lambda x: x * torch.sigmoid(1.702 * x),
        "mish": lambda x: x * torch.tanh(F.softplus(x)),
    }
    for name, function in forms.items():
        model = made(lambda function=function: Written(function))
        report = isometry.critical_init_(model, torch.randn(8, generator=seeded(1)), generator=seeded())
        assert gains(report)["a.weight"] == unit_gain(name.strip()), name
    model = made(lambda: Written(lambda x: x * torch.cos(x)))
    report = isometry.critical_init_(model, torch.randn(8, generator=seeded(1)), generator=seeded())
    assert gains(report)["a.weight"] == 1
    assert any("no name" in why for why in report.left_alone.values())


def test_sums_in_place_and_one_after_another():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.r = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.b(self.r(self.a(x)))
            out += x
            return self.r(out)

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.a(torch.relu(x)) + self.b(torch.tanh(x))

    stem = lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), InPlace(), InPlace())  # noqa: E731
    report = isometry.critical_init_(made(stem), torch.randn(8, generator=seeded(1)), generator=seeded())
    expected = {
        f"{i}.{n}.weight": g for i in (2, 3) for n, g in (("a", math.sqrt(2)), ("b", C / math.sqrt(2)))
    }
    assert gains(report) == pytest.approx({"0.weight": math.sqrt(2)} | expected)
    report = isometry.critical_init_(made(Beside), torch.randn(8, generator=seeded(1)), generator=seeded())
    assert report.found == {"residual sum": 2}
    scale = C / math.sqrt(2)
    assert gains(report) == pytest.approx(
        {"a.weight": scale * math.sqrt(2), "b.weight": scale * unit_gain("tanh")}
    )


def test_what_is_left_keeps_its_bits():
    model = frozen().eval()
    before = bits(model)
    report = isometry.critical_init_(model, torch.ones(8), leave=r"1\.a", generator=seeded())
    assert gains(report).keys() == {"0.a.weight"}
    assert report.left_alone["1.a.weight"] == "kept by leave="
    assert {name for name, old in bits(model).items() if old != before[name]} == {"0.a.weight", "0.a.bias"}
    model = made(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8).requires_grad_(False)))
    before = bits(model)
    report = isometry.critical_init_(model, torch.ones(8), leave="2", generator=seeded())
    assert report.kind == "chain"
    assert {name for name, old in bits(model).items() if old != before[name]} == {"0.weight", "0.bias"}
    for pattern, words in (("(", "no regular expression"), ("nothing", "whole name matches")):
        with pytest.raises(InputError, match=words):
            isometry.critical_init_(model, torch.ones(8), leave=pattern)


def test_projections_that_do_not_depend_on_the_input_are_named():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

        def forward(self, x, memory):
            return x + self.attention(x, memory, memory, need_weights=False)[0]

    x, memory = torch.randn(1, 3, 8, generator=seeded(1)), torch.randn(1, 4, 6, generator=seeded(2))
    model = made(Cross)
    report = isometry.critical_init_(model, x, args=(memory,), generator=seeded())
    assert gains(report) == pytest.approx({"attention.q_proj_weight": 1.0, "attention.out_proj.weight": C})
    assert {"attention.k_proj_weight", "attention.v_proj_weight"} <= report.left_alone.keys()


def test_more_outputs_than_inputs_may_have_a_mean_square_up_to_their_ratio():
    model = made(
        lambda: nn.Sequential(nn.Linear(4, 32, bias=False), nn.ReLU(), nn.Linear(32, 64, bias=False))
    )
    for layer in (model[0], model[2]):
        nn.init.orthogonal_(layer.weight)
    report = isometry.critical_init_(model, torch.randn(4, generator=seeded(1)), generator=seeded())
    # Entries that keep their mean square: m / n, times the gain 2 of the last layer, which a chain has as well.
    assert 8 < report.after.mean_square < 64
    assert report.before.mean_square < 1


def test_the_input_may_be_brought_to_mean_square_one():
    model = made(ConvResNet)
    x = 10 * torch.randn(1, 3, 4, 4, generator=seeded(1))
    report = isometry.critical_init_(model, x, input_mean_square=0.25, generator=seeded())
    assert gains(report)["stem.weight"] == pytest.approx(2 * math.sqrt(2))
    assert gains(report)["blocks.0.c1.weight"] == pytest.approx(math.sqrt(2))


def test_unit_gain_solves_chi_one():
    assert unit_gain("relu") == pytest.approx(math.sqrt(2), rel=1e-11)
    gain = unit_gain("tanh")
    assert gain**2 * average(lambda z: np.cosh(gain * z) ** -4) == pytest.approx(1, rel=1e-6)
    gain = unit_gain("tanh", 0.01)
    assert gain**2 * average(lambda z: np.cosh(gain * z) ** -4) == pytest.approx(0.01, rel=1e-9)
    assert unit_gain("sigmoid") is None


# ---- never worse, and bad input ------------------------------------------------------------------------------


def orthogonal_pair() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    for layer in (model[0], model[2]):
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def test_what_gets_worse_is_undone_bit_for_bit():
    model = made(orthogonal_pair)
    before = bits(model)
    with pytest.raises(NotImprovedError, match=r"undone.*mean square of its singular values went from 0\.99"):
        isometry.critical_init_(
            model, 0.01 * torch.ones(16), q_star=1.0, weights="gaussian", generator=seeded()
        )
    assert bits(model) == before
    with pytest.raises(NotImprovedError, match="share of singular values within a factor of two"):
        isometry.critical_init_(
            model, 0.01 * torch.ones(16), sigma_w=0.95, weights="gaussian", generator=seeded(3)
        )
    assert bits(model) == before


def test_an_interrupt_restores_the_weights(monkeypatch):
    model = made(lambda: nn.Sequential(Block(8), Block(8)))
    before, calls = bits(model), []
    measured = module_under_test.measure

    def interrupted(*args, **options):
        calls.append(bits(model))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return measured(*args, **options)

    monkeypatch.setattr(module_under_test, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        isometry.critical_init_(model, torch.ones(8), generator=seeded())
    assert calls[1] != before
    assert bits(model) == before


def test_interrupts_while_weights_are_written_and_restored(monkeypatch):
    model = made(lambda: nn.Sequential(Block(8), Block(8), Block(8)))
    before, calls = bits(model), []
    write = improvement.write

    def interrupted(values):
        calls.append(len(values))
        write(values[: len(calls)])
        if len(calls) < 4:
            raise KeyboardInterrupt
        write(values)

    for module in (module_under_test, improvement):
        monkeypatch.setattr(module, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        isometry.critical_init_(model, torch.ones(8), generator=seeded())
    assert len(calls) == 4
    assert bits(model) == before


def frozen() -> nn.Module:
    model = nn.Sequential(Block(8), Block(8))
    model[1].a.weight.requires_grad_(False)
    return model


def with_nan() -> nn.Module:
    model = nn.Sequential(Block(8), Block(8))
    with torch.no_grad():
        model[1].a.weight[0, 0] = math.nan
    return model


def shared() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer)


def called_twice() -> nn.Module:
    block = Block(8)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(self.block(x))

    return Twice()


@pytest.mark.parametrize(
    ("build", "x", "options", "error", "words"),
    [
        (frozen, torch.ones(8), {}, InputError, "'1.a.weight' is frozen"),
        (with_nan, torch.ones(8), {}, InputError, "'1.a.weight' holds NaN"),
        (shared, torch.ones(8), {}, InputError, "shared by 0.weight and 2.weight"),
        (called_twice, torch.ones(8), {}, InputError, "used 2 times"),
        (lambda: Block(8), torch.full((8,), math.nan), {}, InputError, "holds NaN"),
        (lambda: Block(8), torch.arange(8), {}, InputError, "source="),
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU()), torch.ones(8), {}, InputError, "lazy"),
        (lambda: Block(8), torch.ones(8), {"residual": "half"}, InputError, "residual is"),
        (lambda: Block(8), torch.ones(8), {"branch_gain": 0}, InputError, "branch_gain"),
        (lambda: Block(8), torch.ones(8), {"q_star": 0.1}, InputError, "q_star is for chains"),
        (lambda: Block(8), torch.ones(8), {"weights": "mirrored"}, InputError, "mirrored"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), torch.ones(8), {}, InputError, "parametris"),
        (lambda: nn.Tanh(), torch.ones(8), {}, InputError, "no convolution and no dense layer"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Threshold(1e3, 0.0)),
            torch.ones(8), {}, NotImprovedError, "zero at this input",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_changes_nothing(build, x, options, error, words):
    model = made(build)
    before = bits(model)
    with pytest.raises(error, match=words):
        isometry.critical_init_(model, x, generator=seeded(), **options)
    assert bits(model) == before


def test_new_weights_that_overflow_are_undone():
    class Exponential(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            return torch.exp(self.a(x))

    model = made(Exponential)
    with torch.no_grad():
        model.a.weight.mul_(1e-3)
    before = bits(model)
    with pytest.raises(NotImprovedError, match=r"undone.*overflows"):
        isometry.critical_init_(model, 400 * torch.ones(8), generator=seeded())
    assert bits(model) == before


def test_quantised_weights_and_training_mode_are_refused():
    with warnings.catch_warnings():
        # PyTorch warns of its quantisation.
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(made(lambda: Block(8)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match="quantised"):
        isometry.critical_init_(model, torch.ones(8))
    with pytest.raises(ModelError, match="training mode"):
        isometry.critical_init_(nn.Sequential(Block(8), nn.Dropout(0.1)).train(), torch.ones(8))


def test_what_does_not_run_or_has_no_law_is_named():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.body, self.unused = Block(8), nn.Linear(8, 8)
            self.frozen = nn.Parameter(torch.eye(8), requires_grad=False)

        def forward(self, tokens):
            return self.head(self.body(self.embedding(tokens)) @ self.frozen)

    model = made(Partly)
    before = bits(model)
    report = isometry.critical_init_(model, torch.arange(1), source="body", generator=seeded())
    assert gains(report).keys() == {"body.a.weight"}
    assert "shared by" in report.left_alone["head.weight"]
    assert "frozen" in report.left_alone["frozen"]
    assert "does not run" in report.left_alone["unused.weight"]
    changed = {name for name, old in bits(model).items() if old != before[name]}
    assert changed == {"body.a.weight", "body.a.bias"}
