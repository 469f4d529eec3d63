"""What ``curve-2.h5`` holds, number by number. Run once, when that version was new; never written again.

``python tests/store/archive/curve_2.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import Curve, Spectrum


def spectra() -> list[Spectrum]:
    """The same uniform law in ln s, half of it at zero, with an upper end and without."""
    grid = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    return [
        Spectrum(
            Curve(
                grid,
                0.25 * (grid + 1.0),
                np.full(5, 0.25),
                np.array([-np.inf]),
                np.array([0.5]),
                unbounded=unbounded,
            ),
            method="predicted",
            name=name,
            seconds=0.5,
            provenance={"created": "2026-01-02"},
        )
        for name, unbounded in (("bounded", False), ("unbounded", True))
    ]


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
