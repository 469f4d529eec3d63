"""`isometry critical`: closed forms, and the errors by name."""

from __future__ import annotations

import math

import pytest


def test_relu_is_critical_at_two(isometry) -> None:
    found = isometry("critical", "--activation", "relu", "--sigma-b", "0", "--json").json
    assert set(found) >= {"activation", "q_star", "sigma_w2", "sigma_b2", "chi_1", "xi_c"}
    # E phi'^2 = 1/2 for any variance (He et al. 2015, arXiv 1502.01852).
    assert found["sigma_w2"] == pytest.approx(2.0, rel=1e-14)
    assert found["sigma_b2"] == 0.0
    assert found["chi_1"] == pytest.approx(1.0, abs=1e-14)
    assert found["xi_c"] is None


@pytest.mark.parametrize("q_star", [1e-12, 1e-3, 0.5])
def test_erf_has_a_closed_form(isometry, q_star: float) -> None:
    found = isometry("critical", "--activation", "erf", "--q-star", q_star, "--json").json
    # E erf'(h)^2 = (4/pi) / sqrt(1 + 4 q), E erf(h)^2 = (2/pi) arcsin(2 q / (1 + 2 q)) (Williams 1997).
    weight2 = math.pi / 4 * math.sqrt(1 + 4 * q_star)
    assert found["sigma_w2"] == pytest.approx(weight2, rel=1e-12)
    bias2 = q_star - weight2 * 2 / math.pi * math.asin(2 * q_star / (1 + 2 * q_star))
    # The closed form itself cancels: what it leaves is good to a few roundings of q*.
    assert found["sigma_b2"] == pytest.approx(bias2, abs=4e-16 * q_star + 1e-30, rel=1e-10)


def test_the_text_names_every_number(isometry) -> None:
    done = isometry("critical", "--activation", "tanh", "--q-star", "0.05")
    assert done.code == 0
    for word in ("q*", "sigma_w", "sigma_b", "chi_1", "xi_c", "0.05"):
        assert word in done.out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--activation tanh", 2, "exactly one"),
        ("--activation tanh --q-star 1 --sigma-b 0", 2, "exactly one"),
        ("--activation magic --q-star 1", 1, "tanh"),
        ("--activation relu --sigma-b 0.5", 1, "no critical point"),
        ("--activation tanh --q-star -1", 1, "q_star"),
        ("--q-star 1", 2, "--activation"),
    ],
)
def test_bad_input_is_named(isometry, options: str, code: int, words: str) -> None:
    done = isometry("critical", *options.split())
    assert done.code == code
    assert words in done.err
    assert done.out == ""
