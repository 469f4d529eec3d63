"""Real models with random weights, as their libraries build them: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], tuple[Callable[[Tensor], Tensor], nn.Module, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A model of a library, and how to build it: (function of one tensor, its module, its input)."""

    library: str
    name: str
    build: Build


def image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


OF_32_PIXELS = (
    "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "densenet121", "squeezenet1_1", "shufflenet_v2_x1_0", "efficientnet_b0", "mnasnet1_0", "regnet_y_400mf",
    "regnet_x_400mf", "vgg11_bn", "convnext_tiny", "swin_t", "swin_v2_t",
)  # fmt: skip
TORCHVISION = {**dict.fromkeys(OF_32_PIXELS, 32), "alexnet": 64}
OF_ANY_SIZE = (
    "resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "ghostnet_100", "convnext_atto", "convnextv2_atto",
    "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "nf_regnet_b0", "tinynet_e", "fastvit_t8",
    "repvit_m0_9", "lcnet_050", "poolformer_s12", "hardcorenas_a",
)  # fmt: skip
OF_ONE_SIZE = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "resmlp_12_224", "xcit_nano_12_p16_224",
)  # fmt: skip
TIMM: dict[str, int | None] = {**dict.fromkeys(OF_ANY_SIZE), **dict.fromkeys(OF_ONE_SIZE, 64)}
TWENTY = [
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "shufflenet_v2_x1_0",
    "efficientnet_b0", "mnasnet1_0", "regnet_y_400mf", "vgg11_bn", "convnext_tiny", "resnet10t",
    "mobilenetv3_small_050", "ghostnet_100", "convnext_atto", "edgenext_xx_small", "nf_regnet_b0",
    "vit_tiny_patch16_224", "mixer_s32_224",
]  # fmt: skip


def of_torchvision(name: str, classes: int) -> Build:
    def build():
        import torchvision

        size = TORCHVISION[name]
        model = getattr(torchvision.models, name)(num_classes=classes).eval()
        return model, model, image(size)

    return build


def of_timm(name: str, classes: int) -> Build:
    def build():
        import timm

        options = {} if TIMM[name] is None else {"img_size": TIMM[name]}
        model = timm.create_model(name, num_classes=classes, **options).eval()
        return model, model, image(64)

    return build


_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40,
    "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16}
TEXT: dict[str, dict[str, Any]] = {
    "Bert": {}, "Roberta": {}, "Electra": {"embedding_size": 16}, "Albert": {"embedding_size": 16}, "GPT2": _GPT2,
    "Llama": _GROUPED, "Mistral": _GROUPED, "Qwen2": {"num_key_value_heads": 1}, "Gemma": _GROUPED,
    "Mixtral": {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 2}, "GPTNeoX": {},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "Bloom": {"n_layer": 2, "n_head": 2}, "Mamba": {"state_size": 4},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, "Phi": {}, "DebertaV2": {},
}  # fmt: skip


def of_transformers(name: str) -> Build:
    def build():
        import transformers

        given = {**_SIZES, **TEXT[name]} if TEXT[name] is not _GPT2 else _GPT2
        config = getattr(transformers, f"{name}Config")(**given)
        model = getattr(transformers, f"{name}Model")(config).eval()
        x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
        return (lambda z: model(inputs_embeds=z).last_hidden_state), model, x

    return build


def t5():
    import transformers

    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40)
    model, x = transformers.T5Model(config).eval(), torch.randn(1, 4, 16)
    return (lambda z: model(inputs_embeds=z, decoder_inputs_embeds=x.to(z)).last_hidden_state), model, x


def vision(kind: str, **options: Any) -> Build:
    def build():
        import transformers

        model = getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{kind}Config")(**options)
        ).eval()
        return (lambda z: model(pixel_values=z).pooler_output), model, image(32)

    return build


def unet():
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    return (lambda z: model(z, 10).sample), model, torch.randn(1, 1, 8, 8)


def conditional_unet():
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    ).eval()  # fmt: skip
    text = torch.randn(1, 3, 8)
    return (lambda z: model(z, 10, encoder_hidden_states=text.to(z)).sample), model, torch.randn(1, 1, 8, 8)


def decoder_of_a_vae():
    import diffusers

    model = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,), latent_channels=2, norm_num_groups=4,
    ).eval()  # fmt: skip
    return (lambda z: model.decode(z).sample), model, torch.randn(1, 2, 6, 6)


EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 5, 0, 5, 2], [1, 0, 2, 1, 4, 3, 0, 5, 2, 5]])


def graph(kind: str, **options: Any) -> Build:
    def build():
        import torch_geometric.nn as geometric

        if kind == "GINConv":
            layers = [geometric.GINConv(nn.Linear(4, 6)), geometric.GINConv(nn.Linear(6, 3))]
        elif kind == "EdgeConv":
            layers = [geometric.EdgeConv(nn.Linear(8, 6)), geometric.EdgeConv(nn.Linear(12, 3))]
        else:
            layers = [getattr(geometric, kind)(4, 6, **options), getattr(geometric, kind)(6, 3, **options)]
        model = nn.ModuleList(layers).eval()
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        return (lambda z: model[1](torch.tanh(model[0](z, EDGES)), EDGES)), model, x

    return build


def ode(solver: str, **options: Any) -> Build:
    def build():
        import torchdiffeq

        class Field(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))

            def forward(self, t: Tensor, z: Tensor) -> Tensor:
                return self.layers(z)

        field = Field()

        def flow(z: Tensor) -> Tensor:
            times = torch.tensor([0.0, 1.0], dtype=z.dtype)
            return getattr(torchdiffeq, solver)(field, z, times, **options)[-1]

        return flow, field, torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    return build


CATALOGUE = [
    *(Entry("transformers", name, of_transformers(name)) for name in TEXT),
    Entry("transformers", "T5", t5),
    Entry("transformers", "ViT", vision("ViT", image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2,
                                         num_attention_heads=2, intermediate_size=32)),
    Entry("transformers", "ConvNext", vision("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
    Entry("transformers", "Swin", vision("Swin", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2],
                                         num_heads=[2, 2], window_size=4)),
    Entry("diffusers", "UNet2DModel", unet),
    Entry("diffusers", "UNet2DConditionModel", conditional_unet),
    Entry("diffusers", "AutoencoderKL.decode", decoder_of_a_vae),
    *(Entry("torch_geometric", kind, graph(kind)) for kind in
      ("GCNConv", "SAGEConv", "GINConv", "EdgeConv", "GraphConv", "TransformerConv", "GATConv", "GATv2Conv")),
    Entry("torch_geometric", "ChebConv", graph("ChebConv", K=3)),
    Entry("torchdiffeq", "odeint, rk4", ode("odeint", method="rk4", options={"step_size": 0.25})),
    Entry("torchdiffeq", "odeint, dopri5", ode("odeint", rtol=1e-6, atol=1e-8)),
    Entry("torchdiffeq", "odeint_adjoint, rk4", ode("odeint_adjoint", method="rk4", options={"step_size": 0.25},
                                                    adjoint_params=())),
    *(Entry("torchvision", name, of_torchvision(name, 10)) for name in TORCHVISION),
    *(Entry("timm", name, of_timm(name, 10)) for name in TIMM),
]  # fmt: skip
THOUSAND = [
    *(Entry("torchvision", name, of_torchvision(name, 1000)) for name in TWENTY if name in TORCHVISION),
    *(Entry("timm", name, of_timm(name, 1000)) for name in TWENTY if name in TIMM),
]
