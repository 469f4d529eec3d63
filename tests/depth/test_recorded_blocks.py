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
    "lists by their holder": (Lists, (5,), "layers", ["layers", "shared (call 1) to shared (call 2)"]),
    "dense by their holder": (Dense, (4,), "layers", ["stem", "layers", "head"]),
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


SKIPS = {
    "layer scale": lambda x, f, g: (x + g * f, 1.0, g),
    "half": lambda x, f, g: (0.5 * x + f, 0.5, 1.0),
    "in place": lambda x, f, g: (x.clone().mul_(0.5).add_(f), 0.5, 1.0),
    "difference": lambda x, f, g: (0.7 * f - x / 2, -0.5, 0.7),
    "lerp": lambda x, f, g: (torch.lerp(x, f, 0.3), 0.7, 0.3),
    "alpha": lambda x, f, g: (torch.add(x, f, alpha=0.3), 1.0, 0.3),
    "gates": lambda x, f, g: (x * g + f * (1 - g), g, 1 - g),
    "addcmul": lambda x, f, g: (torch.addcmul(x, g, f), 1.0, g),
    "views": lambda x, f, g: ((x.reshape(1, 5) * g).flatten() + f, g, 1.0),
    "twice": lambda x, f, g: (x + f - 2 * f, 1.0, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", SKIPS)
def test_the_branch_of_a_scaled_skip(kind: str) -> None:
    torch.manual_seed(0)
    weight, gain, x = torch.randn(5, 5).double(), torch.rand(5).double(), torch.randn(5).double()

    def model(z: Tensor) -> Tensor:
        return SKIPS[kind](z, torch.tanh(weight @ z), gain)[0]

    (found,) = measure_blocks(model, x, progress=False).residual_sums
    _, a, b = SKIPS[kind](x, x, gain)
    slopes = torch.diag(1 - torch.tanh(weight @ x) ** 2) @ weight
    branch = torch.diag(torch.ones(5).double() * b) @ slopes
    stream = branch + torch.diag(torch.ones(5).double() * a)
    assert found.branch_chi == pytest.approx(float(branch.square().sum()) / 5, rel=1e-12)
    assert found.chi == pytest.approx(float(stream.square().sum()) / 5, rel=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        lambda z: z * torch.sigmoid(z.flip(0)) + z.sin() * (1 - torch.sigmoid(z.flip(0))),
        lambda z: torch.tanh(z) + z.flip(0),
        lambda z: z * z.flip(0),
        lambda z: torch.cat([z[:2], z[2:].sin()]),
    ],
)
def test_a_gate_that_depends_on_the_stream_is_no_skip(model) -> None:
    assert measure_blocks(model, torch.randn(5).double(), progress=False).residual_sums == ()


class Fading(nn.Module):
    """Forty blocks a x + W x, each of which multiplies J by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(40))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (0.1 * x + layer(x)) * self.factor
        return x


@pytest.mark.filterwarnings("ignore:s_max is 0.*underflow")
@pytest.mark.parametrize("factor", [1e-10, 1e7])
def test_products_beyond_the_range_of_floats(factor: float) -> None:
    torch.manual_seed(0)
    model, x = Fading(factor).double(), torch.ones(6).double() * (1 if factor < 1 else 1e-300)
    profile = measure_blocks(model, x, probes=60, progress=False)
    log10 = 0.0
    product = torch.eye(6).double()
    for layer in model.layers:
        product = factor * (0.1 * product + layer.weight.detach() @ product)
        size = float(product.norm())
        product, log10 = product / size, log10 + 2 * np.log10(size)
    expected = log10 - np.log10(6)
    assert abs(expected) > 550
    assert abs(profile.log10_mean_square[-1] - expected) < 4 * profile.log10_mean_square_stderr[-1] + 1e-9
    assert profile.at_fault() is None


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


class Conditioned(nn.Module):
    """Token numbers, a mask and a state by keyword; blocks behind the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def forward(self, ids: Tensor, mask: Tensor, *, state: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embed(ids) + state["h"].cumsum(0)
        for block in self.blocks:
            x = x + torch.tanh(block(x + x.mean(0))) * mask[:, None]
        return {"hidden": x, "out": self.norm(x)}


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"source": "blocks.1"}, 2), ({"source": "blocks.0", "output": "hidden"}, 3),
        ({"wrt": "state.h", "target": "blocks.2"}, 3), ({"wrt": "state", "output": "out"}, 4),
    ],
)  # fmt: skip
def test_blocks_of_a_part_of_a_model_with_several_inputs(options, blocks: int) -> None:
    torch.manual_seed(0)
    model, mask = Conditioned().eval(), torch.tensor([1.0, 0.0, 1.0])
    call = {"args": (mask,), "kwargs": {"state": {"h": torch.randn(3, 4)}}, "dtype": torch.float64}
    if "output" not in options and "target" not in options:
        options = {**options, "output": "out"}
    profile = measure_blocks(model, torch.tensor([1, 5, 2]), **call, **options, progress=False)
    exact = isometry.measure(model, torch.tensor([1, 5, 2]), "exact", **call, **options, progress=False)
    assert len(profile) >= blocks
    assert profile.running[len(profile)].mean_square == pytest.approx(exact.mean_square, rel=1e-12)
    error = 4 * profile.log10_mean_square_stderr[-1] + 1e-9
    assert abs(profile.log10_mean_square[-1] - np.log10(exact.mean_square)) < error


def test_no_block_is_without_a_name() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(torch.tanh(self.inner(x) * y.roll(1)))

    torch.manual_seed(0)
    x = torch.randn(3).double()
    profile = measure_blocks(Joined().double(), x, args=(x.cos(),), wrt=[0, 1], progress=False)
    assert all(profile.blocks)
    assert profile.blocks[-1] == "head"


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
