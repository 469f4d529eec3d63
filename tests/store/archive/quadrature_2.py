"""What ``quadrature-2.h5`` holds, number by number. Run once, when that version was new; never written again.

``python tests/store/archive/quadrature_2.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import ErrorModel, Extremes, Quadrature, Spectrum


def spectra() -> list[Spectrum]:
    """Two inputs by two probes with Gauss nodes, and one with leading values found one by one."""
    return [
        Spectrum(
            Quadrature(
                np.array([[[0.25, 1.0, 1.75], [0.5, 1.0, 0.0]], [[0.125, 0.75, 1.5], [0.25, 0.5, 1.25]]]),
                np.array([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]]),
                np.array([0.0625, 0.03125]),
                np.array([[[False] * 3, [True] * 3], [[False] * 3, [False] * 3]]),
                ErrorModel(eps=2.0**-23, rounding=1e-6),  # as its record says, for the file has none
            ),
            method="lanczos",
            shape=(40, 50),
            extremes=Extremes(
                np.array([[1.75], [1.5]]), np.array([[0.125], [0.25]]), np.array([0.25, 0.125]),
                np.array([0.125, 0.125]), np.array([False, False]),
            ),
            name="lanczos",
            products=24,
            seconds=1.5,
            provenance={"dtype": "float32", "rounding": 1e-6, "seed": 0, "created": "2026-01-02"},
        ),
        Spectrum(
            Quadrature(
                np.array([[[3.0, 2.0, 0.5, 1.0], [3.0, 2.0, 0.25, 0.75]]]),
                np.array([[[0.125, 0.125, 0.5, 0.25], [0.125, 0.125, 0.25, 0.5]]]),
                np.array([0.0]),
                np.array([[[True, True, False, False]] * 2]),
            ),
            method="randomized",
            shape=(8, 8),
            extremes=Extremes(
                np.array([[3.0, 2.0]]), np.array([[0.0625, 0.125]]), np.array([0.25]), np.array([0.125]),
                np.array([False]),
            ),
            name="randomized",
            products=60,
            seconds=0.5,
            provenance={"dtype": "float64", "created": "2026-01-02"},
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
