"""The command group, and how an exception is reported: one paragraph on standard error and an exit code.

Exit codes: 0 fine, 1 failed, 2 usage, 3 a stated threshold missed, 4 file unreadable or newer, 5 not converged,
130 interrupted. No traceback is shown unless ISOMETRY_DEBUG is set.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from isometry.cli.codes import FAILED, INTERRUPTED, NOT_CONVERGED, UNREADABLE, USAGE
from isometry.cli.options import TYPED, typed_line
from isometry.cli.streams import note, silence_closed_output, stand_in_for_closed_streams
from isometry.errors import ConvergenceError, IsometryError, IsometryWarning, SpecError, StoreError
from isometry.progress import ended_as_interrupted

# Command name -> "module:attribute". A command's module is loaded when it is called or its help is asked for, and
# loads torch only when it runs: `isometry --help` answers at once.
COMMANDS = {
    "measure": "isometry.cli.measure:measure_command",
    "tune": "isometry.cli.tune:tune_command",
    "report": "isometry.cli.report:report_command",
    "list": "isometry.cli.files:list_command",
    "show": "isometry.cli.files:show_command",
    "validate": "isometry.cli.files:validate_command",
    "compact": "isometry.cli.files:compact_command",
    "layers": "isometry.cli.layers:layers_command",
    "predict": "isometry.cli.predict:predict_command",
    "compare": "isometry.cli.compare:compare_command",
    "critical": "isometry.cli.critical:critical_command",
    "train": "isometry.cli.train:train_command",
    "sweep": "isometry.cli.sweep:sweep_command",
    "table": "isometry.cli.table:table_command",
    "plot": "isometry.cli.plot:plot_command",
}


# The library's messages name its arguments; the options of the command line have other names.
HINTS = {
    "model.eval()": "add --eval",
    "named_layers": "`isometry layers MODEL` lists the names",
    "output=": "choose with --output PATH",
    "wrt=": "that is --wrt PATH",
    "kwargs=": "further inputs are --arg NAME=VALUE",
    "source=": "that is --source NAME; `isometry layers MODEL` lists the names",
    "target=": "that is --target NAME; `isometry layers MODEL` lists the names",
    "fails on an input of shape": "--input gives the shape of one input; inputs are stacked along a first axis, unless "
    "--no-batch-axis is given",
    "whose first axis is not the batch": "add --no-batch-axis if the model takes one input without one",
    "Pass batched=True": "--inputs B measures the first B of them, each with its own J",
    "memory_limit": "that is --memory-limit, and --method lanczos",
    "dtype=torch.float64": "that is --dtype float64",
    "leave=": "that is --leave REGEX",
    "sweeps=": "those are --sweeps N and --tolerance TOL",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("isometry")
    except PackageNotFoundError:
        number = "unknown (the package is on the path but not installed)"
    click.echo(f"isometry {number}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 fine, 1 failed, 2 usage, 3 a stated threshold missed, 4 file unreadable or newer, "
    "5 not converged, 130 interrupted. Data go to standard output, all else to standard error.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def group() -> None:
    """Jacobian singular-value spectra of deep networks: measured, predicted, compared.

    All singular values of the input-output Jacobian near 1 is dynamical isometry: signals and gradients survive
    the depth of the network.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code (the entry point of the `isometry` command)."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows `isometry`; ``sys.argv[1:]`` if None.
    """
    stand_in_for_closed_streams()
    with warnings.catch_warnings(), ended_as_interrupted():
        warnings.showwarning = _show_warning
        # Warnings of isometry concern this result: shown each time, whatever the filters.
        warnings.simplefilter("always", IsometryWarning)
        try:
            _invoke(sys.argv[1:] if arguments is None else list(arguments))
            sys.stdout.flush()
        except click.exceptions.Exit as error:
            return error.exit_code
        except BrokenPipeError:
            # A closed pipe is no error (`isometry list FILE | head -1`).
            silence_closed_output()
            return 0
        except (KeyboardInterrupt, click.exceptions.Abort):
            note("interrupted: results that were stored before are kept")
            return INTERRUPTED
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else FAILED
        except BaseException as error:
            return report_failure(error)
    return 0


def _invoke(arguments: list[str]) -> None:
    """Parse and call. Every exception propagates, whereas `click.Group.main` turns some into its own codes."""
    if "_ISOMETRY_COMPLETE" in os.environ:
        # A shell that asks for completions.
        group.main(arguments, prog_name="isometry")
    # Before it is parsed, which takes it apart.
    line = typed_line(arguments)
    with group.make_context("isometry", arguments) as context:
        context.meta[TYPED] = line
        group.invoke(context)


def report_failure(error: BaseException) -> int:
    """Report an exception on standard error; returns its exit code."""
    if os.environ.get("ISOMETRY_DEBUG"):
        note("".join(traceback.format_exception(error)))
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            # `isometry` alone; the class is there from click 8.2 on.
            note(error.format_message())
            return error.exit_code
        note(f"error: {error.format_message()}")
        if isinstance(error, click.UsageError) and context is not None:
            note(f"See `{context.command_path} --help`.")
        return error.exit_code
    if isinstance(error, IsometryError):
        _note_with_hints(f"error: {error}")
        return exit_code(error)
    if _out_of_memory(error):
        note(
            "error: out of memory. Lower --memory-limit, --probes or --inputs, measure in float32, "
            "or take --method lanczos instead of exact"
        )
        return FAILED
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        note(f"error: {error.strerror or error}{where}")
        return FAILED
    first_line = (str(error).strip().splitlines() or [""])[0]
    note(f"error: unexpected {type(error).__name__}: {first_line}")
    note("This is a fault of the program. Run again with ISOMETRY_DEBUG=1 for the traceback.")
    return FAILED


def exit_code(error: IsometryError) -> int:
    """The exit code of an error of this package."""
    if isinstance(error, ConvergenceError):
        return NOT_CONVERGED
    if isinstance(error, StoreError):
        return UNREADABLE
    if isinstance(error, SpecError):
        return USAGE
    return FAILED


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    _note_with_hints(f"warning: {message}")


def _note_with_hints(text: str) -> None:
    note(text)
    for words, option in HINTS.items():
        if words in text:
            note(f"On the command line: {option}")


__all__ = ["exit_code", "group", "main", "report_failure", "run"]
