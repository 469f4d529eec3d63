"""Which method, how many inputs at once, and the memory that takes: decided before the work, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from isometry.errors import InputError
from isometry.estimators.probe_rules import basis_bytes, probe_groups
from isometry.jacobian import JacobianOperator
from isometry.measurement.stopping import EDGES, FIRST_STEPS, LEAST_PROBES, MOST_PROBES, Goal, Limits

METHODS = ("auto", "exact", "lanczos", "randomized")
DEFAULT_PROBES, DEFAULT_STEPS, DEFAULT_RANK = 16, 50, 20
_RANDOMIZED_PROBES, _RANDOMIZED_STEPS = 8, 30
# A dense SVD of a longer short side takes minutes on a processor, whatever the products cost.
_LARGEST_DENSE_SIDE = 6000
# The matrix in float64, its copy and the work space of the decomposition.
_DENSE_COPIES = 3
# Vectors of a step besides the bases: those of the start in float64, both products, what re-orthogonalisation makes of
# them; measured.
_STEP_VECTORS = 12
_MOST_INPUTS_AT_ONCE = 64


@dataclass(frozen=True)
class Plan:
    """How a measurement goes about it.

    Parameters
    ----------
    method : {"exact", "lanczos", "randomized"}
    probes, steps : int
        Of "lanczos" and "randomized"; with a goal, the most of each.
    inputs_at_once : int
    exact_products : float
        What going over to the exact method would cost, inf where it is out of the question.
    peak_bytes : int
        Predicted: what the work adds to the memory that the process has with model and operator made.
    peak_reason : str
        What takes it.
    """

    method: str
    probes: int
    steps: int
    inputs_at_once: int
    exact_products: float
    peak_bytes: int
    peak_reason: str

    @property
    def limits(self) -> Limits:
        """For the stopping rule."""
        return Limits(self.probes, self.steps, self.exact_products)


def plan(
    method: str,
    operator: JacobianOperator,
    *,
    probes: int | None,
    steps: int | None,
    memory_limit: int,
    goal: Goal | None = None,
    kind: str = "gaussian",
) -> Plan:
    """The plan for these options.

    Raises
    ------
    InputError
        What was asked for does not fit into the memory limit, or does not go together.
    """
    short, count = min(operator.shape), operator.batch or 1
    dense = _DENSE_COPIES * 8 * operator.shape[0] * operator.shape[1]
    possible = method in ("auto", "exact") and dense <= memory_limit and short <= _LARGEST_DENSE_SIDE
    if goal is not None and method == "randomized":
        raise InputError(
            "rtol and budget go with method='auto', 'lanczos' or 'exact'; for 'randomized' there is tol"
        )
    if kind != "gaussian" and method == "randomized":
        raise InputError(f"probe={kind!r} goes with method='lanczos'; 'randomized' draws Gaussian vectors")
    if (
        goal is not None
        and goal.rtol is not None
        and goal.rtol < operator.rounding
        and goal.quantity in EDGES
    ):
        raise InputError(
            f"rtol={goal.rtol:g} is below the rounding of products in {operator.dtype} ({operator.rounding:.1e}): ask "
            "for less, or measure with dtype=torch.float64"
        )
    if goal is not None and goal.products is not None and goal.products < count * short:
        possible = False
    if method == "auto":
        stochastic = _least_products(goal, probes, steps, short)
        method = "exact" if possible and short <= stochastic else "lanczos"
    if method == "exact" and dense > memory_limit:
        m, n = operator.shape
        raise InputError(
            f"the dense {m} x {n} Jacobian and its SVD take about {dense / 1e9:.3g} GB, more than "
            f"memory_limit ({memory_limit / 1e9:.3g} GB): take method='lanczos', or raise memory_limit"
        )
    if method == "randomized":
        probes, steps = probes or _RANDOMIZED_PROBES, steps or _RANDOMIZED_STEPS
    elif goal is None:
        probes, steps = probes or DEFAULT_PROBES, steps or DEFAULT_STEPS
    elif goal.quantity == "mean_square":
        probes, steps = probes or MOST_PROBES, steps or DEFAULT_STEPS
    elif goal.quantity == "cdf":
        probes, steps = probes or MOST_PROBES, steps or short
    else:
        probes, steps = probes or LEAST_PROBES, steps or short
    steps = min(steps, short)
    first = steps if goal is None or goal.quantity == "mean_square" else min(FIRST_STEPS, steps)
    group = min(probes, DEFAULT_PROBES)
    of_input = dense if method == "exact" else group * basis_bytes(operator.shape, first, operator.dtype)
    at_once = max(1, min(count, memory_limit // max(of_input, 1), _MOST_INPUTS_AT_ONCE))
    peak, reason = _peak(method, operator, probes, first, at_once, memory_limit, goal)
    # How long a decomposition takes is not known, so within a time nothing goes over to it.
    switch = possible and (goal is None or goal.seconds is None)
    return Plan(method, probes, steps, at_once, count * short if switch else float("inf"), peak, reason)


def _least_products(goal: Goal | None, probes: int | None, steps: int | None, short: int) -> int:
    """What lanczos spends on an input, at least."""
    if goal is None:
        return 2 * (probes or DEFAULT_PROBES) * min(steps or DEFAULT_STEPS, short)
    first = (steps or DEFAULT_STEPS) if goal.quantity == "mean_square" else min(steps or short, FIRST_STEPS)
    return 2 * min(probes or LEAST_PROBES, LEAST_PROBES) * min(first, short)


def _peak(
    method: str,
    operator: JacobianOperator,
    probes: int,
    steps: int,
    at_once: int,
    memory_limit: int,
    goal: Goal | None,
) -> tuple[int, str]:
    count, (m, n) = operator.batch or 1, operator.shape
    share = at_once / count
    of_vector = at_once * (m + n) * operator.dtype.itemsize
    of_chunk = int(
        min(operator.chunk, probes if method != "exact" else min(m, n)) * operator.bytes_per_probe * share
    )
    in_chunk = f"products {_amount(of_chunk)}"
    if method == "exact":
        kept = at_once * _DENSE_COPIES * 8 * m * n
        return kept + of_chunk, f"the {m} x {n} matrix and its decomposition {_amount(kept)}, {in_chunk}"
    if method == "randomized":
        kept = probes * at_once * basis_bytes(operator.shape, steps, operator.dtype)
        return kept + of_chunk, f"bases of {probes} probes {_amount(kept)}, {in_chunk}"
    of_probe = at_once * basis_bytes(operator.shape, steps, operator.dtype)
    together = len(probe_groups(range(probes), of_probe, memory_limit, operator.device)[0])
    around = together * _STEP_VECTORS * of_vector
    if goal is not None and goal.quantity != "mean_square":
        most = min(memory_limit, count * probes * basis_bytes(operator.shape, min(m, n), operator.dtype))
        return most + of_chunk + around, f"at most, with bases up to {_amount(most)}, {in_chunk}"
    kept = together * of_probe
    return (
        kept + of_chunk + around,
        f"bases of {together} probes of {steps} steps {_amount(kept)}, vectors {_amount(around)}, {in_chunk}",
    )


def _amount(size: int) -> str:
    """Bytes as a person reads them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.2g} kB"


def peak_text(plan: Plan) -> str:
    """One line for whoever starts the work."""
    return f"about {_amount(plan.peak_bytes)} at the peak: {plan.peak_reason}"
