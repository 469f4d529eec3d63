"""measure: the front door. Which method, which numbers, what is recorded, what is refused."""

from __future__ import annotations

import json
import math
import time
import warnings
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.errors import ConvergenceWarning, FallbackWarning, InputError
from isometry.measurement import measure
from isometry.measurement.convergence import converged
from isometry.measurement.operators import Operators
from isometry.nn import MLP
from isometry.spectrum import Quadrature, Spectrum

METHODS = ["exact", "lanczos", "randomized"]


def linear_network(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
    return nn.Sequential(*layers).double()


def singular_values(network: nn.Sequential) -> np.ndarray:
    product = network[0].weight
    for layer in list(network)[1:]:
        product = layer.weight @ product
    return np.linalg.svd(product.detach().numpy(), compute_uv=False)


def with_spectrum(s: Tensor, seed: int = 0) -> nn.Linear:
    """A layer with chosen singular values."""
    generator = torch.Generator().manual_seed(seed)
    q = [
        torch.linalg.qr(torch.randn(s.numel(), s.numel(), generator=generator).double())[0] for _ in range(2)
    ]
    layer = nn.Linear(s.numel(), s.numel(), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(q[0] * s @ q[1])
    return layer


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(30, 30, 30), (20, 40, 30), (30, 25, 20), (24, 6, 24)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_is_the_product_of_its_matrices(widths: tuple[int, ...], method: str) -> None:
    network = linear_network(*widths)
    s = singular_values(network)
    spectrum = measure(network, torch.ones(widths[0]).double(), method)
    assert spectrum.shape == (widths[-1], widths[0])
    assert spectrum.method == method
    # 50 steps exhaust a side of at most 30: every method is complete here, up to rounding.
    assert spectrum.s_max == pytest.approx(s[0], rel=1e-12)
    low, high = spectrum.mean_square_interval(0.9999)
    assert low - 1e-12 <= np.mean(s**2) <= high + 1e-12
    rank = min(widths)
    if rank < s.size:
        # A bottleneck: rank 6 of 24, and the zeros below the floor are counted, not reported as values.
        assert spectrum.support[0] == pytest.approx(s[rank - 1], rel=1e-9)
        assert spectrum.below_floor == pytest.approx(
            1 - rank / s.size, abs=1e-12 if method == "exact" else 0.1
        )
        assert spectrum.condition_number == math.inf
    else:
        assert spectrum.s_min == pytest.approx(s[-1], abs=spectrum.s_min_residual + 1e-13)
        assert spectrum.condition_number == pytest.approx(s[0] / s[-1], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_several_inputs_are_averaged(method: str) -> None:
    """y = x^2 / 2 has J = diag(x): the inputs are the singular values."""
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    spectrum = measure(lambda z: z.square() / 2, x, method, batched=True, probes=8)
    assert spectrum.n_inputs == 2
    assert spectrum.input(0).s_max == pytest.approx(3.0, rel=1e-12)
    assert spectrum.input(1).s_max == pytest.approx(30.0, rel=1e-12)
    assert spectrum.s_min == pytest.approx(1.0, rel=1e-9)
    low, high = spectrum.mean_square_interval(0.9999)
    assert low - 1e-9 <= (14 / 3 + 1400 / 3) / 2 <= high + 1e-9
    # Without batched the two are one J of side six.
    assert measure(lambda z: z.square() / 2, x, "exact").shape == (6, 6)


def test_dtype_is_that_of_the_model_or_of_the_user() -> None:
    network = linear_network(12, 12).float()
    assert measure(network, torch.ones(12)).provenance["dtype"] == "float32"
    double = measure(network, torch.ones(12), dtype=torch.float64)
    assert double.provenance["dtype"] == "float64"
    assert double.floor == pytest.approx(8 * 2**-52 * double.s_max)
    exact = np.linalg.svd(network[0].weight.detach().double().numpy(), compute_uv=False)
    assert double.distribution.nodes[0, 0] == pytest.approx(exact, abs=1e-14)
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("seed", [0, 7, 9, 10])
def test_residuals_hold_what_four_hundred_layers_of_float32_rounding_do(seed: int) -> None:
    """Here s_max of the float32 products is off by up to 35 units of rounding; 8 are stated for a shallow network.

    J has nearly rank one: what a linearity test shows may be small by chance, as it is with these seeds.
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(400):
        layers += [nn.Linear(24, 24, bias=False), nn.ReLU()]
        nn.init.orthogonal_(layers[-2].weight, math.sqrt(2))
    network, x = nn.Sequential(*layers), 0.3 * torch.randn(24)
    truth = measure(network, x, "exact", dtype=torch.float64)
    for method in METHODS if seed == 0 else ["exact"]:
        single = measure(network, x, method, probes=3, steps=8)
        relative = abs(single.s_max - truth.s_max) / truth.s_max
        assert relative <= single.s_max_residual / single.s_max, method
        # Not bought by stating anything at all: a thousand units of rounding are 1e-4.
        assert single.s_max_residual / single.s_max < 1000 * 2**-23, method
        # The floor stays where the small values are: their error is below one unit.
        assert single.floor >= 8 * 2**-23 * single.s_max * (1 - 1e-9), method


def test_parts_and_outputs_reach_the_operator() -> None:
    network = linear_network(6, 8, 5)
    part = measure(network, torch.ones(6).double(), source="1")
    assert part.shape == (5, 8)
    assert part.s_max == pytest.approx(
        float(torch.linalg.matrix_norm(network[1].weight.detach(), 2)), rel=1e-12
    )
    chosen = measure(lambda z: {"y": network(z), "z": z}, torch.ones(6).double(), output="y")
    assert chosen.s_max == pytest.approx(singular_values(network)[0], rel=1e-12)


# ---- the choice of a method --------------------------------------------------------------------------------


def test_auto_is_exact_while_that_takes_no_more_products() -> None:
    """2 probes of 3 steps are 12 products: a side of 12 is materialised, a side of 13 is probed."""
    for side, method in ((12, "exact"), (13, "lanczos")):
        spectrum = measure(linear_network(side, 40), torch.ones(side).double(), probes=2, steps=3)
        assert spectrum.method == method
        assert spectrum.products <= 12
    # By default 2 * 16 * 50 = 1600.
    assert measure(nn.Linear(300, 200), torch.ones(300)).method == "exact"


def test_auto_does_not_build_a_matrix_that_does_not_fit() -> None:
    network = linear_network(40, 40)
    # The matrix, its copy and the work space of the SVD: 3 * 8 * 1600 bytes.
    for limit, method in ((3 * 8 * 1600, "exact"), (3 * 8 * 1600 - 1, "lanczos")):
        assert measure(network, torch.ones(40).double(), memory_limit=limit).method == method
    with pytest.raises(
        InputError, match=r"dense 40 x 40 Jacobian.*more than memory_limit.*take method='lanczos'"
    ):
        measure(network, torch.ones(40).double(), "exact", memory_limit=3 * 8 * 1600 - 1)


def test_options_of_the_methods() -> None:
    network, x = linear_network(40, 40), torch.ones(40).double()
    lanczos = measure(network, x, "lanczos", probes=3, steps=7, top=2)
    assert (lanczos.n_probes, lanczos.provenance["steps"], lanczos.extremes.top.shape) == (3, 7, (1, 2))
    assert lanczos.products == 2 * 3 * 7
    network, x = linear_network(120, 120), torch.ones(120).double()
    randomized = measure(network, x, "randomized", probes=2, steps=4, rank=5)
    assert (randomized.n_probes, randomized.provenance["rank"]) == (2, 5)
    assert randomized.extremes.top.shape == (1, randomized.provenance["taken_out"])
    # 6 products for each of rank + 10, in blocks of 4 both ways; the probes; and the two ends of the rest.
    assert randomized.products == 88 + 2 * 2 * 4 + 4
    assert measure(network, x, "randomized", top=3).provenance["rank"] == 3


# ---- seeds, chunks and groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_seeds_repeat_bit_for_bit(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 20))
    x = torch.randn(1, 2, 4, 4)
    first = measure(model, x, method, probes=4, steps=6, seed=11)
    torch.manual_seed(99)
    torch.randn(7)
    again = measure(model, x, method, probes=4, steps=6, seed=11)
    assert np.array_equal(first.distribution.nodes, again.distribution.nodes)
    assert np.array_equal(first.distribution.weights, again.distribution.weights)
    assert np.array_equal(first.extremes.top_residual, again.extremes.top_residual)
    other = measure(model, x, method, probes=4, steps=6, seed=12)
    assert (method == "exact") == np.array_equal(first.distribution.nodes, other.distribution.nodes)


@pytest.mark.parametrize("method", METHODS)
def test_the_memory_limit_does_not_change_the_numbers(method: str) -> None:
    """Chunks of one product against 64 at once: other sums, so other rounding; nothing else. float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 20)).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    # 20000 bytes hold the dense matrix but chunks of 8 only (the largest tensor has 384 bytes).
    small, large = (
        measure(model, x, method, probes=4, steps=6, memory_limit=limit) for limit in (20000, 2**31)
    )
    assert small.distribution.nodes == pytest.approx(large.distribution.nodes, rel=1e-9)
    assert small.distribution.weights == pytest.approx(large.distribution.weights, rel=1e-7)
    assert small.products == large.products


@pytest.mark.parametrize("method", METHODS)
def test_inputs_in_groups_are_the_inputs_together(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    # Kept for an input: 3 * 8 * 30 bytes of a dense matrix, or 4 probes of 3 steps of 11 numbers.
    limit = {"exact": 3 * 8 * 30 * 2, "lanczos": 4 * 3 * 11 * 8 * 2, "randomized": 4 * 3 * 11 * 8 * 2}[method]
    groups: list[range] = []
    original = Operators.__call__

    def spy(operators: Operators, inputs: range):
        groups.append(inputs)
        operator = original(operators, inputs)
        assert operator.batch == len(inputs)
        return operator

    monkeypatch.setattr(Operators, "__call__", spy)
    options = {"probes": 4, "steps": 3, "batched": True}
    if method == "randomized":
        options["rank"] = 2
    grouped = measure(model, x, method, memory_limit=limit, **options)
    assert groups == [range(2), range(2, 4), range(4, 5)]
    together = measure(model, x, method, **options)
    assert grouped.n_inputs == together.n_inputs == 5
    assert grouped.products == together.products
    for k in range(5):
        mine, theirs = grouped.input(k), together.input(k)
        assert mine.mean_square == pytest.approx(theirs.mean_square, rel=1e-12)
        assert mine.s_max == pytest.approx(theirs.s_max, rel=1e-10)
        assert mine.quantile([0.1, 0.5, 0.9]) == pytest.approx(theirs.quantile([0.1, 0.5, 0.9]), rel=1e-8)
        assert mine.floor == pytest.approx(theirs.floor, rel=1e-10)
    assert grouped.moment_stderr(1, over="inputs") == pytest.approx(
        together.moment_stderr(1, over="inputs"), rel=1e-9
    )
    # The first input has the streams it would have alone.
    alone = measure(model, x[:1], method, **options)
    assert alone.mean_square == pytest.approx(together.input(0).mean_square, rel=1e-12)


def test_groups_that_end_at_different_steps_are_joined() -> None:
    """One input whose J is an isometry (one step) and one whose J is not: padded, not mixed."""

    def model(z: Tensor) -> Tensor:
        return z.square() / 2

    x = torch.stack([torch.ones(6), torch.linspace(1, 2, 6)]).double()
    options = {"method": "lanczos", "probes": 3, "steps": 4, "batched": True}
    kept = 3 * 4 * 12 * 8
    joined, together = measure(model, x, memory_limit=kept, **options), measure(model, x, **options)
    assert joined.distribution.nodes.shape == together.distribution.nodes.shape == (2, 3, 4)
    assert joined.cdf([0.99, 1.01, 1.5]) == pytest.approx(together.cdf([0.99, 1.01, 1.5]), abs=1e-12)
    assert joined.input(0).mean_square_stderr == pytest.approx(0.0, abs=1e-14)
    assert joined.input(0).floor < 1e-12 < joined.input(1).floor
    assert math.isnan(joined.s_min)
    json.dumps(joined.to_dict(), allow_nan=False)


def test_a_slower_way_is_said_once_for_all_groups() -> None:
    class Square(torch.autograd.Function):
        """With a reverse formula only."""

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z**2

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, u: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * u

    def model(z: Tensor) -> Tensor:
        return Square.apply(z)

    image = torch.randn(6, 1, 3, 3)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FallbackWarning)
        spectrum = measure(model, image, "exact", batched=True, memory_limit=3 * 8 * 81 * 2)
    assert spectrum.n_inputs == 6
    notes = [w for w in said if issubclass(w.category, FallbackWarning)]
    assert len(notes) == 1
    assert "double backward" in str(notes[0].message)


# ---- what is recorded --------------------------------------------------------------------------------------


def test_the_record_says_how_it_was_made() -> None:
    network = linear_network(12, 10)
    spectrum = measure(
        network, torch.ones(12).double(), "lanczos", probes=2, steps=3, seed=5, name="mine", tol=10.0,
        provenance={"experiment": 7, "seed_of_weights": 3},
    )  # fmt: skip
    record = json.loads(json.dumps(dict(spectrum.provenance)))
    assert spectrum.name == "mine"
    assert 0 < spectrum.seconds < 60
    assert record["model"] == "Sequential (120 parameters)"
    assert record["input"] == "(12,) float64"
    assert (record["dtype"], record["device"], record["seed"]) == ("float64", "cpu", 5)
    assert (record["probes"], record["steps"]) == (2, 3)
    assert record["options"] == {"batched": False, "tol": 10.0, "memory_limit": 2 * 1024**3}
    assert record["probe"] == "gaussian"
    assert (record["experiment"], record["seed_of_weights"]) == (7, 3)
    assert record["torch_version"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(record["created"]).utcoffset().total_seconds() == 0
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
    shown = spectrum.to_dict()
    assert (shown["seed"], shown["dtype"], shown["device"], shown["products"]) == (5, "float64", "cpu", 12)


def test_a_network_that_knows_its_ensemble_records_it() -> None:
    model, x = MLP(depth=2, width=6, sigma_w=1.5, sigma_b=0.5), torch.full((6,), 2.0)
    recorded = measure(model, x).provenance["ensemble"]
    assert (recorded["depth"], recorded["sigma_w"], recorded["sigma_b"]) == (2, 1.5, 0.5)
    # The first pre-activations have the variance that this input gives them: 1.5^2 * 2^2 + 0.5^2.
    assert recorded["q0"] == pytest.approx(9.25)
    # A part of it is no draw from that ensemble, and what others call an ensemble is none.
    assert "ensemble" not in measure(model, x, source="").provenance

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ensemble = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

        def forward(self, z: Tensor) -> Tensor:
            return sum(member(z) for member in self.ensemble)

    assert "ensemble" not in measure(Several(), x).provenance


# ---- progress ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_progress_reaches_its_end_over_all_groups(method: str) -> None:
    seen: list[tuple[float, float, str]] = []
    x = torch.randn(5, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh()).double()
    measure(
        model, x, method, batched=True, probes=2, steps=3, memory_limit=3 * 8 * 54 * 2, name="net",
        progress=lambda done, total, text: seen.append((done, total, text)),
    )  # fmt: skip
    done = [share for share, _, _ in seen]
    assert len({total for _, total, _ in seen}) == 1
    assert np.all(np.diff(done) >= 0)
    assert done[-1] == seen[-1][1]
    assert {text for _, _, text in seen} == {f"net ({method})"}


@pytest.mark.parametrize("progress", [None, True, False])
def test_no_bar_where_there_is_no_terminal(progress, capsys: pytest.CaptureFixture[str]) -> None:
    measure(nn.Linear(4, 4), torch.ones(4), progress=progress)
    assert capsys.readouterr() == ("", "")


def stop_after(calls: int):
    """A listener that interrupts the work at its n-th call."""
    seen = []

    def listen(done: float, total: float, text: str) -> None:
        seen.append(done)
        if len(seen) == calls:
            raise KeyboardInterrupt

    return listen


@pytest.mark.parametrize(
    ("method", "options"), [("exact", {}), ("randomized", {}), ("lanczos", {"on_interrupt": "raise"})]
)
def test_an_interrupt_passes_through_and_leaves_everything_as_it_was(method: str, options: dict) -> None:
    """A part of the rows of J is of no use, and who does not want a part of the probes says so."""
    model, x = nn.Linear(40, 40), torch.ones(40)
    before = [p.clone() for p in model.parameters()]
    precision = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyboardInterrupt):
        measure(model, x, method, progress=stop_after(1), **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    assert torch.is_grad_enabled()


def test_an_interrupt_before_the_first_step_is_raised() -> None:
    def model(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, torch.ones(4))


@pytest.mark.parametrize("steps", [1, 4])
def test_an_interrupt_returns_all_probes_at_the_steps_they_had(steps: int) -> None:
    network, x = linear_network(40, 40), torch.ones(40).double()
    with pytest.warns(ConvergenceWarning, match="interrupted: this is what was known") as said:
        part = measure(network, x, "lanczos", steps=9, name="mine", progress=stop_after(steps))
    assert said[0].filename == __file__
    assert part.name == "mine"
    assert part.provenance["stopped"] == {"reason": "interrupted", "inputs": "1 of 1"}
    whole = measure(network, x, "lanczos", steps=steps)
    assert np.array_equal(part.distribution.nodes, whole.distribution.nodes)
    assert (part.products, part.provenance["steps"]) == (2 * 16 * steps, steps)
    assert "stopped" not in whole.provenance


def test_an_interrupt_returns_whole_probes_where_there_are_some() -> None:
    """Of 40 probes in groups of 16 the first are done when the second group is at its fourth of 5 steps."""
    network, x = linear_network(40, 40), torch.ones(40).double()
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        part = measure(network, x, "lanczos", probes=40, steps=5, progress=stop_after(9))
    assert np.array_equal(
        part.distribution.nodes, measure(network, x, "lanczos", probes=16, steps=5).distribution.nodes
    )
    # All that was spent.
    assert part.products == 2 * 16 * 9


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_returns_whole_inputs_where_there_are_some(method: str) -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).double()
    options = {"probes": 2, "steps": 4, "batched": True, "rank": 2}
    # One input at a time: its dense matrix and two copies, or two bases of 4 steps; 14 vectors of either side.
    limit = {"exact": 40000, "lanczos": 6000, "randomized": 14 * 80 * 8}[method]

    def listen(done: float, total: float, text: str) -> None:
        if done > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        part = measure(lambda z: z.square() / 2, x, method, memory_limit=limit, progress=listen, **options)
    assert part.provenance["stopped"]["inputs"] == "2 of 3"
    assert part.n_inputs == 2
    whole = measure(lambda z: z.square() / 2, x[:2], method, memory_limit=limit, **options)
    assert part.mean_square == pytest.approx(whole.mean_square, rel=1e-12)


# ---- until it is right -------------------------------------------------------------------------------------


def gaussian_product(width: int = 300, depth: int = 3, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(depth)]).double()
    with torch.no_grad():
        for layer in network:
            layer.weight.copy_(
                torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
            )
    return network


