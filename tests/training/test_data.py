"""Readers of data sets: files written here byte by byte come back, and wrong ones are named."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.training.data import load_dataset, read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": random.integers(0, 256, (12, 5, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(12, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (7, 5, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(7, dtype=np.uint8),
    }
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return arrays


def write_cifar(folder: Path, count: int = 4) -> np.ndarray:
    random = np.random.default_rng(1)
    records = random.integers(0, 256, (6, count, 3073), dtype=np.uint8)
    records[..., 0] %= 10
    for number in range(5):
        (folder / f"data_batch_{number + 1}.bin").write_bytes(records[number].tobytes())
    (folder / "test_batch.bin").write_bytes(records[5].tobytes())
    return records


def assert_same_up_to_standardisation(images: torch.Tensor, raw: np.ndarray, train: np.ndarray) -> None:
    expected = (raw - train.mean(dtype=float)) / train.std(dtype=float)
    # float32 rounding of numbers of order one.
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_digits_are_real_standardised_and_split_without_overlap() -> None:
    pytest.importorskip("sklearn")
    dataset = load_dataset("digits")
    assert dataset.train_images.shape == (1438, 1, 8, 8)
    assert dataset.test_images.shape == (359, 1, 8, 8)
    assert dataset.num_classes == 10
    # Means of 92,032 float32 numbers: rounding far below 1e-5.
    assert abs(float(dataset.train_images.mean())) < 1e-5
    assert float(dataset.train_images.square().mean()) == pytest.approx(1.0, abs=1e-5)
    train = {image.numpy().tobytes() for image in dataset.train_images}
    assert not train & {image.numpy().tobytes() for image in dataset.test_images}
    assert torch.equal(load_dataset("digits", seed=0).test_labels, dataset.test_labels)
    assert not torch.equal(load_dataset("digits", seed=1).test_labels, dataset.test_labels)


def test_a_limit_keeps_the_first_training_images_and_all_test_images() -> None:
    pytest.importorskip("sklearn")
    whole, limited = load_dataset("digits"), load_dataset("digits", limit=100)
    assert torch.equal(limited.train_labels, whole.train_labels[:100])
    assert torch.equal(limited.test_labels, whole.test_labels)


def test_flat_images_are_the_same_pixels() -> None:
    pytest.importorskip("sklearn")
    dataset = load_dataset("digits")
    flat = dataset.flat()
    assert flat.test_images.shape == (359, 64)
    assert torch.equal(flat.test_images.reshape(-1, 1, 8, 8), dataset.test_images)
    assert repr(flat) == "Dataset('digits': 1438 training and 359 test images, 64, 10 classes)"


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'isometry\[data\]'"):
        load_dataset("digits")


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files_come_back(tmp_path: Path, zipped: bool) -> None:
    arrays = write_mnist(tmp_path, zipped=zipped)
    dataset = load_dataset("mnist", tmp_path)
    raw = arrays["train-images-idx3-ubyte"][:, None]
    assert_same_up_to_standardisation(dataset.train_images, raw, raw)
    assert_same_up_to_standardisation(dataset.test_images, arrays["t10k-images-idx3-ubyte"][:, None], raw)
    assert dataset.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert dataset.image_size == (5, 4)


def test_cifar_files_come_back(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    records = write_cifar(tmp_path / "cifar-10-batches-bin")
    dataset = load_dataset("cifar10", tmp_path)
    train = records[:5].reshape(-1, 3073)
    assert dataset.train_labels.tolist() == train[:, 0].tolist()
    # Red, green and blue planes one after another, rows from the top.
    assert_same_up_to_standardisation(
        dataset.train_images, train[:, 1:].reshape(-1, 3, 32, 32), train[:, 1:].reshape(-1, 3, 32, 32)
    )


@pytest.mark.parametrize("shape", [(20, 6, 5), (20, 3, 6, 5), (20, 6, 5, 3)])
def test_npz_files_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(2).normal(size=shape)
    y = np.arange(20) % 3
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    dataset = load_dataset(str(tmp_path / "mine.npz"), test_fraction=0.25)
    assert dataset.name == "mine"
    assert dataset.image_size == (6, 5)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (15, 5)
    assert dataset.num_classes == 3
    channels_first = x.transpose(0, 3, 1, 2) if shape[-1] == 3 else x
    # Each test image is one of those given, with its own label, up to the shift and scale of all pixels.
    pixels = channels_first.reshape(20, -1)
    pixels = (pixels - pixels.mean(axis=1, keepdims=True)) / pixels.std(axis=1, keepdims=True)
    for image, label in zip(dataset.test_images.double().numpy(), dataset.test_labels, strict=True):
        own = (image.ravel() - image.mean()) / image.std()
        distances = np.abs(pixels - own).max(axis=1)
        assert distances.min() < 1e-5
        assert y[distances.argmin()] == int(label)


def test_npz_with_a_split_of_its_own_keeps_it(tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(8, 3, 3))
    np.savez(tmp_path / "mine.npz", x=x[:5], y=np.arange(5), x_test=x[5:], y_test=np.array([4, 2, 0]))
    dataset = load_dataset(str(tmp_path / "mine.npz"))
    assert dataset.test_labels.tolist() == [4, 2, 0]
    assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4]


def test_pickled_objects_are_refused_not_loaded(tmp_path: Path) -> None:
    objects = np.empty(3, dtype=object)
    objects[:] = [1, "two", None]
    np.savez(tmp_path / "mine.npz", x=objects, y=np.arange(3), allow_pickle=True)
    with pytest.raises(InputError, match="nothing is unpickled here"):
        load_dataset(str(tmp_path / "mine.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 3, 3))}, "x and y are needed"),
        (
            {"x": np.ones((4, 3, 3)), "y": np.arange(4), "x_test": np.ones((4, 3, 3))},
            "either both or not at all",
        ),
        ({"x": np.ones((4, 9)), "y": np.arange(4)}, r"shape \(4, 9\)"),
        ({"x": np.ones((4, 3, 3)), "y": np.arange(5)}, r"shape \(5,\)"),
        ({"x": np.ones((4, 3, 3)), "y": np.ones(4)}, "type float64"),
        ({"x": np.ones((4, 3, 3)), "y": np.arange(4)}, "nothing to learn"),
        ({"x": np.full((4, 3, 3), np.nan), "y": np.arange(4)}, "NaN"),
        ({"x": np.arange(36.0).reshape(4, 3, 3), "y": np.arange(4) - 1}, "label -1"),
        ({"x": np.ones((1, 3, 3)), "y": np.arange(1)}, "cannot be split"),
    ],
)
def test_wrong_npz_files_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_dataset(str(tmp_path / "mine.npz"))


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InputError, match=r"mine\.npz"):
        load_dataset(str(tmp_path / "mine.npz"))
    with pytest.raises(InputError, match=r"missing\.npz cannot be read"):
        load_dataset(str(tmp_path / "missing.npz"))


def test_missing_folders_and_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"local folder.*train-images-idx3-ubyte"):
        load_dataset("mnist")
    with pytest.raises(InputError, match="is not a folder"):
        load_dataset("cifar10", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither train-images-idx3-ubyte nor .*\.gz"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(InputError, match=r"no data_batch_1\.bin.*cifar-10-binary\.tar\.gz"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(InputError, match="digits, mnist, cifar10"):
        load_dataset("cifar100")


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((3, 2, 2), dtype=np.uint8))
    path = tmp_path / "images"
    for content, message in (
        (good[:-1], r"3 x 2 x 2 = 12 bytes and holds 11"),
        (good + b"\0", "holds 13"),
        (good[:9], "within its header"),
        (b"\x1f\x8b\x08\x00", "not an idx file"),
        (b"", "nothing"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_idx(path)
    zipped = tmp_path / "images.gz"
    zipped.write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(zipped)


def test_exchanged_mnist_files_are_noticed(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(arrays["t10k-labels-idx1-ubyte"]))
    with pytest.raises(InputError, match="exchanged"):
        load_dataset("mnist", tmp_path)


def test_a_cifar_file_of_the_wrong_kind_is_noticed(tmp_path: Path) -> None:
    records = write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(records[2].tobytes()[:-5])
    with pytest.raises(InputError, match=r"data_batch_3\.bin holds 12287 bytes"):
        load_dataset("cifar10", tmp_path)
    records[2, 0, 0] = 77
    (tmp_path / "data_batch_3.bin").write_bytes(records[2].tobytes())
    with pytest.raises(InputError, match="label 77"):
        load_dataset("cifar10", tmp_path)
