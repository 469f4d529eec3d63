"""Golub-Kahan: the identities that define it, Gauss quadrature to its degree, and spaces that close."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isometry.errors import InputError
from isometry.estimators import gauss_rules, golub_kahan
from isometry.estimators.blocks import ShortSide, random_block
from isometry.estimators.golub_kahan import Recurrence, breakdown_tolerance
from isometry.jacobian import MatrixOperator

EPS = float(np.finfo(float).eps)


def run(a: torch.Tensor, steps: int, probes: int = 3, seed: int = 0, **options):
    side = ShortSide(MatrixOperator(a))
    start = random_block(probes, side, seed)
    return side, start, golub_kahan(side, start, steps, **options)


@pytest.mark.parametrize("shape", [(30, 30), (45, 30), (30, 45)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9, 30])
@pytest.mark.parametrize("decades", [0.5, 6.0])
def test_the_defining_identities(shape: tuple[int, int], steps: int, decades: float, known) -> None:
    """V orthonormal from the start vector, A V = U B with orthonormal U, A^T U = V B^T + beta v e^T."""
    truth = known(np.logspace(0, -decades, 30), shape)
    _, start, bidiagonals = run(truth.a, steps)
    a = (truth.a if shape[0] >= shape[1] else truth.a.T).numpy()
    for probe in range(3):
        count = int(bidiagonals.steps[probe, 0])
        assert count == steps
        v = bidiagonals.right[probe, 0, :count].numpy().T
        b = bidiagonals.matrices()[probe, 0, :count, :count]
        assert np.array_equal(np.triu(np.tril(b, 1)), b)
        assert np.all(np.diag(b) >= 0)
        assert v[:, 0] == pytest.approx(start[probe, 0].numpy(), abs=2 * EPS)
        # Full re-orthogonalisation: orthonormal to rounding whatever the condition number.
        assert v.T @ v == pytest.approx(np.eye(count), abs=30 * EPS)
        # A V = U B with orthonormal U says (A V)^T (A V) = B^T B.
        assert (a @ v).T @ (a @ v) == pytest.approx(b.T @ b, abs=50 * EPS)
        # What is left of A^T A V - V B^T B is one vector, in the last column, alpha_k beta_k long, orthogonal to V.
        rest = a.T @ (a @ v) - v @ (b.T @ b)
        assert np.abs(rest[:, :-1]).max(initial=0) < 50 * EPS
        alpha, beta = b[-1, -1], bidiagonals.remainder()[probe, 0]
        assert np.linalg.norm(rest[:, -1]) == pytest.approx(alpha * beta, abs=50 * EPS)
        assert np.abs(v.T @ rest).max() < 50 * EPS
        if steps == 30:
            assert beta == 0
            assert bidiagonals.finished.all()


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_rule_integrates_every_power_up_to_its_degree(steps: int, known) -> None:
    """sum_i w_i s_i^2p = v^T (A^T A)^p v for p = 0 .. 2 k - 1, and not for p = 2 k (Golub & Meurant 2010)."""
    truth = known(np.linspace(0.2, 1.0, 25))
    _, start, bidiagonals = run(truth.a, steps)
    rules = gauss_rules(bidiagonals)
    overlap = (start[:, 0] @ truth.v).numpy() ** 2
    for p in range(2 * steps + 1):
        wanted = overlap @ truth.chosen ** (2 * p)
        found = np.sum(rules.weights[0] * rules.nodes[0] ** (2 * p), axis=-1)
        if p < 2 * steps:
            assert found == pytest.approx(wanted, rel=1e-12)
        else:
            # The error of a Gauss rule has the sign of the 2k-th derivative: all rules fall short.
            assert np.all(found < wanted * (1 - 1e-9))


def test_residuals_are_those_of_the_triplets(known) -> None:
    """|A^T u - s v| of each node, from its vectors, equals beta |last component|; some true value lies that near."""
    truth = known(np.linspace(0.1, 2.0, 40))
    _, _, bidiagonals = run(truth.a, 12)
    rules = gauss_rules(bidiagonals)
    a = truth.a.numpy()
    for probe in range(3):
        v = bidiagonals.right[probe, 0].numpy().T
        _, s, right = np.linalg.svd(bidiagonals.matrices()[probe, 0])
        vectors = v @ right.T
        images = a @ vectors / s
        assert np.linalg.norm(images, axis=0) == pytest.approx(np.ones(12), abs=1e-13)
        residual = np.linalg.norm(a.T @ images - vectors * s, axis=0)
        assert rules.residuals[0, probe] == pytest.approx(residual, abs=1e-13)
        distance = np.abs(s[:, None] - truth.s).min(axis=1)
        assert np.all(distance <= rules.residuals[0, probe] + 1e-14)
        # It says something: the largest value is known to 1e-3, the inner ones are not.
        assert rules.residuals[0, probe, 0] < 0.1 < rules.residuals[0, probe].max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(64, 64), (90, 64), (64, 90)], ids=str)
def test_an_isometry_closes_at_the_first_step(shape: tuple[int, int], dtype: torch.dtype, known) -> None:
    truth = known(np.full(64, 3.0), shape, dtype)
    side, _, bidiagonals = run(truth.a, 50, probes=4)
    assert bidiagonals.finished.all()
    assert bidiagonals.steps.tolist() == [[1]] * 4
    assert side.products == 8
    assert bidiagonals.alpha[:, 0, 0] == pytest.approx(np.full(4, 3.0), rel=10 * torch.finfo(dtype).eps)
    # What was taken as zero is kept, because it is the residual.
    assert np.all(bidiagonals.breakdown_residual <= breakdown_tolerance(side) * 3.1)
    rules = gauss_rules(bidiagonals)
    assert rules.resolved.all()
    assert np.array_equal(rules.residuals[..., 0], bidiagonals.breakdown_residual.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_two_values_close_after_two_steps(dtype: torch.dtype, known) -> None:
    """The Krylov space of r distinct values has r dimensions; the masses are those of the start vector."""
    truth = known(np.repeat([2.0, 0.5], [15, 25]), dtype=dtype)
    side, start, bidiagonals = run(truth.a, 40)
    assert bidiagonals.finished.all()
    assert np.all(bidiagonals.steps == 2)
    rules = gauss_rules(bidiagonals)
    eps = torch.finfo(dtype).eps
    assert rules.nodes[0] == pytest.approx(np.tile([2.0, 0.5], (3, 1)), abs=20 * eps)
    mass = ((start[:, 0].double() @ truth.v) ** 2)[:, :15].sum(-1).numpy()
    assert rules.weights[0, :, 0] == pytest.approx(mass, abs=50 * eps)
    assert float(bidiagonals.breakdown_residual.max()) <= breakdown_tolerance(side) * 2


def test_a_singular_matrix_closes_with_a_zero(known) -> None:
    """A v inside the span already built: B gets a zero on its diagonal, and zero is a singular value."""
    truth = known(np.repeat([1.0, 0.0], [20, 20]))
    _, start, bidiagonals = run(truth.a, 40)
    rules = gauss_rules(bidiagonals)
    assert bidiagonals.finished.all()
    assert rules.nodes[0] == pytest.approx(np.tile([1.0, 0.0], (3, 1)), abs=1e-14)
    kernel = ((start[:, 0] @ truth.v) ** 2)[:, 20:].sum(-1).numpy()
    assert rules.weights[0, :, 1] == pytest.approx(kernel, abs=1e-13)


def test_probes_finish_on_their_own() -> None:
    """In one block: a start vector that is a singular vector is done at once, the other goes on."""
    a = torch.diag(torch.linspace(1, 2, 10, dtype=torch.float64))
    side = ShortSide(MatrixOperator(a))
    start = torch.zeros(2, 1, 10, dtype=torch.float64)
    start[0, 0, 3] = 1.0
    start[1, 0] = 10**-0.5
    bidiagonals = golub_kahan(side, start, 6)
    assert bidiagonals.steps.tolist() == [[1], [6]]
    assert bidiagonals.finished.tolist() == [[True], [False]]
    assert bidiagonals.alpha[0, 0].tolist() == [float(a[3, 3])] + [0.0] * 5
    rules = gauss_rules(bidiagonals)
    assert rules.weights[0, 0].tolist() == [1.0] + [0.0] * 5
    assert rules.resolved[0, 0].all()
    assert not rules.resolved[0, 1].any()
    assert np.isinf(rules.residuals[0, 0, 1:]).all()
    # The other probe is not disturbed: the same numbers as alone.
    alone = golub_kahan(side, start[1:], 6)
    assert bidiagonals.alpha[1] == pytest.approx(alone.alpha[0], rel=1e-14)


def test_deflation_never_touches_what_was_taken_out(known) -> None:
    """Inside the complement of the leading vectors, to the end and past it: V stays orthogonal to them."""
    truth = known(np.concatenate([[1e6, 1e5], np.linspace(0.5, 1.5, 28)]))
    frame = truth.v[:, :2]
    side = ShortSide(MatrixOperator(truth.a))

    def outside(block: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            block = block - block @ frame @ frame.T
        return block

    start = outside(random_block(3, side, 0))
    start = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    bidiagonals = golub_kahan(side, start, 100, projector=outside, dimension=28)
    assert np.all(bidiagonals.steps == 28)
    assert bidiagonals.finished.all()
    assert float((bidiagonals.right @ frame).abs().max()) < 20 * EPS
    rules = gauss_rules(bidiagonals)
    # The rounding of products of size 1e6 is left in what remains.
    assert rules.nodes[0, 0] == pytest.approx(truth.chosen[2:], abs=100 * EPS * 1e6)


@pytest.mark.parametrize("offload", [False, True])
def test_steps_are_added_without_doing_any_twice(known, offload: bool) -> None:
    """7 steps and 13 more are 20: as many products, the same entries; the bases in two panels round differently."""
    truth = known(np.logspace(0, -3, 40), (40, 55))
    whole_side, start, whole = run(truth.a, 20)
    side = ShortSide(MatrixOperator(truth.a))
    recurrence, seen = Recurrence(side, start, offload=offload), []
    for steps in (7, 7, 20):
        recurrence.advance(side, steps, on_step=seen.append)
    found = recurrence.bidiagonals()
    assert seen == list(range(1, 21))
    assert side.products == whole_side.products
    assert found.alpha == pytest.approx(whole.alpha, rel=1e-9)
    assert found.beta == pytest.approx(whole.beta, rel=1e-9)
    v = found.right[0, 0].numpy()
    assert v @ v.T == pytest.approx(np.eye(20), abs=30 * EPS)
    assert recurrence.bidiagonals(vectors=False).right.numel() == 0
    # To the end of the space and no further.
    recurrence.advance(side, 100)
    assert recurrence.finished
    assert recurrence.steps == 40


def test_an_interrupted_step_has_not_happened(known) -> None:
    """Whatever breaks into the second product of a step: the steps before it stand, and it can be taken again."""
    truth = known(np.linspace(0.1, 2.0, 30))
    side, start, whole = run(truth.a, 6)
    recurrence, adjoint, calls = Recurrence(side, start), side.adjoint, []

    def broken(block: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return adjoint(block)

    side.adjoint = broken
    with pytest.raises(KeyboardInterrupt):
        recurrence.advance(side, 6)
    assert recurrence.steps == 3
    assert np.array_equal(recurrence.bidiagonals().alpha, whole.alpha[..., :3])
    recurrence.advance(side, 6)
    assert np.array_equal(recurrence.bidiagonals().alpha, whole.alpha)
    assert np.array_equal(recurrence.bidiagonals().beta, whole.beta)


def test_at_least_one_step(known) -> None:
    with pytest.raises(InputError, match="at least one step is needed; got 0"):
        run(known(np.ones(4)).a, 0)


def test_probes_have_streams_of_their_own(known) -> None:
    """Neither the number of probes nor the grouping of the inputs changes what one probe of one input is."""
    one = known(np.ones(20)).a
    many = ShortSide(MatrixOperator(torch.stack([one] * 3)))
    single = ShortSide(MatrixOperator(one))
    block = random_block(5, many, 7)
    assert torch.equal(random_block(2, many, 7), block[:2])
    assert torch.equal(random_block(5, single, 7, first_input=2)[:, 0], block[:, 2])
    flat = block.reshape(15, 20)
    assert torch.linalg.vector_norm(flat, dim=-1).numpy() == pytest.approx(np.ones(15), abs=4 * EPS)
    # Fifteen different directions: overlaps of random unit vectors of 20 components stay below 0.85.
    assert float((flat @ flat.T - torch.eye(15)).abs().max()) < 0.85
    for other in (random_block(5, many, 8), random_block(5, many, 7, stream=1)):
        assert float((other - block).abs().min()) > 0
