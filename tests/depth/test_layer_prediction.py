"""Free products of a network's own layers, against its measured spectrum and against layers that are not free."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.comparison import compare
from isometry.depth.layer_prediction import predict_from_layers
from isometry.errors import InputError, ModelError
from isometry.measurement import measure
from isometry.nn import MLP, ResNet, VanillaCNN


def both(model, x, **options):
    prediction = predict_from_layers(model, x, **options)
    return compare(measure(model, x, "exact", dtype=torch.float64, progress=False), prediction)


def random_input(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Directions of fresh weights are random, so fluctuations are of order 1/width: about 3/width was seen for the KS
# distance; compare allows 6.5/width here.
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: MLP(6, 100, "tanh", "gaussian", q_star=0.5, seed=0), (100,)),
        (lambda: MLP(6, 100, "tanh", "orthogonal", q_star=0.2, seed=1), (100,)),
        (lambda: MLP(4, 100, "relu", "orthogonal", sigma_w=math.sqrt(2), seed=2), (100,)),
        (lambda: MLP(3, (100, 200, 150, 120), "relu", "gaussian", sigma_w=math.sqrt(2), seed=3), (100,)),
        (lambda: VanillaCNN(4, 16, "tanh", "delta_orthogonal", q_star=0.3, seed=4), (16, 5, 5)),
        (lambda: VanillaCNN(4, 16, "tanh", "gaussian", q_star=0.3, seed=5), (16, 5, 5)),
    ],
    ids=[
        "tanh-gaussian",
        "tanh-orthogonal",
        "relu-orthogonal",
        "relu-rectangular",
        "cnn-delta",
        "cnn-gaussian",
    ],
)
def test_fresh_layers_are_free_of_each_other(model, shape):
    found = both(model(), random_input(*shape))
    assert found.agrees is True, found.verdict()
    assert found.width == shape[0]


def test_layers_that_share_their_directions_are_not_free():
    # W^T W W^T W has singular values s^4, not those of four free factors.
    layer = nn.Linear(100, 100, bias=False)
    nn.init.normal_(layer.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    back = nn.Linear(100, 100, bias=False)
    back.weight = nn.Parameter(layer.weight.detach().T.clone())
    found = both(nn.Sequential(layer, back, layer, back), random_input(100))
    assert found.agrees is False
    assert found.measured.moment(1) > 3 * found.predicted.moment(1)


def test_the_mean_square_is_the_product_of_the_layers_mean_squares():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 60), nn.Sigmoid()).double()
    x = random_input(60).double()
    expected, point = 1.0, x
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                expected *= float(layer.weight.square().sum()) / 60
                point = layer(point)
            else:
                value = layer(point)
                slope = 1 - value**2 if isinstance(layer, nn.Tanh) else value * (1 - value)
                expected *= float(slope.square().mean())
                point = value
    assert predict_from_layers(model, x).mean_square == pytest.approx(expected, rel=1e-9)


def test_an_isometric_chain_has_one_singular_value():
    model = VanillaCNN(20, 8, nn.Identity(), "delta_orthogonal", sigma_w=1.1, seed=0)
    spectrum = predict_from_layers(model, random_input(8, 4, 4))
    ((s, mass),) = spectrum.atoms
    # Weights are stored in float32: twenty layers of relative rounding 6e-8 each.
    assert s == pytest.approx(1.1**20, rel=2e-6)
    assert mass == 1.0


def test_every_kind_of_layer_says_how_it_was_taken():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.Sequential(nn.GELU(), nn.Dropout()),
        nn.Flatten(), nn.Linear(8 * 16, 20),
    ).eval()  # fmt: skip
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spectrum = predict_from_layers(model, random_input(1, 3, 8, 8))
    layers = spectrum.provenance["layers"]
    assert [layer["name"] for layer in layers] == ["0", "1", "2", "3", "4", "5.0", "5.1", "6", "7"]
    assert [layer["factor"] for layer in layers] == [
        "Jacobian (exact)", "slopes", "slopes", "Jacobian (exact)", "circular convolution", "slopes", "slopes",
        "slopes", "weight",
    ]  # fmt: skip
    assert spectrum.shape == (20, 192)
    assert spectrum.provenance["width"] == 8
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_wide_layer_without_a_formula_goes_through_lanczos():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Tanh())
    x = 0.3 * random_input(8, 16, 16)
    spectrum = predict_from_layers(model, x)
    assert spectrum.provenance["layers"][0]["factor"] == "Jacobian (lanczos)"
    # A tap at (dy, dx) is used where it stays on the map: that gives ||J||_F^2 of the padded convolution exactly.
    used = torch.tensor([15.0, 16.0, 15.0])
    taps = model[0].weight.detach().square().sum(dim=(0, 1))
    layer = float((taps * used[:, None] * used[None, :]).sum()) / 2048
    slopes = 1 - torch.tanh(model[0](x).detach()) ** 2
    # Eight probes on 2048 directions, s^2 spread by about its mean: 1 % standard error, four of them.
    assert spectrum.mean_square == pytest.approx(layer * float(slopes.square().mean()), rel=0.04)


def test_heads_stems_and_residual_blocks_of_the_reference_networks():
    model = VanillaCNN(2, 8, "tanh", in_channels=3, num_classes=5, image_size=6, q_star=0.2, seed=0)
    spectrum = predict_from_layers(model, random_input(3, 6, 6))
    assert spectrum.shape == (5, 108)
    assert [layer["name"] for layer in spectrum.provenance["layers"]][-2:] == ["features", "head"]
    residual = ResNet(2, 8, "tanh", q_star=0.2, seed=0)
    found = both(residual, random_input(8, 5, 5))
    assert [layer["factor"] for layer in found.predicted.provenance["layers"]] == 2 * ["Jacobian (exact)"]
    # Two blocks 1 + a D W: the free product has the exact mean square of two independent blocks up to 1/channels.
    assert found.raw.moment_ratios[0] == pytest.approx(1.0, abs=0.15)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(10, 10)

    def forward(self, x):
        return self.inner(x) + x


def test_what_can_not_be_walked_is_named_with_the_cure():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(10, 10), Opaque())
    with pytest.raises(ModelError, match=r"'1' \(Opaque\).*blocks=\('1',\)"):
        predict_from_layers(chain, torch.zeros(10))
    factors = predict_from_layers(chain, torch.zeros(10), blocks=["1"]).provenance["layers"]
    assert factors[1]["factor"] == "Jacobian (exact)"
    with pytest.raises(InputError, match="no module '7'"):
        predict_from_layers(chain, torch.zeros(10), blocks=["7"])
    with pytest.raises(ModelError, match=r"Opaque.*Build it as torch.nn.Sequential"):
        predict_from_layers(Opaque(), torch.zeros(10))
    with pytest.raises(ModelError, match="layer '0' failed"):
        predict_from_layers(chain, torch.zeros(11))
    with pytest.raises(ModelError, match="eval"):
        predict_from_layers(nn.Sequential(nn.Linear(10, 10), nn.Dropout()), torch.zeros(10))
    with pytest.raises(ModelError, match="tuple"):
        predict_from_layers(nn.Sequential(nn.LSTM(10, 10)), torch.zeros(1, 10))
    with pytest.raises(ModelError, match="LayerNorm"):
        predict_from_layers(nn.LayerNorm(10), torch.arange(10.0))
    with pytest.raises(InputError, match="floating-point"):
        predict_from_layers(chain, torch.zeros(10, dtype=torch.int64))


def test_an_own_law_is_held_to_a_tighter_bound_than_an_ensemble():
    model = MLP(3, 100, "tanh", "gaussian", q_star=0.5, seed=0)
    found = both(model, random_input(100))
    of_its_ensemble = isometry.compare(found.measured, isometry.predict(model.ensemble), width=100)
    assert found.critical_distance < 0.9 * of_its_ensemble.critical_distance
    assert np.all(np.isfinite(found.expected_fluctuation.log_moments[0]))


def test_the_former_name_is_kept() -> None:
    assert isometry.predict_for is isometry.predict_from_layers is predict_from_layers
