"""Where the signal is lost: blocks and running products against dense Jacobians, and the block at fault by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.depth.block_gains import measure_blocks
from isometry.depth.sequential_blocks import blocks_of
from isometry.errors import InputError, IsometryError, ModelError
from isometry.nn import MLP, ResNet, VanillaCNN


def chain(
    *, gains: tuple[float, ...] = (1.0, 1.0, 0.01, 1.0, 1.0), size: int = 6, seed: int = 0
) -> nn.Sequential:
    """Orthogonal layers times their gains, so that chi of layer b is gains[b]^2 and the fault is known."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for gain in gains:
        layer = nn.Linear(size, size, bias=False).double()
        with torch.no_grad():
            q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
            layer.weight.copy_(gain * q)
        layers.append(layer)
    return nn.Sequential(*layers)


def jacobian(function, x: torch.Tensor) -> np.ndarray:
    out = torch.autograd.functional.jacobian(function, x)
    return out.reshape(-1, x.numel()).numpy()


def test_blocks_and_running_products_are_those_of_dense_jacobians() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(9, 14), nn.Tanh(), nn.Sequential(nn.Linear(14, 5), nn.ELU()), nn.Linear(5, 11)
    ).double()
    x = torch.randn(9, dtype=torch.float64)
    profile = measure_blocks(model, x, probes=2000, steps=1, progress=False)
    assert profile.blocks == ("0", "1", "2", "3")
    assert profile.kinds == ("Linear", "Tanh", "Sequential", "Linear")
    point, product = x, np.eye(9)
    for number, block in enumerate(model):
        own = jacobian(block, point)
        product = own @ product
        point = block(point).detach()
        assert tuple(profile.shapes[number]) == own.shape
        values = np.linalg.svd(own, compute_uv=False)
        # A block is measured exactly here: min(m, n) products are fewer than those of 2000 probes.
        assert profile.chi[number] == pytest.approx(np.mean(values**2), rel=1e-12)
        assert profile.chi_stderr[number] == 0
        assert profile.s_max[number] == pytest.approx(values[0], rel=1e-12)
        running = np.sum(product**2) / min(product.shape)
        error = profile.log10_mean_square_stderr[number]
        assert 0 < error < 0.02
        # Four standard errors over 2000 probes, which the profile itself names.
        assert profile.log10_mean_square[number] == pytest.approx(math.log10(running), abs=4 * error)
    assert profile.running[4].mean_square == pytest.approx(running, rel=1e-12)
    assert profile.running[1].mean_square == pytest.approx(profile.chi[0], rel=1e-12)


def test_the_errors_of_running_products_cover() -> None:
    """Over 30 seeds the true values lie within two standard errors as often as a t distribution has it."""
    torch.manual_seed(1)
    layers = [nn.Linear(20, 20, bias=False) for _ in range(3)]
    model = nn.Sequential(*layers).double()
    x = torch.zeros(20, dtype=torch.float64)
    products = [jacobian(nn.Sequential(*layers[: depth + 1]), x) for depth in range(3)]
    truth = np.log10([np.sum(product**2) / 20 for product in products])
    gains = np.diff(truth, prepend=0.0)
    inside = np.zeros((2, 3))
    for seed in range(30):
        profile = measure_blocks(model, x, probes=16, steps=2, seed=seed, progress=False)
        inside[0] += np.abs(profile.log10_mean_square - truth) < 2 * profile.log10_mean_square_stderr
        inside[1] += np.abs(profile.log10_gain - gains) < 2 * profile.log10_gain_stderr
    # 93.6 % of a t distribution of 15 degrees; 30 trials have a standard deviation of 4.5 %, four of them are allowed.
    assert np.all(inside / 30 > 0.936 - 4 * 0.045)


def test_the_block_at_fault_is_named() -> None:
    profile = measure_blocks(chain(), torch.ones(6, dtype=torch.float64), progress=False)
    assert profile.at_fault() == 2
    np.testing.assert_allclose(profile.chi, [1, 1, 1e-4, 1, 1], rtol=1e-12)
    # Multiples of orthogonal matrices: every tangent is stretched alike, so there is no error at all.
    np.testing.assert_allclose(profile.log10_mean_square, [0, 0, -4, -4, -4], atol=1e-12)
    assert "block 2 (Linear) is at fault: it multiplies it by" in profile.verdict()
    assert "0.0001" in profile.verdict()


