"""What ``values-1.h5`` holds, number by number. Run once, when that version was new; never written again.

``python tests/store/archive/values_1.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import ErrorModel, LogValues, Spectrum


def spectra() -> list[Spectrum]:
    """Two inputs over 900 decades, with zeros of both kinds."""
    values = np.log(10) * np.array([[400.0, 0.25, -500.0, -np.inf], [1.0, -np.inf, -np.inf, -np.inf]])
    error = np.array([[1e-9, 1e-13, 1e-10, 0.0], [1e-14, 0.0, 0.0, 0.0]])
    return [
        Spectrum(
            LogValues(values, error, np.array([1, 2]), ErrorModel("none", eps=2.0**-52, rounding=1e-14)),
            method="chain",
            shape=(4, 6),
            name="chain",
            products=30,
            seconds=0.5,
            provenance={"created": "2026-01-02", "factors": 7},
        )
    ]


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
