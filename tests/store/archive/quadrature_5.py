"""What ``quadrature-5.h5`` holds, number by number. Run once, when that version was new; never written again.

``python tests/store/archive/quadrature_5.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import ErrorModel, Extremes, Quadrature, Spectrum


def spectra() -> list[Spectrum]:
    """By orthogonal groups of probes in float32, by random signs, and exact; their records say something else.

    One mass was counted, and equal ones were not.
    """
    nodes = np.array([[[0.25, 1.0, 1.75], [0.5, 1.0, 0.0], [0.5, 1.5, 1.75]]])
    weights = np.array([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    misleading = {"probe": "none", "rounding": 0.25, "dtype": "float16", "created": "2026-01-02"}
    return [
        Spectrum(
            Quadrature(
                nodes,
                weights,
                np.array([0.0625]),
                np.array([[[False] * 3, [True] * 3, [False] * 3]]),
                errors,
                np.array([[[False] * 3, [True, False, False], [False] * 3]]),
            ),
            method="lanczos",
            shape=(40, 50),
            extremes=Extremes(
                np.array([[1.75]]),
                np.array([[0.125]]),
                np.array([0.25]),
                np.array([0.125]),
                np.array([False]),
            ),
            name=errors.probe,
            products=24,
            seconds=1.5,
            provenance=misleading,
        )
        for errors in (
            ErrorModel("orthogonal", 2, eps=2.0**-23, rounding=2.0**-20, dimension=40),
            ErrorModel("rademacher", dimension=40),
        )
    ] + [Spectrum.from_singular_values([3.0, 1.0, 1.0, 0.5], shape=(4, 6), name="exact")]


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
