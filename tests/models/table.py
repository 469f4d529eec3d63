"""The table of real models: measured against autograd in float64, backend, time against jacrev and an SVD.

    make test-models          # everything; what has been measured before is kept

Writes ``table.json`` beside this file and the table of ``docs/models.md``. Times are processor times of one thread, the
least of a few runs, of ``measure(model, x, "exact")`` and of ``torch.func.jacrev`` with ``torch.linalg.svdvals``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogue import CATALOGUE, THOUSAND, Entry
from torch import Tensor

import isometry
from isometry.jacobian.numerics import strict_numerics

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "table.json", HERE.parents[1] / "docs" / "models.md"
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "diffusers", "torch_geometric", "torchdiffeq")
MARKS = "<!-- table: tests/models/table.py -->\n", "<!-- end of the table -->\n"


def rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """J by plain autograd, row by row."""
    with strict_numerics(x.device), torch.enable_grad():
        z = x.clone().requires_grad_()
        y = function(z)
        found = [torch.autograd.grad(e, z, retain_graph=True)[0].reshape(-1) for e in y.reshape(-1)]
    return torch.stack(found)


def least(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def by_jacrev(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(function, chunk_size=64)(x)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def measured(entry: Entry, classes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    function, module, x = entry.build()
    found: dict[str, Any] = {"library": entry.library, "model": entry.name, "classes": classes}
    repeats = 1 if classes == 1000 else 2
    # As a user has it: the module itself where it takes one tensor and returns one.
    spectrum = isometry.measure(function, x, "exact", progress=False)
    found["shape"], found["backend"] = list(spectrum.shape), spectrum.provenance["products_by"]
    with torch.no_grad():
        function(x)
        found["forward"] = least(lambda: function(x), 3)
    found["seconds"] = least(lambda: isometry.measure(function, x, "exact", progress=False), repeats)
    try:
        by_jacrev(function, x) if classes != 1000 else None
        found["jacrev"] = least(lambda: by_jacrev(function, x), repeats)
    except (RuntimeError, NotImplementedError) as error:
        found["jacrev"], found["jacrev_error"] = None, str(error).split("\n", 1)[0][:120]
    if classes != 1000:
        try:
            module.double()
            function(x.double())
            point = x.double()
        except RuntimeError:
            # Grouped products have no kernel in float64.
            module.float()
            point, found["dtype"] = x, "float32"
        dense = torch.linalg.svdvals(rows(function, point)).numpy()
        values = isometry.measure(function, point, "exact", progress=False).quadrature.nodes.ravel()
        difference = float(np.abs(np.sort(values)[::-1] - dense).max())
        found["error"] = difference / float(dense[0]) if dense[0] else None
    return found


def table(results: dict[str, Any]) -> str:
    """The table and what follows from it, as Markdown."""
    entries = results["models"].values()
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"Measured with {versions}; Python {results['python']}, one thread.", "",
        "| library | model | J | error | products | forward passes | of jacrev |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    ratios: dict[int, list[float]] = {10: [], 1000: []}
    for found in entries:
        if "refused" in found:
            lines.append(f"| {found['library']} | {found['model']} | | {found['refused']} | | | |")
            continue
        m, n = found["shape"]
        error = f"{found['error']:.0e} {found.get('dtype', '')}".strip() if found.get("error") else ""
        # Nothing over s_max = 0: the library starts the head at zero.
        error = "J is zero" if "error" in found and found["error"] is None else error
        times = found["jacrev"] and found["seconds"] / found["jacrev"]
        if times and found["library"] in ("torchvision", "timm"):
            ratios[found["classes"]].append(times)
        compared = f"{times:.2f}" if times else "jacrev fails"
        lines.append(
            f"| {found['library']} | {found['model']} | {m} x {n} | {error} | {found['backend']} | "
            f"{found['seconds'] / found['forward']:.0f} | {compared} |"
        )
    lines.append("")
    for classes, found_ratios in ratios.items():
        if found_ratios:
            lines.append(
                f"{len(found_ratios)} models of torchvision and timm with {classes} classes: the time is "
                f"{statistics.median(found_ratios):.2f} of that of jacrev and the SVD in the median, "
                f"{min(found_ratios):.2f} to {max(found_ratios):.2f}."
            )
    return "\n".join(lines) + "\n"


def write_page(results: dict[str, Any]) -> None:
    page = PAGE.read_text()
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + table(results) + MARKS[1] + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, choices=(10, 1000), help="only models with so many classes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--only", help="models whose name holds this, measured anew")
    parser.add_argument(
        "--page", action="store_true", help="write the page from the results, and measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    if not options.page:
        results["versions"] = {name: importlib.metadata.version(name) for name in LIBRARIES}
        results["python"] = platform.python_version()
        for classes, entries in ((10, CATALOGUE), (1000, THOUSAND)):
            for entry in entries if options.classes in (None, classes) else ():
                key = f"{entry.library}/{entry.name}/{classes}"
                if options.only not in entry.name if options.only else key in results["models"]:
                    continue
                if time.process_time() > options.seconds:
                    break
                try:
                    found = measured(entry, classes)
                except Exception as error:
                    said = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                    found = {
                        "library": entry.library,
                        "model": entry.name,
                        "classes": classes,
                        "refused": said,
                    }
                results["models"][key] = found
                print(
                    key,
                    {name: found.get(name) for name in ("error", "backend", "seconds", "jacrev", "refused")},
                )
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if PAGE.exists():
        write_page(results)


if __name__ == "__main__":
    main()
