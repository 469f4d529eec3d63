"""The Fourier form of a circular convolution is the convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv1d, conv2d, pad

from isometry.errors import FallbackWarning
from isometry.jacobian.replay import linearise
from isometry.jacobian.replay.maps import fourier
from isometry.jacobian.replay.maps.fourier import FourierConvolution, _basis, fourier_pays
from isometry.nn import VanillaCNN


@pytest.mark.parametrize("size", [(1,), (2,), (7,), (8,), (1, 1), (4, 4), (5, 3), (2, 6), (8, 8)])
def test_basis_is_orthonormal(size: tuple[int, ...]) -> None:
    rows, single, phases = _basis(size)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype), atol=1e-14)
    assert single + 2 * (len(phases) - single) == len(rows)


@pytest.mark.parametrize(
    ("channels", "size", "taps", "dilation"),
    [
        ((3, 5), (8, 8), (3, 3), (1, 1)), ((4, 4), (5, 6), (3, 5), (1, 1)), ((2, 3), (7, 9), (3, 3), (2, 3)),
        ((1, 1), (4, 4), (1, 1), (1, 1)), ((5, 2), (9,), (3,), (1,)), ((2, 2), (6,), (5,), (1,)),
        ((3, 3), (2, 2), (3, 3), (1, 1)),
    ],
)  # fmt: skip
def test_agrees_with_the_convolution_and_its_transpose(
    channels: tuple[int, int], size: tuple[int, ...], taps: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    c_out, c_in = channels
    weight = torch.randn(c_out, c_in, *taps, dtype=torch.float64)
    before = [step * (count // 2) for count, step in zip(taps, dilation, strict=True)]
    around = [extent for extent in reversed(before) for _ in range(2)]
    convolve = conv2d if len(size) == 2 else conv1d
    by_frequencies = FourierConvolution(weight, size, before, dilation)
    x, u = (torch.randn(4, count, *size, dtype=torch.float64) for count in (c_in, c_out))

    def direct(block: torch.Tensor) -> torch.Tensor:
        # Padding by indices: torch's circular padding refuses to wrap round more than once.
        for axis, extent in enumerate(before):
            index = torch.arange(-extent, size[axis] + extent) % size[axis]
            block = block.index_select(2 + axis, index)
        return convolve(block, weight, dilation=dilation)

    if max(before) <= min(size):
        assert torch.equal(direct(x), convolve(pad(x, around, mode="circular"), weight, dilation=dilation))
    expected, transposed = torch.func.vjp(direct, x)
    assert torch.allclose(by_frequencies.matmat(x, False), expected, atol=1e-12)
    assert torch.allclose(by_frequencies.rmatmat(u, False), transposed(u)[0], atol=1e-12)


def test_rounding_in_single_precision_is_that_of_the_convolution() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64, 3, 3) / 24
    x = torch.randn(8, 64, 8, 8)
    exact = conv2d(pad(x.double(), (1, 1, 1, 1), mode="circular"), weight.double())
    direct = conv2d(pad(x, (1, 1, 1, 1), mode="circular"), weight)
    ours = FourierConvolution(weight, (8, 8), (1, 1), (1, 1)).matmat(x, False)
    # Sums of 64 and 576 terms: either is some units of rounding off, and ours not twice as far as theirs.
    assert (ours - exact).norm() < 2 * (direct - exact).norm()


def test_pays_where_it_was_measured_to() -> None:
    kernel = torch.empty(64, 64, 3, 3)
    assert fourier_pays(kernel, (8, 8))
    assert not fourier_pays(kernel, (32, 32))
    assert not fourier_pays(torch.empty(64, 64, 1, 1), (8, 8))


def test_networks_replay_alike_with_and_without() -> None:
    torch.manual_seed(0)
    model = VanillaCNN(3, 16, "tanh", "gaussian", sigma_w=1.2, sigma_b=0.1, seed=0, dtype=torch.float64)
    x = torch.randn(16, 8, 8, dtype=torch.float64)
    by_taps = linearise(lambda z: model(z[None])[0], x, fourier=False)
    by_frequencies = linearise(lambda z: model(z[None])[0], x)
    found = [type(step.edge.map).__name__ for step in by_frequencies.direct.steps]
    assert found.count("FourierConvolution") == 3
    # Few vectors go by the taps, many by the frequencies.
    for count in (1, 3, 4, 20):
        block = torch.randn(count, 16, 8, 8, dtype=torch.float64)
        assert torch.allclose(by_frequencies.matmat(block), by_taps.matmat(block), rtol=0, atol=1e-12)
        assert torch.allclose(by_frequencies.rmatmat(block), by_taps.rmatmat(block), rtol=0, atol=1e-12)


def test_a_wrong_block_is_found_at_first_use_and_the_taps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are made and held against the taps when first a block of vectors is large enough."""
    exact = fourier._waves

    def wrong(*key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        cosine, sine = exact(*key)
        return cosine, -sine

    monkeypatch.setattr(fourier, "_waves", wrong)
    model = VanillaCNN(1, 16, "tanh", "gaussian", sigma_w=1.2, sigma_b=0.1, seed=0)
    x = torch.randn(16, 8, 8)
    by_taps, found = linearise(model, x, fourier=False), linearise(model, x)
    block = torch.randn(8, 16, 8, 8)
    with pytest.warns(FallbackWarning, match="tap by tap instead"):
        first = found.matmat(block)
    assert torch.equal(first, by_taps.matmat(block))
    assert torch.equal(found.rmatmat(block), by_taps.rmatmat(block))
