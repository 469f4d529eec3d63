"""Errors and warnings: what was wrong, what came, what to do next."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


class IsometryError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(IsometryError, ValueError):
    """What was passed in cannot be used: a model, an input, an option."""


class ModelError(InputError):
    """The model cannot be differentiated as it stands (batch-norm or dropout in training mode, coupling)."""


class SpecError(InputError):
    """The words for a model, an input or a setting name nothing that is there: they were typed wrongly."""


class LoadError(InputError):
    """What was named is there, and cannot be loaded: its code raises, a file is damaged or of another kind."""


class NonFiniteError(IsometryError, ArithmeticError):
    """NaN or inf in an output, in a Jacobian product, or in a loss."""


class AdjointError(IsometryError, ArithmeticError):
    """<J v, u> and <v, J^T u> differ by more than rounding: the two products are not of one matrix."""


class ConvergenceError(IsometryError, ArithmeticError):
    """An iteration stopped before it reached what was asked of it."""


class NotImprovedError(IsometryError):
    """New weights would have made the spectrum worse, and were undone."""


class TheoryError(InputError):
    """The mathematics has no answer: no fixed point, no critical point, a law outside its domain."""


class StoreError(IsometryError, OSError):
    """A file of spectra cannot be read or written."""


class NewerSchemaError(StoreError):
    """The file was written by a newer version of this package."""


class SweepError(IsometryError):
    """A sweep can not begin or go on: another one has the file, the workers are lost, results can not be stored."""


class IsometryWarning(UserWarning):
    """Base of every warning of this package."""


class ConvergenceWarning(IsometryWarning):
    """A number is reported with an error larger than usual."""


class FallbackWarning(IsometryWarning):
    """A slower or smaller way was taken: double backward, a loop, half the chunk."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line that called this package, through however many of its functions it came here."""
    frame: FrameType | None = sys._getframe(1)
    level = found = 1
    while frame is not None:
        level += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
            found = level + 1
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=found)
