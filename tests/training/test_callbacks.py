"""Spectra recorded while a network learns: the right Jacobian, at the right steps, without touching the run."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import InputError, StoreError
from isometry.nn.models import VanillaCNN
from isometry.store import open_store
from isometry.training import IsometryCallback, trunk_part
from isometry.training.data import Dataset
from isometry.training.loop import TrainingOptions, train


def noise(count: int = 24) -> Dataset:
    images = torch.randn((count, 1, 3, 3), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 2
    return Dataset("noise", images, labels, images[:8], labels[:8], 2)


def network(seed: int = 0) -> VanillaCNN:
    return VanillaCNN(4, 2, seed=seed, in_channels=1, num_classes=2, image_size=3)


def test_a_recorded_spectrum_is_that_of_the_dense_jacobian(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x = torch.randn(5, dtype=torch.float64)
    recorder = IsometryCallback(x, every=10, store=tmp_path / "run.h5", method="exact")
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


def test_a_model_with_several_inputs_is_recorded() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * step

    model, x, step = Conditioned(), torch.ones(3), torch.tensor([2.0, 2.0, 2.0])
    expected = 2 * torch.linalg.svdvals(model.inner.weight.detach())[0]
    for recorder in (
        IsometryCallback(x, args=(step,)),
        IsometryCallback(kwargs={"x": x, "step": step}, wrt="x"),
        IsometryCallback(
            {"x": x, "step": step}, part=lambda m, x: (lambda given: m(**given), x), wrt="given.x"
        ),
    ):
        assert recorder.on_step(model, 0).s_max == pytest.approx(float(expected), rel=1e-5)


def test_the_trunk_part_is_the_trunk_at_what_the_stem_makes_of_the_image() -> None:
    model, image = network(), noise().test_images[0]
    trunk, point = trunk_part(model, image)
    assert trunk is model.trunk
    torch.testing.assert_close(point, model.stem(image))
    spectrum = IsometryCallback(image, part=trunk_part, method="exact").on_step(model, 0)
    assert spectrum is not None
    assert spectrum.shape == (18, 18)
    with pytest.raises(InputError, match="has no trunk"):
        trunk_part(nn.Linear(2, 2), image)


def test_recording_does_not_change_what_is_learned(tmp_path: Path) -> None:
    dataset, options = noise(), TrainingOptions(steps=6, batch=8)
    path = tmp_path / "run.h5"
    recorder = IsometryCallback(
        dataset.test_images[0], store=path, every=3, part=trunk_part, method="lanczos", probes=2
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
    first = IsometryCallback(x, store=path, every=2, method="exact").on_step(network(), 0)
    again = IsometryCallback(x, store=path, every=2, method="exact", resume=True).on_step(network(seed=7), 0)
    assert first is not None
    assert again is not None
    assert again.s_max == first.s_max, "taken from the file, not measured on the other network"
    with pytest.raises(StoreError, match=r"'training step 0', of another run.*resume=True"):
        IsometryCallback(x, store=path, every=2, method="exact").on_step(network(), 0)


class Writer:
    """As much of a ``SummaryWriter`` as is asked of one."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: dict[tuple[str, int], np.ndarray] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag: str, values: np.ndarray, global_step: int) -> None:
        self.histograms[tag, global_step] = values


def scaled(*gains: float) -> nn.Linear:
    """A layer whose singular values are the gains."""
    layer = nn.Linear(len(gains), len(gains), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(gains)))
    return layer


def test_a_writer_gets_scalars_and_a_histogram() -> None:
    writer = Writer()
    IsometryCallback(torch.ones(4), every=5, method="exact", writer=writer).on_step(scaled(2, 2, 2, 10), 10)
    values = {tag: value for (tag, _), value in writer.scalars.items()}
    assert {step for _, step in writer.scalars} == {10}
    assert values["isometry/mean_square"] == pytest.approx(28.0)
    assert values["isometry/s_max"] == pytest.approx(10.0)
    assert values["isometry/quantile_0.5"] == pytest.approx(2.0)
    assert values["isometry/isometry"] == 0.75
    # What is not known (the error of no probes, an overhead before the second call) is no number of a curve.
    assert all(np.isfinite(value) for value in values.values())
    samples = writer.histograms["isometry/log10_s", 10]
    # Three quarters of the samples at log10 2, one at log10 10.
    np.testing.assert_allclose(np.sort(samples)[[0, 383, 384, 511]], np.log10([2, 2, 10, 10]), atol=1e-6)


def test_a_writer_of_scalars_alone_is_enough_and_zeros_make_no_histogram_of_infinities() -> None:
    class Scalars:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    IsometryCallback(torch.ones(2), method="exact", writer=Scalars()).on_step(scaled(1, 1), 0)
    writer = Writer()
    spectrum = IsometryCallback(torch.ones(2), method="exact", writer=writer).on_step(scaled(1, 0), 0)
    assert spectrum is not None
    (samples,) = writer.histograms.values()
    assert np.all(np.isfinite(samples))
    assert samples.min() == pytest.approx(np.log10(spectrum.floor))


