"""No bound, interval, standard error, stopping decision or verdict follows from the record of a measurement."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isometry import Spectrum, measure
from isometry.errors import InputError
from isometry.measurement.convergence import worst_residual
from isometry.measurement.provenance import OWN_KEYS
from isometry.measurement.stopping import QUANTITIES, Goal

METHODS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "gaussian": {"method": "lanczos", "probes": 4, "steps": 6},
    "rademacher": {"method": "lanczos", "probe": "rademacher", "probes": 4, "steps": 6},
    "orthogonal": {"method": "lanczos", "probe": "orthogonal", "probes": 4, "steps": 6},
    "randomized": {"method": "randomized", "rank": 4, "probes": 4, "steps": 6},
    "with a goal": {"rtol": 0.2, "probes": 16},
    "one probe": {"method": "lanczos", "probes": 1, "steps": 4},
}
ADVERSARIAL = (
    None, "gaussian", "rademacher", "orthogonal", "none", "float16", "float32", "float64", 0, 1, 16, -1, 0.3, math.nan,
    math.inf, True, [], {}, {"top": 1, "batched": True},
)  # fmt: skip


MISLEADING = {
    "probe": "gaussian",
    "rounding": 0.3,
    "dtype": "float16",
    "options": {"top": 1, "batched": True},
}


@pytest.fixture(scope="module", params=METHODS)
def measured(request: pytest.FixtureRequest) -> Spectrum:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 20)).double()
    x = torch.randn(2, 24, dtype=torch.float64)
    return measure(model, x, batched=True, progress=False, name="m", **METHODS[request.param])


def numbers(spectrum: Spectrum) -> dict[str, Any]:
    """Every number that says how well something is known, and what is decided by them."""
    s = np.quantile(spectrum.quadrature.nodes, [0, 0.1, 0.5, 0.9, 1])
    found: dict[str, Any] = {
        "band": spectrum.cdf_band(s),
        "bounds": spectrum.cdf_bounds(s),
        "cdf_stderr": [spectrum.cdf_stderr(s, over=over) for over in ("probes", "inputs")],
        "moment_stderr": [
            spectrum.moment_stderr(k, over=over) for k in (1, 2) for over in ("probes", "inputs")
        ],
        "interval": spectrum.mean_square_interval(),
        "isometry": [spectrum.isometry_bounds(), spectrum.isometry_band(), spectrum.isometry_stderr()],
        "extremes": [
            spectrum.s_max_residual,
            spectrum.s_min,
            spectrum.s_min_residual,
            spectrum.condition_number,
        ],
        "verdict": spectrum.verdict(),
        "residual": worst_residual(spectrum),
    }
    try:
        found["simultaneous"] = spectrum.cdf_band(s, simultaneous=True)
    except InputError as error:
        found["simultaneous"] = str(error)
    for quantity in QUANTITIES:
        # The simultaneous band of random signs is refused, whatever is recorded.
        if quantity != "cdf" or not isinstance(found["simultaneous"], str):
            error = Goal(quantity).error_of(spectrum)
            found[quantity] = (error.size, Goal(quantity, rtol=0.1).reached(error), repr(error))
    return found


def test_no_key_of_provenance_changes_a_number(measured: Spectrum) -> None:
    expected = repr(numbers(measured))
    assert repr(numbers(replace(measured, provenance={}))) == expected
    keys = sorted(
        {*measured.provenance, *OWN_KEYS, "orthogonal_group", "width", "method", "shape", "dimension"}
    )
    # The most misleading values one by one, and every value under all keys at once.
    records = [{**measured.provenance, key: value} for key, value in MISLEADING.items()]
    records += [dict.fromkeys(keys, value) for value in ADVERSARIAL]
    for record in records:
        if record.get("stopped") is not measured.provenance.get("stopped"):
            # A report says why a measurement stopped, which is no number.
            record.pop("stopped")
        assert repr(numbers(replace(measured, provenance=record))) == expected, record


def test_measurements_record_no_other_keys_than_those_they_refuse(measured: Spectrum) -> None:
    assert set(measured.provenance) <= OWN_KEYS


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("rademacher", {"probe": "gaussian"}),
        ("gaussian", {"rounding": 0.3}),
        ("gaussian", {"orthogonal_group": 16}),
    ],
)
def test_what_used_to_change_a_band_is_refused_or_has_no_effect(kind: str, record: dict[str, Any]) -> None:
    """A 200 x 200 layer, the cdf at s = 0.5 and the standard error of the mean square."""
    torch.manual_seed(0)
    layer, x = nn.Linear(200, 200), torch.randn(200)
    options: dict[str, Any] = {"probe": kind, "probes": 16, "steps": 20, "progress": False}
    plain = measure(layer, x, "lanczos", **options)
    if record.keys() <= OWN_KEYS:
        with pytest.raises(
            InputError, match=rf"{next(iter(record))!r}, which the measurement records itself.*own_"
        ):
            measure(layer, x, "lanczos", provenance=record, **options)
        other = replace(plain, provenance={**plain.provenance, **record})
    else:
        other = measure(layer, x, "lanczos", provenance=record, **options)
    assert other.cdf_band(0.5) == plain.cdf_band(0.5)
    assert other.mean_square_stderr == plain.mean_square_stderr
    assert other.mean_square_interval() == plain.mean_square_interval()


def test_unknown_values_and_an_ensemble_may_be_given() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(4)
    given = {"seed": None, "ensemble": {"activation": "tanh", "depth": 1}, "experiment": 3}
    spectrum = measure(layer, x, "exact", progress=False, seed=5, provenance=given)
    assert spectrum.provenance["seed"] == 5
    assert spectrum.provenance["ensemble"] == given["ensemble"]
    assert spectrum.provenance["experiment"] == 3


def test_channels_are_recorded_as_a_number() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    one = measure(conv, torch.randn(1, 3, 4, 4), "exact", progress=False)
    several = measure(conv, torch.randn(2, 3, 4, 4), "exact", batched=True, progress=False)
    assert one.provenance["channels"] == several.provenance["channels"] == 3
    assert "channels" not in measure(nn.Linear(4, 4), torch.randn(4), "exact", progress=False).provenance
    assert (
        "channels"
        not in measure(nn.Conv2d(3, 2, 3), torch.randn(3, 4, 4), "exact", progress=False).provenance
    )