@pytest.mark.parametrize(
    ("quantity", "rtol"), [("mean_square", 0.1), ("cdf", 0.1), ("top", 1e-3), ("s_max", 1e-6)]
)
def test_the_error_that_was_asked_for_is_reached_and_holds(quantity: str, rtol: float) -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    s = singular_values(network)
    found = measure(network, x, "lanczos", rtol=rtol, quantity=quantity, seed=1)
    stopped = found.provenance["stopped"]
    assert (stopped["reason"], stopped["quantity"], stopped["rtol"]) == ("rtol", quantity, rtol)
    assert 0 < stopped["error"] <= rtol
    if quantity == "mean_square":
        assert found.mean_square == pytest.approx(np.mean(s**2), rel=stopped["error"])
    elif quantity == "cdf":
        places = np.geomspace(found.floor, 1.1 * s[0], 500)
        truth = np.mean(s <= places[:, None], axis=1)
        assert np.abs(found.cdf(places) - truth).max() <= stopped["error"]
    else:
        count = 6 if quantity == "top" else 1
        assert found.extremes.top[0, :count] == pytest.approx(s[:count], rel=rtol)
    # Not more than it took: half of it does not do.
    assert found.n_probes >= 8
    assert found.products == 2 * found.n_probes * found.provenance["steps"]
    if quantity == "cdf":
        return  # the longest; that a decision repeats is shown by the others
    again = measure(network, x, "lanczos", rtol=rtol, quantity=quantity, seed=1)
    assert np.array_equal(again.distribution.nodes, found.distribution.nodes)
    assert again.provenance["stopped"] == stopped
    assert again.products == found.products


