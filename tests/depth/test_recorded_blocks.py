"""Blocks of models that are no chains, read off the recording, against dense Jacobians in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from recorded_models import Dense, Lists, ResNet, UNet, encoder, weights_shared
from torch import Tensor, nn

import isometry
from isometry.depth import measure_blocks
from isometry.depth.recorded_blocks import recorded_blocks
from isometry.errors import InputError, ModelError
from isometry.jacobian import JacobianSegments

BLOCKS = {
    "resnet": (
        ResNet, (1, 2, 8, 8), None,
        ["conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "avgpool", "fc"],
    ),
    "resnet by stage": (ResNet, (1, 2, 8, 8), r"layer\d", ["conv1 to maxpool", "layer1", "layer2", "avgpool to fc"]),
    "encoder": (encoder, (1, 3, 6), None, ["layers.0", "layers.1"]),
    "encoder, norm first": (lambda: encoder(norm_first=True), (1, 3, 6), None, ["layers.0", "layers.1"]),
    "lists": (
        Lists, (5,), None, ["layers.0", "layers.1", "layers.2", "shared (call 1)", "tanh", "shared (call 2)"]
    ),
    "lists by pattern": (Lists, (5,), r"layers\.1", ["layers.0", "layers.1", "layers.2 to shared (call 2)"]),
    "dense": (Dense, (4,), None, ["stem", "layers.0 to layers.2", "head"]),
    "unet": (UNet, (1, 1, 6), None, ["stem", "tanh", "down to up", "head"]),
}  # fmt: skip


def jacobian(function, x: Tensor) -> np.ndarray:
    return torch.autograd.functional.jacobian(function, x).reshape(-1, x.numel()).numpy()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_of_a_recorded_model(name: str) -> None:
    make, shape, pattern, names = BLOCKS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    profile = measure_blocks(model, x, blocks=pattern, probes=200, steps=2, progress=False)
    assert list(profile.blocks) == names
    expected = np.sum(jacobian(model, x) ** 2)
    m, n = profile.running[len(names)].shape
    # Measured exactly, the short side being far less than 2 * probes * steps.
    assert profile.running[len(names)].mean_square == pytest.approx(expected / min(m, n), rel=1e-10)
    # Four standard errors over the probes, which the profile itself names.
    assert (
        abs(profile.log10_mean_square[-1] - np.log10(expected / min(m, n)))
        < 4 * (profile.log10_mean_square_stderr[-1])
    )


def test_blocks_and_residual_sums_are_those_of_dense_jacobians() -> None:
    torch.manual_seed(0)
    model, x = encoder(norm_first=True).double().eval(), torch.randn(1, 3, 6, dtype=torch.float64)
    profile = measure_blocks(model, x, progress=False)
    assert [(found.block, found.name) for found in profile.residual_sums] == [
        (0, "layers.0"), (0, "layers.0"), (1, "layers.1"), (1, "layers.1"),
    ]  # fmt: skip
    sums = iter(profile.residual_sums)
    for number, layer in enumerate(model.layers):
        own = np.linalg.svd(jacobian(layer, x), compute_uv=False)
        assert profile.chi[number] == pytest.approx(np.mean(own**2), rel=1e-11)
        assert profile.s_max[number] == pytest.approx(own[0], rel=1e-11)

        def attention(z: Tensor, layer=layer) -> Tensor:
            z = layer.norm1(z)
            return layer.self_attn(z, z, z, need_weights=False)[0]

        def feed_forward(z: Tensor, layer=layer) -> Tensor:
            return layer.linear2(torch.relu(layer.linear1(layer.norm2(z))))

        for branch in (attention, feed_forward):
            found, matrix = next(sums), jacobian(branch, x)
            assert found.branch_chi == pytest.approx(np.sum(matrix**2) / 18, rel=1e-11)
            assert found.chi == pytest.approx(np.sum((matrix + np.eye(18)) ** 2) / 18, rel=1e-11)
            x = (x + branch(x)).detach()


def test_residual_layers_of_a_chain_have_their_branches() -> None:
    from isometry.nn import ResNet as ReferenceResNet

    model = ReferenceResNet(2, 2, seed=0).double()
    x = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    profile = measure_blocks(model, x, progress=False)
    assert [(found.block, found.name) for found in profile.residual_sums] == [(0, "trunk.0"), (1, "trunk.1")]
    for number, found in enumerate(profile.residual_sums):
        layer = model.trunk[number]
        matrix = jacobian(layer, x)
        assert found.chi == pytest.approx(profile.chi[number], rel=1e-12)
        assert found.branch_chi == pytest.approx(np.sum((matrix - np.eye(32)) ** 2) / 32, rel=1e-10)
        x = layer(x).detach()


def test_functional_code_has_a_block_for_each_segment() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    profile = measure_blocks(weights_shared, x, progress=False)
    assert len(profile) == 4
    assert len(set(profile.blocks)) == 4
    assert [found.block for found in profile.residual_sums] == [0, 1, 2]
    exact = isometry.measure(weights_shared, x, "exact", progress=False)
    assert profile.running[4].mean_square == pytest.approx(exact.mean_square, rel=1e-12)


def test_a_wrapper_is_opened_and_a_layer_is_not() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Lists()
            self.encoder = encoder()

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.body(x).reshape(1, 5, 1) * torch.arange(6.0).double().sin())

    torch.manual_seed(1)
    profile = measure_blocks(Wrapper().double().eval(), torch.randn(5).double(), progress=False)
    # `body` holds sums of its own and no layers with some: it is one block up to what it calls singly.
    assert profile.blocks[-2:] == ("encoder.layers.0", "encoder.layers.1")


def test_a_batch_of_inputs_has_the_mean_of_theirs() -> None:
    torch.manual_seed(0)
    model = encoder().double().eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    together = measure_blocks(model, x, batched=True, progress=False)
    each = [measure_blocks(model, one[None], progress=False) for one in x]
    np.testing.assert_allclose(together.chi, np.mean([one.chi for one in each], axis=0), rtol=1e-12)
    assert together.blocks == each[0].blocks


def test_patterns_that_name_no_separable_module_are_refused() -> None:
    torch.manual_seed(0)
    segments = JacobianSegments(Dense().double(), torch.randn(4).double())
    with pytest.raises(ModelError, match=r"layers\.0.* cannot be measured as blocks: other paths"):
        recorded_blocks(segments, re.compile(r"layers\..").fullmatch)
    with pytest.raises(InputError, match="no module's whole name matches"):
        measure_blocks(Dense(), torch.randn(4), blocks="absent", progress=False)


class Exploding(nn.Module):
    """Fifty blocks x + W x, each of which multiplies mean s² by 2.5, and a last layer of singular values 0.05."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(50))
        self.last = nn.Linear(size, size, bias=False)
        for layer in self.blocks:
            nn.init.normal_(layer.weight, std=(1.5 / size) ** 0.5)
        nn.init.orthogonal_(self.last.weight, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.blocks:
            x = x + layer(x)
        return self.last(x)


def test_a_last_layer_that_shrinks_is_not_to_blame_for_blocks_that_explode() -> None:
    torch.manual_seed(0)
    profile = measure_blocks(Exploding().double(), torch.ones(12).double(), progress=False)
    assert profile.log10_mean_square[-1] > 12
    assert profile.log10_gain[-1] == pytest.approx(np.log10(0.0025), abs=1e-6)
    assert profile.at_fault() is None
    assert "grows along the whole depth" in profile.verdict()


def test_a_first_layer_is_not_to_blame_for_what_all_lose() -> None:
    model = isometry.nn.MLP(32, 64, sigma_w=0.9, seed=0)
    profile = measure_blocks(model, torch.ones(64), progress=False)
    assert profile.log10_mean_square[-1] < -2
    assert profile.at_fault() is None
    assert "falls along the whole depth" in profile.verdict()
