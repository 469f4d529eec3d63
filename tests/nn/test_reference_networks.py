"""Reference networks: what they compute, what their Jacobians are, how their signals travel, what they refuse."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn
from torch.func import jacrev, jvp, vjp, vmap
from torch.nn import functional

from isometry.errors import InputError
from isometry.jacobian import JacobianOperator
from isometry.nn import MLP, ResNet, Trunk, VanillaCNN
from isometry.nn.layers import circular_pad
from isometry.theory.ensemble import Ensemble

DOUBLE = {"dtype": torch.float64}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def dense_jacobian(model, x):
    return jacrev(model)(x).detach().reshape(-1, x.numel())


# ---- what they compute -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 3), (5, 4), (6, 3)])
def test_circular_padding_is_that_of_torch(size):
    x = random(2, 3, *size)
    assert torch.equal(circular_pad(x, (3, 3)), functional.pad(x, (1, 1, 1, 1), mode="circular"))
    assert torch.equal(circular_pad(x, (5, 2)), functional.pad(x, (0, 1, 2, 2), mode="circular"))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_a_layer_is_its_definition_also_on_maps_smaller_than_the_kernel(size, kernel_size):
    """h(i) = sum_t K_t x(i + t - (k-1)//2) + b, written out; torch refuses to wrap more than once around."""
    layer = VanillaCNN(
        1, 3, "tanh", "gaussian", sigma_w=1.5, sigma_b=0.5, kernel_size=kernel_size, seed=0, **DOUBLE
    )
    layer, x = layer.trunk[0], random(3, size, size)
    expected = layer.bias.detach()[:, None, None].expand(3, size, size).clone()
    centre = (kernel_size - 1) // 2
    for i in range(kernel_size):
        for j in range(kernel_size):
            shifted = x.roll((centre - i, centre - j), dims=(1, 2))
            expected += torch.einsum("oc,chw->ohw", layer.weight.detach()[:, :, i, j], shifted)
    torch.testing.assert_close(layer.pre_activation(x), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(layer(x), expected.tanh(), atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    "model",
    [
        VanillaCNN(3, 4, sigma_w=1.1, sigma_b=0.1, seed=0, **DOUBLE),
        VanillaCNN(
            3,
            4,
            sigma_w=1.1,
            in_channels=4,
            stem_strides=(2, 1),
            num_classes=5,
            image_size=5,
            seed=0,
            **DOUBLE,
        ),
        VanillaCNN(3, 4, "relu", "mirrored", num_classes=5, head="pool", seed=0, **DOUBLE),
        ResNet(3, 4, seed=0, **DOUBLE),
    ],
)
def test_one_image_and_a_batch_agree(model):
    x = random(3, 4, 5, 5)
    together = model(x)
    apart = torch.stack([model(image) for image in x])
    torch.testing.assert_close(together, apart, atol=1e-13, rtol=0)


def test_jacobian_is_the_product_of_its_layers():
    """J = D_L W_L ... D_1 W_1, each factor built by walking the trunk."""
    model = VanillaCNN(4, 3, "tanh", "gaussian", sigma_w=1.4, sigma_b=0.2, seed=0, **DOUBLE)
    x = random(3, 4, 4)
    product, signal = torch.eye(48, dtype=torch.float64), x
    for layer in model.trunk:
        matrix = dense_jacobian(layer.pre_activation, signal)
        slope = 1 - layer.pre_activation(signal).detach().tanh().flatten() ** 2
        product = slope[:, None] * (matrix @ product)
        signal = layer.activation(layer.pre_activation(signal)).detach()
    torch.testing.assert_close(dense_jacobian(model, x), product, atol=1e-12, rtol=0)
    torch.testing.assert_close(model(x), signal, atol=1e-14, rtol=0)


def test_residual_jacobian_adds_the_identity():
    model = ResNet(3, 2, "tanh", "gaussian", residual=0.5, sigma_w=1.2, seed=0, **DOUBLE)
    x = random(2, 3, 3)
    product, signal = torch.eye(18, dtype=torch.float64), x
    for layer in model.trunk:
        slope = 1 - layer.pre_activation(signal).detach().tanh().flatten() ** 2
        factor = torch.eye(18, dtype=torch.float64) + 0.5 * slope[:, None] * dense_jacobian(
            layer.pre_activation, signal
        )
        product, signal = factor @ product, layer(signal).detach()
    torch.testing.assert_close(dense_jacobian(model, x), product, atol=1e-12, rtol=0)


@pytest.mark.parametrize("init", ["delta_orthogonal", "orthogonal_conv"])
@pytest.mark.parametrize(("kernel_size", "size"), [(1, 3), (2, 3), (3, 1), (3, 2), (3, 4), (4, 3), (5, 2)])
def test_linear_orthogonal_trunk_is_sigma_w_to_the_depth(init, kernel_size, size):
    model = VanillaCNN(3, 4, "linear", init, sigma_w=1.1, kernel_size=kernel_size, seed=0, **DOUBLE)
    values = torch.linalg.svdvals(dense_jacobian(model, random(4, size, size)))
    torch.testing.assert_close(values, torch.full_like(values, 1.1**3), atol=1e-12, rtol=0)


def test_mirrored_trunk_is_linear_on_the_difference():
    """The first layer reads u - v, of norm sqrt(2); everything after it is isometric: sqrt(2) in half the values."""
    for network, x in (
        (VanillaCNN(5, 6, "relu", "mirrored", seed=0, **DOUBLE), random(6, 3, 3)),
        (MLP(5, 16, "leaky_relu(0.2)", "mirrored", seed=0, **DOUBLE), random(16)),
    ):
        values = torch.linalg.svdvals(dense_jacobian(network, x))
        half = len(values) // 2
        # A leaky ReLU of slope a passes (1, a)/(1 + a): its last layer leaves sqrt(1 + a^2)/(1 + a).
        last = 1.0 if isinstance(network, VanillaCNN) else math.sqrt(1.04) / 1.2
        torch.testing.assert_close(
            values[:half], torch.full_like(values[:half], math.sqrt(2) * last), atol=1e-12, rtol=0
        )
        assert float(values[half:].max()) < 1e-12
        assert network.ensemble is None


# ---- torch.func and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_forward_mode_reverse_mode_and_vmap(batched):
    model = VanillaCNN(
        3, 3, sigma_w=1.2, in_channels=2, num_classes=4, image_size=4, checkpoint_segments=2, seed=0, **DOUBLE
    )
    x = random(5, 2, 4, 4) if batched else random(2, 4, 4)
    jacobian = dense_jacobian(model, x)
    tangents = random(3, *x.shape, seed=2)
    pushed = vmap(lambda v: jvp(model, (x,), (v,))[1])(tangents).detach().flatten(1)
    torch.testing.assert_close(pushed, tangents.flatten(1) @ jacobian.mT, atol=1e-13, rtol=0)
    value, pull = vjp(model, x)
    cotangents = random(3, *value.shape, seed=3)
    pulled = vmap(lambda u: pull(u)[0])(cotangents).detach().flatten(1)
    torch.testing.assert_close(pulled, cotangents.flatten(1) @ jacobian, atol=1e-13, rtol=0)


def test_layers_can_be_named_as_source_and_target():
    model = VanillaCNN(6, 3, sigma_w=1.2, seed=0, **DOUBLE)
    x = random(3, 3, 3)
    operator = JacobianOperator(model, x, source="trunk.2", target="trunk.4")
    identity = torch.eye(27, dtype=torch.float64).reshape(27, 3, 3, 3)
    columns = operator.matmat(identity).flatten(1).mT
    signal = model.trunk[:2](x).detach()
    torch.testing.assert_close(columns, dense_jacobian(model.trunk[2:5], signal), atol=1e-12, rtol=0)


# ---- checkpointing and depth -------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 3, 7, 50])
def test_checkpointing_changes_no_gradient(segments):
    kept = VanillaCNN(7, 4, sigma_w=1.1, sigma_b=0.1, seed=0, checkpoint_segments=0)
    thrown = VanillaCNN(7, 4, sigma_w=1.1, sigma_b=0.1, seed=0, checkpoint_segments=segments)
    x = torch.randn(2, 4, 5, 5, generator=generator())
    kept(x).square().sum().backward()
    thrown(x).square().sum().backward()
    for one, other in zip(kept.parameters(), thrown.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_checkpointing_keeps_only_the_borders_of_segments():
    def kept_bytes(segments):
        model = VanillaCNN(64, 4, sigma_w=1.1, seed=0, checkpoint_segments=segments)
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.nbytes) or t, lambda t: t):
            model(torch.zeros(16, 4, 8, 8))
        return sum(held)

    # Eight borders of one map each, against at least two maps for each of 64 layers.
    assert kept_bytes(8) < kept_bytes(0) / 10


def test_checkpointing_starts_by_itself_when_much_would_be_kept():
    trunk = Trunk(*(nn.Identity() for _ in range(100)))
    small, large = torch.zeros(10), torch.empty(1).expand(2**20)
    assert trunk._segments(small, 100) == 0
    assert trunk._segments(large, 100) == 10
    with torch.no_grad():
        assert trunk._segments(large, 100) == 0


def test_thousands_of_layers_build_and_run():
    began = time.perf_counter()
    model = VanillaCNN(3000, 4, "linear", "delta_orthogonal", sigma_w=1.0, seed=0)
    seconds = time.perf_counter() - began
    assert seconds < 10  # a third of a second on an idle core; a layer at a time it would take minutes
    x = torch.randn(4, 4, 4, generator=generator())
    with torch.no_grad():
        y = model(x)
    # Each layer rounds the norm by about 1e-8 relative: 6e-7 if at random, 3e-5 if all one way.
    assert float(y.norm() / x.norm()) == pytest.approx(1, abs=1e-4)
    assert len(model.trunk) == model.depth == 3000


def test_printing_folds_equal_layers():
    text = repr(MLP(1000, (3, *[4] * 999, 2), seed=0))
    assert "(1-998): DenseLayer( 4 -> 4 (activation): Tanh() )" in text
    assert len(text.splitlines()) < 10


# ---- signals and variances ---------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["delta_orthogonal", "gaussian"])
def test_critical_network_keeps_q_star_from_stem_to_head(init):
    model = VanillaCNN(40, 64, "tanh", init, in_channels=3, num_classes=10, image_size=8, seed=0, **DOUBLE)
    assert model.q_star == pytest.approx(1 / 40)
    x = random(8, 3, 8, 8)
    with torch.no_grad():
        inner = model.stem[0](x)[:, :, 1:-1, 1:-1]  # the border sees padding
        # 3 x 9 Gaussian weights for each of 64 channels: variance within sqrt(2/64) = 18 % per draw.
        assert float(inner.square().mean()) == pytest.approx(1 / 40, rel=0.25)
        features = model.features(x) / model.feature_scale
        # The border of the stem lacks a ninth to a third of its taps; Gaussian layers drift by sqrt(40 * 2/64).
        assert 0.4 < float(features.square().mean()) < 1.6
        assert 0.2 < float(model(x).square().mean()) < 2.5


def test_default_is_the_critical_point_at_one_over_depth():
    """(sigma_w^2, sigma_b^2) of tanh at q* = 1/16: 1.11538 and 2.37e-4 (arXiv 1806.05393, demonstration)."""
    model = VanillaCNN(16, 4, seed=0)
    assert model.sigma_w**2 == pytest.approx(1.11538, abs=5e-6)
    assert model.sigma_b**2 == pytest.approx(2.37e-4, abs=5e-7)
    assert VanillaCNN(4, 4, "relu", seed=0).sigma_w == pytest.approx(math.sqrt(2), abs=1e-12)
    other = VanillaCNN(4, 4, sigma_b=model.sigma_b, seed=0)
    assert other.sigma_w == pytest.approx(model.sigma_w, rel=1e-6)
    assert VanillaCNN(4, 4, sigma_w=1.3, seed=0).sigma_b == 0


def test_gradient_energy_of_a_critical_gaussian_network_is_conserved():
    """E ||J||_F^2 / n = chi_1^L = 1 at the critical point, the input of the first layer being stationary."""
    model = MLP(8, 400, "tanh", "gaussian", q_star=0.3, seed=0, **DOUBLE)
    stationary = model.sigma_w**-2 * (model.q_star - model.sigma_b**2)
    x = random(400) * math.sqrt(stationary)
    # Finite width: standard deviation about 4/sqrt(N) = 0.2 of the mean square at such depth (papers.md, 2.4b).
    assert float(dense_jacobian(model, x).square().sum() / 400) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_residual_feature_scale_follows_the_growth_of_the_signal(activation):
    model = ResNet(
        30, 64, activation, "gaussian", in_channels=64, num_classes=2, head="pool", seed=0, **DOUBLE
    )
    with torch.no_grad():
        features = model.features(random(4, 64, 8, 8)) / model.feature_scale
    # E x^2 grows 170-fold with ReLU, mostly by its mean. 28 of the 64 positions lack a third of the taps of the stem,
    # which takes 15 % away; five draws scatter by 5 %.
    assert float(features.square().mean()) == pytest.approx(0.85, abs=0.2)


def test_variance_profile_reaches_the_trunk():
    model = VanillaCNN(50, 16, "tanh", "gaussian", sigma_w=1.5, profile=[0.0, 1.0, 0.0], seed=0)
    taps = torch.stack([layer.weight.detach() for layer in model.trunk]).square().mean((0, 1, 2))
    # 12,800 numbers: relative standard error sqrt(2/12800) = 1.25 %.
    assert float(taps[1, 1]) == pytest.approx(2.25 / 16, rel=0.0625)
    assert float(taps.sum() - taps[1, 1]) == 0


def test_biases_have_the_variance_asked_for():
    model = VanillaCNN(100, 64, sigma_w=1.0, sigma_b=0.5, seed=0, **DOUBLE)
    biases = torch.stack([layer.bias.detach() for layer in model.trunk])
    assert float(biases.square().mean()) == pytest.approx(0.25, rel=5 * math.sqrt(2 / 6400))


# ---- reproducibility, ensembles ----------------------------------------------------------------------


def test_a_seed_is_a_network_and_the_trunk_does_not_depend_on_what_stands_around_it():
    bare = VanillaCNN(3, 4, seed=5)
    whole = VanillaCNN(3, 4, in_channels=1, num_classes=10, head="pool", generator=generator(5))
    for one, other in zip(bare.trunk.parameters(), whole.trunk.parameters(), strict=True):
        assert torch.equal(one, other)
    other = VanillaCNN(3, 4, seed=6)
    assert not torch.equal(bare.trunk[0].weight, other.trunk[0].weight)
    assert not torch.equal(bare.trunk[0].weight, bare.trunk[1].weight)
    precise = VanillaCNN(3, 4, seed=5, dtype=torch.float64)
    assert torch.equal(precise.trunk[2].weight.float(), bare.trunk[2].weight)


def test_state_round_trip_gives_the_same_function():
    model = VanillaCNN(3, 4, in_channels=1, num_classes=10, image_size=4, seed=0)
    twin = VanillaCNN(3, 4, in_channels=1, num_classes=10, image_size=4, seed=1)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 4, 4, generator=generator())
    assert torch.equal(model(x), twin(x))