def test_smaller_errors_cost_more_and_keep_what_was_there() -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    rough, fine = (measure(network, x, "lanczos", rtol=rtol, steps=4) for rtol in (0.3, 0.1))
    assert rough.n_probes < fine.n_probes
    assert rough.provenance["steps"] == fine.provenance["steps"] == 4
    assert np.array_equal(fine.distribution.nodes[:, : rough.n_probes], rough.distribution.nodes)


@pytest.mark.parametrize(("quantity", "budget"), [("mean_square", 2000), ("cdf", 600), ("s_max", 300)])
def test_a_budget_of_products_is_kept_and_said(quantity: str, budget: int) -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    with pytest.warns(
        ConvergenceWarning, match=rf"{quantity} is known to .*rtol=1e-07: the budget ended"
    ) as said:
        found = measure(network, x, "lanczos", rtol=1e-7, quantity=quantity, budget=budget)
    assert said[0].filename == __file__
    assert budget / 2 < found.products <= budget
    stopped = found.provenance["stopped"]
    assert (stopped["reason"], stopped["budget"]) == ("budget", f"{budget} products")
    assert stopped["error"] > 1e-7
    # Without rtol nothing was missed.
    spent = measure(network, x, "lanczos", quantity=quantity, budget=budget)
    assert budget / 2 < spent.products <= budget
    assert spent.provenance["stopped"]["reason"] == "budget"


