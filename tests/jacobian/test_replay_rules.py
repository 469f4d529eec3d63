"""Every rule of the replay equals the dense Jacobian of its operation, column by column and row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from isometry.jacobian import JacobianOperator
from isometry.jacobian.numerics import strict_numerics
from isometry.jacobian.replay import Replay, linearise
from isometry.jacobian.replay.graph import graph_of
from isometry.jacobian.replay.recording import record

D = torch.float64
WEIGHT = torch.linspace(-1, 1, 2 * 3 * 3 * 3, dtype=D).sin().reshape(2, 3, 3, 3)
MATRIX = torch.linspace(-2, 2, 12, dtype=D).cos().reshape(3, 4)
SPREAD = torch.tensor([[0, 1, 1, 3], [2, 2, 2, 2], [3, 0, 0, 1]])
MASK = torch.tensor([[True, False, True, True], [False, False, True, False], [True, True, False, True]])
IMAGE = (1, 3, 5, 4)

ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu by tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus,
    "leaky relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "log sigmoid": F.logsigmoid,
    "threshold": lambda z: F.threshold(z, 0.1, 5.0),
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda z: (z + 3).log(),
    "log1p": lambda z: z.abs().log1p(),
    "sqrt": lambda z: (z + 3).sqrt(),
    "rsqrt": lambda z: (z + 3).rsqrt(),
    "square": torch.square,
    "cube": lambda z: z**3,
    "power of two tensors": lambda z: (z + 3) ** z,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "reciprocal": lambda z: 1 / (z + 3),
    "negative": lambda z: -z,
    "clamp": lambda z: z.clamp(-0.5, 0.7),
    "clamp below": lambda z: z.clamp(min=0.1),
    "clamp by tensors": lambda z: torch.clamp(z, MATRIX - 1, MATRIX + 1),
    "maximum": lambda z: torch.maximum(z, z.flip(0)),
    "minimum of a constant": lambda z: torch.minimum(z, MATRIX),
    "where": lambda z: torch.where(MASK, z.sin(), z),
    "where of values": lambda z: torch.where(z > 0, z.square(), 3.0),
    "masked fill": lambda z: z.sin().masked_fill(MASK, 7.0),
    "sum of scaled": lambda z: torch.add(z, z.sin(), alpha=3),
    "difference": lambda z: 5 - z.square(),
    "product": lambda z: z * z.sin(),
    "square as a product": lambda z: z * z,
    "product with a constant": lambda z: z * MATRIX,
    "product along an axis": lambda z: z * MATRIX[0] + MATRIX[:, :1],
    "product of two axes": lambda z: z[:, :1] * z[:1],
    "quotient": lambda z: z / (3 + z.flip(1)),
    "constant over value": lambda z: MATRIX / (z + 3),
    "addcmul": lambda z: torch.addcmul(z, z.sin(), MATRIX, value=2.0),
    "addcdiv": lambda z: torch.addcdiv(z, z.sin(), MATRIX + 4, value=2.0),
    "lerp": lambda z: torch.lerp(z, z.sin(), 0.3),
    "atan2": lambda z: torch.atan2(z, z + 3),
    "hypot": lambda z: torch.hypot(z, z + 3),
    "nothing": lambda z: z,
    "floor is flat": lambda z: z + z.floor(),
    "sign is flat": lambda z: z + z.sign(),
    "detached": lambda z: z * z.detach(),
    "comparison": lambda z: z * (z > 0),
    "logical": lambda z: z * ((z > 0) & MASK).to(D),
    "argmax": lambda z: z * z.argmax(),
    "sinc": torch.sinc,
    "xlogy": lambda z: torch.xlogy(z + 3, z + 4),
    "logaddexp": lambda z: torch.logaddexp(z, MATRIX),
    "fmod": lambda z: torch.fmod(z, 0.7),
    "nan to num": torch.nan_to_num,
    "prelu": lambda z: F.prelu(z, MATRIX[0]),
    "glu by halves": lambda z: z[:, :2] * z[:, 2:].sigmoid(),
}

MOVEMENT: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda z: z.reshape(4, 3),
    "transpose": lambda z: z.T,
    "permute": lambda z: z[None].permute(2, 0, 1),
    "flatten of a transpose": lambda z: z.T.reshape(-1),
    "slice": lambda z: z[1:, ::2],
    "select": lambda z: z[:, 1],
    "expand": lambda z: z[:, None].expand(3, 5, 4),
    "repeat": lambda z: z.repeat(2, 3),
    "tile": lambda z: z.tile(2),
    "cat": lambda z: torch.cat([z, MATRIX, z.sin()], 1),
    "stack": lambda z: torch.stack([z, z.sin(), z]),
    "split": lambda z: torch.cat(z.split([1, 3], 1)[::-1], 1),
    "chunk": lambda z: z.chunk(2, 1)[1],
    "unbind": lambda z: z.unbind(1)[2],
    "flip": lambda z: z.flip(0, 1),
    "roll": lambda z: z.roll((1, 2), (0, 1)),
    "index select": lambda z: z.index_select(1, torch.tensor([3, 0, 0])),
    "advanced index": lambda z: z[torch.tensor([2, 0]), torch.tensor([1, 1])],
    "masked select": lambda z: z[MASK],
    "gather": lambda z: z.gather(1, torch.tensor([[0, 0], [3, 1], [2, 2]])),
    "take": lambda z: z.take(torch.tensor([5, 5, 0])),
    "tril": lambda z: z.tril(),
    "diagonal": lambda z: z.diagonal(1),
    "diag embed": lambda z: torch.diag_embed(z[0]),
    "unfold": lambda z: z.unfold(1, 2, 1),
    "constant pad": lambda z: F.pad(z, (1, 2, 0, 1), value=9.0),
    "negative pad": lambda z: F.pad(z, (-1, 2)),
    "squeeze": lambda z: z[:, None, :, None].squeeze(),
    "movedim": lambda z: z[None].movedim(0, 2),
    "scatter": lambda z: z.scatter(1, torch.tensor([[1], [0], [2]]), z.sin()[:, 2:3]),
    "index put": lambda z: z.index_put((torch.tensor([0, 1]), torch.tensor([1, 2])), z.sin()[0, :2]),
    "select scatter": lambda z: z.select_scatter(z[0].sin(), 0, 2),
    "swapped and back": lambda z: (z.T * 2).T.contiguous(),
    "sort": lambda z: z.sort(1).values,
    "topk": lambda z: z.topk(2, 1).values,
    "max of an axis": lambda z: z.max(1).values,
    "embedding of positions": lambda z: F.embedding(torch.tensor([1, 2, 1]), z),
    "repeat interleave": lambda z: z.repeat_interleave(2, 0),
    "kept indices of a sort": lambda z: z.sin()[:, z[0].argsort()],
    "rot90": lambda z: z.rot90(),
    "one row of many": lambda z: z[2:3].expand(4, 4).clone(),
}

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "sum of an axis": lambda z: z.sum(0),
    "sum kept": lambda z: z.sum(1, keepdim=True),
    "mean": torch.mean,
    "mean of axes": lambda z: z[None].mean((0, 2)),
    "variance": lambda z: z.var(),
    "variance of an axis": lambda z: z.var(1, correction=0),
    "standard deviation": lambda z: z.std(0, keepdim=True),
    "norm": lambda z: z.norm(),
    "norm of an axis": lambda z: z.norm(dim=1),
    "vector norm": lambda z: torch.linalg.vector_norm(z, 3, dim=0),
    "amax": lambda z: z.amax(1),
    "max": torch.max,
    "min": torch.min,
    "logsumexp": lambda z: z.logsumexp(1),
    "product": lambda z: z.prod(1),
    "cumulative sum": lambda z: z.cumsum(1),
    "median of an axis": lambda z: z.median(1).values,
    "mean square over root": lambda z: z * (z.square().mean(-1, keepdim=True) + 1e-6).rsqrt(),
}

PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "matrix on the right": lambda z: z @ MATRIX.T,
    "matrix on the left": lambda z: MATRIX.T @ z,
    "both": lambda z: z @ z.T,
    "matrix times vector": lambda z: MATRIX @ z[0],
    "vector times matrix": lambda z: z[:, 0] @ MATRIX,
    "value times vector": lambda z: z @ MATRIX[0],
    "dot": lambda z: torch.dot(z[0], z[1]),
    "linear": lambda z: F.linear(z, MATRIX, MATRIX[:, 0]),
    "linear on three axes": lambda z: F.linear(z.reshape(1, 3, 4), MATRIX, MATRIX[:, 0]),
    "linear without bias": lambda z: F.linear(z, MATRIX),
    "addmm": lambda z: torch.addmm(z @ MATRIX.T, z, MATRIX.T, alpha=2.0, beta=0.5),
    "bmm": lambda z: torch.bmm(z.reshape(2, 3, 2), MATRIX.reshape(2, 2, 3)),
    "bmm on the right": lambda z: torch.bmm(MATRIX.reshape(2, 2, 3), z.reshape(2, 3, 2)),
    "batched matmul of both": lambda z: torch.matmul(z.reshape(2, 2, 3), z.reshape(2, 3, 2)),
    "baddbmm": lambda z: torch.baddbmm(z.reshape(3, 2, 2), z.reshape(3, 2, 2), z.reshape(3, 2, 2), beta=2.0),
    "einsum": lambda z: torch.einsum("ij,kj->ik", z, MATRIX),
    "outer": lambda z: torch.outer(z[0], z[:, 1]),
    "matmul broadcast over a batch": lambda z: z.reshape(3, 2, 2) @ MATRIX[:2, :2],
}

NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(1),
    "softmax of columns": lambda z: z.softmax(0),
    "log softmax": lambda z: z.log_softmax(1),
    "softmin": lambda z: F.softmin(z, 1),
    "layer norm": lambda z: F.layer_norm(z, (4,), MATRIX[0], MATRIX[1]),
    "layer norm over two axes": lambda z: F.layer_norm(z, (3, 4)),
    "group norm": lambda z: F.group_norm(z.reshape(1, 4, 3), 2, MATRIX[0], MATRIX[1]),
    "instance norm": lambda z: F.instance_norm(z[None]),
    "batch norm in evaluation": lambda z: F.batch_norm(
        z, MATRIX[0], MATRIX[1] ** 2 + 1, MATRIX[2], MATRIX[0]
    ),
    "batch norm by the batch": lambda z: F.batch_norm(z, None, None, training=True),
    "rms norm": lambda z: F.rms_norm(z, (4,), MATRIX[0]),
    "local response": lambda z: F.local_response_norm(z.reshape(1, 4, 3), 2),
    "normalize": lambda z: F.normalize(z, dim=1),
    "attention": lambda z: F.scaled_dot_product_attention(
        z[None, None], z.sin()[None, None], z.cos()[None, None]
    ),
    "causal attention": lambda z: F.scaled_dot_product_attention(
        z[None, None], z[None, None], z[None, None], is_causal=True
    ),
    "log likelihood": lambda z: z.log_softmax(1)[torch.arange(3), torch.tensor([1, 0, 3])],
}


def circular(z: Tensor, pads: tuple[int, ...] = (1, 1, 1, 1)) -> Tensor:
    return F.pad(z, pads, mode="circular")


IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda z: F.conv2d(z, WEIGHT),
    "bias and padding": lambda z: F.conv2d(z, WEIGHT, WEIGHT[:, 0, 0, 0], padding=1),
    "padding of both kinds": lambda z: F.conv2d(z, WEIGHT, padding=(2, 0)),
    "wide padding": lambda z: F.conv2d(z, WEIGHT, padding=3),
    "stride": lambda z: F.conv2d(z, WEIGHT, stride=2, padding=1),
    "stride and dilation": lambda z: F.conv2d(z, WEIGHT, stride=(2, 1), dilation=(1, 2), padding=2),
    "dilation": lambda z: F.conv2d(z, WEIGHT, dilation=2, padding=2),
    "groups": lambda z: F.conv2d(z, WEIGHT[:1].transpose(0, 1), padding=1, groups=3),
    "groups of two": lambda z: F.conv2d(
        torch.cat([z, z[:, :1].sin()], 1), torch.cat([WEIGHT, WEIGHT.flip(2)])[:, :2], groups=2
    ),
    "one by one": lambda z: F.conv2d(z, WEIGHT[:, :, :1, :1]),
    "even kernel": lambda z: F.conv2d(z, WEIGHT[:, :, :2, :2], padding=1),
    "transposed": lambda z: F.conv_transpose2d(z, WEIGHT.transpose(0, 1)),
    "transposed with stride": lambda z: F.conv_transpose2d(
        z, WEIGHT.transpose(0, 1), stride=2, padding=1, output_padding=1
    ),
    "transposed with groups": lambda z: F.conv_transpose2d(z, WEIGHT[:1].transpose(0, 1), groups=3),
    "unbatched": lambda z: F.conv2d(z[0], WEIGHT, padding=1),
    "one axis": lambda z: F.conv1d(z[0, :, 0][None], WEIGHT[:, :, 0], padding=1),
    "three axes": lambda z: F.conv3d(
        z[:, None], WEIGHT[:1].reshape(1, 1, 3, 3, 3)[..., :2], padding=(1, 0, 1)
    ),
    "circular": lambda z: F.conv2d(circular(z), WEIGHT),
    "circular of uneven reach": lambda z: F.conv2d(circular(z, (2, 0, 0, 2)), WEIGHT),
    "circular with stride": lambda z: F.conv2d(circular(z), WEIGHT, stride=2),
    "circular and a batch": lambda z: F.conv2d(circular(torch.cat([z, z.sin()])), WEIGHT),
    "circular dilated": lambda z: F.conv2d(circular(z, (2, 2, 2, 2)), WEIGHT, dilation=2),
    "circular by index": lambda z: F.conv2d(
        z[:, :, torch.arange(-1, 6) % 5][:, :, :, torch.arange(-1, 5) % 4], WEIGHT
    ),
    "more than once around": lambda z: F.conv2d(
        z[..., torch.arange(-5, 9) % 4][:, :, torch.arange(-1, 6) % 5], WEIGHT, dilation=(1, 5)
    ),
    "circular by parts": lambda z: F.conv2d(torch.cat([z[..., -1:], z, z[..., :1]], 3), WEIGHT[:, :, :1]),
    "not quite circular": lambda z: F.conv2d(circular(z).flip(2), WEIGHT),
    "circular, too far": lambda z: F.conv2d(circular(z, (2, 2, 2, 2)), WEIGHT),
    "one tap": lambda z: F.conv2d(z, tap(1, 1), padding=1),
    "one tap beside": lambda z: F.conv2d(z, tap(0, 2), padding=1),
    "one tap, circular": lambda z: F.conv2d(circular(z), tap(1, 1)),
    "one tap beside, circular": lambda z: F.conv2d(circular(z), tap(2, 0)),
    "one tap with stride": lambda z: F.conv2d(z, tap(1, 0), padding=1, stride=2),
    "constant pad before": lambda z: F.conv2d(F.pad(z, (1, 1, 2, 2)), WEIGHT),
    "uneven pad before": lambda z: F.conv2d(F.pad(z, (0, 2, 1, 0)), WEIGHT),
    "reflection": lambda z: F.conv2d(F.pad(z, (2, 1, 1, 2), mode="reflect"), WEIGHT),
    "replication": lambda z: F.conv2d(F.pad(z, (2, 1, 1, 2), mode="replicate"), WEIGHT),
    "channel factors after": lambda z: F.batch_norm(
        F.conv2d(z, WEIGHT), MATRIX[0, :2], MATRIX[1, :2] ** 2 + 1
    ),
    "a factor after": lambda z: 3 * F.conv2d(z, WEIGHT),
    "position factors after": lambda z: F.conv2d(z, WEIGHT) * torch.arange(6.0, dtype=D).reshape(3, 2),
    "max pool": lambda z: F.max_pool2d(z, 2),
    "overlapping max pool": lambda z: F.max_pool2d(z, 3, 1, padding=1),
    "max pool of one axis": lambda z: F.max_pool1d(z[0], 2),
    "adaptive max pool": lambda z: F.adaptive_max_pool2d(z, 2),
    "max pool of three axes": lambda z: F.max_pool3d(z, 2),
    "average pool": lambda z: F.avg_pool2d(z, 2),
    "average pool, padded": lambda z: F.avg_pool2d(z, 3, 2, 1, count_include_pad=False),
    "average pool of one axis": lambda z: F.avg_pool1d(z[0], 2),
    "average pool of three axes": lambda z: F.avg_pool3d(z, 2),
    "adaptive average": lambda z: F.adaptive_avg_pool2d(z, (2, 3)),
    "global average": lambda z: F.adaptive_avg_pool2d(z, 1),
    "unbatched average": lambda z: F.avg_pool2d(z[0], 2),
    "nearest": lambda z: F.interpolate(z, scale_factor=2),
    "bilinear": lambda z: F.interpolate(z, size=(7, 6), mode="bilinear"),
    "bilinear by factor": lambda z: F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda z: F.interpolate(z, size=(7, 6), mode="bicubic"),
    "linear": lambda z: F.interpolate(z[0], size=7, mode="linear"),
    "pixel shuffle": lambda z: F.pixel_shuffle(torch.cat([z] * 4, 1), 2),
    "im2col": lambda z: F.unfold(z, 3),
    "channel shuffle": lambda z: F.channel_shuffle(z.repeat(1, 2, 1, 1), 2),
}


def tap(row: int, column: int) -> Tensor:
    kernel = torch.zeros_like(WEIGHT)
    kernel[:, :, row, column] = WEIGHT[:, :, 0, 1]
    return kernel


def in_place(z: Tensor) -> Tensor:
    y = z.sin()
    y.mul_(2)
    y[:, 1:] += z[:, :-1]
    y[0].copy_(z[1].exp())
    view = y.T
    y[2, 2] = 5.0
    return view.relu_() * y.T


def filled(z: Tensor) -> Tensor:
    out = torch.zeros(4, 5, dtype=D)
    out[:3, :4] = z
    out[:, 4] = z[0].repeat(2)[:4].sin()
    return out.clone() + out.t().sum()


def constants_that_change(z: Tensor) -> Tensor:
    scale = MATRIX.clone()
    y = z * scale
    scale.add_(1)
    return y * scale


def overwritten(z: Tensor) -> Tensor:
    y = z.sin()
    kept = y * 1
    y.zero_()
    return kept + y


BY_RULE: dict[str, Callable[[Tensor], Tensor]] = {
    "as strided": lambda z: z.sin().as_strided((2, 3), (1, 2), 1),
    "as strided from a view": lambda z: z.sin().T[1:].as_strided((2, 2), (4, 1)),
    "as strided over itself": lambda z: z.sin().as_strided((5, 4), (2, 1)),
    "scatter add": lambda z: z.sin().scatter_add(1, SPREAD, z.cos()),
    "scatter add of a part": lambda z: MATRIX.scatter_add(-1, SPREAD[:2, :3], z[:2, :3].cos()),
    "scatter reduce by sums": lambda z: z.sin().scatter_reduce(-1, SPREAD, z.cos(), "sum"),
    "index add": lambda z: z.sin().index_add(0, torch.tensor([0, 0, 2]), z.cos(), alpha=-2.5),
    "index add on the last axis": lambda z: z.sin().index_add(-1, torch.tensor([3, 3]), z[:, :2]),
    "index add to constants": lambda z: torch.zeros(5, 4, dtype=D).index_add_(0, torch.tensor([4, 4, 1]), z),
    "index put that adds": lambda z: z.sin().index_put(
        (torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2])), z[:, 0].cos(), accumulate=True
    ),
    "index put that adds rows": lambda z: z.sin().index_put(
        (torch.tensor([0, 0, 1]),), z[0].cos(), accumulate=True
    ),
    "index put that adds under a mask": lambda z: z.sin().index_put((MASK,), z[0, 0], accumulate=True),
    "index put of columns": lambda z: torch.ops.aten.index_put_(
        z.sin(), [None, torch.tensor([0, 0, 1])], z[0, :1], True
    ),
    "transposed in place by axes": lambda z: z.sin().transpose_(0, 1) * 2,
    "axes in place": lambda z: z.sin().unsqueeze_(0).squeeze_(0).swapaxes_(-1, 0),
    "cumulative sum in place": lambda z: z.sin().cumsum_(-2),
    "glu": lambda z: F.glu(z, -1),
    "glu of rows": lambda z: F.glu(torch.cat([z, z.sin()]), 0),
    "packed rows": lambda z: torch._VF._pack_padded_sequence(z.reshape(2, 3, 2), torch.tensor([3, 1]), True)[
        0
    ],
}
COMPLEX_MATRIX = torch.complex(MATRIX, MATRIX.sin())
BY_TORCH_FUNC: dict[str, Callable[[Tensor], Tensor]] = {
    "cumulative product": lambda z: z.cumprod(-1),
    "cumulative product with a zero": lambda z: (z * MASK).cumprod(1),
    "cumulative maximum": lambda z: z.cummax(1).values,
    "cumulative logsumexp": lambda z: z.logcumsumexp(0),
    "scatter reduce by means": lambda z: z.sin().scatter_reduce(
        1, SPREAD, z.cos(), "mean", include_self=False
    ),
    "scatter reduce by maxima": lambda z: z.sin().scatter_reduce(1, SPREAD, z.cos(), "amax"),
    "fold": lambda z: F.fold(z.reshape(1, 4, 3), (2, 4), 2),
    "bilinear": lambda z: F.bilinear(z, z.sin(), point(2, 4, 4), point(2)),
    "grid sample": lambda z: F.grid_sample(z[None, None], 0.4 * point(1, 2, 2, 2), align_corners=False),
    "a kernel from the input": lambda z: F.conv1d(z[None], z.sin()[:, None, :2], groups=3),
    "layer norm with weights from the input": lambda z: F.layer_norm(z, (4,), z[0].cos(), z[1]),
    "inverse": lambda z: torch.linalg.inv(z @ z.T + 3 * torch.eye(3, dtype=D)),
    "singular values": torch.linalg.svdvals,
    "distances": lambda z: torch.cdist(z.repeat(9, 1)[:26], z.repeat(9, 1)[:26] + 5 + MATRIX[0]),
    "a spectrum": lambda z: z * torch.fft.fft(z).real + torch.fft.fft(z).imag,
    "filtered frequencies": lambda z: torch.fft.irfft(
        torch.fft.rfft(z, dim=-1) * COMPLEX_MATRIX[:, :3], n=4, dim=-1
    ),
    "two-dimensional frequencies": lambda z: torch.fft.fft2(z).abs(),
    "short-time spectra": lambda z: torch.stft(
        z.repeat(2, 2).reshape(-1), 8, 2, window=torch.hann_window(8, dtype=D), return_complex=True
    ).abs(),
    "complex weights": lambda z: (torch.complex(z, z.sin()) @ COMPLEX_MATRIX.T).abs(),
    "conjugates": lambda z: (lambda c: (c.conj() * c * 1j).imag + (c @ c.mH).real.sum())(torch.fft.fft(z)),
    "rotation of pairs": lambda z: torch.view_as_real(
        torch.view_as_complex(z.reshape(3, 2, 2)).conj() * COMPLEX_MATRIX[:, :2]
    ),
    "complex in place": lambda z: (lambda c: c.mul_(2 + 1j).real)(torch.fft.fft(z)),
    "imaginary part written": lambda z: (lambda c: (c.imag.mul_(z), c * c)[-1].real)(torch.fft.fft(z)),
    "conjugate added in place": lambda z: (lambda c: (c.add_(c.conj()), c.conj().imag * z)[-1])(
        torch.fft.fft(z)
    ),
}

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "a mixture": in_place,
    "a buffer filled by parts": filled,
    "constants that change": constants_that_change,
    "overwritten by zeros": overwritten,
    "relu after its argument was used": lambda z: (lambda y: y * y.clone().relu_())(z.sin()),
    "add to the value": lambda z: z.clone().add_(z.sin()),
    "masked fill": lambda z: z.sin().masked_fill_(MASK, 0.0),
    "index put": lambda z: (lambda y: y.index_put_((torch.tensor([0, 1]),), z[1:].cos()))(z.sin()),
    "clamp": lambda z: z.sin().clamp_(min=0),
    "through a view of a view": lambda z: (lambda y: (y.view(-1)[2:8].view(2, 3).mul_(z[:2, :3]), y)[1])(
        z.sin()
    ),
    "transposed in place": lambda z: z.sin().t_(),
    "exchanged": lambda z: (lambda y: (y[0].copy_(y[1].clone()), y)[1])(z.sin()),
    "a value saved before": lambda z: (lambda y: (lambda w: w + y.mul_(3))(y.tanh()))(z.sin()),
}


def dense(replay: Replay, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    n, m = z.numel(), y.numel()
    forward = replay.matmat(torch.eye(n, dtype=z.dtype).reshape(n, *z.shape)).reshape(n, m).T
    return forward, replay.rmatmat(torch.eye(m, dtype=z.dtype).reshape(m, *y.shape)).reshape(m, n)


def assert_dense(function: Callable[[Tensor], Tensor], z: Tensor, *, single_taps: bool = True) -> Replay:
    with strict_numerics(z.device):
        replay = linearise(function, z, single_taps=single_taps)
        y = function(z.clone())
        # Reverse mode cannot do without a constant that is written over.
        jacobian = torch.func.jacfwd if function is constants_that_change else torch.func.jacrev
        reference = jacobian(lambda x: function(x.clone()))(z).reshape(y.numel(), z.numel())
    # Sums of at most a few hundred terms in float64.
    bound = 1e-13 * max(1.0, float(reference.abs().max()))
    before = z.clone()
    for found in dense(replay, z, y):
        assert torch.allclose(found, reference, rtol=0, atol=bound)
    assert torch.equal(z, before)
    return replay


def point(*shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=D).mul(37).sin().mul(1.5).reshape(shape)


SMALL = {
    **ENTRYWISE,
    **MOVEMENT,
    **{f"{k} (reduced)": f for k, f in REDUCTIONS.items()},
    **PRODUCTS,
    **NORMALISATIONS,
}


@pytest.mark.parametrize("name", SMALL)
def test_operations_on_a_matrix(name: str) -> None:
    assert_dense(SMALL[name], point(3, 4))


@pytest.mark.parametrize("name", IN_PLACE)
def test_writing_in_place(name: str) -> None:
    assert_dense(IN_PLACE[name], point(3, 4))


@pytest.mark.parametrize("name", [*BY_RULE, *BY_TORCH_FUNC])
def test_operations_that_add_up_or_are_complex(name: str) -> None:
    replay = assert_dense({**BY_RULE, **BY_TORCH_FUNC}[name], point(3, 4))
    assert bool(replay.by_torch_func) == (name in BY_TORCH_FUNC)


def test_grouped_products() -> None:
    """As in a mixture of experts, in float32: the kernel has no other type."""
    weights, ends = point(2, 16, 8).float(), torch.tensor([4, 12], dtype=torch.int32)
    z = point(12, 16).float()
    replay = linearise(lambda z: torch._grouped_mm(z, weights, offs=ends), z)
    assert replay.by_torch_func == ("_grouped_mm",)
    v, u = point(3, 12, 16).float(), point(3, 12, 8).float()
    by_row = weights[(torch.arange(12) >= 4).long()]
    assert torch.allclose(replay.matmat(v), torch.einsum("krp,rpq->krq", v, by_row), atol=1e-4)
    assert torch.allclose(replay.rmatmat(u), torch.einsum("krq,rpq->krp", u, by_row), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_packed_sequences(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 3, batch_first=True, bidirectional=True).to(D)

    def model(z: Tensor) -> Tensor:
        packed = pack_padded_sequence(z, torch.tensor([2, 4, 3]), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

    operator = JacobianOperator(model, point(3, 4, 4))
    assert operator.backend == "replay"
    dense_one = torch.autograd.functional.jacobian(model, point(3, 4, 4)).reshape(operator.shape)
    columns = operator.matmat(torch.eye(48, dtype=D).reshape(48, 3, 4, 4)).reshape(48, -1).T
    assert torch.allclose(columns, dense_one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", IMAGES)
def test_operations_on_images(name: str) -> None:
    assert_dense(IMAGES[name], point(*IMAGE))


SIZES = [(8, 9), (5, 4), (1, 2)]
KERNELS = [
    ((3, 3), 1, 1),
    ((3, 3), 2, 1),
    ((3, 2), (2, 3), (0, 1)),
    ((1, 1), 2, 0),
    ((2, 2), 2, 0),
    ((4, 4), 3, 2),
    ((1, 3), (1, 2), (0, 1)),
    # Larger than the smallest map: most of its taps read nothing but padding.
    ((7, 5), (2, 1), (3, 4)),
]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 2)], ids=str)
@pytest.mark.parametrize(
    ("taps", "stride", "padding", "dilation"),
    [(7, 1, 3, 1), (7, 2, 3, 1), (5, 1, 4, 2), (4, 1, 3, 1), (5, 3, 6, 3), (3, 1, 2, 2), (6, 1, 5, 1)],
)
def test_taps_that_read_nothing_but_padding(
    taps: int, stride: int, padding: int, dilation: int, size: tuple[int, int]
) -> None:
    weight = torch.randn(4, 2, taps, taps, dtype=D, generator=torch.Generator().manual_seed(0))

    def model(z: Tensor) -> Tensor:
        return F.conv2d(z, weight, None, stride, padding, dilation, groups=2)

    assert_dense(model, point(1, 4, *size))


def test_a_kernel_on_one_position_keeps_one_tap() -> None:
    convolution = torch.nn.Conv2d(3, 5, 7, padding=3)
    (edge,) = graph_of(record(convolution, torch.randn(1, 3, 1, 1))).edges
    assert edge.map.weight.shape == (5, 3, 1, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(3, 2, 1), (20, 3, 1), (4, 6, 2)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_float32_convolutions_in_the_layouts_of_the_processor(
    kernel: tuple, channels: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Channels last on large maps, phases for strides on small ones and for few channels; against float64."""
    (taps, stride, padding), (inputs, outputs, groups) = kernel, channels
    if any(
        n + 2 * (padding if isinstance(padding, int) else padding[i]) < taps[i] for i, n in enumerate(size)
    ):
        pytest.skip("the kernel does not fit on the map")
    weight = point(outputs, inputs // groups, *taps)

    def convolve(z: Tensor) -> Tensor:
        return F.conv2d(z, weight.to(z.dtype), stride=stride, padding=padding, groups=groups)

    generator = torch.Generator().manual_seed(0)
    z = torch.randn((1, inputs, *size), generator=generator, dtype=D)
    v = torch.randn((3, *z.shape), generator=generator, dtype=D)
    y = convolve(z)
    u = torch.randn((3, *y.shape), generator=generator, dtype=D)
    replay = linearise(convolve, z.float())
    pull = torch.func.vjp(convolve, z)[1]
    expected = torch.stack([convolve(one) for one in v]), torch.stack([pull(one)[0] for one in u])
    # Sums of at most 180 products.
    for found, right in zip((replay.matmat(v.float()), replay.rmatmat(u.float())), expected, strict=True):
        assert torch.allclose(found.double(), right, rtol=0, atol=2e-5)


def test_a_circular_float32_network_goes_channels_last_all_the_way() -> None:
    """Wrapped by rows of channels, multiplied in that layout, and back at the ends; a batch of two and a skip."""
    weights = [0.2 * point(4, 4, 3, 3), 0.2 * point(6, 4, 3, 3)]

    def network(z: Tensor) -> Tensor:
        y = torch.tanh(F.conv2d(circular(z), weights[0].to(z.dtype)))
        return torch.tanh(F.conv2d(circular(y + z), weights[1].to(z.dtype)))

    z = point(2, 4, 8, 9)
    wide, replay = linearise(network, z), linearise(network, z.float())
    v, u = point(3, 2, 4, 8, 9), point(3, 2, 6, 8, 9)
    assert torch.allclose(replay.matmat(v.float()).double(), wide.matmat(v), rtol=0, atol=1e-5)
    assert torch.allclose(replay.rmatmat(u.float()).double(), wide.rmatmat(u), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in IMAGES if "one tap" in name])
def test_a_single_tap_as_a_whole_kernel(name: str) -> None:
    assert_dense(IMAGES[name], point(*IMAGE), single_taps=False)
