"""Numbers of one spectrum that logic ties together agree: any operator, method, precision, and size of J."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isometry.estimators import exact, lanczos, randomized
from isometry.jacobian import MatrixOperator
from isometry.spectrum import Spectrum

SHAPES = [(1, 1), (2, 5), (12, 12), (40, 25), (30, 30)]
KINDS = ["alike", "spread", "one small", "one large", "zeros", "copies", "heavy", "zero"]
METHODS: dict[str, Any] = {
    "exact": lambda operator, seed: exact(operator),
    "lanczos": lambda operator, seed: lanczos(operator, probes=3, steps=40, seed=seed),
    "lanczos, few steps": lambda operator, seed: lanczos(operator, probes=1, steps=3, seed=seed),
    "lanczos, one step": lambda operator, seed: lanczos(operator, probes=2, steps=1, seed=seed),
    "random signs": lambda operator, seed: lanczos(
        operator, probes=2, steps=5, probe="rademacher", seed=seed
    ),
    "orthogonal": lambda operator, seed: lanczos(operator, probes=5, steps=4, probe="orthogonal", seed=seed),
    "randomized": lambda operator, seed: randomized(operator, rank=3, probes=2, steps=6, seed=seed),
    "randomized, all": lambda operator, seed: randomized(operator, rank=60, seed=seed),
}


def singular_values(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    s = np.ones(count)
    if kind == "spread":
        s = rng.uniform(0.2, 2.0, count)
    elif kind == "one small":
        s[-1] = 1e-3
    elif kind == "one large":
        s[0] = 1e3
    elif kind == "zeros":
        s[: count // 2] = 0
    elif kind == "copies":
        s = np.repeat([2.0, 1.0, 0.5], -(-count // 3))[:count]
    elif kind == "heavy":
        s = np.exp(3 * rng.standard_normal(count))
    elif kind == "zero":
        s = np.zeros(count)
    return -np.sort(-s)


def operator_of(
    kind: str, shape: tuple[int, int], scale: float, dtype: torch.dtype, seed: int
) -> MatrixOperator:
    rng = np.random.default_rng(seed)
    count = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((side, count)))[0] for side in shape)
    a = (u * singular_values(kind, count, rng)) @ v.T
    return MatrixOperator(torch.from_numpy(a * scale).to(dtype))


def check(spectrum: Spectrum) -> None:
    """Every pair of reported numbers; slack is rounding of s_max, and the residuals that are stated."""
    eps = spectrum.quadrature.errors.eps
    unit = spectrum.s_max
    slack = 4000 * eps * unit
    lowest, highest = float(spectrum.quantile(0.0)), float(spectrum.quantile(1.0))
    # Extremes and quantiles. Below the floor a quantile is 0.
    quantiles = spectrum.quantile(np.linspace(0, 1, 21))
    assert np.all(np.diff(quantiles) >= 0)
    assert highest <= unit + slack
    assert spectrum.s_min_bound <= max(lowest, spectrum.floor) + slack
    if not math.isnan(spectrum.s_min):
        assert spectrum.s_min <= lowest + spectrum.s_min_residual + slack
        assert spectrum.s_min <= unit + slack
        assert spectrum.zero_mass == 0
        if spectrum.n_inputs == 1:
            assert math.isclose(spectrum.condition_number, unit / spectrum.s_min, rel_tol=1e-9)
    if not math.isnan(spectrum.condition_number):
        assert spectrum.condition_number_bound == spectrum.condition_number
    assert spectrum.condition_number_bound >= 1
    # The cdf between its bounds, and these within the band.
    # A node itself is known to rounding only.
    places = np.unique(np.concatenate([[0.0], quantiles * (1 - 1e-5), quantiles * (1 + 1e-5), [2 * unit]]))
    places = places[np.isfinite(places)]
    cdf, (lower, upper) = spectrum.cdf(places), spectrum.cdf_bounds(places)
    low, high = spectrum.cdf_band(places)
    above = places >= spectrum.floor
    assert np.all((lower <= cdf + 1e-9) & (cdf <= upper + 1e-9) | ~above)
    assert np.all((low <= cdf + 1e-9) & (cdf <= high + 1e-9) | ~above)
    assert np.all((low <= lower + 1e-9) & (upper <= high + 1e-9) | ~above)
    assert cdf[-1] > 1 - 1e-9
    assert math.isclose(float(spectrum.cdf(0.0)), spectrum.zero_mass, abs_tol=1e-12)
    # Moments between the extremes.
    log10 = spectrum.log10_moment(1)
    if unit > 0:
        assert log10 <= 2 * math.log10(unit) + 1e-5
        if spectrum.s_min > 0:
            assert log10 >= 2 * math.log10(max(spectrum.s_min - spectrum.s_min_residual, 1e-320)) - 1e-5
    else:
        assert log10 == -math.inf
    reported = spectrum.reported
    ends = reported.mean_square_interval95
    if not any(map(math.isnan, (reported.mean_square, *ends))):
        assert ends[0] <= reported.mean_square * (1 + 1e-9)
        assert ends[1] >= reported.mean_square * (1 - 1e-9)
    if reported.mean_square_stderr == 0 and not math.isnan(reported.mean_square):
        assert math.isclose(ends[0], ends[1], rel_tol=1e-9)
    # The share of an interval, and of one about the scale.
    for least, most, (from_, to) in (
        ((*spectrum.isometry_bounds(0.5 * unit, 2 * unit), spectrum.isometry_band(0.5 * unit, 2 * unit)),)
        if unit > 0 and math.isfinite(2 * unit)
        else ()
    ):
        assert -1e-12 <= least <= most <= 1
        assert from_ <= most + 1e-9
        assert to >= least - 1e-9
    least, most = reported.spread
    assert -1e-12 <= least <= most <= 1
    # One set of numbers in every form.
    plain = spectrum.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    flat = spectrum.summary()
    for name in ("s_max", "s_min", "mean_square", "condition_number", "zero_mass", "scale", "floor"):
        one, other = flat[name], plain[name]
        assert (other is None and not math.isfinite(one)) or one == other, name
    assert plain["verdict"] == spectrum.verdict() == reported.verdict


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(SHAPES),
    method=st.sampled_from(sorted(METHODS)),
    double=st.booleans(),
    exponent=st.floats(-1, 1),
    seed=st.integers(0, 1000),
)
def test_every_pair_of_numbers_agrees(
    kind: str, shape: tuple[int, int], method: str, double: bool, exponent: float, seed: int
) -> None:
    dtype, decades = (torch.float64, 300) if double else (torch.float32, 30)
    check(METHODS[method](operator_of(kind, shape, 10.0 ** (decades * exponent), dtype, seed), seed))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    method=st.sampled_from(sorted(METHODS)),
    exponent=st.floats(-1, 1),
    seed=st.integers(0, 1000),
)
def test_every_pair_of_numbers_of_several_inputs_agrees(
    kinds: list[str], method: str, exponent: float, seed: int
) -> None:
    """Samples of very different sizes share a spectrum, and each alone is consistent as well."""
    each = [
        operator_of(kind, (12, 12), 10.0 ** (100 * exponent * index), torch.float64, seed).matrix
        for index, kind in enumerate(kinds)
    ]
    together = METHODS[method](MatrixOperator(torch.stack(each)), seed)
    check(together)
    for index in range(len(kinds)):
        check(together.input(index))
