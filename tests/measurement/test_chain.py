"""measure(method="chain"): models of every kind, files, comparison and pictures, beyond the range of floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import nn

import isometry
from isometry import Chain, JacobianOperator, measure
from isometry.errors import InputError, ModelError
from isometry.estimators import MatrixFactor, chain
from isometry.spectrum import LogValues
from isometry.store import open_store


def perceptron(width: int, depth: int, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [linear := nn.Linear(width, width, bias=False, dtype=torch.float64), nn.Tanh()]
        nn.init.normal_(linear.weight, std=scale * width**-0.5)
    return nn.Sequential(*layers).double()


def test_a_shallow_model_has_the_values_of_its_dense_matrix():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4), nn.GELU(), nn.Linear(4, 5)).double()
    x = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, dense = measure(model, x, "chain"), measure(model, x, "exact")
    # The four units in the middle.
    assert found.zero_mass == 1 / 5
    assert np.allclose(found.singular_values[:4], dense.singular_values[:4], rtol=1e-12)
    assert found.reported.cells()["zero_mass"] == "20 % (s = 0)"
    assert found.relative_errors.max() < 1e-10
    assert found.products == Chain().products(JacobianOperator(model, x))


def test_a_convolutional_residual_model_of_several_inputs_has_the_values_of_its_dense_matrices():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.two(torch.tanh(self.one(x))))

    torch.manual_seed(1)
    model = nn.Sequential(*(Block() for _ in range(3)), nn.Flatten(), nn.Linear(32, 30)).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    found, dense = measure(model, x, "chain", batched=True), measure(model, x, "exact", batched=True)
    assert found.n_inputs == 2
    for index in range(2):
        values, expected = found.input(index).singular_values, dense.input(index).singular_values
        above = expected > 1e-10 * expected[0]
        assert np.allclose(values[above], expected[above], rtol=1e-5)
        assert np.all(values[~above] <= 1e-9 * expected[0])


@pytest.fixture(scope="module")
def deep() -> isometry.Spectrum:
    """All values below 1e-330."""
    return measure(perceptron(4, 11, 1e-30), torch.ones(4, dtype=torch.float64), "chain", name="deep")


def test_values_beyond_floats_are_logarithms_throughout(deep, tmp_path):
    logs = deep.log_singular_values / math.log(10)
    assert -340 < logs[-1] < logs[0] < -329
    assert deep.to_dict()["log10_s_min"] == pytest.approx(logs[-1])
    assert deep.to_dict()["log10_quantiles"]["0.01"] == pytest.approx(logs[-1])
    assert deep.reported.cells()["s_min"] == f"1e{logs[-1]:+.2f}"
    assert deep.reported.cells()["condition_number"] == f"{10 ** (logs[0] - logs[-1]):.4g}"
    assert "relative error" in str(deep)
    assert deep.zero_mass == 0
    assert math.isfinite(deep.reported.log10_condition_number)
    with pytest.raises(InputError, match="log_singular_values"):
        _ = deep.singular_values
    store = open_store(tmp_path / "a.h5", "w")
    store.add(deep)
    assert np.array_equal(store["deep"].log_singular_values, deep.log_singular_values)
    assert store.validate() == []


def test_values_beyond_floats_are_compared_and_drawn(deep):
    same = isometry.compare(deep, deep.log_shifted(1e-9))
    assert same.raw.ks == 0
    assert same.raw.wasserstein_log10 < 1e-8
    # A tenth of the smallest value, which is no float.
    smallest = deep.log_singular_values[-1] / math.log(10)
    assert same.log_floor / math.log(10) == pytest.approx(smallest - 1, abs=1e-6)
    assert f"floor s = 1e{smallest - 1:+.2f};" in str(same)
    assert same.to_dict()["log10_floor"] == pytest.approx(smallest - 1, abs=1e-6)
    shifted = isometry.compare(deep, deep.log_shifted(math.log(10)))
    assert shifted.raw.wasserstein_log10 == pytest.approx(1.0)
    assert shifted.raw.ks >= 0.25
    for kind in ("density", "cdf"):
        axes = deep.plot(kind=kind)
        low, high = axes.get_xlim()
        ends = deep.log_singular_values[[-1, 0]] / math.log(10)
        assert low <= ends[0] < ends[1] <= high < -325
        lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 10]
        assert kind == "density" or np.ptp(lines[0]) == 1.0


def test_the_page_says_how_well_values_are_known_and_draws_them_over_logarithms_alone(deep):
    from isometry.report.page_pictures import distribution_pictures
    from isometry.report.reproduction import how_known

    assert "factors of the Jacobian of" in how_known(deep)
    assert how_known(deep).endswith("or better.")
    wide = measure(perceptron(6, 12, 1e-3), torch.ones(6, dtype=torch.float64), "chain")
    shown = chain([MatrixFactor(torch.diag(10.0 ** -torch.arange(0.0, 32, 4).double()))])
    assert len(distribution_pictures(wide, None, name="wide")) == 4
    assert [one.heading for one in distribution_pictures(shown, None, name="graded")] == [
        "Density over log10 s", "Cumulative share over log10 s",
    ]  # fmt: skip


def test_exponents_are_those_of_gaussian_matrices():
    """Newman 1986, Commun. Math. Phys. 103, 121: mu_i = (ln(2 / N) + psi((N - i + 1) / 2)) / 2 for variance 1 / N."""
    generator = torch.Generator().manual_seed(3)
    size, layers, networks = 3, 40, 6
    found = []
    for _ in range(networks):
        weights = torch.randn(layers, size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
        found.append(chain([MatrixFactor(weight) for weight in weights]).distribution)
    together = LogValues(
        np.concatenate([one.log_values for one in found]), np.concatenate([one.log_error for one in found]),
        np.zeros(networks, int),
    )  # fmt: skip
    values, errors = isometry.Spectrum(together, method="chain", shape=(size, size)).exponents(layers)
    expected = (math.log(2 / size) + digamma((size - np.arange(size)) / 2)) / 2
    # Random singular vectors at both ends: some units in ln s, over all layers.
    assert np.all(np.abs(values - expected) < 4 * errors + 3 / layers)
    assert np.all(errors < 0.2)
    one, unknown = isometry.Spectrum(found[0], method="chain", shape=(size, size)).exponents(layers)
    assert np.array_equal(one, found[0].log_values[0] / layers)
    assert np.all(np.isnan(unknown))
    with pytest.raises(InputError, match="at least 1"):
        isometry.Spectrum(found[0], method="chain", shape=(size, size)).exponents(0)


def test_auto_goes_over_to_the_chain_where_the_dense_matrix_ends():
    x = torch.ones(8, dtype=torch.float64)
    spectrum = measure(perceptron(8, 40), x)
    assert spectrum.method == "chain"
    assert spectrum.zero_mass == 0
    assert "below its floor" in spectrum.provenance["instead_of"]
    assert "chain, instead of exact, which had" in str(spectrum)
    assert spectrum.to_dict()["instead_of"] == spectrum.provenance["instead_of"]
    assert spectrum.products == 8 + Chain().products(JacobianOperator(perceptron(8, 40), x))
    assert measure(perceptron(8, 4), x).method == "exact"
    assert measure(perceptron(8, 40).float(), x.float()).method == "exact"
    # One factor knows no more than the matrix.
    assert measure(lambda v: torch.stack([v.sum(), v.sum()]), x).method == "exact"


def test_products_in_float32_are_in_the_errors():
    model, x = perceptron(8, 20), torch.ones(8, dtype=torch.float64)
    exact, found = measure(model, x, "chain"), measure(model.float(), x.float(), "chain")
    moved = np.abs(exact.log_singular_values - found.log_singular_values)
    assert np.all(moved <= np.log1p(found.relative_errors))
    assert found.relative_errors.max() > 1e-6 > exact.relative_errors.max()


def test_complex_values_inside_are_no_cuts():
    linear = perceptron(6, 1)

    def function(v: torch.Tensor) -> torch.Tensor:
        turned = torch.fft.fft(linear(v)) * torch.exp(1j * torch.arange(6, dtype=torch.float64))
        return torch.fft.ifft(turned).real.tanh()

    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    found, dense = measure(function, x, "chain"), measure(function, x, "exact")
    # An angle of half a turn in one entry, and 1e-16 of s_max in the dense matrix.
    assert np.allclose(found.singular_values, dense.singular_values, rtol=1e-10, atol=1e-14)


def test_what_the_chain_cannot_do_is_refused():
    x = torch.ones(64, dtype=torch.float64)
    with pytest.raises(InputError, match="raise memory_limit"):
        measure(perceptron(64, 2), x, "chain", memory_limit=100_000)
    with pytest.raises(InputError, match="'chain' finds every value"):
        measure(perceptron(4, 2), x[:4], "chain", rtol=0.1)
    with pytest.raises(ModelError, match="cannot be recorded"):
        measure(lambda v: nn.functional.pdist(v.reshape(2, 2)), x[:4], "chain")
    with pytest.raises(InputError, match="share of s_max"):
        _ = measure(perceptron(4, 2), x[:4], "exact").relative_errors
