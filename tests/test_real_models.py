"""Real architectures: lanczos and randomized agree with exact within the errors they state.

Exact itself is held against the SVD of a Jacobian from plain autograd. Weights are random: agreement does not depend on
them, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.measurement import measure
from isometry.spectrum import Spectrum


@dataclass(frozen=True)
class Case:
    """A model with an input, the options that choose the part, and the same part as a plain function."""

    model: nn.Module
    x: Tensor
    options: dict[str, Any]
    function: Callable[[Tensor], Tensor]
    point: Tensor


def whole(model: nn.Module, x: Tensor, **options: Any) -> Case:
    return Case(model, x, options, model, x)


# ---- the networks ------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """He et al. 2016 (arXiv 1512.03385), figure 5 left."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + self.shortcut(x))


class ResNet18(nn.Module):
    """With ``width`` 64 and 1000 classes, the network of table 1."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            stages += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((-2, -1)))


def with_statistics(model: nn.Module) -> nn.Module:
    """Evaluation mode with running statistics as training leaves them: neither 0 nor 1."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model.eval()


def small_resnet() -> Case:
    return whole(with_statistics(ResNet18(width=4, classes=30)).double(), torch.randn(1, 3, 16, 16).double())


def vision_transformer() -> Case:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a dev extra: no ViT is tested here"
    )
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        num_labels=20,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).double().eval()
    x = torch.randn(1, 3, 16, 16).double()
    return Case(model, x, {"output": "logits"}, lambda z: model(z).logits, x)


def gpt2() -> Case:
    """From the embeddings to the logits: what enters the first block is the sum of both embeddings."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a dev extra: no GPT-2 is tested here"
    )
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    # Trained embeddings are of order one; as initialised, 0.02, LayerNorm alone would decide.
    nn.init.normal_(model.transformer.wte.weight)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    inner = model.transformer
    entering = (inner.wte(tokens) + inner.wpe(torch.arange(5))).detach()
    return Case(
        model, tokens, {"source": "transformer.h.0", "output": "logits"},
        lambda z: model(inputs_embeds=z - inner.wpe(torch.arange(5))).logits, entering,
    )  # fmt: skip


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return whole(nn.TransformerEncoder(layer, 2).double().eval(), torch.randn(1, 6, 16).double())


def lstm() -> Case:
    model, x = nn.LSTM(10, 12, num_layers=2).double(), torch.randn(8, 10).double()
    return Case(model, x, {"output": 0}, lambda z: model(z)[0], x)


def linear_network() -> Case:
    return whole(nn.Sequential(*[nn.Linear(70, 70) for _ in range(3)]).double(), torch.randn(70).double())


CASES = {
    "ResNet-18, narrow": small_resnet,
    "vision transformer": vision_transformer,
    "GPT-2": gpt2,
    "TransformerEncoder": encoder,
    "LSTM": lstm,
    "linear network": linear_network,
}


# ---- agreement ---------------------------------------------------------------------------------------------


def assert_agrees(estimate: Spectrum, exact: Spectrum, slack: float) -> None:
    """Every number of the estimate within its own stated error of the exact one; ``slack`` is rounding of s_max."""
    s = exact.distribution.nodes[0, 0]
    assert estimate.shape == exact.shape
    assert estimate.null_dimension == exact.null_dimension
    # s_max: from below, and within its residual.
    assert estimate.s_max <= s[0] + slack
    assert s[0] - estimate.s_max <= estimate.s_max_residual + slack
    assert estimate.s_max_residual < 0.2 * s[0]
    # Every top value has a true one within its residual.
    top, residual = estimate.extremes.top[0], estimate.extremes.top_residual[0]
    assert np.all(np.abs(top[:, None] - s).min(axis=1) <= residual + slack)
    # s_min: from above, and not claimed unless it is known.
    assert estimate.s_min_bound >= s[-1] - slack
    if not np.isnan(estimate.s_min):
        assert estimate.s_min == pytest.approx(s[-1], abs=estimate.s_min_residual + slack)
    # The mean square in its interval of level 0.9999; the law of the probes puts its standard error below 40 % here.
    low, high = estimate.mean_square_interval(0.9999)
    assert low - slack * s[0] <= exact.mean_square <= high + slack * s[0]
    assert estimate.mean_square_stderr < 0.4 * exact.mean_square
    # The cdf between the truncation bounds, moved by the statistics of Dirichlet masses: six standard deviations
    # sqrt(2 F (1 - F) / d / probes).
    places = np.geomspace(max(estimate.floor, 1e-9 * s[0]), 1.1 * s[0], 60)
    places = places[np.abs(places[:, None] - s).min(axis=1) > 1e-6 * places]
    cdf = exact.cdf(places)
    lower, upper = estimate.cdf_bounds(places)
    band = 6 * np.sqrt(2 * cdf * (1 - cdf) / s.size / estimate.n_probes) + 1e-9
    assert np.all(lower - band <= cdf)
    assert np.all(cdf <= upper + band)


@pytest.mark.parametrize("name", CASES)
def test_stochastic_methods_agree_with_exact_and_exact_with_autograd(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    exact = measure(case.model, case.x, "exact", **case.options)
    dense = torch.autograd.functional.jacobian(case.function, case.point)
    dense = dense.reshape(-1, case.point.numel()).numpy()
    assert exact.shape == dense.shape
    reference = np.linalg.svd(dense, compute_uv=False)
    # Two ways to differentiate in float64: the stated 8 units of rounding, and as many for the other way.
    noise = 16 * np.finfo(float).eps * reference[0]
    assert exact.distribution.nodes[0, 0] == pytest.approx(reference, abs=noise)
    lanczos = measure(case.model, case.x, "lanczos", probes=8, steps=15, **case.options)
    assert lanczos.products <= 8 * 2 * 15
    assert_agrees(lanczos, exact, noise)
    # Krylov on the rest takes it below a fifth of s_max where a bare sketch would not.
    randomized = measure(case.model, case.x, "randomized", rank=8, probes=6, steps=12, **case.options)
    assert_agrees(randomized, exact, noise)


@pytest.mark.slow
def test_resnet18_at_64_by_64() -> None:
    """J is 1000 x 12288, in float32. A quarter of a minute on one core."""
    torch.manual_seed(0)
    model, x = with_statistics(ResNet18()), torch.randn(1, 3, 64, 64)
    exact = measure(model, x, "exact")
    assert exact.shape == (1000, 12288)
    assert exact.null_dimension == 11288
    # J passes through those of the 512 features that are not cut off by the last ReLU: all other singular values are
    # zero, and reported as such.
    alive = int((model.stages(model.stem(x)) > 0).any(-1).any(-1).sum())
    assert 300 < alive <= 512
    assert exact.below_floor == pytest.approx(1 - alive / 1000, abs=1e-12)
    noise = 16 * np.finfo(np.float32).eps * exact.s_max
    lanczos = measure(model, x, "lanczos", probes=4, steps=20)
    assert_agrees(lanczos, exact, noise)
    assert lanczos.products == 160
    assert_agrees(measure(model, x, "randomized", rank=10, probes=4, steps=12), exact, noise)
