"""What every figure's script does alike: its options, where data and picture go, and how the picture is written.

A script computes into a data file and draws from that file alone. Without ``--full`` both go under ``out/figures``,
so that a small run never replaces a committed picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from isometry.report import save_figure
from isometry.training.data import Dataset, load_dataset

FIGURES = Path(__file__).resolve().parent
ROOT = FIGURES.parent
STYLE = str(ROOT / "isometry" / "report" / "isometry.mplstyle")
# Okabe and Ito 2008: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip


# Where MNIST and CIFAR-10 lie (``--data``): a folder with mnist/ and cifar-10/ in it.
data_folder: Path | None = None


def dataset(name: str) -> Dataset:
    """MNIST ("mnist") or CIFAR-10 ("cifar10") from the folder given as ``--data``."""
    if data_folder is None:
        raise SystemExit(f"{name} is needed: give --data FOLDER, with mnist/ and cifar-10/ in it")
    return load_dataset(name, data_folder / {"mnist": "mnist", "cifar10": "cifar-10"}[name])


def places(name: str, full: bool) -> tuple[Path, Path]:
    """Data file, and figure without its ending: the committed ones for the full figure, under ``out/`` otherwise."""
    folder = FIGURES if full else ROOT / "out" / "figures"
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    return data / f"{name}.h5", folder / name


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG and SVG."""
    for ending in (".png", ".svg"):
        print("wrote", save_figure(figure, path.with_suffix(ending)), flush=True)


def main(description: str | None, compute: Callable[[bool], None], draw: Callable[[bool], None]) -> None:
    """Compute, unless the data file is there (``--draw``), then draw; both are told whether it is the full figure."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="the committed figure; without it a small one in out/figures"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw from the data file that is there, compute nothing"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder with mnist/ and cifar-10/, for scripts that train on them",
    )
    arguments = parser.parse_args()
    global data_folder
    data_folder = arguments.data
    if not arguments.draw:
        compute(arguments.full)
    draw(arguments.full)
