"""What ``schema-1.h5`` holds, number by number. Run once, when schema 1 was new; the file is never written again.

``python tests/store/archive/schema_1.py FILE`` shows how it was made.
"""

from __future__ import annotations

import sys

import numpy as np

from isometry.spectrum import Curve, ErrorModel, Extremes, Quadrature, Spectrum


def spectra() -> list[Spectrum]:
    """One measured by probes, one exact, one predicted with a curve and atoms."""
    return [
        Spectrum(
            Quadrature(
                np.array([[[0.0, 0.5, 1.5], [0.25, 1.0, 0.0]], [[1e-9, 2.0, 3.0], [0.125, 0.75, 2.5]]]),
                np.array(
                    [[[0.25, 0.5, 0.25], [0.125, 0.875, 0.0]], [[0.5, 0.25, 0.25], [0.0625, 0.9375, 0.0]]]
                ),
                np.array([1e-8, 2e-8]),
                np.array(
                    [
                        [[True, False, False], [False, False, True]],
                        [[True, False, False], [False, True, True]],
                    ]
                ),
                ErrorModel(eps=2.0**-23),  # as its record says, for the file has none
            ),
            method="lanczos",
            shape=(10, 20),
            extremes=Extremes(
                np.array([[1.5, 0.5], [3.0, np.nan]]),
                np.array([[1e-12, 1e-3], [1e-12, np.nan]]),
                np.array([0.0, 1e-9]),
                np.array([0.5, np.inf]),
                np.array([False, True]),
            ),
            name="lanczos, two inputs",
            products=123,
            seconds=4.5,
            provenance={
                "model": "Sequential(Linear(20, 10), Tanh())",
                "input": "(2, 20) float32",
                "dtype": "float32",
                "device": "cpu",
                "seed": 5,
                "torch_version": "2.13.0",
                "git_commit": None,
                "created": "2026-01-02T03:04:05+00:00",
                "options": {"tol": 0.001, "parts": [1, None, "λ"]},
                "resumed": False,
            },
        ),
        Spectrum.from_singular_values([3.0, 1.0, 1.0, 0.0], shape=(4, 6), name="exact"),
        Spectrum(
            Curve(
                np.array([-2.0, -1.0, 0.5]),
                np.array([0.0, 0.25, 0.5]),
                np.array([0.0, 0.25, 0.125]),
                np.array([-np.inf, 0.0]),
                np.array([0.375, 0.125]),
                (-0.5, 0.25, 700.0),
            ),
            method="predicted",
            name="predicted",
            provenance={"ensemble": {"activation": "tanh", "depth": 10000}, "created": "2026-01-02"},
        ),
    ]


def columns() -> dict[str, np.ndarray]:
    """A series with a column of every kind."""
    return {
        "step": np.array([0, 10, 20], np.int64),
        "loss": np.array([2.25, 1.5, np.nan]),
        "accuracy": np.array([0.125, 0.5, 0.75], np.float32),
        "finite": np.array([True, True, False]),
    }


if __name__ == "__main__":
    from isometry.store import open_store

    store = open_store(sys.argv[1], "w")
    for spectrum in spectra():
        store.add(spectrum)
    first = {name: values[:2] for name, values in columns().items()}
    store.add_series(
        "training", first, {"learning_rate": 0.1, "created": "2026-01-02"}, units={"loss": "nats"}
    )
    store.append_series("training", {name: values[2:] for name, values in columns().items()})
