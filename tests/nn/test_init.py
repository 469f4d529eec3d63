"""Initialisers: the golden property of each law, its statistics, and what each refuses."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import InputError, IsometryWarning, TheoryError
from isometry.nn import MLP, VanillaCNN, init
from isometry.nn.kernels import haar_matrices, random_projections

# Float64 inside, rounded once to float32: half a unit (6e-8) per entry, and an operator norm of the rounding errors of
# well under ten of them.
FLOAT32 = 1e-6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_jacobian(function, x):
    jacobian = torch.func.jacrev(function)(x)
    return jacobian.reshape(-1, x.numel())


# ---- the golden property -----------------------------------------------------------------------------


@pytest.mark.parametrize("law", [init.delta_orthogonal_, init.orthogonal_conv_])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_singular_value_of_the_circular_operator_is_the_gain(law, kernel_size, dimensions):
    weight = torch.empty(8, 6, *[kernel_size] * dimensions)
    assert law(weight, gain=1.3, generator=generator()) is weight
    values = conv_values(weight, 5 if dimensions < 3 else 3)
    assert len(values) == 6 * (5**dimensions if dimensions < 3 else 27)
    torch.testing.assert_close(values, torch.full_like(values, 1.3), atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("law", [init.delta_orthogonal_, init.orthogonal_conv_])
@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [
        ((8, 8, 3, 2), {}, 4),  # another k on each axis
        ((8, 3, 3, 3), {"groups": 2}, 4),
        ((8, 1, 3, 3), {"groups": 8}, 4),
        ((32, 8, 3, 3), {"stride": 2}, 6),
        ((18, 2, 5, 5), {"stride": 3}, 6),
        ((24, 2, 4, 6), {"stride": (2, 3), "groups": 2}, 6),
        ((8, 2, 4, 4), {"stride": 2, "transposed": True}, 3),
        ((6, 8, 3, 3), {"transposed": True}, 4),
        ((3, 8, 3, 3), {"co_isometry": True}, 4),
        ((8, 8, 3, 3), {"stride": 2, "co_isometry": True}, 4),
        ((8, 6, 3, 3), {"transposed": True, "co_isometry": True}, 4),
    ],
)
def test_groups_strides_and_transposes_keep_it(law, shape, options, size):
    weight = torch.empty(shape)
    law(weight, gain=0.7, generator=generator(1), **options)
    layer = {name: value for name, value in options.items() if name != "co_isometry"}
    values = conv_values(weight, size, **layer)
    torch.testing.assert_close(values, torch.full_like(values, 0.7), atol=FLOAT32, rtol=0)


def conv_values(weight, size, **layer):
    return init.conv_singular_values(weight, size, **layer)


def test_a_torch_layer_agrees():
    """The same through torch's own circular layer, so that the layout is the one that PyTorch uses."""
    layer = nn.Conv2d(6, 12, 3, padding=1, padding_mode="circular", groups=2, bias=False)
    init.orthogonal_conv_(layer.weight, groups=2, generator=generator(2))
    values = torch.linalg.svdvals(dense_jacobian(layer, torch.zeros(6, 4, 4)))
    torch.testing.assert_close(values, torch.ones_like(values), atol=2 * FLOAT32, rtol=0)


def test_delta_orthogonal_survives_zero_padding_and_algorithm_1_does_not():
    delta = init.delta_orthogonal_(torch.empty(16, 16, 3, 3), generator=generator(3))
    values = conv_values(delta, 7, padding_mode="zeros")
    torch.testing.assert_close(values, torch.ones_like(values), atol=FLOAT32, rtol=0)
    spread = init.orthogonal_conv_(torch.empty(16, 16, 3, 3), generator=generator(3))
    assert float((conv_values(spread, 7, padding_mode="zeros") < 0.99).double().mean()) > 0.1


