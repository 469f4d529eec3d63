"""Singular values of convolutions: against closed forms and against dense matrices built another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from isometry.errors import InputError
from isometry.nn.init import conv_singular_values

# Both sides are float64 SVDs of matrices of norm of order ten and a few hundred rows.
TOLERANCE = 1e-11


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circular_matrix(weight, size, *, stride=1, groups=1, dilation=1):
    """The dense operator from its definition, entry by entry: y(i) = sum_t K_t x(s i + d (t - (k-1)//2))."""
    channels_out, per_group = weight.shape[:2]
    kernel_size, axes = weight.shape[2:], weight.ndim - 2
    positions_in = list(itertools.product(range(size), repeat=axes))
    coarse = -(-size // stride)
    positions_out = list(itertools.product(range(coarse), repeat=axes))
    matrix = np.zeros((channels_out, len(positions_out), per_group * groups, len(positions_in)))
    for row, position in enumerate(positions_out):
        for tap in itertools.product(*(range(k) for k in kernel_size)):
            source = tuple(
                (stride * i + dilation * (t - (k - 1) // 2)) % size
                for i, t, k in zip(position, tap, kernel_size, strict=True)
            )
            column = positions_in.index(source)
            for out in range(channels_out):
                first = out // (channels_out // groups) * per_group
                block = weight[(out, slice(None), *tap)].numpy()
                matrix[out, row, first : first + per_group, column] += block
    return matrix.reshape(channels_out * len(positions_out), -1)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kernel_size", [(3,), (2,), (5,), (3, 2), (2, 3), (2, 2, 3)])
def test_circular_values_are_those_of_the_dense_operator(kernel_size, size):
    size = min(size, 3) if len(kernel_size) == 3 else size  # a small matrix in three dimensions
    weight = torch.randn(3, 2, *kernel_size, generator=generator(), dtype=torch.float64)
    expected = np.linalg.svd(circular_matrix(weight, size), compute_uv=False)
    np.testing.assert_allclose(conv_singular_values(weight, size).numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "size"),
    [
        (2, 1, 1, 6),
        (3, 1, 1, 6),
        (2, 2, 1, 4),
        (2, 1, 2, 4),
        (1, 2, 2, 5),
        (3, 2, 2, 6),
        (2, 1, 1, 5),
        (3, 1, 1, 7),
    ],
)
def test_strides_groups_and_dilation(stride, dilation, groups, size):
    """The last two strides do not divide the map, so there the Fourier path does not apply."""
    weight = torch.randn(4, 2, 3, 2, generator=generator(1), dtype=torch.float64)
    expected = np.linalg.svd(
        circular_matrix(weight, size, stride=stride, groups=groups, dilation=dilation), compute_uv=False
    )
    got = conv_singular_values(weight, size, stride=stride, groups=groups, dilation=dilation)
    np.testing.assert_allclose(got.numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 2), (1, 0, 2), (2, 2, 1)])
def test_zero_padding_is_the_layer_of_torch(dimensions, stride, padding, groups):
    weight = torch.randn(4, 2, *[3] * dimensions, generator=generator(2), dtype=torch.float64)
    size = 5 if dimensions < 3 else 3
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]
    inputs = 2 * groups * size**dimensions
    basis = torch.eye(inputs, dtype=torch.float64).reshape(inputs, 2 * groups, *[size] * dimensions)
    images = convolve(basis, weight, stride=stride, padding=padding, groups=groups).flatten(1)
    expected = torch.linalg.svdvals(images)
    got = conv_singular_values(weight, size, "zeros", stride=stride, padding=padding, groups=groups)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("mode", "padding"), [("reflect", 1), ("replicate", 2), ("circular", 2), ("circular", 0)]
)
def test_other_padding_modes(mode, padding):
    """Circular padding that changes the size of the map is no circulant operator either."""
    weight = torch.randn(2, 3, 3, 3, generator=generator(3), dtype=torch.float64)
    basis = torch.eye(3 * 16, dtype=torch.float64).reshape(-1, 3, 4, 4)
    padded = functional.pad(basis, (padding,) * 4, mode=mode) if padding else basis
    expected = torch.linalg.svdvals(functional.conv2d(padded, weight).flatten(1))
    got = conv_singular_values(weight, 4, mode, padding=padding)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (2, 0)])
def test_transposed_is_the_layer_of_torch(stride, padding):
    weight = torch.randn(4, 3, 3, 3, generator=generator(4), dtype=torch.float64)
    basis = torch.eye(2 * 4 * 9, dtype=torch.float64).reshape(-1, 8, 3, 3)
    images = functional.conv_transpose2d(
        basis, weight.repeat(2, 1, 1, 1), stride=stride, padding=padding, groups=2
    )
    expected = torch.linalg.svdvals(images.flatten(1))
    got = conv_singular_values(
        weight.repeat(2, 1, 1, 1), 3, "zeros", stride=stride, padding=padding, groups=2, transposed=True
    )
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_transposed_circular_is_the_adjoint():
    weight = torch.randn(2, 5, 3, generator=generator(5), dtype=torch.float64)
    torch.testing.assert_close(
        conv_singular_values(weight, 4, stride=2, transposed=True), conv_singular_values(weight, 8, stride=2)
    )


def test_moving_average_by_hand():
    """Taps (1, 1, 1)/3 on a circle of n: the Dirichlet kernel |1 + 2 cos(2 pi f/n)|/3."""
    n = 8
    expected = sorted((abs(1 + 2 * math.cos(2 * math.pi * f / n)) / 3 for f in range(n)), reverse=True)
    got = conv_singular_values(torch.full((1, 1, 3), 1 / 3, dtype=torch.float64), n)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-14)


def test_flattened_orthogonal_kernel_is_far_from_an_isometry():
    """16 channels, 3x3, 8x8 map: about 0.007 .. 2.0, like a Gaussian kernel; the mean square alone is exactly 1."""
    lows, highs = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        weight = torch.nn.init.orthogonal_(torch.empty(16, 16, 3, 3, dtype=torch.float64))
        values = conv_singular_values(weight, 8)
        # ||K||_F^2 = c_out because the rows of the flattened kernel are orthonormal: an identity, hence the tolerance.
        assert float(values.square().mean()) == pytest.approx(1, abs=1e-12)
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    assert max(lows) < 0.05
    assert min(highs) > 1.7


@pytest.mark.parametrize(
    ("weight", "arguments", "words"),
    [
        (torch.zeros(4, 4), {"input_size": 4}, "floating-point kernel"),
        (torch.zeros(4, 4, 3), {"input_size": 4, "padding_mode": "mirror"}, "mirror"),
        (torch.zeros(4, 4, 3), {"input_size": (4, 4)}, "input_size"),
        (torch.zeros(4, 4, 3), {"input_size": 0}, "input_size"),
        (torch.zeros(4, 4, 3), {"input_size": 4, "groups": 3}, "groups"),
        (torch.zeros(4, 4, 3), {"input_size": 2, "padding_mode": "zeros", "padding": 0}, "does not fit"),
        (torch.zeros(4, 4, 5), {"input_size": 2, "padding_mode": "reflect"}, "reflection"),
        (torch.zeros(64, 64, 3, 3), {"input_size": 64, "padding_mode": "zeros"}, "GiB"),
    ],
)
def test_bad_input_is_named(weight, arguments, words):
    with pytest.raises(InputError, match=words):
        conv_singular_values(weight, **arguments)
