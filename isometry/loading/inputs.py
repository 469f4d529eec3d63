"""`--input`: a shape (standard normal), the bundled digits, images, or an array file; `--inputs B` for several."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isometry.errors import LoadError, SpecError
from isometry.loading.images import ImageOptions, is_image, load_images
from isometry.loading.models import LoadedModel
from isometry.loading.weights import unusual
from isometry.training.archives import refuse_bomb

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INPUT_HELP = (
    "A shape of one input without batch axis such as 3x32x32 (standard normal, drawn with --seed), 'digits' "
    "(scikit-learn's handwritten digits, 1x8x8, standardised), or a .npy, .npz or .pt file: with --inputs B its "
    "first axis counts the inputs, otherwise the whole array is one input as the model takes it; or an image, or a "
    "folder of them, of which --inputs B takes the first B by name. Built-ins have an input of their own: normal, of "
    "the variance that their pre-activations keep from layer to layer."
)


# Numbers of an input that are not even tried.
_MOST = 2**40
_SHAPE = re.compile(r"\d{1,15}(x\d{1,15})*")
FILES = (".npy", ".npz", ".pt", ".pth")


def known_input_spec(spec: str) -> bool:
    """Whether a text has the form of an input: a shape, 'digits', or the name of a file of numbers."""
    return bool(_SHAPE.fullmatch(spec)) or spec == "digits" or Path(spec).suffix in FILES


@dataclass(frozen=True)
class LoadedInput:
    """The input of a measurement.

    Parameters
    ----------
    tensor : Tensor
        (B, *input_shape) if ``batched``, otherwise one input exactly as the model takes it.
    batched : bool
        Whether the first axis counts inputs, each with its own Jacobian.
    description : str
        For the record.
    stationary : bool
        Whether it was drawn so that the variance of the pre-activations is q* from the first layer on.
    """

    tensor: Tensor
    batched: bool
    description: str
    stationary: bool = False


def load_input(
    spec: str | None,
    model: LoadedModel,
    *,
    count: int | None,
    seed: int,
    batch_axis: bool = True,
    images: ImageOptions | None = None,
) -> LoadedInput:
    """The input that `--input`, `--inputs` and `--seed` name, for this model.

    Parameters
    ----------
    spec : str, optional
        See ``INPUT_HELP``.
    model : LoadedModel
        Its own shape stands in for a missing spec.
    count : int, optional
        Number of inputs; one if None.
    seed : int
        Of the standard normal draw.
    batch_axis : bool
        Whether the model takes inputs stacked along a first axis.
    images : ImageOptions, optional
        How images are made tensors.

    Raises
    ------
    SpecError
        An unknown spec, a missing file, or more inputs than the source has.
    """
    if count is not None and not batch_axis:
        raise SpecError("--inputs stacks inputs along a batch axis, so --no-batch-axis does not go with it")
    if spec is None:
        if model.input_shape is None:
            raise SpecError(
                f"the model {model.spec} does not fix the shape of its input: give --input, a shape such as 3x32x32, "
                "'digits', or a .npy, .npz or .pt file"
            )
        return normal(
            model.input_shape, count or 1, seed, batch_axis, variance=stationary_variance(model.module)
        )
    if _SHAPE.fullmatch(spec):
        shape = tuple(int(part) for part in spec.split("x"))
        if 0 in shape:
            raise SpecError(f"--input {spec} is empty: every extent is at least 1")
        return normal(shape, count or 1, seed, batch_axis)
    if spec == "digits":
        return _digits(model, count or 1, batch_axis)
    path = Path(spec)
    if is_image(path):
        pixels = load_images(path, count or 1, images or ImageOptions())
        text = f"image {path.name}" if os.path.isfile(path) else f"first {count or 1} images of {path.name}"
        return LoadedInput(pixels if batch_axis else pixels[0], batch_axis, text)
    return _from_file(path, count)


def stationary_variance(module: nn.Module) -> float:
    """Variance of inputs that give the first layer of a reference network the pre-activations q* of all others.

    q* = sigma_w^2 v + sigma_b^2. One where the network has no q*, or a stem, which scales its input itself.
    """
    q_star, sigma_w, sigma_b = (getattr(module, name, None) for name in ("q_star", "sigma_w", "sigma_b"))
    if q_star is None or sigma_w is None or sigma_b is None or getattr(module, "stem", None) is not None:
        return 1.0
    signal = float(q_star) - float(sigma_b) ** 2
    return signal / float(sigma_w) ** 2 if signal > 0 else 1.0


def generator_of(seed: int) -> torch.Generator:
    """Random numbers of an input: with the plain seed it would repeat the first weights of a model of the same seed."""
    import torch

    stream = np.random.SeedSequence([seed, *b"input"]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(stream) % 2**63)


def normal(
    shape: tuple[int, ...], count: int, seed: int, batch_axis: bool, *, variance: float = 1.0
) -> LoadedInput:
    """Standard normal inputs, or of another variance."""
    import torch

    if math.prod((count, *shape)) > _MOST:
        raise SpecError(
            f"an input of {'x'.join(map(str, shape))} has more than {_MOST:,} numbers: no memory holds them"
        )
    # Drawn in float64, so that both precisions measure at the same point.
    tensor = torch.randn(count, *shape, generator=generator_of(seed), dtype=torch.float64)
    tensor = (tensor * math.sqrt(variance)).float()
    kind = "standard normal" if variance == 1.0 else f"normal of variance {variance:.6g}"
    text = f"{kind} {'x'.join(map(str, shape))}, seed {seed}"
    return LoadedInput(tensor if batch_axis else tensor[0], batch_axis, text, stationary=variance != 1.0)


def _digits(model: LoadedModel, count: int, batch_axis: bool) -> LoadedInput:
    """Test digits, which `isometry train` does not train on, standardised like the training digits."""
    from isometry.training.data import load_dataset

    test = load_dataset("digits").test_images
    if count > len(test):
        raise SpecError(f"there are {len(test)} test digits; --inputs asks for {count}")
    pixels = test[:count]
    text = f"first {count} of {len(test)} test digits" if count > 1 else "a test digit"
    if model.repeats_channels is not None:
        pixels = pixels.repeat(1, model.repeats_channels, 1, 1)
        text += f", repeated over {model.repeats_channels} channels"
    elif model.input_shape is not None and len(model.input_shape) == 1:
        if model.input_shape[0] != 64:
            raise SpecError(
                f"a digit has 64 pixels and the network takes {model.input_shape[0]} numbers: "
                "write width=64, or in_features=64"
            )
        pixels = pixels.flatten(1)
    elif model.input_shape is not None and model.input_shape != (1, 8, 8):
        raise SpecError(
            f"digits are 1x8x8 images and the network takes {'x'.join(map(str, model.input_shape))}: "
            "write in_channels=1,size=8"
        )
    return LoadedInput(pixels if batch_axis else pixels[0], batch_axis, text)


def array_file(path: Path) -> Tensor:
    """The numbers of a .npy, .npz or .pt file."""
    return _tensor_file(path) if path.suffix in (".pt", ".pth") else _array_file(path)


def _from_file(path: Path, count: int | None) -> LoadedInput:
    if path.suffix not in FILES:
        raise SpecError(
            f"--input {str(path)!r} is neither a shape (3x32x32), nor 'digits', nor a .npy, .npz or .pt file, nor an "
            "image or a folder of images"
        )
    if not os.path.isfile(path):
        raise SpecError(f"there is no input file {str(path)!r}")
    tensor = array_file(path)
    if count is None:
        return LoadedInput(tensor, False, path.name)
    if tensor.dim() < 1 or tensor.shape[0] < count:
        raise SpecError(
            f"--inputs {count}: {path} has shape {tuple(tensor.shape)}, and its first axis counts the inputs"
        )
    return LoadedInput(tensor[:count], True, f"{path.name}, first {count}")


def _array_file(path: Path) -> Tensor:
    import torch

    try:
        refuse_bomb(path)
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                if len(found.files) != 1:
                    raise SpecError(
                        f"{path} holds {len(found.files)} arrays ({', '.join(found.files[:8])}); "
                        "save the input alone: numpy.savez(path, x=x)"
                    )
                found = found[found.files[0]]
    except (SpecError, LoadError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise what they like where a file is damaged
        raise LoadError(f"{path} cannot be read as a NumPy file of numbers: {error}") from error
    # An entry of an .npz that is no array comes as its bytes.
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biufc":
        raise LoadError(f"{path} holds {getattr(found, 'dtype', 'other data')}, not numbers")
    # Byte order and strides as torch wants them.
    try:
        return torch.from_numpy(np.ascontiguousarray(found.astype(found.dtype.newbyteorder("="))))
    except TypeError as error:
        raise LoadError(
            f"{path} holds {found.dtype}, which torch does not know: save it as float64"
        ) from error


def _tensor_file(path: Path) -> Tensor:
    import torch

    refuse_bomb(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it likes where a file is damaged
        raise LoadError(
            f"{path} cannot be read as a tensor (weights_only): save it with torch.save(x, path)"
        ) from error
    if not isinstance(found, torch.Tensor):
        raise LoadError(f"{path} holds a {type(found).__name__}; save the tensor alone: torch.save(x, path)")
    if problem := unusual(found):
        raise LoadError(
            f"{path} holds a tensor {problem}; save its dense numbers: torch.save(x.to_dense(), path)"
        )
    return found
