"""Image files as inputs: RGB or grey, from 0 to 1, resized and normalised as asked. They need Pillow."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isometry.errors import LoadError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
# Formats that are read by a decoder of their own; PostScript, say, is run.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
# A file of a few kB may unpack to any number of pixels: its header is asked first.
MOST_PIXELS = 2**26


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a tensor.

    Parameters
    ----------
    size : (int, int) or int, optional
        Height and width; a single number is the side of a square, cut from the middle after the shorter side has it.
    channels : int
        3 for RGB, 1 for grey.
    mean, std : tuples of float
        Of each channel (or one for all): (value - mean) / std, values being from 0 to 1.
    """

    size: tuple[int, int] | int | None = None
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def is_image(path: Path) -> bool:
    """Whether a path is that of an image by its ending, or of a folder."""
    return path.suffix.lower() in SUFFIXES or os.path.isdir(path)


def load_images(path: Path, count: int, options: ImageOptions) -> Tensor:
    """The image, or the first ``count`` of a folder by name, as (count, channels, height, width) in float32.

    Raises
    ------
    SpecError
        Where there is no such file, there are too few of them, or they have several sizes.
    LoadError
        Where Pillow is missing, or a file cannot be read or has too many pixels.
    """
    import torch

    if os.path.isdir(path):
        names = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
        if len(names) < count:
            raise SpecError(
                f"{path} holds {len(names)} images ({', '.join(SUFFIXES)}); {count} are asked for"
            )
    elif not os.path.isfile(path):
        raise SpecError(f"there is no image {str(path)!r}")
    elif count > 1:
        raise SpecError(f"--inputs {count}: {path} is one image; name a folder for more")
    else:
        names = [path]
    images = [
        _normalised(_resized(_read(name, options.channels), options), options) for name in names[:count]
    ]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise SpecError(f"the images have several sizes, {shapes[0]} and {shapes[1]}: give --image-size")
    return torch.stack(images)


def _read(path: Path, channels: int) -> Tensor:
    """(channels, height, width), from 0 to 1."""
    import torch

    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise LoadError("reading images needs Pillow: pip install 'isometry[images]'") from error
    try:
        # Pillow warns of many pixels, and goes on; here they are refused.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=_FORMATS)
        with opened as image:
            if image.width * image.height > MOST_PIXELS:
                raise LoadError(
                    f"{path} has {image.width} x {image.height} pixels, more than the {MOST_PIXELS} that are read; "
                    "make it smaller first"
                )
            upright = ImageOps.exif_transpose(image)
            pixels = _pixels(upright, channels)
    except LoadError:
        raise
    except Exception as error:  # decoders raise what they like where a file is damaged
        raise LoadError(
            f"{path} cannot be read as an image: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _pixels(image: Any, channels: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    if image.mode.startswith("I;16"):
        # Pillow's conversion would cut 16 bits at 255.
        grey = np.asarray(image).astype(np.float32)[..., None] / np.float32(65535)
        return np.repeat(grey, channels, axis=2)
    if image.mode in ("I", "F"):
        raise LoadError(
            f"an image of mode {image.mode} has no range from 0 to 1: save its numbers as .npy, and name that file"
        )
    eight = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.float32) / np.float32(255)
    return eight.reshape(*eight.shape[:2], channels)


def _resized(image: Tensor, options: ImageOptions) -> Tensor:
    from torch.nn import functional

    if options.size is None:
        return image
    height, width = image.shape[1:]
    if isinstance(options.size, int):
        factor = options.size / min(height, width)
        target = (max(round(height * factor), options.size), max(round(width * factor), options.size))
        cut = (options.size, options.size)
    else:
        target = cut = options.size
    if target[0] * target[1] > MOST_PIXELS:
        raise SpecError(
            f"an image of {height} x {width} pixels would become one of {target[0]} x {target[1]}"
        )
    made = functional.interpolate(image[None], target, mode="bilinear", antialias=True)[0]
    top, left = ((whole - part) // 2 for whole, part in zip(target, cut, strict=True))
    return made[:, top : top + cut[0], left : left + cut[1]]


def _normalised(image: Tensor, options: ImageOptions) -> Tensor:
    import torch

    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (1, options.channels):
            raise SpecError(f"--image-{name} has {len(values)} numbers for {options.channels} channels")
    if any(value == 0 for value in options.std):
        raise SpecError("--image-std divides: it is not 0")
    mean, std = (torch.tensor(values)[:, None, None] for values in (options.mean, options.std))
    return (image - mean) / std