@pytest.mark.parametrize(
    ("gains", "fault", "words"),
    [
        ((1.0,) * 5, None, "no block stands out"),
        ((0.7,) * 8, None, "it falls along the whole depth, by 0.49 per block"),
        ((1.5,) * 8, None, "it grows along the whole depth, by 2.25 per block"),
        ((1.0, 30.0, 1.0, 1.0), 1, "by 900"),
        # What alternates is nobody's fault: ReLU halves what its layer doubles.
        ((2**0.5, 0.5**0.5) * 4, None, "no block stands out"),
        ((1.0, 0.0, 1.0), 1, "nothing passes block 1"),
        ((1.0, 0.1, 1.0, 1.0, 0.01, 1.0), 4, "the median block by 1; 1 stands out as well"),
        ((0.01,), 0, "block 0 (Linear) is at fault"),
        ((1.0, 1e-3), 1, "block 1 (Linear) is at fault"),
    ],
)
def test_faults_and_verdicts(gains: tuple[float, ...], fault: int | None, words: str) -> None:
    with pytest.warns() if 0.0 in gains else _quiet():
        profile = measure_blocks(chain(gains=gains), torch.ones(6, dtype=torch.float64), progress=False)
    assert profile.at_fault() == fault
    assert words in profile.verdict()


def _quiet():
    import contextlib

    return contextlib.nullcontext()


def test_products_beyond_the_range_of_floats() -> None:
    gains = (1e-12,) * 40
    with pytest.warns(isometry.errors.IsometryWarning):
        profile = measure_blocks(chain(gains=gains), torch.zeros(6, dtype=torch.float64), progress=False)
    # 40 blocks of 1e-24: the product of lengths is kept as a logarithm.
    np.testing.assert_allclose(profile.log10_mean_square, -24.0 * np.arange(1, 41), rtol=1e-12)
    assert "1e-960.00" in profile.verdict()


def test_a_wide_block_is_sampled_with_its_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400, bias=False), nn.Tanh()).double()
    x = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    profile = measure_blocks(model, x, probes=12, steps=3, progress=False)
    truth = float(model[0].weight.detach().square().sum()) / 400
    assert profile.chi_stderr[0] > 0
    # Twelve probes have a t distribution of eleven degrees: 99.9 % lie within 4.5 standard errors.
    assert profile.chi[0] == pytest.approx(truth, abs=4.5 * profile.chi_stderr[0])


@pytest.mark.parametrize(
    ("model", "x", "names"),
    [
        (VanillaCNN(3, 2, in_channels=1, num_classes=4, image_size=5, seed=0), torch.ones(1, 5, 5),
         ["stem", "trunk.0", "trunk.1", "trunk.2", "features", "head"]),
        (VanillaCNN(2, 2, seed=0), torch.ones(2, 4, 4), ["trunk.0", "trunk.1"]),
        (ResNet(2, 2, seed=0), torch.ones(2, 4, 4), ["trunk.0", "trunk.1"]),
        (MLP(2, 4, in_features=3, num_classes=2, seed=0), torch.ones(3),
         ["stem", "trunk.0", "trunk.1", "features", "head"]),
    ],
    ids=["cnn", "bare cnn", "resnet", "mlp"],
)  # fmt: skip
def test_the_blocks_of_reference_networks_are_their_layers(model, x, names) -> None:
    profile = measure_blocks(model.double(), x.double(), progress=False)
    assert list(profile.blocks) == names
    whole = isometry.measure(model, x.double(), "exact", progress=False)
    assert profile.running[len(names)].mean_square == pytest.approx(whole.mean_square, rel=1e-10)
    assert (
        abs(profile.log10_mean_square[-1] - whole.log10_moment(1))
        <= 5 * profile.log10_mean_square_stderr[-1] + 1e-9
    )


