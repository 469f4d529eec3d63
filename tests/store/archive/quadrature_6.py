"""What ``quadrature-6.h5`` holds: random probes or none, one input or two, values out of range. Never written again.

``python tests/store/archive/quadrature_6.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import ErrorModel, Quadrature, Spectrum


def spectra() -> list[Spectrum]:
    """Only where something was random is there a band, and only of two inputs an error over inputs."""
    nodes = np.array([[[0.25, 1.0, 1.75], [0.5, 1.0, 0.0]], [[0.125, 0.75, 1.5], [0.25, 0.5, 1.25]]])
    weights = np.array([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]])
    values = [[3.0, 1.0, 1.0, 0.5], [2.0, 1.0, 0.5, 0.25]]
    made = []
    for inputs, words in ((1, ""), (2, ", two inputs")):
        rule = Quadrature(
            nodes[:inputs], weights[:inputs], np.full(inputs, 0.0625), np.zeros((inputs, 2, 3), bool),
            ErrorModel("orthogonal", 2, eps=2.0**-23, rounding=2.0**-20, dimension=40),
        )  # fmt: skip
        made += [
            Spectrum(rule, method="lanczos", shape=(40, 50), name=f"lanczos{words}"),
            Spectrum.from_singular_values(values[:inputs], shape=(4, 6), name=f"exact{words}"),
        ]
    return [*made, Spectrum.from_singular_values([1e-100, 1e-200], name="tiny")]


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
