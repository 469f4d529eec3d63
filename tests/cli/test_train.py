"""`isometry train`: a run, a resumed run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from isometry.cli.train import train_command
from isometry.errors import InputError, IsometryError, StoreError, TheoryError
from isometry.store import open_store
from isometry.training.record import read_record


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    random = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = random.normal(size=(120, 4, 4)) + np.where(y == 0, 2.0, -2.0)[:, None, None] * np.eye(4)
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(train_command, [str(argument) for argument in arguments])


def test_a_run_leaves_curves_and_spectra_in_one_file(images: str, tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    result = call(
        images, "-o", file, "--depth", 10, "--channels", 2, "--steps", 20, "--batch", 32, "--learning-rate", 0.05,
        "--spectrum-every", 10, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["steps"] == 20
    assert [entry["step"] for entry in summary["evaluations"]] == [0, 10, 20]
    assert summary["evaluations"][-1]["test_accuracy"] > 0.9
    store = open_store(file)
    assert store.names() == ["training step 0", "training step 10", "training step 20"]
    assert store["training step 0"].shape == (32, 32)
    # E s^2 = chi^L = 1, and s^2 has variance 8 L q*^2 = 0.8: the mean of 32 is off by 0.16, three times that at most.
    assert store["training step 0"].mean_square == pytest.approx(1.0, abs=0.5)
    assert read_record(file).about["options"]["learning_rate"] == 0.05
    assert store.validate() == []


def test_a_resumed_run_ends_where_a_whole_one_does(images: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    common = ("--depth", 6, "--channels", 2, "--checkpoint-every", 2)
    assert call(images, "-o", whole, *common, "--steps", 8).exit_code == 0
    assert call(images, "-o", parts, *common, "--steps", 4).exit_code == 0
    result = call(images, "-o", parts, *common, "--steps", 8, "--resume")
    assert result.exit_code == 0
    assert "train" in result.stdout.splitlines()[0]
    np.testing.assert_array_equal(read_record(parts).loss, read_record(whole).loss)


def test_a_second_run_into_the_file_is_refused_unless_asked_for(images: str, tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    arguments = (images, "-o", file, "--depth", 3, "--channels", 2, "--steps", 1)
    assert call(*arguments).exit_code == 0
    refused = call(*arguments).exception
    assert isinstance(refused, StoreError)
    assert "--resume" in str(refused)
    assert call(*arguments, "--overwrite").exit_code == 0
    assert call(*arguments, "--overwrite", "--resume").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--depth", 0), InputError, "depth must be one layer or more"),
        (("--activation", "tahn"), IsometryError, "tanh"),
        (("--init", "delta"), InputError, "delta_orthogonal"),
        (("--activation", "hard_tanh", "--sigma-b", 0.9, "--q-star", 1), InputError, "not both"),
        (("--activation", "sigmoid"), TheoryError, "critical"),
        (("--optimizer", "sdg"), InputError, "sgd"),
        (("--device", "nowhere"), InputError, "no device 'nowhere'"),
    ],
)
def test_bad_input_is_named_before_any_file_is_made(
    images: str, tmp_path: Path, arguments: tuple, kind: type, message: str
) -> None:
    file = tmp_path / "run.h5"
    result = call(images, "-o", file, "--channels", 2, "--steps", 1, *arguments)
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)
    assert not file.exists()


def test_a_wrong_data_folder_is_named(tmp_path: Path) -> None:
    result = call("mnist", "--folder", tmp_path, "-o", tmp_path / "run.h5")
    assert isinstance(result.exception, InputError)
    assert "train-images-idx3-ubyte" in str(result.exception)
