"""Labelled images to train on: digits that come with scikit-learn, MNIST, CIFAR-10, or any ``.npz`` with x and y.

Nothing is downloaded or unpickled: readers take local files, check headers and shapes, and name the source of missing
files. Images are standardised by the mean and standard deviation of all training pixels together,
so that their mean square is 1: that is what the stem of `isometry.nn.models` turns into pre-activations of variance q*.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isometry.errors import InputError, LoadError
from isometry.training.archives import refuse_bomb, unpacked

DATASET_NAMES = ("digits", "mnist", "cifar10")

_MNIST_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_MNIST_HELP = (
    "MNIST in idx format is four files, " + ", ".join(_MNIST_FILES.values()) + ", each plain or with .gz; "
    "https://yann.lecun.com/exdb/mnist describes them and mirrors carry them under these names."
)
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_HELP = (
    "the binary version of CIFAR-10 is data_batch_1.bin to data_batch_5.bin and test_batch.bin, out of "
    "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html (not the Python version, which is "
    "pickled)."
)
_CIFAR_RECORD = 1 + 3 * 32 * 32
# A label beyond it is taken for a mistake: the network would have as many outputs.
_MOST_CLASSES = 2**20


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split into a training and a test set.

    Attributes
    ----------
    name : str
        Where they come from.
    train_images, test_images : Tensor
        (n, channels, height, width) float32, training pixels of mean 0 and mean square 1; (n, pixels) once `flat`.
    train_labels, test_labels : Tensor
        (n,) int64, 0 .. num_classes - 1.
    num_classes : int
        Number of classes.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 grey, 3 colour."""
        return int(self.train_images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.train_images.shape[2]), int(self.train_images.shape[3])

    def flat(self) -> Dataset:
        """The same with every image as one vector, as an MLP takes it."""
        return replace(
            self,
            train_images=self.train_images.flatten(start_dim=1),
            test_images=self.test_images.flatten(start_dim=1),
        )

    def __repr__(self) -> str:
        shape = " x ".join(str(length) for length in self.train_images.shape[1:])
        return (
            f"Dataset({self.name!r}: {len(self.train_labels)} training and {len(self.test_labels)} test images, "
            f"{shape}, {self.num_classes} classes)"
        )


def load_dataset(
    name: str = "digits",
    folder: str | Path | None = None,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """The data set of that name, standardised and split.

    Parameters
    ----------
    name : str
        "digits" (1,797 real 8 x 8 images bundled with scikit-learn), "mnist" or "cifar10" from ``folder``, or the
        path of an ``.npz`` file with arrays x (n, height, width), (n, channels, height, width) or, channels last,
        (n, height, width, 1 or 3), and y (n,) of whole numbers; x_test and y_test where it brings its own split.
    folder : str or Path, optional
        Where the files of MNIST or CIFAR-10 lie.
    test_fraction : float
        Share of test images where the source has no split of its own.
    seed : int
        Of that split.
    limit : int, optional
        Take only so many training images, the first ones after the split, for a quick look.

    Raises
    ------
    InputError
        When the name is unknown, a file is missing or invalid, or scikit-learn is not installed.

    Examples
    --------
    >>> load_dataset("digits")
    Dataset('digits': 1438 training and 359 test images, 1 x 8 x 8, 10 classes)
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be one image or more, got {limit!r}.")
    if name == "digits":
        arrays = _split(*_read_digits(), test_fraction, seed)
    elif name == "mnist":
        arrays = _read_mnist(_folder(name, folder, _MNIST_HELP))
    elif name == "cifar10":
        arrays = _read_cifar10(_folder(name, folder, _CIFAR_HELP))
    elif str(name).endswith(".npz"):
        arrays = _read_npz(Path(name), test_fraction, seed)
    else:
        raise InputError(
            f"no data set is called {name!r}; there are {', '.join(DATASET_NAMES)}, or the path of an .npz file."
        )
    train_images, train_labels, test_images, test_labels = arrays
    return _dataset(Path(name).stem, train_images[:limit], train_labels[:limit], test_images, test_labels)


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Array of bytes in an idx file, plain or gzipped; its shape is the one the header gives.

    The format: two zero bytes, a type (8 for unsigned bytes), the number of axes, each length as a big-endian int32,
    then the data.

    Raises
    ------
    InputError
        When the file is no idx file of unsigned bytes or holds more or fewer bytes than its header promises.
    """
    path = Path(path)
    content = _read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 8 or not 1 <= content[3] <= 4:
        raise InputError(
            f"{path} is not an idx file of unsigned bytes: it begins with {content[:4].hex(' ') or 'nothing'}, "
            "where 00 00 08 and the number of axes should stand. " + _MNIST_HELP
        )
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise InputError(f"{path} ends within its header; it was probably cut off while copied.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{path} promises {' x '.join(map(str, shape))} = {math.prod(shape)} bytes and holds "
            f"{len(content) - start}; it was probably cut off while copied."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        return unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _folder(name: str, folder: str | Path | None, help_text: str) -> Path:
    if folder is None:
        raise InputError(f"{name} is read from a local folder: say which one. There, {help_text}")
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder. For {name}, {help_text}")
    return path


def _read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: pip install 'isometry[data]', or train on "
            "an .npz file of your own."
        ) from error
    bunch = load_digits()
    return bunch.images[:, None].astype(np.float32), bunch.target.astype(np.int64)


def _read_mnist(folder: Path) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    arrays: dict[tuple[str, str], NDArray] = {}
    for key, file_name in _MNIST_FILES.items():
        candidates = [folder / file_name, folder / (file_name + ".gz")]
        found = [candidate for candidate in candidates if candidate.is_file()]
        if not found:
            raise InputError(f"{folder} holds neither {file_name} nor {file_name}.gz. " + _MNIST_HELP)
        arrays[key] = read_idx(found[0])
    for part in ("train", "test"):
        images, labels = arrays[part, "images"], arrays[part, "labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise InputError(
                f"the {part} part of {folder} has images of shape {images.shape} and labels of shape "
                f"{labels.shape}; (n, height, width) and (n,) were expected. Are two files exchanged?"
            )
    return (
        arrays["train", "images"][:, None],
        arrays["train", "labels"],
        arrays["test", "images"][:, None],
        arrays["test", "labels"],
    )


def _read_cifar10(folder: Path) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    parts: list[NDArray[np.uint8]] = []
    for file_name in (*_CIFAR_TRAIN, "test_batch.bin"):
        path = folder / file_name
        if not path.is_file():
            raise InputError(f"{folder} holds no {file_name}; {_CIFAR_HELP}")
        content = np.frombuffer(_read_bytes(path), dtype=np.uint8)
        if content.size == 0 or content.size % _CIFAR_RECORD:
            raise InputError(
                f"{path} holds {content.size} bytes, which is no multiple of {_CIFAR_RECORD} (one label and "
                f"3 x 32 x 32 pixels); {_CIFAR_HELP}"
            )
        records = content.reshape(-1, _CIFAR_RECORD)
        if records[:, 0].max() > 9:
            raise InputError(
                f"{path} has the label {records[:, 0].max()}, but CIFAR-10 ends at 9. {_CIFAR_HELP}"
            )
        parts.append(records)
    train, test = np.concatenate(parts[:-1]), parts[-1]
    return train[:, 1:].reshape(-1, 3, 32, 32), train[:, 0], test[:, 1:].reshape(-1, 3, 32, 32), test[:, 0]


def _read_npz(path: Path, test_fraction: float, seed: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path} cannot be read: there is no such file.")
    try:
        refuse_bomb(path)
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            wanted = {"x", "y"} | (names & {"x_test", "y_test"})
            if not {"x", "y"} <= names or len(wanted) == 3:
                raise InputError(
                    f"{path} holds {', '.join(sorted(names)) or 'nothing'}; x and y are needed, and x_test and y_test "
                    "either both or not at all."
                )
            arrays = {name: np.asarray(file[name]) for name in wanted}
    except (InputError, LoadError):
        raise
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read as .npz of plain arrays ({error}). Arrays of objects are pickled, and nothing is "
            "unpickled here: save x and y as numbers."
        ) from error
    except Exception as error:  # zipfile, zlib and NumPy raise what they like where a file is damaged
        raise InputError(f"{path} cannot be read as .npz: {type(error).__name__}: {error}.") from error
    suffixes = ("", "_test") if "x_test" in arrays else ("",)
    pairs = [_images_and_labels(path, suffix, arrays) for suffix in suffixes]
    if len(pairs) == 1:
        return _split(*pairs[0], test_fraction, seed)
    return (*pairs[0], *pairs[1])


