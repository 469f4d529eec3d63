"""The methods of a measurement as objects that know what they cost, and the choice of one before the work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

import torch

from isometry.errors import InputError, ModelError
from isometry.estimators import chain, defaults, exact, lanczos, randomized
from isometry.estimators.blocks import PROBES, random_bytes
from isometry.estimators.golub_kahan import recurrence_bytes
from isometry.estimators.graded_chain import chain_bytes, chain_vectors
from isometry.estimators.probe_rules import basis_bytes, probe_groups
from isometry.estimators.randomized import predicted_bytes, predicted_products, search_bytes
from isometry.jacobian import JacobianOperator
from isometry.measurement.segment_factors import segment_factors, segments_of
from isometry.measurement.stopping import (
    EXTREME_QUANTITIES,
    MAX_PROBES,
    MIN_PROBES,
    Goal,
    first_steps,
)
from isometry.progress import StepProgress
from isometry.spectrum import Spectrum

# A dense SVD of a longer short side takes minutes on a processor, whatever the products cost.
_LARGEST_DENSE_SIDE = 6000
# "auto" goes over to a chain of so many singular values at most.
_LARGEST_CHAIN_SIDE = 1024
# The matrix in float64, its copy and the work space of the decomposition.
_DENSE_COPIES = 3
# Panels of a matrix that the BLAS packs and keeps; measured.
_PACKED = 12 * 2**20
_MAX_INPUTS_PER_GROUP = 64


@dataclass(frozen=True)
class Peak:
    """Predicted bytes at the peak of the memory, and what takes them."""

    size: int
    reason: str

    def __str__(self) -> str:
        return f"about {_amount(self.size)} at the peak: {self.reason}"


class _Method:
    """A method knows its products, its memory and how to run; each class has its options as fields."""

    def peak(self, operator: JacobianOperator) -> Peak:
        raise NotImplementedError

    def peak_bytes(self, operator: JacobianOperator) -> int:
        """Predicted bytes at the peak: beside the model, and beside the operator but for its copy of the model."""
        return self.peak(operator).size


@dataclass(frozen=True)
class Exact(_Method):
    """All singular values, by the SVD in float64 of J, built from its shorter side: min(m, n) products.

    Parameters
    ----------
    top : int, optional
        How many of the largest singular values ``tol`` is about; 6.
    tol : float, optional
        Relative residual they must reach; a ConvergenceWarning says where they do not.
    """

    name: ClassVar[str] = "exact"
    top: int | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        _check(self, "top")

    def products(self, operator: JacobianOperator) -> int:
        """min(m, n) for each input; m where J^T u is all there is."""
        return _inputs(operator) * (operator.shape[0] if operator.reverse_only else min(operator.shape))

    def is_practical(self, operator: JacobianOperator) -> bool:
        """Whether the matrix fits into the memory limit, and its SVD takes no more than minutes."""
        fits = self._dense_bytes(operator) <= operator.memory_limit
        return fits and min(operator.shape) <= _LARGEST_DENSE_SIDE

    def inputs_per_group(self, operator: JacobianOperator) -> int:
        """Inputs measured together, as many as the memory limit holds."""
        return _inputs_per_group(operator, self._dense_bytes(operator))

    def peak(self, operator: JacobianOperator) -> Peak:
        """The matrix with its decomposition, and the products."""
        (m, n), inputs = operator.shape, self.inputs_per_group(operator)
        matrix = inputs * self._dense_bytes(operator)
        # Rows as they come, and in float64.
        vectors = m if operator.reverse_only else min(m, n)
        rows = min(operator.chunk, vectors) * inputs * max(m, n) * (2 * operator.dtype.itemsize + 8)
        return _peak(
            operator, vectors, inputs, matrix + rows + min(matrix, _PACKED),
            f"the {m} x {n} matrix and its decomposition {_amount(matrix)}",
        )  # fmt: skip

    def run(
        self,
        operator: JacobianOperator,
        *,
        seed: int = 0,
        first_input: int = 0,
        progress: StepProgress | None = None,
    ) -> Spectrum:
        """:func:`isometry.estimators.exact`; nothing in it is random."""
        return exact(operator, block=max(operator.chunk, 1), progress=progress)

    def refuse_too_large(self, operator: JacobianOperator) -> None:
        """Raise InputError where the matrix does not fit into the memory limit."""
        dense, limit, (m, n) = self._dense_bytes(operator), operator.memory_limit, operator.shape
        if dense > limit:
            other = (
                "measure a part of this model, which has reverse products alone"
                if operator.reverse_only
                else "take method='lanczos'"
            )
            raise InputError(
                f"the dense {m} x {n} Jacobian and its SVD take about {dense / 1e9:.3g} GB, more than "
                f"memory_limit ({limit / 1e9:.3g} GB): {other}, or raise memory_limit"
            )

    @staticmethod
    def _dense_bytes(operator: JacobianOperator) -> int:
        return _DENSE_COPIES * 8 * math.prod(operator.shape)


@dataclass(frozen=True)
class Lanczos(_Method):
    """The distribution of all singular values from a few random probes: stochastic Lanczos quadrature.

    Parameters
    ----------
    probes, steps : int, optional
        Random probes of each input and Golub-Kahan steps of each probe; 16 and 50. With a :class:`Goal` the most of
        each: 4096 probes and as many steps as there are, but for "mean_square", which steps do not improve (50), and
        for "top" and "s_max", which probes do not (8).
    top : int, optional
        How many of the largest singular values to report with residual bounds; 6.
    tol : float, optional
        Relative residual they must reach; a ConvergenceWarning says where they do not.
    probe : {"gaussian", "rademacher", "orthogonal"}
        Kind of probes: uniform on the sphere, as normalised Gaussian vectors are; random signs; uniform, and orthogonal
        to one another in fixed groups of 16. Random signs vary less where singular vectors have few large entries (0.28
        to 1.05 of the variance, benchmarks/probes.py), orthogonal ones where n is small; the law behind the band of the
        cdf is that of the sphere, hence the default.
    """

    name: ClassVar[str] = "lanczos"
    probes: int | None = None
    steps: int | None = None
    top: int | None = None
    tol: float | None = None
    probe: str = "gaussian"

    def __post_init__(self) -> None:
        _check(self, "probes", "steps", "top")
        if self.probe not in PROBES:
            raise InputError(f"probe is one of {', '.join(PROBES)}; got {self.probe!r}")

    def numbers(self, operator: JacobianOperator, goal: Goal | None = None) -> tuple[int, int]:
        """(probes, steps) for this operator; with a goal the most of each."""
        short = min(operator.shape)
        if goal is None:
            probes, steps = defaults.PROBES, defaults.STEPS
        else:
            probes = MIN_PROBES if goal.quantity in EXTREME_QUANTITIES else MAX_PROBES
            steps = short if goal.adds_steps else defaults.STEPS
        return self.probes or probes, min(self.steps or steps, short)

    def products(self, operator: JacobianOperator, goal: Goal | None = None) -> int:
        """2 * probes * steps for each input; with a goal, what the first round spends."""
        probes, steps = self.numbers(operator, goal)
        if goal is not None:
            probes = min(probes, MIN_PROBES)
        return 2 * _inputs(operator) * probes * first_steps(goal, steps)

    def inputs_per_group(self, operator: JacobianOperator, goal: Goal | None = None) -> int:
        """Inputs measured together, as many as the memory limit holds with 16 probes of each."""
        probes, steps = self.numbers(operator, goal)
        of_probe = basis_bytes(operator.shape, first_steps(goal, steps), operator.dtype)
        return _inputs_per_group(operator, min(probes, defaults.PROBES) * of_probe)

    def peak(
        self, operator: JacobianOperator, goal: Goal | None = None, reached: tuple[int, int] | None = None
    ) -> Peak:
        """The bases of the probes that go together, vectors of a step, and the products.

        With a goal that of the first round, and of a later one with the (probes, steps) that it has ``reached``.
        """
        (m, n), inputs = operator.shape, self.inputs_per_group(operator, goal)
        first = "" if goal is None or reached is not None else "first "
        if reached is None:
            probes, steps = self.numbers(operator, goal)
            probes = probes if goal is None else min(probes, MIN_PROBES)
            reached = probes, first_steps(goal, steps)
        probes, steps = reached
        of_probe = inputs * basis_bytes((m, n), steps, operator.dtype)
        together = len(probe_groups(range(probes), of_probe, operator.memory_limit, operator.device)[0])
        if goal is not None and goal.adds_steps:
            # Bases are kept, so that steps can be added, as long as all of them fit.
            fitting = operator.memory_limit // (of_probe // inputs)
            together = max(together, min(_inputs(operator) * probes, fitting) // inputs)
        bases, text = together * of_probe, f"{first}bases of {together} probes of {steps} steps"
        rules = recurrence_bytes((m, n), together * inputs, steps, operator.dtype, operator.device)
        start = random_bytes(min(m, n), together * inputs, operator.dtype, self.probe)
        # What the start took may stay in the heap.
        size = rules + start
        return _peak(
            operator, together, inputs, size, f"{text} {_amount(bases)}, vectors {_amount(size - bases)}"
        )

    def run(
        self,
        operator: JacobianOperator,
        *,
        seed: int = 0,
        first_input: int = 0,
        progress: StepProgress | None = None,
    ) -> Spectrum:
        """:func:`isometry.estimators.lanczos`. `measure` can stop it at a :class:`Goal` and interrupt it."""
        probes, steps = self.numbers(operator)
        return lanczos(
            operator, probes=probes, steps=steps, top=self.top or defaults.TOP, probe=self.probe, seed=seed,
            first_input=first_input, memory_limit=operator.memory_limit, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Randomized(_Method):
    """The leading singular triplets, deflated exactly, and the distribution of the rest from random probes.

    Parameters
    ----------
    rank : int
        Leading triplets.
    tol : float, optional
        Relative residual at which a triplet has converged, 0.01; every converged one is deflated. Where it is given, a
        ConvergenceWarning says where a reported top value does not reach it.
    probes, steps : int
        Random probes of each input, and Golub-Kahan steps of each, for what deflation leaves.
    """

    name: ClassVar[str] = "randomized"
    rank: int = defaults.RANK
    tol: float | None = None
    probes: int = defaults.REST_PROBES
    steps: int = defaults.REST_STEPS

    def __post_init__(self) -> None:
        _check(self, "rank", "probes", "steps")

    def products(self, operator: JacobianOperator) -> int:
        """About 6 (rank + 10) + 2 * probes * steps for each input."""
        return _inputs(operator) * predicted_products(operator.shape, self.rank, self.probes, self.steps)

    def inputs_per_group(self, operator: JacobianOperator) -> int:
        """Inputs measured together, as many as the memory limit holds with their probes."""
        of_probes = min(self.probes, defaults.PROBES) * basis_bytes(
            operator.shape, self.steps, operator.dtype
        )
        return _inputs_per_group(
            operator, max(of_probes, search_bytes(operator.shape, self.rank, operator.dtype))
        )

    def peak(self, operator: JacobianOperator) -> Peak:
        """The search for the leading triplets, or what is left of it and the bases of the probes; and the products."""
        inputs = self.inputs_per_group(operator)
        search, sampling = predicted_bytes(
            operator.shape, inputs, operator.dtype, operator.device,
            rank=self.rank, probes=self.probes, steps=self.steps, memory_limit=operator.memory_limit,
        )  # fmt: skip
        text = f"search for {self.rank} triplets {_amount(search)}, {self.probes} probes {_amount(sampling)}"
        return _peak(operator, self.probes, inputs, max(search, sampling) + min(search, _PACKED), text)

    def run(
        self,
        operator: JacobianOperator,
        *,
        seed: int = 0,
        first_input: int = 0,
        progress: StepProgress | None = None,
    ) -> Spectrum:
        """:func:`isometry.estimators.randomized`."""
        return randomized(
            operator, rank=self.rank, tol=self.tol or defaults.TOL, probes=self.probes, steps=self.steps, seed=seed,
            first_input=first_input, memory_limit=operator.memory_limit, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Chain(_Method):
    """All singular values over any number of decades, each with a relative error, from the factors of J.

    The model is recorded and cut wherever all dependence on the input passes through one tensor
    (:class:`isometry.jacobian.JacobianSegments`); J is the product of what lies between.
    """

    name: ClassVar[str] = "chain"
    tol: ClassVar[float | None] = None

    def products(self, operator: JacobianOperator) -> int:
        """min(m, n) of each input, 4 that carry the error, and one that finds zeros."""
        return _inputs(operator) * (chain_vectors(min(operator.shape)) + 1)

    def inputs_per_group(self, operator: JacobianOperator) -> int:
        """1: each input has factors of its own."""
        return 1

    def peak(self, operator: JacobianOperator) -> Peak:
        """The vectors at the widest cut, and the factors of the product so far."""
        short, widest = min(operator.shape), segments_of(operator).widest
        size = chain_bytes(short, widest, operator.dtype)
        return _peak(
            operator, short, 1, size + min(size, _PACKED),
            f"{short} vectors of up to {widest} numbers, and the graded factors {_amount(size)}",
        )  # fmt: skip

    def run(
        self,
        operator: JacobianOperator,
        *,
        seed: int = 0,
        first_input: int = 0,
        progress: StepProgress | None = None,
    ) -> Spectrum:
        """:func:`isometry.estimators.chain`; the perturbations that measure the errors are random."""
        if operator.batch not in (None, 1):
            raise InputError(
                f"a chain is of one input, and this operator holds {operator.batch}: take operator.of_inputs(range(1))"
            )
        return chain(
            segment_factors(operator), seed=seed, first_input=first_input,
            device=operator.device, progress=progress,
        )  # fmt: skip

    def refuse_too_large(self, operator: JacobianOperator) -> None:
        """Raise InputError where the vectors do not fit into the memory limit."""
        short, widest = min(operator.shape), segments_of(operator).widest
        size, limit = chain_bytes(short, widest, operator.dtype), operator.memory_limit
        if size > limit:
            raise InputError(
                f"the chain's {short} vectors of up to {widest} numbers and its factors take about {size / 1e9:.3g} "
                f"GB, more than memory_limit ({limit / 1e9:.3g} GB): take method='lanczos', or raise memory_limit"
            )


Method = Exact | Lanczos | Randomized | Chain
METHODS = ("auto", Exact.name, Lanczos.name, Randomized.name, Chain.name)


def named_method(name: str, options: Mapping[str, Any]) -> Method | None:
    """The method of that name with those of ``options`` that it has; None for "auto", which depends on the operator.

    All options are checked, those of other methods too.

    Raises
    ------
    InputError
        No such method, or an option that is out of its range or does not go with the method.
    """
    if name not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {name!r}")
    methods: dict[str, Method] = {method.name: method for method in (*_methods(options), Chain())}
    probe = options.get("probe", "gaussian")
    if name == Randomized.name and probe != "gaussian":
        raise InputError(f"probe={probe!r} goes with method='lanczos'; 'randomized' draws Gaussian vectors")
    return methods.get(name)


def select_method(
    operator: JacobianOperator, goal: Goal | None, options: Mapping[str, Any]
) -> Exact | Lanczos:
    """The method of "auto": exact or lanczos, whichever takes fewer products; exact only where it is practical.

    The randomized method is no candidate: it is for the leading values, and says less about the rest. From reverse
    products alone only exact follows.
    """
    dense, sampled, _ = _methods(options)
    if operator.reverse_only:
        return dense
    if not exact_is_affordable(dense, operator, goal):
        return sampled
    return dense if dense.products(operator) <= sampled.products(operator, goal) else sampled


def checked_method(
    asked: Method | None, operator: JacobianOperator, goal: Goal | None, options: Mapping[str, Any]
) -> Method:
    """The method asked for, or for None ("auto") the one that :func:`select_method` takes.

    Raises
    ------
    InputError
        The matrix of an exact measurement does not fit into the memory limit; or J has no forward product, and the
        method needs one; or the method, or the precision of the
        operator, cannot reach the goal.
    """
    if goal is not None:
        _refuse_goal(asked, goal, operator)
    method = asked or select_method(operator, goal, options)
    if operator.reverse_only and not isinstance(method, Exact):
        raise InputError(
            f"method={method.name!r} stands on products J v, and there are {operator.backend}: take method='exact', "
            f"which builds J from its {operator.shape[0]} rows"
        )
    if isinstance(method, Exact | Chain):
        method.refuse_too_large(operator)
    return method


def exact_is_affordable(method: Exact, operator: JacobianOperator, goal: Goal | None) -> bool:
    """Whether the exact method is practical and within the products that may be spent."""
    budget = None if goal is None else goal.products
    return method.is_practical(operator) and (budget is None or method.products(operator) <= budget)


def chain_beyond_floor(spectrum: Spectrum, operator: JacobianOperator) -> Chain | None:
    """The chain, where it knows more than the dense matrix of "auto": values lie below its floor, and J has factors."""
    known = spectrum.below_floor == 0 or spectrum.s_max == 0
    if known or operator.dtype != torch.float64 or min(operator.shape) > _LARGEST_CHAIN_SIDE:
        return None
    method = Chain()
    try:
        method.refuse_too_large(operator)
        return method if len(segments_of(operator)) > 1 else None
    except (ModelError, InputError):
        return None


def _refuse_goal(method: Method | None, goal: Goal, operator: JacobianOperator) -> None:
    """Raise InputError for a goal that the method, or the precision of the operator, cannot reach."""
    if isinstance(method, Randomized):
        raise InputError(
            "rtol and budget go with method='auto', 'lanczos' or 'exact'; for 'randomized' there is tol"
        )
    if isinstance(method, Chain):
        raise InputError(
            "rtol and budget go with method='auto', 'lanczos' or 'exact'; 'chain' finds every value, with its error"
        )
    if goal.rtol is not None and goal.rtol < operator.rounding and goal.quantity in EXTREME_QUANTITIES:
        raise InputError(
            f"rtol={goal.rtol:g} is below the rounding of products in {operator.dtype} ({operator.rounding:.1e}): ask "
            "for less, or measure with dtype=torch.float64"
        )


def _methods(options: Mapping[str, Any]) -> tuple[Exact, Lanczos, Randomized]:
    """Each method with those of the options that it has; what ``rank`` leaves open ``top`` says."""

    def some(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    dense, sampled = Exact(**some("top", "tol")), Lanczos(**some("probes", "steps", "top", "tol", "probe"))
    leading = Randomized(**some("rank", "tol", "probes", "steps"))
    if "rank" not in options and "top" in options:
        leading = replace(leading, rank=options["top"])
    return dense, sampled, leading


def _check(method: Any, *counts: str) -> None:
    """Raise InputError where a field of the method is out of its range."""
    for name in counts:
        value = getattr(method, name)
        if value is not None and not isinstance(value, Integral):
            raise InputError(f"{name} is a whole number; got {value!r}")
        if value is not None and value < 1:
            raise InputError(f"{name} is at least 1; got {value}")
    if method.tol is not None and not method.tol > 0:
        raise InputError(f"tol is a positive relative residual; got {method.tol}")


def _inputs(operator: JacobianOperator) -> int:
    return operator.batch or 1


def _inputs_per_group(operator: JacobianOperator, bytes_of_input: int) -> int:
    fitting = operator.memory_limit // max(bytes_of_input, 1)
    return max(1, min(_inputs(operator), fitting, _MAX_INPUTS_PER_GROUP))


def _peak(operator: JacobianOperator, vectors: int, inputs: int, size: int, text: str) -> Peak:
    """The peak of a method that takes ``size`` itself, and products of so many vectors of so many inputs at most."""
    share = inputs / _inputs(operator)
    products = int(min(operator.chunk, vectors) * operator.bytes_per_probe * share)
    copied = operator.copied_bytes
    return Peak(
        size + products + copied, f"{text}, products {_amount(products)}, copy of the model {_amount(copied)}"
    )


def _amount(size: int) -> str:
    """Bytes as a person reads them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.2g} kB"