def test_strided_delta_orthogonal_survives_zero_padding_too():
    layer = nn.Conv2d(4, 16, 3, stride=2, padding=1, bias=False)
    init.delta_orthogonal_(layer.weight, stride=2, generator=generator(4))
    values = torch.linalg.svdvals(dense_jacobian(layer, torch.zeros(4, 6, 6)))
    torch.testing.assert_close(values, torch.ones_like(values), atol=2 * FLOAT32, rtol=0)


@pytest.mark.parametrize(("kernel_size", "centre"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_delta_sits_at_the_documented_centre(kernel_size, centre):
    weight = init.delta_orthogonal_(torch.empty(4, 4, kernel_size), generator=generator())
    assert [tap for tap in range(kernel_size) if bool(weight[:, :, tap].any())] == [centre]


def test_algorithm_1_spreads_its_energy_over_the_taps():
    weight = init.orthogonal_conv_(torch.empty(64, 64, 3, 3), generator=generator(5))
    energy = weight.square().sum((0, 1)) / 64
    # Each 1-D factor splits the energy in half: Binomial(2, 1/2) on each axis, corners 1/16, centre 1/4.
    expected = torch.tensor([0.25, 0.5, 0.25])[:, None] * torch.tensor([0.25, 0.5, 0.25])
    # Ranks fluctuate by sqrt(64)/2 = 4 of 64, so a factor's share by 6 %, a tap's by at most about 10 % each way.
    torch.testing.assert_close(energy, expected, atol=0.08, rtol=0)


def test_double_precision_is_kept():
    weight = init.orthogonal_conv_(torch.empty(6, 6, 3, 3, dtype=torch.float64), generator=generator())
    assert float((conv_values(weight, 5) - 1).abs().max()) < 1e-13


# ---- the pieces --------------------------------------------------------------------------------------


def test_haar_has_haar_moments():
    """E Q_ij^2 = 1/n, E Q_11^4 = 3/(n(n+2)), E Q_ii = 0: the last fails for a plain QR, whose diagonal is biased."""
    count, n = 20_000, 4
    matrices = haar_matrices(count, n, generator=generator(6))
    identity = torch.eye(n, dtype=torch.float64).expand(count, n, n)
    torch.testing.assert_close(matrices @ matrices.mT, identity, atol=1e-13, rtol=0)
    sigma = 1 / math.sqrt(count)
    assert float(matrices.square().mean(0).sub(1 / n).abs().max()) < 5 * sigma * 0.35
    assert float(matrices[:, 0, 0].pow(4).mean()) == pytest.approx(3 / (n * (n + 2)), abs=5 * sigma * 0.25)
    assert float(matrices.mean(0).abs().max()) < 5 * sigma * 0.5
    # Both components of O(n) are drawn, with equal chance.
    assert float((torch.linalg.det(matrices) > 0).double().mean()) == pytest.approx(0.5, abs=5 * sigma * 0.5)


@pytest.mark.parametrize("rank", ["half", 0, 3, 7])
def test_projections_have_the_rank_asked_for(rank):
    projections = random_projections(5, 7, rank=rank, generator=generator(7))
    torch.testing.assert_close(projections @ projections, projections, atol=1e-13, rtol=0)
    torch.testing.assert_close(projections.mT, projections, atol=1e-15, rtol=0)
    expected = float(3 if rank == "half" else rank)
    traces = projections.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(traces, torch.full_like(traces, expected), atol=1e-12, rtol=0)


def test_binomial_ranks_are_binomial():
    count, channels = 4000, 10
    ranks = (
        random_projections(count, channels, generator=generator(8)).diagonal(dim1=1, dim2=2).sum(1).round()
    )
    # Mean c/2 and variance c/4, each within five standard errors.
    assert float(ranks.mean()) == pytest.approx(5, abs=5 * math.sqrt(2.5 / count))
    assert float(ranks.var()) == pytest.approx(2.5, abs=5 * 2.5 * math.sqrt(2 / count))


def test_one_seed_is_one_kernel_and_the_global_seed_counts():
    draws = [init.orthogonal_conv_(torch.empty(4, 4, 3), generator=generator(9)) for _ in range(2)]
    assert torch.equal(*draws)
    torch.manual_seed(9)
    first = init.delta_orthogonal_(torch.empty(4, 4, 3))
    torch.manual_seed(9)
    assert torch.equal(first, init.delta_orthogonal_(torch.empty(4, 4, 3)))
    assert not torch.equal(first, init.delta_orthogonal_(torch.empty(4, 4, 3)))


def test_parameters_are_filled_without_a_trace():
    layer = nn.Conv1d(4, 4, 3)
    assert init.gaussian_(layer.weight) is layer.weight
    assert layer.weight.requires_grad
    assert layer.weight.grad_fn is None


# ---- dense, Gaussian, mirrored -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_dense_orthogonal(shape):
    weight = init.orthogonal_(torch.empty(shape), gain=1.5, generator=generator(10))
    values = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(values, torch.full_like(values, 1.5), atol=FLOAT32, rtol=0)


@pytest.mark.parametrize(
    ("shape", "options", "fan_in"),
    [
        ((200, 300), {}, 300),
        ((64, 32, 3, 3), {}, 288),
        ((64, 32, 3, 3), {"groups": 2}, 288),
        ((64, 32, 3, 3), {"transposed": True}, 576),
        ((64, 32, 3, 3), {"transposed": True, "groups": 2}, 288),
    ],
)
def test_gaussian_variance_is_over_fan_in(shape, options, fan_in):
    weight = init.gaussian_(torch.empty(shape), 1.2, generator=generator(11), **options).double()
    # The mean square of n normal numbers has relative standard error sqrt(2/n); five of them.
    assert float(weight.square().mean()) == pytest.approx(
        1.44 / fan_in, rel=5 * math.sqrt(2 / weight.numel())
    )
    assert float(weight.mean()) == pytest.approx(0, abs=5 * 1.2 / math.sqrt(fan_in * weight.numel()))


def test_gaussian_profile_sets_the_variance_of_each_tap():
    profile = [1 / 6, 2 / 3, 1 / 6]
    weight = init.gaussian_(torch.empty(80, 50, 3, 3), 2.0, profile=profile, generator=generator(12)).double()
    expected = 4 * np.outer(profile, profile) / 50
    np.testing.assert_allclose(weight.square().mean((0, 1)), expected, rtol=5 * math.sqrt(2 / 4000))
    delta = init.gaussian_(torch.empty(4, 4, 3), profile=[0.0, 1.0, 0.0], generator=generator(12))
    assert not delta[:, :, 0].any()
    assert delta[:, :, 1].all()


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU(), 1.0), (nn.LeakyReLU(0.25), 0.8)])
def test_a_mirrored_network_is_orthogonal(activation, gain):
    """first - middle - middle - last with ReLU between: the whole network is linear, all singular values are 1."""
    layers = [
        nn.Linear(6, 16, dtype=torch.float64),
        *(nn.Linear(16, 16, dtype=torch.float64) for _ in range(2)),
    ]
    layers.append(nn.Linear(16, 8, dtype=torch.float64))
    positions = ("first", "middle", "middle", "last")
    for number, (layer, position) in enumerate(zip(layers, positions, strict=True)):
        init.mirrored_(layer.weight, gain if number else 1.0, position=position, generator=generator(number))
        nn.init.zeros_(layer.bias)
    network = nn.Sequential(layers[0], activation, layers[1], activation, layers[2], activation, layers[3])
    x = torch.randn(6, dtype=torch.float64, generator=generator(20))
    torch.testing.assert_close(
        torch.linalg.svdvals(dense_jacobian(network, x)),
        torch.ones(6, dtype=torch.float64),
        atol=1e-12,
        rtol=0,
    )


