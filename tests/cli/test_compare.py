"""`isometry compare`: two stored spectra, and a stored one against the theory of its architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isometry.spectrum import Spectrum
from isometry.store import open_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pair.h5"
    store = open_store(path, "a")
    values = np.linspace(0.5, 1.5, 200)
    store.add(Spectrum.from_singular_values(values, name="law"))
    store.add(Spectrum.from_singular_values(values[::2], name="same"))
    store.add(Spectrum.from_singular_values(3 * values, name="scaled"))
    store.add(Spectrum.from_singular_values([1.0] * 50, name="with: colon"))
    return path


def test_a_spectrum_agrees_with_itself_and_not_with_three_times_itself(isometry, file) -> None:
    same = isometry("compare", f"{file}:same", f"{file}:law", "--json").json
    assert same["agrees"] is True
    scaled = isometry("compare", f"{file}:scaled", f"{file}:law", "--json").json
    assert scaled["agrees"] is False
    assert scaled["agrees_in_shape"] is True
    # m_1 = E s^2 of 3 J is nine times that of J.
    assert scaled["raw"]["moment_ratios"]["m1"] == pytest.approx(9.0, rel=1e-12)


def test_the_table_and_the_picture(isometry, file, tmp_path) -> None:
    done = isometry("compare", f"{file}:scaled", f"{file}:law", "--png", tmp_path / "c.png")
    assert done.code == 0
    assert "KS" in done.out
    assert "agrees in shape only" in done.out
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_required_agreement(isometry, file) -> None:
    assert isometry("compare", f"{file}:same", f"{file}:law", "--require-agreement").code == 0
    assert isometry("compare", f"{file}:scaled", f"{file}:law", "--require-agreement").code == 3


def test_a_name_may_hold_a_colon(isometry, file) -> None:
    assert (
        isometry("compare", f"{file}:with: colon", f"{file}:with: colon", "--json").json["raw"]["ks"] == 0.0
    )


def test_a_reference_network_agrees_with_its_theory(isometry, tmp_path) -> None:
    path = tmp_path / "net.h5"
    spec = "mlp:depth=4,width=60,activation=tanh,init=gaussian,sigma_w=1.3,sigma_b=0.2,seed=4"
    isometry("measure", spec, "--method", "exact", "-o", path, "--name", "net")
    found = isometry("compare", f"{path}:net", "--theory", "--json").json
    assert found["agrees"] is True
    # Started far from its stationary variance the law is another one: the recorded q0 says so.
    isometry("measure", spec, "--method", "exact", "--input", "60", "-o", path, "--name", "normal")
    assert isometry("compare", f"{path}:normal", "--theory", "--json").json["agrees"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{file}:same"], 2, "--theory"),
        (["{file}:same", "{file}:law", "--theory"], 2, "one of the two"),
        (["{file}:same", "--theory"], 1, "no architecture is recorded"),
        (["{file}:sane", "{file}:law"], 2, "did you mean same"),
        (["{file}", "{file}:law"], 2, "say which"),
        (["{file}.absent:same", "{file}:law"], 4, "pair.h5.absent"),
    ],
)
def test_bad_input_is_named(isometry, file, arguments: list[str], code: int, words: str) -> None:
    done = isometry("compare", *(argument.format(file=file) for argument in arguments))
    assert done.code == code
    assert words in done.err
    assert done.out == ""
