"""Numbers of a Jacobian spectrum that a training can differentiate: largest singular value, mean square, a penalty.

They are functions of the parameters theta of the model, at fixed inputs:

- s_max = u^T J v at its singular vectors, and d s_max = u^T dJ v: the vectors may be held fixed, because s is
  stationary in them;
- the mean of s^2, ||J||_F^2 / min(m, n), by E ||J^T u||^2 = ||J||_F^2 / m for random unit vectors u, the same for every
  theta (Hoffman, Roberts & Yaida 2019, arXiv 1908.02729, section 2.3).

Each is one reverse pass or a few, whose result stays in autograd's graph; ``backward`` is then one double backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from isometry.errors import ConvergenceError, InputError, NonFiniteError
from isometry.estimators.blocks import ShortSide, random_block
from isometry.estimators.leading_triplet import LeadingTriplet, leading_triplet
from isometry.jacobian import LiveJacobian

Model = nn.Module | Callable[..., Any]

# Of the random vectors: others than those of the measurements.
_STREAM = 6


@overload
def spectral_norm(
    model: Model, x: Any = None, *, start: LeadingTriplet | None = None, tol: float = 1e-6, max_products: int = 400,
    seed: int = 0, return_triplet: Literal[False] = False, **options: Any,
) -> Tensor: ...  # fmt: skip
@overload
def spectral_norm(
    model: Model, x: Any = None, *, start: LeadingTriplet | None = None, tol: float = 1e-6, max_products: int = 400,
    seed: int = 0, return_triplet: Literal[True], **options: Any,
) -> tuple[Tensor, LeadingTriplet]: ...  # fmt: skip
def spectral_norm(
    model: Model,
    x: Any = None,
    *,
    start: LeadingTriplet | None = None,
    tol: float = 1e-6,
    max_products: int = 400,
    seed: int = 0,
    return_triplet: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, LeadingTriplet]:
    """The largest singular value of dy/dx at x, differentiable in the parameters of the model.

    Parameters
    ----------
    model : nn.Module or callable
        In evaluation mode. Its parameters are in the graph; a function may hold tensors that require gradients.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        The input, a constant: no gradient goes into it. One, or with ``batched=True`` B of them.
    start : LeadingTriplet, optional
        That of the last call, for the same shapes: the search then needs a fraction of the products.
    tol : float
        Largest residual of the triplet, relative to s; rounding is always allowed. The value is then off by about tol^2
        of it, and the gradient by about tol s_max / (s_max - s_2).
    max_products : int
        Products for the search, of each input at most.
    seed : int
        Of the random vectors of the search.
    return_triplet : bool
        Also return the triplet: its residual is the error of s, and it is the next call's ``start``.
    **options
        ``args``, ``kwargs``, ``wrt``, ``batched``, ``output`` as for `isometry.JacobianOperator`; ``check=False``
        leaves out tests that a training need not repeat at every step: that <J v, u> = <v, J^T u>, and that the samples
        of a batch are independent. Two products, and two for each binary digit of B.

    Returns
    -------
    Tensor
        A scalar, or (B,) with a batch. Under ``torch.no_grad`` without a graph.
    LeadingTriplet
        With ``return_triplet``.

    Raises
    ------
    ConvergenceError
        When the residual is above tol after ``max_products``; the message states it.
    InputError
        When no parameter that J depends on requires a gradient.
    ModelError, AdjointError, NonFiniteError
        As for `isometry.JacobianOperator`, and where an operation has no second derivative, or a wrong one.

    Notes
    -----
    The search takes 16 to 120 products, and with ``start`` from a network a training step away 12 to 80
    (`isometry.estimators.leading_triplet`); the value one product more, the check two, and ``backward`` one double
    backward.

    Where several singular values equal the largest, s_max has no gradient, and what is returned is one of its
    subgradients, u^T dJ v for one of the pairs: ``triplet.second`` is then the same number. Where J is zero it is the
    subgradient 0. As every Krylov value s is a lower bound of s_max, up to its residual.

    References
    ----------
    Yoshida & Miyato 2017, arXiv 1705.10941, penalise the norms of the layers by power iteration with a start from the
    last step; here it is that of the whole Jacobian.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> s = spectral_norm(layer, torch.ones(2))
    >>> s.backward()
    >>> round(s.item(), 5), (layer.weight.grad.abs() + 0).round(decimals=5).tolist()
    (3.0, [[1.0, 0.0], [0.0, 0.0]])
    """
    trains = torch.is_grad_enabled()
    jacobian = LiveJacobian(model, x, **options)
    known = None if start is None else _fitting(start, jacobian)
    found = leading_triplet(jacobian, known, tol=tol, max_products=max_products, seed=seed)
    if not found.converged.all():
        worst = int(np.argmax(found.residuals / np.maximum(found.values, np.finfo(float).tiny)))
        raise ConvergenceError(
            f"after {max_products} products the leading triplet has s = {found.values[worst]:.6g} with residual "
            f"{found.residuals[worst]:.2g}, above tol = {tol:.2g} of it; the next value is {found.second[worst]:.6g}. "
            "Give more max_products or a larger tol, or start= from the triplet of the last call"
        )
    product = jacobian.reverse_product(found.left, create_graph=trains)
    with torch.set_grad_enabled(trains):
        values = (product * found.right).reshape(jacobian.batch or 1, -1).sum(dim=1)
        # Of a zero J any pair of vectors is singular; the subgradient of least norm is none of theirs.
        values = values * torch.as_tensor(found.values > 0, device=values.device)
        value = values if jacobian.batch is not None else values[0]
    _check_graph(jacobian, value, trains=trains)
    return (value, found) if return_triplet else value


@overload
def mean_square(
    model: Model, x: Any = None, *, probes: int = 8, seed: int = 0, log: bool = False,
    return_error: Literal[False] = False, **options: Any,
) -> Tensor: ...  # fmt: skip
@overload
def mean_square(
    model: Model, x: Any = None, *, probes: int = 8, seed: int = 0, log: bool = False,
    return_error: Literal[True], **options: Any,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def mean_square(
    model: Model,
    x: Any = None,
    *,
    probes: int = 8,
    seed: int = 0,
    log: bool = False,
    return_error: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The mean of the squared singular values of dy/dx at x, differentiable in the parameters of the model.

    Over min(m, n) singular values, as ``Spectrum.mean_square``.

    Parameters
    ----------
    model, x, **options :
        As for `spectral_norm`.
    probes : int
        Random unit vectors u, orthogonal in groups of 16; one product each. From m probes on the m rows of J are taken
        instead: no sampling error.
    seed : int
        Of the probes. A training takes another seed at every step, so that errors of the probes average out.
    log : bool
        Return ln of it, which stays in the range of floats where deep networks leave it.
    return_error : bool
        Also return the standard error over the probes (of ln, with ``log``); nan for a single probe, 0 for all rows.

    Returns
    -------
    Tensor
        A scalar, or (B,) with a batch.
    Tensor
        With ``return_error``, of the same shape, without a graph.

    Raises
    ------
    NonFiniteError
        When the mean square, or with ``log`` its logarithm, is not a float: J is zero, or leaves the range.
    InputError, ModelError
        As for `spectral_norm`.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> q = mean_square(layer, torch.ones(2))
    >>> q.backward()
    >>> q.item(), layer.weight.grad.tolist()
    (5.0, [[3.0, 0.0], [0.0, 1.0]])
    """
    trains = torch.is_grad_enabled()
    jacobian = LiveJacobian(model, x, **options)
    with torch.set_grad_enabled(trains):
        rows = _Rows(jacobian, probes, seed, create_graph=trains)
        second = rows.moment(rows.squares)
        value = second.log() + 2 * rows.log_scale if log else second * (2 * rows.log_scale).exp()
    if not bool(torch.isfinite(value).all()) or (not log and bool(((value == 0) & (second != 0)).any())):
        raise NonFiniteError(
            f"J is zero, or below the range of {jacobian.dtype}: its mean square has no logarithm"
            if log
            else f"the mean square of J is outside the range of {jacobian.dtype}: take log=True, or float64"
        )
    value, error = (
        part if jacobian.batch is not None else part[0] for part in (value, rows.relative_error())
    )
    _check_graph(jacobian, value, trains=trains)
    return (value, error if log else error * value.detach()) if return_error else value


