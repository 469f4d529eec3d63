"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from isometry.nn.options import Option

if TYPE_CHECKING:
    from isometry.loading import LoadedCall, LoadedModel

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}

# Key of the command line in the `meta` of a click context.
TYPED = "isometry.typed"


def typed_line(arguments: Sequence[str]) -> str:
    """The command line in the syntax of a shell, for provenance."""
    return shlex.join(["isometry", *arguments])


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on standard output, and nothing else there.",
)


def _number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse nan, which passes every range check of click and every threshold."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number", ctx, param)
    return value


require_isometry_option = click.option(
    "--require-isometry", type=click.FloatRange(0, 1), metavar="FRACTION", callback=_number,
    help="Exit with code 3 if fewer than this fraction of the singular values lie in [0.5, 2].",
)  # fmt: skip
file_argument = click.argument(
    "file", metavar="FILE.h5", type=click.Path(path_type=Path, dir_okay=True, exists=False)
)


class ByteCount(click.ParamType):
    """A number of bytes: 500MB, 2GiB, 1000000."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes a text such as '2GiB' stands for."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", str(value).lower())
        try:
            count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        except (ValueError, KeyError):
            count = 0
        if count < 1:
            self.fail(f"{value!r} is not a number of bytes; write 500MB or 2GiB", param, ctx)
        return count


class Budget(click.ParamType):
    """A number of products, as a number, or a time, as the text that :func:`isometry.measure` takes."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """20000 or '60s'."""
        text = str(value).strip()
        if re.fullmatch(r"0*[1-9][0-9]*", text):
            return int(text)
        if not re.fullmatch(r"(?=.*[1-9])[0-9]*\.?[0-9]+\s*(s|min|h)", text):
            self.fail(
                f"{value!r} is neither a number of products (20000) nor a time (60s, 5min, 2h)", param, ctx
            )
        return text


def out_option(help: str, *, required: bool = True) -> Callable[[Command], Command]:
    """``-o FILE.h5``, the file that a command writes into."""
    return click.option(
        "-o", "--out", "file", type=click.Path(path_type=Path), required=required, metavar="FILE.h5", help=help
    )  # fmt: skip


def setting_options(
    options: Iterable[Option], defaults: Mapping[str, Any] | None = None
) -> Callable[[Command], Command]:
    """The options of a command for these settings, in their order."""

    def add(command: Command) -> Command:
        for option in reversed(list(options)):
            command = _setting_option(option, (defaults or {}).get(option.name))(command)
        return command

    return add


def _setting_option(option: Option, default: Any) -> Callable[[Command], Command]:
    name = option.name.replace("_", "-")
    if option.type is bool:
        flag = f"--{name}/--no-{name}" if default else f"--{name}"
        return click.option(flag, default=default, is_flag=True, help=option.help)
    kind: click.ParamType | type = option.type
    if option.type is float and option.least is not None:
        kind = click.FloatRange(option.least, min_open=option.above)
    return click.option(
        f"--{name}", type=kind, default=default, show_default=default is not None,
        metavar=option.metavar, help=option.help,
    )  # fmt: skip


class Numbers(click.ParamType):
    """Numbers between commas: 0.485,0.456,0.406."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers of such a text."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            found = (math.nan,)
        if not all(math.isfinite(one) for one in found):
            self.fail(f"{value!r} is no list of numbers; write 0.485,0.456,0.406", param, ctx)
        return found


class ImageSize(click.ParamType):
    """224, the side of a square from the middle, or 224x320, height and width."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """The side, or (height, width)."""
        match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is no size; write 224, or 224x320 for height and width", param, ctx)
        return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def model_options(command: Command) -> Command:
    """The options that choose weights, mode and inputs of a model."""
    from isometry.loading.arguments import ARG_HELP, IDS_HELP
    from isometry.loading.inputs import INPUT_HELP

    for option in (
        click.option("--image-std", type=Numbers(), metavar="NUMBERS", default="1", help="What it is divided by."),
        click.option(
            "--image-mean", type=Numbers(), metavar="NUMBERS", default="0",
            help="What is subtracted from the values, from 0 to 1, of an image: for each channel, or one number.",
        ),
        click.option(
            "--image-size", type=ImageSize(), metavar="SIZE",
            help="Resize images: 224 cuts the middle square, 224x320 changes the ratio.",
        ),
        click.option(
            "--image-channels", type=click.Choice(["1", "3"]), default="3", help="Images as RGB (3) or grey (1)."
        ),
        click.option("--input-ids", "ids", metavar="N|FILE", help=IDS_HELP),
        click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help=ARG_HELP),
        click.option(
            "--no-batch-axis", is_flag=True,
            help="The model takes one input without a leading batch axis (default: inputs are stacked along one).",
        ),
        click.option("--eval", "evaluation", is_flag=True, help="Put the model in evaluation mode (model.eval())."),
        click.option(
            "--weights", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
            help="A state dictionary for the model: .pt or .pth (tensors only; nothing unpickles) or .safetensors.",
        ),
        click.option(
            "--seed", type=click.IntRange(0), default=0, metavar="N", show_default=True, help="Seed of all randomness."
        ),
        click.option("--inputs", type=click.IntRange(1), metavar="B", help="Measure at B inputs, each with its own J."),
        click.option("--input", "input_spec", metavar="INPUT", help=INPUT_HELP),
    ):  # fmt: skip
        command = option(command)
    return command


def load_inputs(model: LoadedModel, options: dict[str, Any], *, count: int | None, seed: int) -> LoadedCall:
    """The inputs that the options of `model_options` name; these are taken out of ``options``."""
    from isometry.loading import ImageOptions, load_call

    images = ImageOptions(
        options.pop("image_size"), int(options.pop("image_channels")), options.pop("image_mean"),
        options.pop("image_std"),
    )  # fmt: skip
    return load_call(
        options.pop("input_spec"), model, arguments=options.pop("arguments"), ids=options.pop("ids"),
        images=images, count=count, seed=seed, batch_axis=not options.pop("no_batch_axis"),
    )  # fmt: skip


def output_path(options: Mapping[str, Any]) -> str | int | None:
    """What --output names: an index where it is a number."""
    chosen: str | None = options.get("chosen")
    return int(chosen) if chosen is not None and re.fullmatch("-?[0-9]+", chosen) else chosen
