"""Blocks of real architectures of transformers, small and with random weights, against dense Jacobians in float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from isometry.depth.recorded_blocks import recorded_blocks
from isometry.errors import ConvergenceWarning
from isometry.jacobian import JacobianSegments

transformers = pytest.importorskip(
    "transformers", reason="transformers is a dev extra: blocks of its models are not tested here"
)

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


class Part(nn.Module):
    """A model as a function of one of its tensors, with one of its outputs."""

    def __init__(self, model: nn.Module, argument: str, output: str = "logits") -> None:
        super().__init__()
        self.m, self.argument, self.output = model, argument, output

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.m(**{self.argument: x}), self.output)


def gpt2() -> tuple[nn.Module, tuple[int, ...]]:
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=10, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return Part(transformers.GPT2LMHeadModel(config), "inputs_embeds"), (1, 3, 8)


def llama() -> tuple[nn.Module, tuple[int, ...]]:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=10, **SMALL))
    return Part(model, "inputs_embeds"), (1, 3, 8)


def bert() -> tuple[nn.Module, tuple[int, ...]]:
    model = transformers.BertModel(transformers.BertConfig(vocab_size=10, **SMALL))
    return Part(model, "inputs_embeds", "last_hidden_state"), (1, 3, 8)


def vit() -> tuple[nn.Module, tuple[int, ...]]:
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_labels=3, **SMALL)
    return Part(transformers.ViTForImageClassification(config), "pixel_values"), (1, 3, 4, 4)


def convnext() -> tuple[nn.Module, tuple[int, ...]]:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 2], num_stages=2, num_labels=3)
    return Part(transformers.ConvNextForImageClassification(config), "pixel_values"), (1, 3, 8, 8)


def resnet() -> tuple[nn.Module, tuple[int, ...]]:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2], layer_type="basic", num_labels=3
    )
    return Part(transformers.ResNetForImageClassification(config), "pixel_values"), (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "named", "sums"),
    [
        (gpt2, ["m.transformer.h.0", "m.transformer.h.1", "m.transformer.ln_f", "m.lm_head"], 4),
        (llama, ["m.model.layers.0", "m.model.layers.1", "m.model.norm", "m.lm_head"], 4),
        (bert, ["m.embeddings.LayerNorm", "m.encoder.layer.0", "m.encoder.layer.1"], 4),
        (vit, ["m.vit.layers.0", "m.vit.layers.1", "m.vit.layernorm", "m.classifier"], 4),
        (convnext, [f"m.convnext.encoder.stages.{k}" for k in ("0.layers.0", "1.layers.0", "1.layers.1")], 3),
        (resnet, [f"m.resnet.encoder.stages.{k}" for k in ("0.layers.0", "1.layers.0", "1.layers.1")], 2),
    ],
)
def test_blocks_of_real_architectures_multiply_to_the_jacobian(make, named: list[str], sums: int) -> None:
    torch.manual_seed(0)
    model, shape = make()
    model = model.double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    # Llama casts to float32 in its norms, whatever the dtype of the model.
    with pytest.warns(ConvergenceWarning, match="float32") if make is llama else nullcontext():
        segments = JacobianSegments(model, x)
    blocks = recorded_blocks(segments)
    names = [block.name for block in blocks]
    assert [name for name in names if name in named] == named
    assert sum(segment.is_residual for segment in segments.segments) == sums
    product = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    for block in blocks:
        product = segments.operator(block.start, block.stop).matmat(product)
    expected = torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())
    atol = (1e-6 if make is llama else 1e-12) * float(expected.abs().max())
    torch.testing.assert_close(product.reshape(x.numel(), -1).T, expected, rtol=0, atol=atol)
