"""Methods and goals as objects: they predict what they cost, and mean the same as keywords."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from isometry import JacobianOperator
from isometry.errors import InputError
from isometry.measurement import Exact, Goal, Lanczos, Randomized, measure
from isometry.measurement.methods import select_method
from isometry.spectrum import Spectrum

METHODS = (
    Exact(),
    Lanczos(probes=3, steps=7),
    Lanczos(probes=2, steps=9, probe="orthogonal"),
    Randomized(rank=2),
)


def network(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh()).double()


def points(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def same(one: Spectrum, other: Spectrum) -> bool:
    a, b = one.distribution, other.distribution
    return np.array_equal(a.nodes, b.nodes) and np.array_equal(a.weights, b.weights)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_method_spends_the_products_it_predicts(method: Exact | Lanczos | Randomized) -> None:
    operator = JacobianOperator(network(150, 140), points(2, 150), batched=True)
    spectrum = method.run(operator, seed=3)
    assert spectrum.products == method.products(operator)
    assert spectrum.method == method.name
    whole = measure(operator, method=method, seed=3, progress=False)
    assert same(whole, spectrum)
    assert whole.provenance["predicted_peak_bytes"] == method.peak_bytes(operator) > 0


def test_a_randomized_search_that_fills_the_space_spends_two_products_a_value() -> None:
    operator = JacobianOperator(network(12, 9), points(1, 12)[0])
    assert Randomized().run(operator).products == Randomized().products(operator) == 18


@pytest.mark.parametrize(
    ("method", "keywords"),
    [
        (Exact(top=2, tol=1e-3), {"method": "exact", "top": 2, "tol": 1e-3}),
        (Lanczos(probes=5, steps=6, top=2, probe="rademacher"),
         {"method": "lanczos", "probes": 5, "steps": 6, "top": 2, "probe": "rademacher"}),
        (Randomized(rank=3, probes=4, steps=5), {"method": "randomized", "rank": 3, "probes": 4, "steps": 5}),
    ],
    ids=["exact", "lanczos", "randomized"],
)  # fmt: skip
def test_a_method_object_means_what_its_keywords_mean(
    method: Exact | Lanczos | Randomized, keywords: dict
) -> None:
    model, x = network(40, 30), points(1, 40)[0]
    by_object, by_name = measure(model, x, method), measure(model, x, **keywords)
    assert same(by_object, by_name)
    given = {key: value for key, value in keywords.items() if key in ("top", "rank", "tol")}
    for spectrum in (by_object, by_name):
        assert spectrum.provenance["options"].items() >= given.items()


def test_a_goal_object_means_what_its_keywords_mean() -> None:
    model, x = network(200, 200), points(1, 200)[0]
    by_object = measure(model, x, Lanczos(steps=5), Goal(rtol=0.1))
    by_keywords = measure(model, x, "lanczos", steps=5, rtol=0.1)
    assert same(by_object, by_keywords)
    assert by_object.provenance["stopped"] == by_keywords.provenance["stopped"]
    assert Goal(budget="2min").seconds == 120
    assert Goal(budget=50).products == 50


@pytest.mark.parametrize(("side", "probes", "expected"), [(60, 6, Exact), (61, 6, Lanczos)])
def test_auto_takes_the_fewest_products(side: int, probes: int, expected: type) -> None:
    operator = JacobianOperator(network(side, side), points(1, side)[0])
    chosen = select_method(operator, None, {"probes": probes, "steps": 5})
    assert isinstance(chosen, expected)
    assert chosen.products(operator) == min(m.products(operator) for m in (Exact(), Lanczos(probes, 5)))


def test_a_ready_operator_in_place_of_model_and_input() -> None:
    model, x = network(20, 30), points(5, 20)
    # Two dense matrices of 20 x 30 fit at once.
    operator = JacobianOperator(model, x, batched=True, memory_limit=3 * 8 * 600 * 2)
    spectrum = measure(operator, method="exact", name="ready")
    again = measure(model, x, "exact", batched=True, memory_limit=3 * 8 * 600 * 2)
    assert same(spectrum, again)
    assert spectrum.provenance["options"] == again.provenance["options"]
    assert spectrum.provenance["model"] == again.provenance["model"]
    with pytest.raises(InputError, match=r"dtype belongs to the operator: JacobianOperator"):
        measure(operator, dtype=torch.float64)
    with pytest.raises(InputError, match="x and target belong to the operator"):
        measure(operator, x, target="1")
    with pytest.raises(InputError, match="takes an input x"):
        measure(model)


def test_options_beside_the_object_they_belong_to_are_refused() -> None:
    model, x = network(4, 4), points(1, 4)[0]
    with pytest.raises(InputError, match=r"probes belongs to the method: Lanczos\(\.\.\.\)"):
        measure(model, x, Lanczos(), probes=3)
    with pytest.raises(InputError, match=r"rtol belongs to the goal"):
        measure(model, x, goal=Goal(rtol=0.1), rtol=0.2)
    with pytest.raises(InputError, match="give it rtol or budget"):
        measure(model, x, goal=Goal("cdf"))
    with pytest.raises(InputError, match="method is a name or an object"):
        measure(model, x, Lanczos)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"goal is an isometry\.measurement\.Goal"):
        measure(model, x, "exact", 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="probes is at least 1; got 0"):
        Lanczos(probes=0)


def test_an_unknown_option_is_told_with_its_near_names() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'prbes': did you mean probes or probe"):
        measure(nn.Linear(3, 3), torch.ones(3), prbes=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean memory_limit"):
        measure(nn.Linear(3, 3), torch.ones(3), memory_limits=3)  # type: ignore[call-arg]


def test_the_parameters_of_measure_stay_few() -> None:
    assert len(inspect.signature(measure).parameters) <= 13
