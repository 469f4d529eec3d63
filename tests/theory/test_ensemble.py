"""The ensemble is data: it refuses what does not fit, and survives a trip through JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from isometry.errors import InputError
from isometry.theory.ensemble import Ensemble


def test_json_round_trip_keeps_every_field() -> None:
    ensemble = Ensemble(
        "tanh",
        3,
        weights=("gaussian", "orthogonal", "gaussian", "orthogonal"),
        sigma_w=1.25,
        sigma_b=0.0,
        widths=(10, 20, 5, 8, 2),
        q0=0.3,
        readout=True,
    )
    assert Ensemble.from_dict(json.loads(json.dumps(ensemble.to_dict()))) == ensemble


def test_one_law_stands_for_every_matrix_and_a_read_out_adds_one() -> None:
    ensemble = Ensemble("relu", 2, weights="orthogonal", readout=True)
    assert ensemble.matrix_count == 3
    assert ensemble.layer_weights == ("orthogonal",) * 3
    assert ensemble.is_square


def test_widths_that_are_all_equal_are_square() -> None:
    assert Ensemble("relu", 2, widths=(7, 7, 7)).is_square
    assert not Ensemble("relu", 2, widths=(7, 7, 8)).is_square


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": 2.5}, "depth"),
        ({"depth": True}, "depth"),
        ({"weights": "uniform"}, "gaussian, orthogonal"),
        ({"weights": ("gaussian",)}, "2 weight matrices"),
        ({"widths": (4, 4)}, "3 numbers"),
        ({"widths": (4, 0, 4)}, "positive whole"),
        ({"sigma_w": 0.0}, "sigma_w"),
        ({"sigma_w": 1.0, "sigma_b": -0.1}, "sigma_b"),
        ({"sigma_b": 0.1}, "sigma_b alone"),
        ({"q_star": float("nan")}, "q_star"),
        ({"residual": 0.0}, "residual"),
        ({"residual": 0.1, "widths": (4, 5, 4)}, "widths must be equal"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Ensemble(**{"activation": "tanh", "depth": 2, **fields})


def test_unknown_and_missing_fields_are_named() -> None:
    with pytest.raises(InputError, match="colour"):
        Ensemble.from_dict({"activation": "tanh", "depth": 2, "colour": "red"})
    with pytest.raises(InputError, match="depth"):
        Ensemble.from_dict({"activation": "tanh"})


def test_a_negative_branch_keeps_its_sign() -> None:
    assert Ensemble("tanh", 4, residual=-0.5).residual == -0.5


def test_the_module_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, isometry.theory.ensemble\n"
        "assert not {'torch', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sigma_w": "wide"}, "sigma_w must be a number"),
        ({"sigma_w": (1.0, 1.2)}, "2 numbers, but there are 3 weight matrices"),
        ({"sigma_w": (1.0, -1.2, 1.0)}, r"sigma_w\[1\]"),
        ({"sigma_w": 1.0, "sigma_b": (0.1, 0.2)}, "2 numbers, but there are 3 layers"),
        ({"sigma_w": (1.0, None, 2.0)}, "None"),
        ({"activation": ("tanh", "relu"), "sigma_w": 1.0}, "2 functions, but there are 3 layers"),
        ({"activation": ("tanh", "relu", "tanh")}, "give sigma_w"),
        ({"sigma_w": (1.0, 1.2, 1.0), "q_star": 1.0}, "give q0"),
    ],
)
def test_lists_that_do_not_fit_the_layers_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Ensemble(**{"activation": "tanh", "depth": 3, **fields})


def test_lists_of_one_value_are_that_value_and_others_survive_json() -> None:
    plain = Ensemble("tanh", 2, sigma_w=1.5, sigma_b=0.1)
    assert Ensemble(["tanh", "tanh"], 2, sigma_w=[1.5, 1.5], sigma_b=(0.1, 0.1)) == plain  # type: ignore[arg-type]
    mixed = Ensemble(("tanh", "relu"), 2, sigma_w=(1.5, 1.0, 2.0), sigma_b=(0.1, 0.2), q0=1.0, readout=True)
    assert Ensemble.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
