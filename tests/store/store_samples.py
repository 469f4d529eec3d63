"""Spectra to store: one of each form, small, and a strict comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from isometry.spectrum import Curve, ErrorModel, Extremes, Quadrature, Spectrum

PROVENANCE = {
    "model": "VanillaCNN(depth=4)",
    "input": "(1, 8, 8) float64",
    "dtype": "float64",
    "device": "cpu",
    "seed": 7,
    "torch_version": "2.13.0",
    "isometry_version": "0.1.0",
    "git_commit": None,
    "created": "2026-01-02T03:04:05+00:00",
    "options": {"top": 3, "tol": 1e-3, "parts": [1, 2.5, None, True, "ü"]},
    "converged": True,
    "wide": 2**70,
    "empty": "",
    "encoding_type": "a name the layout uses itself",
}


def measured(
    seed: int = 0, *, inputs: int = 2, probes: int = 3, nodes: int = 5, name: str = "measured"
) -> Spectrum:
    """A quadrature with padding, a floor, and extremes of which one is not resolved."""
    generator = np.random.default_rng(seed)
    weights = generator.random((inputs, probes, nodes))
    weights[..., -1] = 0.0
    weights /= weights.sum(-1, keepdims=True)
    values = generator.random((inputs, probes, nodes))
    known = np.arange(inputs) % 2 == 0
    present = np.sort(values[..., :-1].reshape(inputs, -1), axis=1)
    top = present[:, :-4:-1].copy()
    top[0, -1] = np.nan
    return Spectrum(
        Quadrature(
            values,
            weights,
            np.full(inputs, 1e-9),
            generator.random((inputs, probes, nodes)) < 0.5,
            ErrorModel("orthogonal", 3, 2.0**-23, 1e-6, 7),
        ),
        method="lanczos",
        shape=(12, 7),
        extremes=Extremes(top, 1e-12 * top, present[:, 0], np.where(known, 1e-12, np.inf), known),
        name=name,
        products=60,
        seconds=0.25,
        provenance=PROVENANCE,
    )


def predicted(name: str = "predicted") -> Spectrum:
    """A uniform density of ln s on [-400, 900], out of the range of floats both ways, with atoms at zero and at one."""
    log_s = np.linspace(-400.0, 900.0, 41)
    return Spectrum(
        Curve(
            log_s,
            0.5 * (log_s + 400.0) / 1300.0,
            np.full(41, 0.5 / 1300.0),
            np.array([-np.inf, 0.0]),
            np.array([0.25, 0.25]),
            (1795.0, 3590.5),
        ),
        method="predicted",
        name=name,
        provenance={"ensemble": {"activation": "tanh", "depth": 10000, "widths": None}, "created": "2026"},
    )


def atoms_only() -> Spectrum:
    """A prediction without a continuous part: its grid is empty."""
    none = np.empty(0)
    return Spectrum(
        Curve(none, none, none, np.array([0.0]), np.array([1.0])), method="predicted", name="delta at one"
    )


def dense(name: str = "dense") -> Spectrum:
    """All singular values of one matrix, enough of them for compressed datasets."""
    return Spectrum.from_singular_values(np.random.default_rng(1).random(9000), shape=(9000, 9500), name=name)


def assert_same(a: Spectrum, b: Spectrum) -> None:
    """Equal bit for bit, apart from the date that storing adds where there was none."""
    assert type(a.distribution) is type(b.distribution)
    for part in ("distribution", "extremes"):
        one, other = getattr(a, part), getattr(b, part)
        assert (one is None) == (other is None)
        for key in () if one is None else one.__dataclass_fields__:
            if key == "errors":
                assert one.errors == other.errors
                continue
            left, right = np.asarray(getattr(one, key)), np.asarray(getattr(other, key))
            assert left.dtype == right.dtype, key
            assert left.shape == right.shape, key
            assert left.tobytes() == right.tobytes(), key
    for key in ("method", "shape", "name", "products"):
        assert getattr(a, key) == getattr(b, key), key
    assert np.float64(a.seconds).tobytes() == np.float64(b.seconds).tobytes()
    recorded = dict(b.provenance)
    if "created" not in a.provenance:
        assert recorded.pop("created")
    assert repr(dict(sorted(recorded.items()))) == repr(dict(sorted(a.provenance.items())))


def archive() -> Path:
    """The sample file of schema 1, written once and read for ever."""
    return Path(__file__).parent / "archive" / "schema-1.h5"