def test_a_budget_of_seconds_ends_after_the_step_that_exceeds_it() -> None:
    layer = nn.Linear(40, 40).double()

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.002)
        return layer(x)

    with pytest.warns(ConvergenceWarning, match="the budget ended first"):
        found = measure(slow, torch.ones(40).double(), "lanczos", rtol=1e-3, steps=3, budget="0.3s")
    assert found.provenance["stopped"]["budget"] == "0.3 s"
    assert found.n_probes >= 8
    # Set-up is in it; one step over, and a busy machine.
    assert found.seconds < 3


def test_a_budget_for_less_than_the_first_look_takes_fewer_steps_or_probes() -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    for budget, probes, steps in ((100, 8, 6), (10, 5, 1), (2, 1, 1)):
        with pytest.warns(ConvergenceWarning):
            found = measure(network, x, "lanczos", rtol=1e-3, budget=budget)
        assert (found.n_probes, found.provenance["steps"]) == (probes, steps)
        assert found.products <= budget
    with pytest.raises(
        InputError, match="does not pay for one step of one probe of each input, which takes 2"
    ):
        measure(network, x, "lanczos", rtol=1e-3, budget=1)


def test_limits_of_probes_and_steps_are_said() -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    for quantity, reason in (("mean_square", "probes"), ("s_max", "steps")):
        with pytest.warns(ConvergenceWarning, match=f"no more {reason} to take; raise {reason}"):
            found = measure(network, x, "lanczos", rtol=1e-9, quantity=quantity, probes=10, steps=5)
        assert found.provenance["stopped"]["reason"] == reason
        assert (found.n_probes, found.provenance["steps"]) == (10 if reason == "probes" else 8, 5)