def test_mirrored_kernels_and_their_zeros():
    """A middle layer reads only u - v, with norm sqrt(2), and writes twice: 2 gain in half its values, 0 in half."""
    weight = init.mirrored_(torch.empty(8, 8, 3, 3), 0.5, generator=generator(13))
    values = conv_values(weight, 4)
    expected = torch.cat((torch.ones(64), torch.zeros(64))).double()
    torch.testing.assert_close(values, expected, atol=FLOAT32, rtol=0)


def test_the_guide_says_what_is_so():
    """Every example in docs/initialisers.md, the spread of the flattened orthogonal kernel among them."""
    guide = Path(__file__).parents[2] / "docs" / "initialisers.md"
    result = doctest.testfile(str(guide), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: init.delta_orthogonal_(torch.empty(4, 8, 3, 3)), "co_isometry=True"),
        (lambda: init.orthogonal_conv_(torch.empty(8, 8, 3, 3), stride=2), "32 inputs do not fit into 8"),
        (lambda: init.delta_orthogonal_(torch.empty(8, 4, 3, 3), transposed=True), "co_isometry"),
        (lambda: init.delta_orthogonal_(torch.empty(64, 4, 1, 1), stride=2), "longer than the kernel"),
        (lambda: init.orthogonal_conv_(torch.empty(4, 4, 3, 3), padding_mode="zeros"), "delta_orthogonal_"),
        (lambda: init.orthogonal_conv_(torch.empty(4, 4, 3), rank="third"), "rank"),
        (lambda: init.orthogonal_conv_(torch.empty(4, 4, 3), rank=5), "from 0 to 4"),
        (lambda: init.delta_orthogonal_(torch.empty(4, 4)), "orthogonal_"),
        (lambda: init.orthogonal_(torch.empty(4, 4, 3)), "flattened"),
        (lambda: init.delta_orthogonal_(torch.empty(6, 2, 3), groups=4), "groups"),
        (lambda: init.delta_orthogonal_(torch.empty(6, 2, 3), gain=math.nan), "gain"),
        (lambda: init.gaussian_(torch.empty(6, 2, 3), -1.0), "sigma_w"),
        (lambda: init.gaussian_(torch.empty(6, 2, 3), profile=[0.5, 0.5]), "profile"),
        (lambda: init.gaussian_(torch.empty(6, 2, 3), profile=[0.5, 0.5, 0.5]), "sum to 1"),
        (lambda: init.gaussian_(torch.empty(6, 2), profile=[1.0]), "dense"),
        (lambda: init.gaussian_(torch.empty(6, 2, dtype=torch.int64)), "floating-point"),
        (lambda: init.mirrored_(torch.empty(7, 4)), "even"),
        (lambda: init.mirrored_(torch.empty(4, 8)), "co_isometry"),
        (lambda: init.mirrored_(torch.empty(4, 4), position="end"), "position"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


# ---- critical_init_ ----------------------------------------------------------------------------------


def tanh_network(width: int = 256, depth: int = 6) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("weights", ["delta_orthogonal", "gaussian"])
def test_critical_init_keeps_the_variance_at_q_star(weights):
    model = init.critical_init_(
        tanh_network(), q_star=0.25, weights=weights, input_mean_square=1.0, generator=generator(14)
    )
    with torch.no_grad():
        x = torch.randn(64, 256, generator=generator(15))
        for layer in model:
            if isinstance(layer, nn.Linear):
                x = layer(x)
                # A layer of width 256: variances fluctuate by sqrt(2/256) = 9 % for one Gaussian draw at most.
                assert float(x.square().mean()) == pytest.approx(0.25, rel=0.2)
            else:
                x = layer(x)


def test_critical_init_makes_sigma_w_critical():
    """Haar layers have all singular values sigma_w = 1/sqrt(E phi'^2), by an independent quadrature."""
    model = init.critical_init_(tanh_network(16, 2), q_star=0.5, generator=generator(16))
    nodes, masses = np.polynomial.hermite_e.hermegauss(100)
    slopes = (1 - np.tanh(math.sqrt(0.5) * nodes) ** 2) ** 2
    sigma_w = 1 / math.sqrt(masses @ slopes / masses.sum())
    values = torch.linalg.svdvals(model[0].weight.detach().double())
    torch.testing.assert_close(values, torch.full_like(values, sigma_w), atol=FLOAT32, rtol=0)


def test_critical_init_walks_convolutions_of_every_kind():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 1, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    assert init.critical_init_(model, generator=generator(17)) is model
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            # Rows of mean square norm sigma_w^2 = 2, which is what keeps the variance whatever the shape.
            norms = layer.weight.detach().flatten(1).double().norm(dim=1)
            assert float(norms.square().mean()) == pytest.approx(2, abs=FLOAT32)
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            assert not layer.bias.any()
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_critical_init_reads_the_reference_networks():
    model = VanillaCNN(3, 4, "tanh", "gaussian", sigma_w=3.0, seed=0)
    init.critical_init_(model, sigma_w=1.25, generator=generator(18))
    values = conv_values(model.trunk[1].weight.detach(), 4)
    torch.testing.assert_close(values, torch.full_like(values, 1.25), atol=2 * FLOAT32, rtol=0)


def test_critical_init_mirrored_makes_a_relu_network_orthogonal():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)
    ).double()
    init.critical_init_(model, weights="mirrored", generator=generator(19))
    x = torch.randn(8, generator=generator(20), dtype=torch.float64)
    values = torch.linalg.svdvals(dense_jacobian(model, x))
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4)), {}, "no activation modules"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU()), {}, "mixes activations"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanhshrink()), {}, "does not know"),
        (nn.Sequential(nn.Tanh()), {}, "no convolution"),
        (nn.Sequential(nn.LazyLinear(4), nn.Tanh()), {}, "lazy"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
            {},
            "parametrisation",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Tanh()),
            {},
            "'1.weight' is frozen",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), {"weights": "uniform"}, "weights must be"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), {"weights": "mirrored"}, "ReLU"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), {"q_star": 0.1, "sigma_w": 1.0}, "not both"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), {"input_mean_square": 0.0}, "input_mean_square"),
        (
            nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()),
            {"weights": "orthogonal_conv"},
            "layer '0'",
        ),
    ],
)
def test_critical_init_refuses_and_says_why(model, options, words):
    before = [parameter.clone() for parameter in model.parameters() if not nn.parameter.is_lazy(parameter)]
    with pytest.raises(InputError, match=words):
        init.critical_init_(model, **options)
    after = [parameter for parameter in model.parameters() if not nn.parameter.is_lazy(parameter)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.phi = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        return x + self.phi(self.inner(x))


class Reordered(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Residual(), "this model"),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(Residual())), "module '1.0'"),
        (Reordered(nn.Linear(4, 4), nn.Tanh()), "this model"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 1, 4), nn.ReLU()), "module '0'"),
    ],
)
def test_critical_init_fills_nothing_but_chains(model, name):
    """A fifty-block residual network went from s_max 6e4 to 1e12 with the gains of a chain."""
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match=rf"{name} .*isometry\.critical_init_\(model, x\)"):
        init.critical_init_(model)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_no_critical_point_says_why():
    with pytest.raises(TheoryError, match="give sigma_w"):
        MLP(4, 8, "softplus")


def test_an_unstable_critical_point_is_warned_of():
    with pytest.warns(IsometryWarning, match="unstable"):
        MLP(200, 4, "gelu", q_star=1.0)


def test_a_normalised_model_is_initialised_with_a_warning():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    with pytest.warns(IsometryWarning, match="normalises"):
        init.critical_init_(model, generator=generator())
    values = torch.linalg.svdvals(model[0].weight.detach().double())
    torch.testing.assert_close(values, torch.full_like(values, math.sqrt(2)), atol=FLOAT32, rtol=0)
