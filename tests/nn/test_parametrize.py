"""Kernels that stay orthogonal while they are trained."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

import isometry
from isometry.errors import InputError
from isometry.nn import VanillaCNN, init, parametrize
from isometry.nn.kernel_factors import composed, factors_of
from isometry.nn.kernels import orthogonal_convolution_kernels
from isometry.nn.parametrize import orthogonal_conv

# Some products of small orthogonal matrices, each with a few units of rounding (float64: 2e-16).
ROUNDING = 1e-12


def dense_values(layer: nn.Module, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Size]:
    """Singular values of a layer without bias, and the shape of its matrix: what it makes of each unit vector."""
    shape = torch.Size((layer.in_channels, *size))
    units = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        matrix = layer(units).reshape(shape.numel(), -1).mT
    return torch.linalg.svdvals(matrix), matrix.shape


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """So many steps of a loss that pulls the kernel far away from every orthogonal one."""
    target = torch.randn(
        layer.weight.shape, generator=torch.Generator().manual_seed(5), dtype=layer.weight.dtype
    )
    for step in range(steps):
        optimizer.zero_grad()
        (layer.weight - 3 * target.roll(step)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "channels", "options", "kernel", "size"),
    [
        (nn.Conv1d, (3, 5), {"kernel_size": 4, "padding": "same", "padding_mode": "circular"}, "full", (7,)),
        (nn.Conv2d, (3, 3), {"kernel_size": 3, "padding": 1}, "delta", (4, 4)),
        (nn.Conv2d, (4, 4), {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "circular", "groups": 2},
         "full", (4, 3)),
        (nn.Conv2d, (2, 9), {"kernel_size": 4, "stride": 2, "padding": 1, "padding_mode": "circular"}, "full", (4, 6)),
        (nn.Conv2d, (1, 4), {"kernel_size": 3, "stride": 2, "padding": 1}, "delta", (4, 4)),
        (nn.Conv3d, (2, 2), {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"}, "full",
         (5, 4, 4)),
        (nn.ConvTranspose2d, (4, 5), {"kernel_size": 3}, "full", (3, 3)),
        (nn.ConvTranspose2d, (8, 2), {"kernel_size": 2, "stride": 2}, "delta", (2, 3)),
    ],
)  # fmt: skip
def test_every_singular_value_is_the_gain_before_and_after_training(kind, channels, options, kernel, size):
    layer = kind(*channels, bias=False, dtype=torch.float64, **options)
    orthogonal_conv(layer, kernel=kernel, gain=1.3, generator=torch.Generator().manual_seed(1))
    before = layer.weight.detach().clone()
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9), 20)
    assert (layer.weight - before).abs().max() > 0.1
    values, (outputs, inputs) = dense_values(layer, size)
    assert outputs >= inputs
    torch.testing.assert_close(values, torch.full_like(values, 1.3), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "dtype", "error"),
    [
        ("full", torch.float64, ROUNDING),
        pytest.param("delta", torch.float64, ROUNDING, marks=pytest.mark.slow),
        pytest.param("full", torch.float32, 5e-6, marks=pytest.mark.slow),
        pytest.param("delta", torch.float32, 5e-6, marks=pytest.mark.slow),
    ],
)
def test_a_thousand_steps_do_not_add_up_errors(kernel, dtype, error):
    layer = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", dtype=dtype)
    orthogonal_conv(layer, kernel=kernel, generator=torch.Generator().manual_seed(2))
    # Decay shrinks what a map is made of: Householder vectors would lose their signs, and columns become zero.
    train(layer, torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.5), 1000)
    values = init.conv_singular_values(layer.weight, 4)
    torch.testing.assert_close(values, torch.ones_like(values), atol=error, rtol=0)


@pytest.mark.parametrize("fill", [init.delta_orthogonal_, init.orthogonal_conv_])
@pytest.mark.parametrize(("shape", "options"), [((6, 4, 3, 3), {}), ((8, 4, 3, 3), {"groups": 2}),
                                                ((8, 2, 4, 5), {"stride": 2}), ((6, 6, 5), {})])  # fmt: skip
def test_it_starts_at_an_orthogonal_kernel_that_is_there(fill, shape, options):
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[len(shape) - 2]
    groups, stride = options.get("groups", 1), options.get("stride", 1)
    padding = tuple((k - 1) // 2 for k in shape[2:])
    layer = kind(shape[1] * groups, shape[0], shape[2:], stride=stride, padding=padding, groups=groups,
                 padding_mode="circular", dtype=torch.float64)  # fmt: skip
    law = {} if fill is init.delta_orthogonal_ else {"rank": "half"}
    fill(layer.weight, gain=0.7, generator=torch.Generator().manual_seed(3), **options, **law)
    there = layer.weight.detach().clone()
    orthogonal_conv(layer, start="present")
    # Eigenvectors of nearly equal eigenvalues, in the way back, are worth half of the digits at worst.
    torch.testing.assert_close(layer.weight.detach(), there, atol=1e-8, rtol=0)
    assert "gain=0.7, started at the kernel that was there" in repr(layer)
    kernel = "delta kernel" if fill is init.delta_orthogonal_ else "full kernel"
    assert kernel in repr(layer)


def test_an_ordinary_kernel_is_drawn_anew_and_the_draw_is_that_of_the_seed():
    first, second = (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular") for _ in range(2))
    with pytest.raises(InputError, match="present kernel is not orthogonal"):
        orthogonal_conv(first, start="present")
    state = torch.get_rng_state()
    for layer in (first, second):
        orthogonal_conv(layer, kernel="full", generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), state), "drawn from the caller's random numbers"
    assert "started at a new kernel" in repr(first)


def test_kernels_without_the_factors_are_not_taken_for_others():
    kernels = torch.randn(1, 3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert factors_of(kernels, 1e-9) is None
    assert factors_of(torch.zeros_like(kernels), 1e-9) is None
    orthogonal = orthogonal_convolution_kernels(2, 4, 4, (3, 2), generator=torch.Generator().manual_seed(0))
    found = factors_of(2.0 * orthogonal, 1e-9)
    assert found is not None
    factors, gain = found
    assert gain == pytest.approx(2.0)
    rebuilt = composed(factors.matrix, factors.bases, factors.kept, (3, 2), transposed=False)
    torch.testing.assert_close(rebuilt, orthogonal, atol=1e-8, rtol=0)
    # One of the two made a little longer: no kernel of one gain.
    orthogonal[0] *= 1.001
    assert factors_of(orthogonal, 1e-9) is None


def trained_layer(seed: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    orthogonal_conv(layer, kernel="full", gain=1.1, generator=torch.Generator().manual_seed(seed))
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.01), 3)
    return layer


def test_state_dict_deepcopy_assignment_and_removal_keep_the_kernel():
    layer, other = trained_layer(), trained_layer(seed=1)
    weight = layer.weight.detach().clone()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, weight)
    twin = copy.deepcopy(layer)
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.01), 1)
    assert torch.equal(twin.weight, weight)
    assert not torch.allclose(layer.weight, weight)
    layer.weight = weight
    torch.testing.assert_close(layer.weight.detach(), weight, atol=1e-8, rtol=0)
    with pytest.raises(InputError, match="not orthogonal"):
        layer.weight = torch.randn_like(weight)
    torch_parametrize.remove_parametrizations(twin, "weight")
    assert torch.equal(twin.weight, weight)
    assert isinstance(twin.weight, nn.Parameter)
    assert list(dict(twin.named_parameters())) == ["bias", "weight"]


def test_a_parametrized_model_is_measured_and_a_reference_network_keeps_its_layers():
    model = nn.Sequential(trained_layer(), nn.Conv2d(6, 6, 1, dtype=torch.float64))
    orthogonal_conv(model[1])
    spectrum = isometry.measure(model, torch.zeros(4, 3, 3, dtype=torch.float64), method="exact")
    assert spectrum.s_max == pytest.approx(1.1, abs=1e-12)
    assert spectrum.s_min == pytest.approx(1.1, abs=1e-12)
    network = VanillaCNN(depth=3, channels=4, activation="linear", sigma_w=1.0, sigma_b=0.0)
    for layer in network.trunk:
        orthogonal_conv(layer, start="present")
    assert isometry.measure(network, torch.zeros(4, 3, 3), method="lanczos", probes=2).s_max == pytest.approx(
        1.0, abs=1e-5
    )


def test_a_kernel_is_exact_under_autocast_and_its_gradient_is_right():
    layer = trained_layer()
    layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = init.conv_singular_values(layer.weight, 3)
    torch.testing.assert_close(values, torch.full_like(values, 1.1), atol=5e-6, rtol=0)
    layer.double()
    names = [name for name, p in layer.named_parameters() if name != "bias"]

    def kernel(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            layer, state, (torch.eye(9).double().reshape(9, 1, 3, 3).repeat(1, 4, 1, 1),)
        )

    originals = tuple(p.detach().requires_grad_() for name, p in layer.named_parameters() if name != "bias")
    assert torch.autograd.gradcheck(kernel, originals, fast_mode=True)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), {}, "co_isometry=True"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="circular"), {}, "16 inputs do not fit"),
        (nn.Conv2d(4, 4, 3, padding=1), {"kernel": "full"}, "padding 1, 1 of mode 'zeros'.*kernel='delta'"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), {}, "border is cut off"),
        (nn.Conv2d(4, 4, 4, padding=2, padding_mode="circular"), {"kernel": "full"}, "'same'"),
        (nn.Conv1d(2, 8, 4, stride=2, padding=1, dilation=2, padding_mode="circular"), {}, "dilation=1"),
        (nn.ConvTranspose1d(4, 4, 3, padding=1), {"kernel": "full"}, "padding=0"),
        (nn.Conv1d(1, 4, 2, stride=3), {}, "stride .3,. is longer"),
        (nn.Linear(3, 3), {}, "parametrizations.orthogonal"),
        (nn.Sequential(nn.Conv1d(2, 2, 1)), {}, "each convolution"),
        (nn.LazyConv2d(4, 3), {}, "no weight yet"),
        (nn.Conv1d(2, 2, 1).half(), {}, "float32 or float64"),
        (nn.Conv1d(2, 2, 1), {"name": "kernel"}, "no parameter 'kernel'"),
        (nn.Conv1d(2, 2, 1), {"kernel": "dense"}, "kernel must be one of"),
        (nn.Conv1d(2, 2, 1), {"gain": 0.0}, "above zero"),
        (nn.Conv1d(2, 2, 1), {"rank": 3}, "rank must be"),
        (nn.Conv1d(2, 2, 1), {"orthogonal_map": "householder"}, "orthogonal_map must be"),
        (orthogonal_conv(nn.Conv1d(2, 2, 1)), {}, "has a parametrization already"),
    ],
)
def test_what_cannot_be_kept_orthogonal_is_refused_and_left_as_it_was(module, options, message):
    before = module.state_dict(keep_vars=True)
    with pytest.raises(InputError, match=message):
        orthogonal_conv(module, **options)
    after = module.state_dict(keep_vars=True)
    assert all(after[name] is value for name, value in before.items())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_is_accepted_where_its_dense_matrix_is_orthogonal(transposed):
    """All small geometries: what is said of the borders, against the dense Jacobian on a map of 8 positions."""
    accepted = refused = 0
    paddings = range(4) if transposed else [*range(4), "same"]
    for out, into in [(2, 2), (4, 2), (2, 4)]:
        for k, s, p in [(k, s, p) for k in (2, 3) for s in (1, 2) for p in paddings]:
            if s > k or (p == "same" and s > 1):
                continue
            for mode in ["zeros"] if transposed else ["zeros", "circular", "replicate"]:
                for kernel, co in [("delta", False), ("full", False), ("delta", True), ("full", True)]:
                    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
                    layer = kind(into, out, k, stride=s, padding=p, padding_mode=mode, bias=False,
                                 dtype=torch.float64)  # fmt: skip
                    fill = init.delta_orthogonal_ if kernel == "delta" else init.orthogonal_conv_
                    law = {} if kernel == "delta" else {"rank": 1}
                    generator = torch.Generator().manual_seed(0)
                    try:
                        fill(
                            layer.weight,
                            stride=s,
                            transposed=transposed,
                            co_isometry=co,
                            generator=generator,
                            **law,
                        )
                        values, shape = dense_values(layer, (8,))
                    except (InputError, RuntimeError):  # too few channels, or a map smaller than the kernel
                        continue
                    truth = bool((values - 1).abs().max() < 1e-9) and (co or shape[0] >= shape[1])
                    try:
                        orthogonal_conv(layer, kernel=kernel, co_isometry=co)
                        said = True
                    except InputError:
                        said = False
                    accepted, refused = accepted + said, refused + (not said)
                    assert said == truth, (layer, kernel, co)
    assert min(accepted, refused) > 20


def test_the_examples_of_the_module():
    assert doctest.testmod(parametrize).failed == 0
