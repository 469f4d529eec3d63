"""What ``compact-4.h5`` holds: version 4 of a quadrature and 3 of a curve, with short arrays as attributes.

Run once, when those versions were new; never written again. ``python tests/store/archive/compact_4.py FILE`` shows how
it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import Curve, ErrorModel, Extremes, Quadrature, Spectrum


def spectra() -> list[Spectrum]:
    """By probes, exact with arrays that are too long for attributes, and two predictions."""
    nodes = np.array([[[0.25, 1.0, 1.75], [0.5, 1.0, 0.0]], [[0.125, 0.75, 1.5], [0.25, 0.5, 1.25]]])
    weights = np.array([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]])
    resolved = np.array([[[False] * 3, [True] * 3], [[False] * 3, [False] * 3]])
    errors = ErrorModel("orthogonal", 2, eps=2.0**-23, rounding=2.0**-20, dimension=40)
    grid = np.linspace(-2.0, 0.5, 6)
    return [
        Spectrum(
            Quadrature(nodes, weights, np.array([0.0625, 0.03125]), resolved, errors),
            method="lanczos",
            shape=(40, 50),
            extremes=Extremes(
                np.array([[1.75, 1.0], [1.5, np.nan]]),
                np.array([[0.125, 0.25], [0.25, np.nan]]),
                np.array([0.25, 0.125]),
                np.array([0.125, np.inf]),
                np.array([True, False]),
            ),
            name="lanczos",
            products=24,
            seconds=1.5,
            provenance={
                "dtype": "float32", "seed": 0, "created": "2026-01-02", "moment": "a name of the layout",
                "options": {"tol": 0.001, "parts": [1, None, "λ"]},
            },
        ),
        Spectrum.from_singular_values(np.arange(200, 0, -1) / 128, shape=(200, 300), name="long"),
        Spectrum(
            Curve(
                grid, np.array([0.0, 0.0625, 0.125, 0.25, 0.375, 0.5]), np.array([0.0, 0.125, 0.25, 0.25, 0.25, 0.0]),
                np.array([-np.inf, 0.0]), np.array([0.375, 0.125]), (-0.75, 0.25),
            ),
            method="predicted",
            name="predicted",
            provenance={"ensemble": {"activation": "tanh", "depth": 10000}, "created": "2026-01-02"},
        ),
        Spectrum(
            Curve(np.empty(0), np.empty(0), np.empty(0), np.array([0.0]), np.array([1.0])),
            method="predicted",
            name="delta at one",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