def isometry_penalty(
    model: Model,
    x: Any = None,
    *,
    spread: float = 1.0,
    target: float = 1.0,
    probes: int = 4,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """A penalty, to be added to a loss, that is zero where all singular values of dy/dx are 1, and nowhere else.

    (ln(<s^2> / target))^2 + spread * ln(<s^4> / <s^2>^2), averages over the min(m, n) singular values.

    Parameters
    ----------
    model, x, **options :
        As for `spectral_norm`; of a batch the average of all inputs' penalties.
    spread : float
        Weight of the second term, which is zero where all singular values are equal and does not see their size; 0
        leaves it, and two of three products, out.
    target : float
        Mean square that is asked for.
    probes, seed :
        As for `mean_square`; with a spread a random probe is three products, and one without: J^T u, J J^T u and
        J^T J J^T u. With few probes
        the logarithm of an average is too small by half its relative variance.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    InputError
        When spread, target or probes are no such numbers, or as for `spectral_norm`.
    NonFiniteError
        When J is zero, or so small or large that products leave the range of floats: its logarithm has no gradient.
    ModelError
        As for `spectral_norm`.

    Notes
    -----
    Near isometry, s^2 = 1 + d, the terms are <d>^2 and <d^2> - <d>^2 to second order: with spread 1 and target 1 the
    penalty is <(s^2 - 1)^2> there. Far from it logarithms have gradients of order one where (s^2 - 1)^2 has none (s
    near zero) or one that explodes as s^4. <s^2> = 1 is what criticality asks of a network (Xiao et al. 2018, arXiv
    1806.05393); no spread is dynamical isometry (Pennington et al. 2017, arXiv 1711.04735). A penalty on the largest
    value alone (Yoshida & Miyato 2017, arXiv 1705.10941) bounds growth and lets everything else vanish. Small singular
    values cost little here too: a share p of zeros beside equal values costs -ln(1 - p). The penalty keeps isometry
    that is there, and moves the scale of a network; a spread of decades it narrows slowly.
    """
    for name, value, least in (("spread", spread, 0.0), ("target", target, 0.0)):
        if not (math.isfinite(value) and value >= least) or (name == "target" and value == 0):
            raise InputError(f"{name} must be a finite number {'above' if name == 'target' else 'of at least'} zero; "
                             f"got {value!r}.")  # fmt: skip
    trains = torch.is_grad_enabled()
    jacobian = LiveJacobian(model, x, **options)
    with torch.set_grad_enabled(trains):
        rows = _Rows(jacobian, probes, seed, create_graph=trains)
        second = rows.moment(rows.squares)
        if not bool((second > 0).all()):
            raise NonFiniteError(
                "J is zero at this input, or below the range of its floats: the logarithm of its mean square has no "
                "gradient. A layer is zero or cuts off all its units (isometry.measure names it)"
            )
        penalty = (second.log() + 2 * rows.log_scale - math.log(target)).square()
        if spread:
            fourth = rows.fourth_moment()
            penalty = penalty + spread * (fourth / second.square()).log()
        penalty = penalty.mean()
    if not bool(torch.isfinite(penalty)):
        raise NonFiniteError(
            f"products of J leave the range of {jacobian.dtype}: take float64, or fewer layers"
        )
    _check_graph(jacobian, penalty, trains=trains)
    return penalty


class _Rows:
    """J^T u for random unit vectors u, or for all unit vectors of the outputs: what the moments of s are made of.

    Products are divided by exp(``log_scale``), (B,), so that no square leaves the range of floats.
    """

    def __init__(self, jacobian: LiveJacobian, probes: int, seed: int, *, create_graph: bool) -> None:
        if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
            raise InputError(f"probes must be a whole number of one or more; got {probes!r}.")
        self.jacobian = jacobian
        m, n = jacobian.shape
        batch = jacobian.batch or 1
        self.exact = probes >= m
        if self.exact:
            block = torch.eye(m, dtype=jacobian.dtype, device=jacobian.device)[:, None].expand(m, batch, m)
        else:
            block = random_block(
                probes, ShortSide(jacobian), seed, stream=_STREAM, probe="orthogonal", length=m
            )
        lead = () if jacobian.batch is None else (batch,)
        vectors = block.reshape(-1, *lead, *jacobian.output_shape)
        self._products = [jacobian.reverse_product(u, create_graph=create_graph) for u in vectors]
        largest = torch.stack([p.detach().reshape(batch, -1).abs().amax(dim=1) for p in self._products]).amax(
            dim=0
        )
        if not bool(torch.isfinite(largest).all()):
            raise NonFiniteError("a product J^T u holds NaN or inf: no singular values follow from that")
        self.log_scale = torch.where(largest > 0, largest, 1.0).log()
        # ||u|| = 1, so that ||J^T u||^2 averages to sum s^2 / m.
        self._share = (1.0 if self.exact else float(m)) / min(m, n)
        self._scaled = [p / self._per_sample(self.log_scale.exp(), p) for p in self._products]
        self.squares = torch.stack([self._inner(p, p) for p in self._scaled])

    def fourth_moment(self) -> Tensor:
        """(B,): the average of s^4.

        Of all rows R it is that of ||R R^T||_F^2. Of random u it is that of ||b||^2, b = J a and a = J^T u, with
        d ||b||^2 = 2 (b^T dJ a + u^T dJ c), c = J^T b: first derivatives of J alone, by two reverse products.
        """
        if self.exact:
            rows = torch.stack([p.reshape(len(self.log_scale), -1) for p in self._scaled], dim=1)
            return self.moment((rows @ rows.mT).square().sum(dim=2).mT)
        scale = self._per_sample(self.log_scale.exp(), self._scaled[0])
        powers = []
        for a in self._scaled:
            fixed = a.detach()
            b = self.jacobian.forward_product(fixed)
            b = b / self._per_sample(self.log_scale.exp(), b)
            c = self.jacobian.reverse_product(b, create_graph=torch.is_grad_enabled()) / scale
            change = 2 * (self._inner(c, fixed) + self._inner(a, c.detach()))
            powers.append(self._inner(b, b) + (change - change.detach()))
        return self.moment(torch.stack(powers))

    def moment(self, values: Tensor) -> Tensor:
        """(B,): the average over singular values that these (k, B) values of the vectors estimate."""
        return self._share * (values.sum(dim=0) if self.exact else values.mean(dim=0))

    def relative_error(self) -> Tensor:
        """(B,): standard error of the second moment, relative to it."""
        squares = self.squares.detach()
        if self.exact:
            return torch.zeros_like(squares[0])
        if len(squares) == 1:
            return torch.full_like(squares[0], math.nan)
        return squares.std(dim=0) / math.sqrt(len(squares)) / squares.mean(dim=0)

    def _inner(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).reshape(len(self.log_scale), -1).sum(dim=1)

    def _per_sample(self, scale: Tensor, like: Tensor) -> Tensor:
        return scale[0] if self.jacobian.batch is None else scale.reshape(-1, *[1] * (like.dim() - 1))


def _fitting(start: LeadingTriplet, jacobian: LiveJacobian) -> tuple[Tensor, Tensor]:
    lead = () if jacobian.batch is None else (jacobian.batch,)
    expected = (*lead, *jacobian.output_shape), (*lead, *jacobian.input_shape)
    found = tuple(start.left.shape), tuple(start.right.shape)
    if found != expected:
        raise InputError(
            f"start has vectors of shapes {found[0]} and {found[1]}, J of this model and input takes {expected[0]} and "
            f"{expected[1]}: it is of another model or input. Leave start= out once"
        )
    return start.left, start.right


def _check_graph(jacobian: LiveJacobian, value: Tensor, *, trains: bool) -> None:
    if trains:
        jacobian.require_parameters(value)