def test_steps_stop_where_their_bases_do_not_fit() -> None:
    """8 probes of 30 steps of 600 numbers of 8 bytes fit, more steps do not."""
    network, x = gaussian_product(), torch.ones(300).double()
    with pytest.warns(ConvergenceWarning, match="more Krylov bases do not fit; raise memory_limit"):
        found = measure(network, x, "lanczos", rtol=1e-9, quantity="s_max", memory_limit=8 * 30 * 600 * 8)
    assert found.provenance["stopped"]["reason"] == "memory"
    assert found.provenance["steps"] == 30


def test_probes_go_on_where_the_bases_do_not_fit() -> None:
    """A cdf that needs more probes gives its bases up, and takes no more steps."""
    layer = with_spectrum(torch.tensor([1.0, 2.0, 3.0]).double().repeat(20))
    limit = 10 * 16 * 120 * 8
    found = measure(layer, torch.ones(60).double(), "lanczos", rtol=0.06, quantity="cdf", memory_limit=limit)
    assert found.provenance["stopped"]["reason"] == "rtol"
    # Three values, three steps. 1.36 sqrt(2 / (62 k)) <= 0.06 from k = 17 on.
    assert (found.n_probes, found.provenance["steps"]) == (24, 3)
    assert found.cdf([1.5, 2.5]) == pytest.approx([1 / 3, 2 / 3], abs=0.06)


