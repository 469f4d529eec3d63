"""Many measurements in one process: memory and file descriptors stay flat."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isometry
from isometry.errors import IsometryError

COUNT, WARM_UP = 2000, 500


def resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("in the forward pass")


def network(kind: int) -> tuple[nn.Module, torch.Tensor]:
    """A small network of its own for each measurement, and its input."""
    if kind == 0:
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(6)
    if kind == 1:
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
        return model, torch.randn(2, 4, 4)
    if kind == 2:
        return nn.LayerNorm(6), torch.randn(6)
    return Raises(), torch.randn(3)


def one(index: int, path: Path) -> None:
    """A measurement, each by another method, or one that raises; every tenth is stored and read."""
    method = ("exact", "lanczos", "randomized", "auto")[index % 4]
    model, x = network(index % 3 if index % 7 else 3)
    options = {"rank": 2} if method == "randomized" else {}
    with contextlib.suppress(IsometryError, ValueError):
        spectrum = isometry.measure(model, x, method, seed=index, progress=False, **options)
        assert np.isfinite(spectrum.mean_square)
        if index % 10 == 0:
            store = isometry.open_store(path, "a")
            store.add(spectrum, name="soak", overwrite=True)
            assert store["soak"].s_max == spectrum.s_max
    with contextlib.suppress(IsometryError):
        isometry.measure(nn.Dropout(0.5) if index % 2 else model, x.to(torch.int64), progress=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::isometry.errors.IsometryWarning")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_two_thousand_measurements_leave_memory_and_descriptors_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    seen = []
    for index in range(COUNT):
        if index % 100 == 0:
            gc.collect()
            seen.append((index, resident(), descriptors()))
        one(index, path)
    gc.collect()
    seen.append((COUNT, resident(), descriptors()))
    late = np.array([entry for entry in seen if entry[0] >= WARM_UP], float)
    per_measurement = np.polyfit(late[:, 0], late[:, 1], 1)[0] / 1e3
    print(
        f"{COUNT} measurements: {per_measurement:.2f} kB each after the first {WARM_UP}; resident "
        f"{late[0, 1] / 1e6:.0f} to {late[-1, 1] / 1e6:.0f} MB; descriptors {seen[0][2]} to {seen[-1][2]}"
    )
    assert seen[-1][2] <= late[0, 2]
    # A leaked J of these sizes in float64 is 2 kB, a leaked module with its buffers more than 10 kB.
    assert per_measurement < 3.0