def test_blocks_by_pattern_and_what_lies_between() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.ReLU(), nn.Linear(3, 2)
    )
    assert [block.name for block in blocks_of(model)] == ["0", "1", "2", "3"]
    assert [block.name for block in blocks_of(model, r"1\.0")] == ["0", "1.0", "1.1 to 3"]
    profile = measure_blocks(model, torch.ones(3), blocks="[03]", progress=False)
    assert profile.blocks == ("0", "1.0 to 2", "3")
    assert profile.kinds[1] == "Linear, Tanh, ReLU"
    with pytest.raises(InputError, match="no module's whole name matches blocks='layer'"):
        blocks_of(model, "layer")
    with pytest.raises(InputError, match="no regular expression"):
        blocks_of(model, "(")
    with pytest.raises(ModelError, match="empty"):
        blocks_of(nn.Sequential())


def test_a_batch_of_inputs_has_the_mean_of_theirs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    together = measure_blocks(model, x, batched=True, probes=400, progress=False)
    each = [measure_blocks(model, one, probes=400, progress=False) for one in x]
    np.testing.assert_allclose(together.chi, np.mean([one.chi for one in each], axis=0), rtol=1e-12)
    truth = np.mean([np.sum(jacobian(model, one) ** 2) / 4 for one in x])
    assert 10 ** together.log10_mean_square[-1] == pytest.approx(
        truth, rel=4 * 2.4 * together.log10_mean_square_stderr[-1]
    )


def test_the_model_stays_as_it_is_and_results_repeat() -> None:
    model = chain().float()
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    one = measure_blocks(model, torch.ones(6), dtype=torch.float64, seed=3, progress=False)
    two = measure_blocks(model, torch.ones(6), dtype=torch.float64, seed=3, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) and a.dtype == torch.float32
        for a, b in zip(before, model.parameters(), strict=True)
    )
    for key in ("chi", "log10_mean_square", "log10_gain_stderr"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key))


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Backwards(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in reversed(list(self)):
            x = layer(x)
        return x


def test_what_is_no_chain_is_split_by_its_recording() -> None:
    x = torch.ones(3)
    torch.manual_seed(0)
    assert measure_blocks(Opaque(), x, progress=False).blocks == ("inner",)
    model = nn.Sequential(nn.Linear(3, 3), Backwards(nn.Linear(3, 3), nn.Tanh()), Opaque())
    # A child is a block whatever it holds: only its own Jacobian is asked for.
    assert measure_blocks(model, x, progress=False).blocks == ("0", "1", "2")
    assert measure_blocks(model, x, blocks=r"0|1\..", progress=False).blocks == ("0", "1.1", "1.0", "2.inner")
    hooked = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    before = measure_blocks(hooked, x, progress=False)
    hooked[1].register_forward_hook(lambda module, args, value: 2 * value)
    after = measure_blocks(hooked, x, progress=False)
    np.testing.assert_allclose(after.chi / before.chi, [1, 4], rtol=1e-5)


def test_what_cannot_be_measured_is_refused_with_the_cure() -> None:
    x = torch.ones(3)

    class Cumulative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                factor = x.round()
            return factor * self.inner(x)

    with pytest.raises(ModelError, match=r"cannot be recorded: .*round.*no_grad"):
        measure_blocks(Cumulative(), x, progress=False)
    with pytest.raises(ModelError, match="eval"):
        measure_blocks(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), x, progress=False)
    with pytest.raises(IsometryError, match="block '1'"):
        measure_blocks(nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 3)), x, progress=False)
    for options in ({"probes": 1}, {"steps": 0}, {"seed": -1}, {"probes": True}):
        with pytest.raises(InputError, match="whole number"):
            measure_blocks(chain(), x, **options)
    with pytest.raises(InputError, match=r"takes an nn\.Module, or a function"):
        measure_blocks(3, x)  # type: ignore[arg-type]


def test_cost_grows_with_the_depth_and_not_with_its_square() -> None:
    def products(depth: int) -> int:
        counted = 0

        class Counting(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                nonlocal counted
                counted += 1
                return x + 0.1 * torch.tanh(x)

        measure_blocks(
            nn.Sequential(*(Counting() for _ in range(depth))), torch.ones(3), probes=4, progress=False
        )
        return counted

    # Blocks once each; spectra of products at 1, 4, 16, ... and the whole add 4/3 of a spectrum at full depth.
    assert products(64) < 5 * products(16)