def test_auto_takes_the_exact_method_where_that_is_cheaper() -> None:
    """A thousandth of the mean square takes tens of thousands of products by probes, 300 by the matrix."""
    network, x = gaussian_product(), torch.ones(300).double()
    found = measure(network, x, rtol=1e-4, steps=2)
    assert found.method == "exact"
    assert found.mean_square == pytest.approx(np.mean(singular_values(network) ** 2), rel=1e-12)
    assert found.provenance["stopped"] == {
        "reason": "rtol",
        "quantity": "mean_square",
        "error": 0.0,
        "rtol": 1e-4,
    }
    # The first look was not for nothing, and is counted.
    assert found.products == 300 + 2 * 8 * 2
    # Straight away where the first look alone would cost more.
    assert measure(network, x, rtol=0.5).products == 300
    # A budget that does not pay for the matrix rules it out.
    with pytest.warns(ConvergenceWarning, match="the budget ended"):
        assert measure(network, x, rtol=1e-4, steps=2, budget=299).method == "lanczos"


def test_an_isometry_is_known_at_the_first_look() -> None:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(300, 300, bias=False).double())
    for quantity, rtol in (("mean_square", 1e-6), ("top", 1e-6), ("s_max", 1e-6)):
        found = measure(layer, torch.ones(300).double(), "lanczos", rtol=rtol, quantity=quantity)
        assert found.products == 16
        assert found.provenance["stopped"]["reason"] == "rtol"


