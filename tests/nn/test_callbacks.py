"""Spectra recorded while a network learns: the right Jacobian, at the right steps, without touching the run."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import InputError, StoreError
from isometry.nn.callbacks import SpectrumRecorder, trunk_part
from isometry.nn.data import Dataset
from isometry.nn.models import VanillaCNN
from isometry.nn.training import TrainingOptions, train
from isometry.store import open_store


def noise(count: int = 24) -> Dataset:
    images = torch.randn((count, 1, 3, 3), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 2
    return Dataset("noise", images, labels, images[:8], labels[:8], 2)


def network(seed: int = 0) -> VanillaCNN:
    return VanillaCNN(4, 2, seed=seed, in_channels=1, num_classes=2, image_size=3)


def test_a_recorded_spectrum_is_that_of_the_dense_jacobian(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x = torch.randn(5, dtype=torch.float64)
    recorder = SpectrumRecorder(tmp_path / "run.h5", x, every=10, method="exact")
    recorder.on_step(model, 0)
    assert recorder.on_step(model, 5) is None
    model[0].weight.data *= 2
    recorder.on_step(model, 10)
    assert model.training, "measured in evaluation mode, left in its own"
    model.eval()
    dense = torch.autograd.functional.jacobian(model, x)
    stored = open_store(tmp_path / "run.h5")
    assert stored.names() == ["training step 0", "training step 10"]
    values = np.sort(stored["training step 10"].distribution.nodes.ravel())
    # Float64 throughout: a few roundings.
    np.testing.assert_allclose(values, np.sort(torch.linalg.svdvals(dense).numpy()), rtol=1e-10)


def test_the_trunk_part_is_the_trunk_at_what_the_stem_makes_of_the_image() -> None:
    model, image = network(), noise().test_images[0]
    trunk, point = trunk_part(model, image)
    assert trunk is model.trunk
    torch.testing.assert_close(point, model.stem(image))
    spectrum = SpectrumRecorder(None, image, part=trunk_part, method="exact").on_step(model, 0)
    assert spectrum is not None
    assert spectrum.shape == (18, 18)
    with pytest.raises(InputError, match="has no trunk"):
        trunk_part(nn.Linear(2, 2), image)


def test_recording_does_not_change_what_is_learned(tmp_path: Path) -> None:
    dataset, options = noise(), TrainingOptions(steps=6, batch=8)
    path = tmp_path / "run.h5"
    recorder = SpectrumRecorder(
        path, dataset.test_images[0], every=3, part=trunk_part, method="lanczos", probes=2
    )
    recorded = train(
        network(), dataset, options=options, record_path=path, callbacks=[recorder], progress=False
    )
    alone = train(network(), dataset, options=options, progress=False)
    np.testing.assert_array_equal(recorded.loss, alone.loss)
    assert sorted(recorder.spectra) == [0, 3, 6]
    store = open_store(path)
    assert store.names() == ["training step 0", "training step 3", "training step 6"]
    assert store.series_names() == ["training", "training evaluation"]
    assert store.validate() == []


def test_what_is_recorded_is_measured_once_when_a_run_is_resumed(tmp_path: Path) -> None:
    path, x = tmp_path / "run.h5", torch.ones(1, 3, 3)
    first = SpectrumRecorder(path, x, every=2, method="exact").on_step(network(), 0)
    again = SpectrumRecorder(path, x, every=2, method="exact", resume=True).on_step(network(seed=7), 0)
    assert first is not None
    assert again is not None
    assert again.s_max == first.s_max, "taken from the file, not measured on the other network"
    with pytest.raises(StoreError, match=r"'training step 0', of another run.*resume=True"):
        SpectrumRecorder(path, x, every=2, method="exact").on_step(network(), 0)


def test_a_writer_gets_scalars() -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            written.append((tag, scalar_value, global_step))

    identity = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        identity.weight.copy_(2 * torch.eye(3))
    SpectrumRecorder(None, torch.ones(3), every=5, method="exact", writer=Writer()).on_step(identity, 10)
    values = {tag: value for tag, value, _ in written}
    assert {step for *_, step in written} == {10}
    # Twice the identity: every s is 2.
    assert values["isometry/mean_square"] == pytest.approx(4.0)
    assert values["isometry/s_max"] == pytest.approx(2.0)
    assert values["isometry/s_p50"] == pytest.approx(2.0)
    assert values["isometry/isometry_share"] == 1.0


def test_lightning_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install lightning"):
        SpectrumRecorder(None, torch.ones(3)).lightning_callback()


def test_the_lightning_callback_measures_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning itself is no dependency: only that our class is derived from its Callback and calls us.
    lightning = types.ModuleType("pytorch_lightning")
    lightning.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning)
    recorder = SpectrumRecorder(None, torch.ones(3), every=2, method="exact")
    callback = recorder.lightning_callback()
    assert isinstance(callback, lightning.Callback)
    module = nn.Linear(3, 3)
    first: list[object] = []
    for batch, global_step in enumerate((0, 0, 1, 2)):  # Two batches make the first step.
        trainer = types.SimpleNamespace(global_step=global_step)
        callback.on_train_batch_start(trainer, module, None, batch)
        first.append(recorder.spectra[0])
    callback.on_train_end(types.SimpleNamespace(global_step=4), module)
    assert sorted(recorder.spectra) == [0, 2, 4]
    assert first[1] is first[0], "measured again within one step"


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_whole_number_of_steps(every: object) -> None:
    with pytest.raises(InputError, match="every must be"):
        SpectrumRecorder(None, torch.ones(3), every=every)  # type: ignore[arg-type]
