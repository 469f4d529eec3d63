"""The numbers that a list of spectra shows, as one attribute of each: a list reads nothing else.

``summary`` holds the numbers of `NUMBERS` and last a CRC-32 of all before it, and of the texts that the list shows
beside them. A list of 10,000 spectra reads three attributes of each.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from isometry.errors import StoreError
from isometry.spectrum import Spectrum
from isometry.spectrum.summary import REPORTED_QUANTILES, Summary
from isometry.store.admission import attribute

SUMMARY = "summary"
NUMBERS = (
    "outputs_of_J", "inputs_of_J", "predicted", "partial",
    "inputs", "probes", "s_max", "s_max_residual", "log10_s_max",
    "mean_square", "mean_square_stderr", "log10_mean_square",
    "isometry_least", "isometry_most", "isometry_stderr", "isometry_lower", "isometry_upper",
)  # fmt: skip
# The first ones are whole numbers.
_COUNTS = 6
# Those that another version may compute otherwise: validate does not compare them.
_STATISTICAL = {"mean_square_stderr", "isometry_stderr", "isometry_lower", "isometry_upper", "s_max_residual"}


@dataclass(frozen=True)
class Listed:
    """What a list shows of a spectrum: its summary as far as it is stored, its date, and whether it is only a part.

    What of the summary is not stored is nan.
    """

    summary: Summary
    created: Any
    partial: bool


def numbers_of(summary: Summary, partial: bool) -> NDArray[np.float64]:
    """The numbers of a summary in the order of `NUMBERS`."""
    plain = (
        *(summary.shape or (0, 0)), summary.kind == "predicted", partial,
        summary.inputs, summary.probes, summary.s_max, summary.s_max_residual, summary.log10_s_max, summary.mean_square,
        summary.mean_square_stderr, summary.log10_mean_square, *summary.isometry, summary.isometry_stderr,
        *summary.isometry_limits95,
    )  # fmt: skip
    return np.array(plain, float)


def encode_summary(spectrum: Spectrum, created: Any) -> NDArray[np.float64]:
    """The attribute that holds the summary of a spectrum."""
    summary = spectrum.reported
    numbers = numbers_of(summary, spectrum.partial)
    return np.append(numbers, _checksum(numbers, summary.method, created))


def read_listed(group: h5py.Group, name: str) -> Listed | None:
    """What a list shows of a stored spectrum; None where no summary was stored with it.

    Raises
    ------
    StoreError
        When it was changed since.
    """
    stored = attribute(group, SUMMARY)
    if not isinstance(stored, np.ndarray):
        return None
    method, created = attribute(group, "method"), attribute(group, "created")
    numbers = stored[:-1]
    if (
        numbers.shape != (len(NUMBERS),)
        or stored.dtype != np.float64
        or stored[-1] != _checksum(numbers, method, created)
        or not np.all((numbers[:_COUNTS] >= 0) & (numbers[:_COUNTS] < 2**53))
    ):
        raise StoreError(
            f"{group.file.filename}: {group.name.lstrip('/')} is damaged: its summary changed since it was written. "
            "Restore the file from a copy, or remove this entry and compute it again."
        )
    value = dict(zip(NUMBERS, numbers.tolist(), strict=True))
    sides = (int(value["outputs_of_J"]), int(value["inputs_of_J"]))
    unknown = dict.fromkeys(REPORTED_QUANTILES, math.nan)
    nan = math.nan
    return Listed(
        Summary(
            name=name, kind="predicted" if value["predicted"] else "measured", method=str(method),
            shape=sides if all(sides) else None, null_dimension=abs(sides[0] - sides[1]),
            inputs=int(value["inputs"]), probes=int(value["probes"]),
            s_max=value["s_max"], s_max_residual=value["s_max_residual"], log10_s_max=value["log10_s_max"],
            s_min=nan, s_min_residual=nan, s_min_upper_bound=nan, log10_s_min=nan,
            condition_number=nan, log10_condition_number=nan, condition_number_bound=nan,
            mean_square=value["mean_square"], mean_square_stderr=value["mean_square_stderr"],
            mean_square_stderr_inputs=nan, mean_square_interval95=(nan, nan),
            log10_mean_square=value["log10_mean_square"], variance=nan, quantiles=unknown, log10_quantiles=unknown,
            floor=nan, zero_mass=nan, isometry=(value["isometry_least"], value["isometry_most"]),
            isometry_stderr=value["isometry_stderr"],
            isometry_limits95=(value["isometry_lower"], value["isometry_upper"]), verdict="", products=0, seconds=nan,
        ),
        created,
        bool(value["partial"]),
    )  # fmt: skip


def summary_problems(group: h5py.Group, spectrum: Spectrum) -> list[str]:
    """What is wrong with the stored summary of a spectrum."""
    try:
        listed = read_listed(group, spectrum.name)
    except StoreError:
        return [f"{SUMMARY}: changed since it was written"]
    if listed is None:
        return []
    pairs = zip(
        NUMBERS,
        numbers_of(listed.summary, listed.partial),
        numbers_of(spectrum.reported, spectrum.partial),
        strict=True,
    )
    wrong = [
        key
        for key, stored, expected in pairs
        if key not in _STATISTICAL and not np.isclose(stored, expected, rtol=1e-8, atol=1e-9, equal_nan=True)
    ]
    return [f"{SUMMARY}: {', '.join(wrong)} do not follow from the distribution"] if wrong else []


def _checksum(numbers: NDArray[np.float64], method: Any, created: Any) -> int:
    # As they are read back: a date that is a number comes as NumPy's.
    words = repr([text if isinstance(text, str) else np.asarray(text).tolist() for text in (method, created)])
    return zlib.crc32(numbers.astype("<f8").tobytes() + words.encode("utf-8", "surrogatepass"))