def test_several_inputs_reach_their_goal_together() -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)).double()
    found = measure(lambda z: z.square() / 2, x, "lanczos", batched=True, rtol=0.1, quantity="cdf")
    assert (found.n_inputs, found.provenance["stopped"]["reason"]) == (3, "rtol")
    truth = x.abs().numpy()
    places = np.geomspace(found.floor, 1.1 * truth.max(), 300)
    cdf = np.mean(truth.ravel() <= places[:, None], axis=1)
    assert np.abs(found.cdf(places) - cdf).max() <= 0.1


@pytest.mark.parametrize("after", [3, 30, 60])
def test_an_interrupt_on_the_way_keeps_what_was_known(after: int) -> None:
    network, x = gaussian_product(), torch.ones(300).double()
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        part = measure(network, x, "lanczos", rtol=1e-4, quantity="cdf", progress=stop_after(after))
    stopped = part.provenance["stopped"]
    assert (stopped["reason"], stopped["quantity"]) == ("interrupted", "cdf")
    assert part.n_probes >= 8
    assert part.products <= 2 * part.n_probes * (part.provenance["steps"] + 1)
    assert part.provenance["steps"] >= min(after, 16)


# ---- convergence -------------------------------------------------------------------------------------------


def test_tol_warns_of_top_values_that_are_not_known_that_well() -> None:
    layer = with_spectrum(torch.linspace(0.5, 2.0, 60).double())
    x = torch.ones(60).double()
    with pytest.warns(
        ConvergenceWarning, match=r"worst relative residual.*above tol=1e-06: take more steps"
    ) as said:
        rough = measure(layer, x, "lanczos", probes=2, steps=8, tol=1e-6)
    assert said[0].filename == __file__
    assert not converged(rough, 1e-6)
    worst = float(np.max(rough.extremes.top_residual / rough.extremes.top))
    assert f"{worst:.1e}" in str(said[0].message)
    assert converged(rough, 1.01 * worst)
    # Enough steps, and the test suite would turn a warning into an error.
    assert converged(measure(layer, x, "lanczos", probes=2, steps=60, tol=1e-6), 1e-6)


def test_small_singular_values_of_an_exact_measurement_are_no_matter_of_convergence() -> None:
    """It lists them all; those near rounding have a relative error of one, and nobody asked about them."""
    layer = with_spectrum(torch.logspace(0, -18, 40).double())
    spectrum = measure(layer, torch.ones(40).double(), "exact", tol=1e-9, top=3)
    assert converged(spectrum, 1e-9)
    single = measure(layer.float(), torch.ones(40), "exact")
    assert not converged(single, 1e-7)
    with pytest.warns(ConvergenceWarning):
        measure(layer, torch.ones(40), "exact", tol=1e-7)


def test_a_jacobian_that_is_zero_or_underflows_is_told() -> None:
    """120 layers with gain 0.4: s is 1e-48, which float32 does not hold. Zero is a number nobody should trust."""
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(12, 12, bias=False) for _ in range(120)])
    for layer in network:
        nn.init.orthogonal_(layer.weight, gain=0.4)
    x = torch.ones(12)
    for method in ("exact", "lanczos"):
        with pytest.warns(
            ConvergenceWarning, match=r"s_max is 0: .*underflow in torch.float32.*dtype=torch\.float64"
        ):
            single = measure(network, x, method)
        assert single.below_floor == 1.0
        double = measure(network, x, method, dtype=torch.float64)
        assert double.s_max == pytest.approx(0.4**120, rel=1e-4)
    with pytest.warns(ConvergenceWarning, match="units that are cut off"):
        zero = measure(lambda z: torch.relu(-z), torch.ones(4).double(), tol=1e-9)
    assert zero.mean_square == 0
    assert converged(zero, 1e-9)


