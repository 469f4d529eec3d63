"""The penalty in training loops: its gradient is added to the loss's, and networks keep their isometry with it."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import isometry
from isometry.errors import InputError, NonFiniteError
from isometry.nn.models import MLP
from isometry.training import (
    IsometryCallback,
    PenaltyCallback,
    TrainingOptions,
    WandbWriter,
    load_dataset,
    train,
)

ON_DIGITS = TrainingOptions(
    steps=60, learning_rate=0.02, signal_units=False, evaluate_every=60, checkpoint_every=60
)


def network() -> nn.Module:
    return MLP(6, 16, "tanh", sigma_w=0.6, sigma_b=0.0, in_features=64, num_classes=10, seed=0)


def test_gradients_are_those_of_the_sum() -> None:
    model, x = network(), torch.randn(64, generator=torch.Generator().manual_seed(0))
    loss = model(x).square().sum()
    (loss + 2 * 0.3 * isometry.isometry_penalty(model.eval(), x, seed=5 + 4, probes=3)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.train()
    model(x).square().sum().backward()
    callback = PenaltyCallback(x, weight=0.3, every=2, seed=5, probes=3)
    callback.on_gradients(model, 3)  # not due
    callback.on_gradients(model, 4)
    assert model.training
    assert list(callback.values) == [4]
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)


def test_training_with_it_keeps_the_trunk_nearer_to_isometry() -> None:
    data = load_dataset("digits").flat()
    measured = {}
    for weight in (0.0, 0.3):
        model = network()
        point = model.stem(data.test_images[0]).detach()
        callback = PenaltyCallback(
            point, weight=weight, part=lambda model, x: (model.trunk, x), probes=2, spread=0.0
        )
        record = train(model, data, options=ON_DIGITS, callbacks=[callback], progress=False)
        measured[weight] = abs(
            torch.tensor(isometry.measure(model.trunk, point, progress=False).mean_square).log()
        )
        assert len(callback.values) == (60 if weight else 0)
        assert record.train_accuracy[-1] > 0.3
    # From 6.2 at the start; 1.07 without and 0.18 with it.
    assert measured[0.3] < 0.5 * measured[0.0]


def test_gradients_stay_where_the_penalty_is_refused() -> None:
    model = nn.Linear(3, 3)
    model(torch.ones(3)).sum().backward()
    kept = model.weight.grad.clone()
    model.weight.data.zero_()
    with pytest.raises(NonFiniteError):
        PenaltyCallback(torch.ones(3)).on_gradients(model, 0)
    assert torch.equal(model.weight.grad, kept)


@pytest.mark.parametrize("options", [{"weight": -1}, {"weight": float("nan")}, {"weight": "1"}, {"every": 0}])
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PenaltyCallback(torch.ones(3), **options)  # type: ignore[arg-type]


def test_a_captured_step_takes_no_further_gradients() -> None:
    options = dataclasses.replace(ON_DIGITS, cuda_graph=True)
    with pytest.raises(InputError, match="cuda_graph"):
        train(
            network(), load_dataset("digits").flat(), options=options, callbacks=[PenaltyCallback(torch.ones(64))],
            progress=False,
        )  # fmt: skip


# ---- Weights & Biases -----------------------------------------------------------------------------------


class Run:
    """What is used of a run, strict: unknown calls fail."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.metrics: dict[str, str | None] = {}

    def log(self, row: dict[str, object]) -> None:
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric


def test_a_run_gets_one_row_for_a_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("wandb")
    package.Histogram, package.run = list, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    with pytest.raises(InputError, match="no run is active"):
        WandbWriter()
    run = Run()
    callback = IsometryCallback(torch.ones(3), every=2, method="exact", writer=WandbWriter(run))
    for step in range(3):
        callback.on_step(nn.Linear(3, 3), step)
    assert run.metrics["isometry/*"] == "isometry/training_step"
    assert [row["isometry/training_step"] for row in run.rows] == [0, 2]
    assert run.rows[1]["isometry/s_max"] == pytest.approx(callback.spectra[2].s_max)
    assert max(run.rows[1]["isometry/log10_s"]) == pytest.approx(  # type: ignore[type-var]
        torch.tensor(callback.spectra[2].s_max).log10().item(), abs=1e-6
    )


def test_without_the_package() -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(InputError, match="pip install wandb"):
        WandbWriter()


def test_the_real_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    callback = IsometryCallback(torch.ones(3), every=1, method="exact", writer=WandbWriter())
    callback.on_step(nn.Linear(3, 3), 0)
    callback.on_step(nn.Linear(3, 3), 1)
    assert run.summary["isometry/training_step"] == 1
    assert run.summary["isometry/s_max"] == pytest.approx(callback.spectra[1].s_max)
    run.finish()


def test_the_real_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    recorder = IsometryCallback(every=2, method="exact")
    penalty = PenaltyCallback(torch.ones(4), weight=0.1)
    trainer = pl.Trainer(
        callbacks=[recorder, penalty], max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4))
    assert sorted(recorder.spectra) == [0, 2, 4]
    assert sorted(penalty.values) == [0, 1, 2, 3]