def test_the_overhead_is_the_share_of_the_training_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = [100.0]
    monkeypatch.setattr("isometry.training.recorder.time.perf_counter", lambda: clock[0])
    writer = Writer()
    callback = IsometryCallback(
        torch.ones(2), every=2, store=tmp_path / "run.h5", method="exact", writer=writer
    )
    measured = callback._measured

    def slow(*arguments: object) -> object:
        clock[0] += 3.0
        return measured(*arguments)

    monkeypatch.setattr(callback, "_measured", slow)
    assert np.isnan(callback.overhead)
    for step in range(5):
        callback.on_step(scaled(1, 1), step)
        clock[0] += 10.0  # the step itself
    # Three measurements of 3 s; four steps of 10 s lie between the first call and the last.
    assert callback.seconds == pytest.approx(9.0)
    assert callback.overhead == pytest.approx(9.0 / 40.0)
    stored = open_store(tmp_path / "run.h5")
    # What was spent before that measurement, over the training before it: it cannot hold its own end.
    assert "recording_overhead" not in stored["training step 0"].provenance
    assert stored["training step 4"].provenance["recording_overhead"] == pytest.approx(6.0 / 40.0)
    assert writer.scalars["isometry/recording_overhead", 4] == pytest.approx(6.0 / 40.0)


def test_without_an_input_the_first_sample_of_the_first_batch_is_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    callback = IsometryCallback(every=1, method="exact")
    with pytest.raises(InputError, match="no input to measure at: give x"):
        callback.on_step(model, 0)
    images = torch.arange(12.0).reshape(4, 3)
    first = callback.on_step(model, 0, {"label": torch.arange(4), "image": [images]})
    assert callback.x is not None
    assert torch.equal(callback.x, images[:1])
    again = callback.on_step(model, 1, -images)
    assert first is not None
    assert again is not None
    assert again.s_max == first.s_max, "measured at another input"


def test_frozen_parts_stay_in_the_mode_they_were_in() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    model[1].eval()
    IsometryCallback(torch.ones(1, 3), batched=True, method="exact").on_step(model, 0)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def fake_lightning(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Lightning is no dependency: a module of its name with a Callback, as a program that uses it has loaded one."""
    lightning = types.ModuleType("pytorch_lightning")
    lightning.Callback = type("Callback", (), {"setup": lambda *_: "lightning's own"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning)
    # Its base class is the Callback that is loaded when it is imported.
    monkeypatch.delitem(sys.modules, "isometry.training.lightning", raising=False)
    return lightning


def test_it_is_a_lightning_callback_where_lightning_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert type(IsometryCallback(torch.ones(3))) is IsometryCallback
    assert "pytorch_lightning" not in sys.modules, "nothing is imported that the program has not imported"
    lightning = fake_lightning(monkeypatch)
    callback = IsometryCallback(torch.ones(3), every=2, method="exact")
    assert isinstance(callback, lightning.Callback)
    assert isinstance(callback, IsometryCallback)
    assert callback.setup() == "lightning's own"
    # A trainer copies callbacks, and sends them to processes.
    assert pickle.loads(pickle.dumps(callback)).every == 2
    assert isinstance(copy.deepcopy(callback), lightning.Callback)


def test_lightning_measures_once_a_step_and_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_lightning(monkeypatch)
    writer, logged = Writer(), {}
    logger = types.SimpleNamespace(
        log_metrics=lambda numbers, step: logged.__setitem__(step, numbers), experiment=writer
    )
    callback = IsometryCallback(every=2, method="exact")
    module, batch = scaled(1, 1, 1), torch.ones(2, 3)
    first: list[object] = []
    for index, global_step in enumerate((0, 0, 1, 2)):  # Two batches make the first step.
        trainer = types.SimpleNamespace(global_step=global_step, loggers=[logger], is_global_zero=True)
        callback.on_train_batch_start(trainer, module, batch, index)
        first.append(callback.spectra[0])
    callback.on_train_end(types.SimpleNamespace(global_step=4), module)
    assert sorted(callback.spectra) == [0, 2, 4]
    assert first[1] is first[0], "measured again within one step"
    assert logged[2]["isometry/mean_square"] == pytest.approx(1.0)
    assert ("isometry/log10_s", 2) in writer.histograms
    other = IsometryCallback(torch.ones(3), every=1)
    other.on_train_batch_start(types.SimpleNamespace(global_step=0, is_global_zero=False), module, batch, 0)
    assert other.spectra == {}, "one process of several measures"


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_whole_number_of_steps(every: object) -> None:
    with pytest.raises(InputError, match="every must be"):
        IsometryCallback(torch.ones(3), every=every)  # type: ignore[arg-type]