def test_a_prediction_has_nothing_to_converge() -> None:
    assert converged(
        Spectrum(Quadrature(*[np.ones((1, 1, 1))] * 2, np.zeros(1), np.ones((1, 1, 1), bool)), "x"), 1e-9
    )


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svd"}, "method is one of auto, exact, lanczos, randomized, chain; got 'svd'"),
        ({"probes": 0}, "probes is at least 1; got 0"),
        ({"steps": -3}, "steps is at least 1; got -3"),
        ({"top": 0}, "top is at least 1"),
        ({"rank": 0}, "rank is at least 1"),
        ({"probes": 2.5}, "probes is a whole number; got 2.5"),
        ({"steps": "3"}, "steps is a whole number; got '3'"),
        ({"seed": 1.5}, "seed is a whole number; got 1.5"),
        ({"method": "exact", "memory_limit": 300}, r"3\.84e-07 GB, more than memory_limit \(3e-07 GB\)"),
        ({"tol": 0.0}, "tol is a positive relative residual; got 0.0"),
        ({"tol": float("nan")}, "tol is a positive relative residual"),
        ({"seed": 1.5}, r"seed is a whole number; got 1\.5"),
        ({"steps": 2.0}, r"steps is a whole number; got 2\.0"),
        ({"seed": -1}, "seed is a non-negative integer; got -1"),
        ({"rtol": 0.0}, "rtol is a relative error between 0 and 1; got 0.0"),
        ({"rtol": float("nan")}, "rtol is a relative error between 0 and 1; got nan"),
        (
            {"rtol": 0.1, "quantity": "median"},
            "quantity is one of mean_square, cdf, top, s_max; got 'median'",
        ),
        ({"quantity": "cdf"}, "give one of them"),
        ({"budget": 0}, "at least one product; got 0"),
        ({"budget": "soon"}, "a number of products .* or a time .*; got 'soon'"),
        ({"budget": 1.5}, r"got 1\.5"),
        ({"budget": "0s"}, "got '0s'"),
        ({"method": "randomized", "rtol": 0.1}, "for 'randomized' there is tol"),
        ({"method": "randomized", "probe": "orthogonal"}, "goes with method='lanczos'"),
        ({"rtol": 1e-9, "quantity": "s_max"}, "below the rounding of products in torch.float32"),
        ({"probe": "uniform"}, "probe is one of gaussian, rademacher, orthogonal; got 'uniform'"),
        ({"on_interrupt": "ignore"}, "on_interrupt is"),
        ({"memory_limit": 0}, "memory_limit is a positive number of bytes; got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(nn.Linear(4, 4), torch.ones(4), **options)


@pytest.mark.parametrize("x", [torch.ones(0, 4), torch.tensor(1.0)], ids=["no input", "a scalar"])
def test_a_batch_of_nothing(x: Tensor) -> None:
    with pytest.raises(InputError, match="batched=True needs at least one input"):
        measure(nn.Linear(4, 4), x, batched=True)


# ---- memory ------------------------------------------------------------------------------------------------


def test_the_peak_is_said_before_the_work(caplog: pytest.LogCaptureFixture) -> None:
    network, x = linear_network(40, 40), torch.ones(40).double()
    with caplog.at_level("INFO", logger="isometry"):
        spectrum = measure(network, x, "lanczos", probes=3, steps=5)
    # 3 probes of 5 steps of 80 numbers, and what a step holds beside them.
    assert "at the peak: bases of 3 probes of 5 steps 9.6 kB, vectors" in caplog.messages[0]
    assert spectrum.provenance["predicted_peak_bytes"] > 3 * (5 + 5) * 80 * 8
    with pytest.raises(
        InputError, match=r"bases of a single probe take .* take fewer steps or inputs, or raise"
    ):
        measure(network, x, "lanczos", steps=5, memory_limit=5 * 80 * 8 - 1)


# ---- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: measuring on a GPU is not tested here"
)
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_measures_the_same(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 20))
    x = torch.randn(1, 2, 4, 4)
    here = measure(model, x, method, probes=4, steps=6)
    there = measure(model, x, method, probes=4, steps=6, device="cuda")
    again = measure(model, x, method, probes=4, steps=6, device="cuda")
    assert there.provenance["device"].startswith("cuda:0 (")
    # The probes are the same; full float32 on both, summed in another order.
    assert there.mean_square == pytest.approx(here.mean_square, rel=1e-5)
    assert there.s_max == pytest.approx(here.s_max, rel=1e-5)
    assert np.array_equal(there.distribution.nodes, again.distribution.nodes)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: bases in host memory are not tested here"
)
def test_bases_in_host_memory_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says it is full: the bases go to pinned memory, in panels; numbers change by rounding alone."""
    network, x = linear_network(60, 60), torch.ones(60).double()
    here = measure(network, x, "lanczos", probes=4, steps=40, device="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 1000))
    there = measure(network, x, "lanczos", probes=4, steps=40, device="cuda")
    assert there.mean_square == pytest.approx(here.mean_square, rel=1e-12)
    assert there.extremes.top == pytest.approx(here.extremes.top, rel=1e-9)
    assert there.quantile([0.1, 0.5, 0.9]) == pytest.approx(here.quantile([0.1, 0.5, 0.9]), rel=1e-6)