def _images_and_labels(path: Path, suffix: str, arrays: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    images, labels = arrays["x" + suffix], arrays["y" + suffix]
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{path} has x{suffix} of shape {arrays['x' + suffix].shape} and y{suffix} of shape {labels.shape} and "
            f"type {labels.dtype}; (n, height, width) or (n, channels, height, width), and (n,) whole numbers were "
            "expected."
        )
    if images.dtype.kind not in "fiub":
        raise InputError(f"{path} has x{suffix} of type {images.dtype}; real numbers were expected.")
    return images, labels


def _split(
    images: NDArray, labels: NDArray, test_fraction: float, seed: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    order = np.random.default_rng(seed).permutation(len(labels))
    tests = round(test_fraction * len(labels))
    if not 0 < tests < len(labels):
        raise InputError(
            f"{len(labels)} images cannot be split into training and {test_fraction:.0%} test images."
        )
    train, test = order[tests:], order[:tests]
    return images[train], labels[train], images[test], labels[test]


def _dataset(
    name: str, train_images: NDArray, train_labels: NDArray, test_images: NDArray, test_labels: NDArray
) -> Dataset:
    if len(train_labels) == 0 or len(test_labels) == 0:
        raise InputError(f"{name} has {len(train_labels)} training and {len(test_labels)} test images.")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise InputError(
            f"training images of {name} have shape {train_images.shape[1:]}, test images {test_images.shape[1:]}."
        )
    pixels = train_images.astype(np.float64)
    if not (np.isfinite(pixels).all() and np.isfinite(test_images).all()):
        raise InputError(f"{name} has pixels that are NaN or infinite; clean or drop those images first.")
    lowest = min(int(train_labels.min()), int(test_labels.min()))
    if lowest < 0:
        raise InputError(f"{name} has the label {lowest}; labels count from 0.")
    highest = max(int(train_labels.max()), int(test_labels.max()))
    if highest > _MOST_CLASSES:
        raise InputError(
            f"{name} has the label {highest}: labels count classes from 0, each an output of the network."
        )
    mean, deviation = pixels.mean(), pixels.std()
    if deviation == 0:
        raise InputError(f"all training pixels of {name} equal {mean:g}: there is nothing to learn from.")

    def standardised(images: NDArray) -> Tensor:
        return torch.from_numpy(((images - mean) / deviation).astype(np.float32))

    return Dataset(
        name=name,
        train_images=standardised(train_images),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        test_images=standardised(test_images),
        test_labels=torch.from_numpy(test_labels.astype(np.int64)),
        num_classes=highest + 1,
    )