def test_the_ensemble_describes_the_trunk():
    model = VanillaCNN(20, 4, "tanh", "orthogonal_conv", seed=0)
    ensemble = model.ensemble
    assert (ensemble.activation, ensemble.depth, ensemble.weights) == ("tanh", 20, "orthogonal")
    assert (ensemble.sigma_w, ensemble.sigma_b, ensemble.q_star) == (
        model.sigma_w,
        model.sigma_b,
        model.q_star,
    )
    assert VanillaCNN(20, 4, "relu", "gaussian", seed=0).ensemble.weights == "gaussian"
    assert ResNet(25, 4, seed=0).ensemble.residual == pytest.approx(0.2)
    assert MLP(2, (4, 8, 6), seed=0).ensemble.widths == (4, 8, 6)
    assert VanillaCNN(2, 4, nn.Tanhshrink(), sigma_w=1.0, seed=0).ensemble is None


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_an_ensemble_draws_its_network(weights):
    ensemble = Ensemble("tanh", 5, weights=weights, q_star=0.1)
    model = VanillaCNN.from_ensemble(ensemble, 4, seed=0)
    assert model.q_star == pytest.approx(0.1)
    assert model.ensemble.weights == weights
    again = VanillaCNN.from_ensemble(model.ensemble, 4, seed=0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    dense = MLP.from_ensemble(Ensemble("relu", 2, sigma_w=1.0, widths=(4, 8, 6)), seed=0)
    assert [tuple(layer.weight.shape) for layer in dense.trunk] == [(8, 4), (6, 8)]
    residual = Ensemble("relu", 4, sigma_w=1.0, residual=0.3)
    assert ResNet.from_ensemble(residual, 4, seed=0).trunk[0].residual == pytest.approx(0.3)
    assert MLP.from_ensemble(residual, 4, seed=0).trunk[0].residual == pytest.approx(0.3)


def test_dense_layers_of_changing_width():
    model = MLP(3, (6, 9, 9, 4), "linear", sigma_w=1.5, seed=0, **DOUBLE)
    for layer in model.trunk:
        values = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(values, torch.full_like(values, 1.5), atol=1e-13, rtol=0)
    assert model(random(2, 6)).shape == (2, 4)
    whole = MLP(2, 8, in_features=5, num_classes=3, seed=0)
    assert whole(torch.zeros(7, 5)).shape == (7, 3)
    assert whole(torch.zeros(5)).shape == (3,)


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: VanillaCNN(0, 4), "depth"),
        (lambda: VanillaCNN(2, 0), "channels"),
        (lambda: VanillaCNN(2.5, 4), "depth"),
        (lambda: VanillaCNN(2, 4, "swoosh"), "unknown activation 'swoosh'.*tanh"),
        (lambda: VanillaCNN(2, 4, "leaky_relu(x)"), "slope"),
        (lambda: VanillaCNN(2, 4, init="he"), "init must be one of"),
        (lambda: VanillaCNN(2, 4, nn.Tanhshrink()), "give sigma_w"),
        (lambda: VanillaCNN(2, 4, sigma_w=-1.0), "sigma_w"),
        (lambda: VanillaCNN(2, 4, sigma_w=1.0, q_star=0.1), "not both"),
        (lambda: VanillaCNN(2, 5, "relu", "mirrored"), "even"),
        (lambda: VanillaCNN(2, 4, "tanh", "mirrored"), "ReLU"),
        (lambda: VanillaCNN(2, 4, profile=[0, 1, 0]), "gaussian"),
        (lambda: VanillaCNN(2, 4, num_classes=10), "image_size"),
        (lambda: VanillaCNN(2, 4, num_classes=10, head="max"), "head"),
        (lambda: VanillaCNN(2, 4, in_channels=1, stem_strides=()), "stem_strides"),
        (lambda: VanillaCNN(2, 4, seed=0, generator=generator()), "not both"),
        (lambda: VanillaCNN(2, 4, checkpoint_segments=-1), "checkpoint_segments"),
        (lambda: ResNet(2, 4, residual=0.0), "residual"),
        (lambda: ResNet(400, 4, "relu", residual=9.0, num_classes=2, head="pool"), "grows to a mean square"),
        (lambda: MLP(3, (4, 4)), "depth"),
        (lambda: MLP(2, (4, 8, 4), residual=0.1), "one width"),
        (lambda: MLP(2, (4, 7, 4), "relu", "mirrored"), "even"),
        (lambda: MLP.from_ensemble(Ensemble("tanh", 2, q_star=0.1)), "width"),
        (lambda: VanillaCNN.from_ensemble(Ensemble("relu", 2, sigma_w=1.0, residual=0.1), 4), "residual"),
        (lambda: VanillaCNN.from_ensemble(Ensemble("relu", 1, sigma_w=1.0, widths=(3, 4)), 4), "MLP"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
