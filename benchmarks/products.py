"""What a Jacobian product costs, in forward passes of the same model on the same batch, and what its set-up costs.

Claims measured here: (1) J v and J^T u by replay cost at most one forward pass on blocks of 16 and 64 probes and 1.5
on a single one, for circular and zero-padded CNNs and for a ResNet-18; (2) the set-up is linear in depth. Beside it,
and not counted for the claims, what torch.func costs, and what is gained where operations can be left out: kernels of
one tap (delta-orthogonal), circular convolutions by frequency. Process time, interleaved within one run, medians of
the ratios with their range. On CUDA also the share of the convolutions alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from harness.record_file import parser, write_record
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import isometry
from isometry.jacobian.replay import linearise
from isometry.jacobian.replay.cuda_graph import Graphed, capture_on_one_pool
from isometry.nn import VanillaCNN

BARS = {1: 1.5, 16: 1.0, 64: 1.0}


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


def resnet18() -> nn.Module:
    stem = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    widths = [64, 64, 128, 256, 512]
    stages = [
        BasicBlock(a if first else b, b, 2 if first and a != b else 1)
        for a, b in itertools.pairwise(widths)
        for first in (True, False)
    ]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def zero_padded(depth: int, channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers)


def interleaved(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Times of each call, in rounds; process time on a processor, so that other work on the machine counts less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        # On a GPU a product is captured as a graph at the third call.
        for _ in range(4 if device == "cuda" else 1):
            call()
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize()
            start = clock()
            call()
            synchronize()
            times[name].append(clock() - start)
    return times


def ratios(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median and range of the pairwise ratios."""
    pairs = [a / b for a, b in zip(times, reference, strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def cost(
    model: nn.Module, x: Tensor, probes: list[int], options: argparse.Namespace
) -> list[dict[str, object]]:
    """Rows of ratios to the forward pass, one for each number of probes."""
    model, x = model.to(options.device), x.to(options.device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    operator = isometry.JacobianOperator(model, x)
    single = x if operator.input_shape == x.shape else x[0]
    with torch.no_grad():
        plain = linearise(model, single, single_taps=False, fourier=False)
        value = model(single)
        pull, rows = vmap(vjp(model, single)[1]), []
        push = vmap(lambda v: jvp(model, (single,), (v,))[1])
        for k in probes:
            v, u = torch.randn(k, *single.shape).to(x), torch.randn(k, *value.shape).to(x)
            batch = v if single.dim() == 3 else v.flatten(0, 1)
            calls: dict[str, Callable[[], object]] = {
                "forward": lambda batch=batch: model(batch),
                "replay J v": lambda v=v: plain.matmat(v),
                "replay J^T u": lambda u=u: plain.rmatmat(u),
                "operator J v": lambda v=v: operator.matmat(v),
                "operator J^T u": lambda u=u: operator.rmatmat(u),
                "torch.func J v": lambda v=v: push(v),
                "torch.func J^T u": lambda u=u: pull(u),
            }
            times = interleaved(calls, options.repeats, options.device)
            row: dict[str, object] = {"k": k, "forward seconds": statistics.median(times["forward"])}
            row |= {name: ratios(times[name], times["forward"]) for name in list(calls)[1:]}
            if options.device == "cuda":
                row["share of convolutions alone in J v"] = convolution_share(
                    model, batch, times["replay J v"]
                )
            row["within the bar"] = all(row[f"replay {p}"]["median"] <= BARS[k] for p in ("J v", "J^T u"))
            rows.append(row)
            text = ", ".join(f"{name} {row[name]['median']:.2f}" for name in list(calls)[1:])
            print(f"  k = {k:2d}: {text}{'' if row['within the bar'] else '   ABOVE THE BAR'}", flush=True)
    return rows


class Convolutions(TorchDispatchMode):
    """Keeps the arguments of all convolutions inside it, whatever module or function they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[tuple[object, ...]] = []

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is torch.ops.aten.convolution.default:
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


def convolution_share(model: nn.Module, batch: Tensor, product: list[float]) -> float:
    """Time of the model's convolutions alone, without bias, on what enters them, over the time of a product.

    As one CUDA graph, as the product is: else it would be the time of launching them.
    """
    convolutions = Convolutions()
    with convolutions:
        model(batch)

    def alone(out: Tensor) -> Tensor:
        for x, weight, _, *geometry in convolutions.arguments:
            out = torch.ops.aten.convolution.default(x, weight, None, *geometry)
        return out

    graph = Graphed(alone, capture_on_one_pool())
    times = interleaved({"alone": lambda: graph(batch)}, len(product), "cuda")["alone"]
    return statistics.median(times) / statistics.median(product)


def tf32_error(model: nn.Module, x: Tensor) -> dict[str, float]:
    """|J v - exact| / |exact| of 16 products in float32, with and without TF32; exact is a product in float64."""
    v = torch.randn(16, *isometry.JacobianOperator(model, x).input_shape).to(x)
    exact = isometry.JacobianOperator(model, x, dtype=torch.float64).matmat(v)
    errors = {}
    for name, tf32 in (("without TF32", False), ("with TF32", True)):
        found = isometry.JacobianOperator(model, x, tf32=tf32).matmat(v)
        errors[name] = float((found - exact).norm() / exact.norm())
    print(
        f"  error of J v: {errors['without TF32']:.1e} without TF32, {errors['with TF32']:.1e} with",
        flush=True,
    )
    return errors


def set_up(depths: list[int], init: str) -> list[dict[str, object]]:
    """Seconds to make an operator of a circular CNN, 16 channels on 8 x 8, over those of one forward pass.

    Medians of five, three from depth 5000 on, interleaved with forward passes.
    """
    rows: list[dict[str, object]] = []
    x = torch.randn(16, 8, 8)
    isometry.JacobianOperator(VanillaCNN(depth=2, channels=16, init=init), x)
    for depth in depths:
        model = VanillaCNN(depth=depth, channels=16, init=init, seed=0)
        calls = {"forward": lambda m=model: m(x), "set-up": lambda m=model: isometry.JacobianOperator(m, x)}
        with torch.no_grad():
            times = interleaved(calls, 5 if depth < 5000 else 3, "cpu")
        forwards = ratios(times["set-up"], times["forward"])
        seconds, forward = (statistics.median(times[name]) for name in ("set-up", "forward"))
        rows.append({"depth": depth, "seconds": seconds, "forward seconds": forward, "forwards": forwards})
        print(
            f"  {init}, depth {depth}: {seconds:.2f} s, {forwards['median']:.0f} forward passes", flush=True
        )
    return rows


def main() -> None:
    arguments = parser(__doc__, "products")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--probes", type=int, nargs="+", default=list(BARS), choices=list(BARS))
    arguments.add_argument("--depths", type=int, nargs="*", default=[100, 1000, 10_000])
    options = arguments.parse_args()
    torch.manual_seed(0)
    image, photo = torch.randn(64, 8, 8), torch.randn(1, 3, 64, 64)
    models = {
        "circular tanh CNN, depth 32, 64 channels, 8x8, Gaussian": (
            VanillaCNN(depth=32, channels=64, sigma_w=1.02, init="gaussian", seed=0), image
        ),
        "zero-padded tanh CNN, depth 32, 64 channels, 8x8": (zero_padded(32, 64), image),
        "ResNet-18, 3x64x64": (resnet18(), photo),
        "circular tanh CNN, delta-orthogonal (one tap; not a claim)": (
            VanillaCNN(depth=32, channels=64, sigma_w=1.02, seed=0), image
        ),
    }  # fmt: skip
    result: dict[str, object] = {
        "claim": "a product by replay costs at most one forward pass of the same batch at 16 and 64 probes, 1.5 at one",
        "note": "'replay' multiplies every tap; 'operator' is what a measurement takes: kernels of one tap as matrices "
        "over channels, circular convolutions by frequency where that is cheaper, and strict float32",
        "models": {},
    }
    for name, (model, x) in models.items():
        print(name, flush=True)
        result["models"][name] = cost(model, x, options.probes, options)
        if options.device == "cuda":
            result.setdefault("relative error of J v", {})[name] = tf32_error(model, x.to("cuda"))
    if options.depths and options.device == "cpu":
        print("set-up, 16 channels, 8x8", flush=True)
        # Gaussian kernels in float32 only as deep as their Jacobian stays in its range.
        result["set-up"] = {
            "delta_orthogonal": set_up(options.depths, "delta_orthogonal"),
            "gaussian": set_up([depth for depth in options.depths if depth <= 1000], "gaussian"),
        }
    claimed = [row for name, rows in result["models"].items() if "not a claim" not in name for row in rows]
    result["all within the bars"] = all(row["within the bar"] for row in claimed)
    result |= {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "repeats": options.repeats,
    }
    write_record(options.out, result)
    print("all within the bars" if result["all within the bars"] else "NOT all within the bars")


if __name__ == "__main__":
    main()
