"""The models of the catalogue that install beside a CPU build: exact in float64 against plain autograd, row by row.

The full table is `make test-models`. A library that is not there is skipped, and says so.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import isometry

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from catalogue import CATALOGUE, Entry  # noqa: E402
from table import rows  # noqa: E402

LIBRARIES = ("transformers", "diffusers", "torch_geometric", "torchdiffeq")
ENTRIES = [entry for entry in CATALOGUE if entry.library in LIBRARIES]
RECORDED = json.loads((HERE / "table.json").read_text())["models"]
# One of each kind; the others are slow tests.
KINDS = (
    "Bert", "GPT2", "Llama", "Mixtral", "Mamba", "T5", "DebertaV2", "Swin", "UNet2DConditionModel", "GCNConv",
    "GATConv", "EdgeConv", "odeint, dopri5", "odeint_adjoint, rk4",
)  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=[] if entry.name in KINDS else pytest.mark.slow) for entry in ENTRIES],
    ids=[f"{entry.library}-{entry.name}" for entry in ENTRIES],
)
def test_exact_is_autograd(entry: Entry) -> None:
    if importlib.util.find_spec(entry.library) is None:
        pytest.skip(f"{entry.library} is not installed")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, and of slow products, which the table names
        function, module, x = entry.build()
        if entry.name != "Mixtral":  # grouped products have no kernel in float64
            module.double()
            x = x.double()
        spectrum = isometry.measure(function, x, "exact", progress=False)
    expected = torch.linalg.svdvals(rows(function, x)).double().numpy()
    found = np.sort(spectrum.quadrature.nodes.ravel())[::-1]
    recorded = RECORDED[f"{entry.library}/{entry.name}/10"]
    assert list(spectrum.shape) == recorded["shape"]
    # Of the size that was recorded, where libraries cast to float32 inside; another processor adds up in another order.
    rounding = max(30 * recorded["error"], 1e-12)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * expected[0])
