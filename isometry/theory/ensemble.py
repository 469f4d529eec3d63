"""A random network as data: depth, widths, activation, weight law, variances, residual branch.

An `Ensemble` describes both a network to sample (`isometry.nn`) and a spectrum to predict (`isometry.predict`). It
holds plain numbers and names and computes nothing, so that it can be written into a file next to a spectrum and read
back without torch or scipy.

The network is

    h_l = W_l x_{l-1} + b_l,    x_l = phi(h_l),    l = 1..L,    b_l ~ N(0, sigma_b^2),

with as many D = diag phi'(h) as W in its Jacobian, J = D_L W_L ... D_1 W_1 (N_L x N_0). With a residual branch
of strength a it is x_l = x_{l-1} + a phi(h_l), J = prod_l (1 + a D_l W_l); with a read-out one more linear layer
W_{L+1} stands on the left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from isometry.errors import InputError

if TYPE_CHECKING:
    from isometry.theory.activations import Activation

WEIGHT_LAWS = ("gaussian", "orthogonal")
# Fields that may hold one value per layer.
LISTS = ("weights", "sigma_w", "sigma_b", "widths")


@dataclass(frozen=True)
class Ensemble:
    """A random network, described by a few numbers.

    Parameters
    ----------
    activation : str or Activation, or tuple of them
        Name of the activation phi (``"tanh"``, ``"relu"``, ``"leaky_relu(0.2)"``, ...) or an `Activation`; one for all
        or one per layer.
    depth : int
        Number L of layers, each a weight matrix followed by the activation.
    weights : str or tuple of str
        ``"gaussian"`` (independent entries, variance sigma_w^2 / fan_in) or ``"orthogonal"`` (Haar, scaled so
        that W^T W = sigma_w^2, or W W^T = sigma_w^2 where the layer shrinks); one for all or one per layer. A
        read-out layer counts as a layer here.
    sigma_w, sigma_b : float or tuple of float, optional
        Standard deviations (not variances) of weights and biases; with ``sigma_w`` alone ``sigma_b`` is 0. The variance
        q is then the stable fixed point, which linear, ReLU and leaky ReLU do not need: their phi' does not depend on
        it. ``sigma_b`` alone is refused. One ``sigma_w`` for all or one per matrix (as ``weights``), one ``sigma_b``
        for all or one per layer. Layers that differ in them or in their activation have no fixed point: they need
        ``q0``, unless no phi' depends on the variance.
    q_star : float, optional
        Stationary variance of the pre-activations. Alone it means the critical point (chi_1 = 1) with this q*;
        with ``sigma_w`` it fixes the bias variance.
    widths : tuple of int, optional
        N_0 .. N_L (with a read-out N_0 .. N_{L+1}); None means that all are equal. J is N_L x N_0. Only their ratios
        matter to the spectrum.
    residual : float, optional
        Strength a of the branch in x_l = x_{l-1} + a phi(h_l); None means no skip connection. Networks that stay
        of order one at any depth have a of order 1/sqrt(L). The variance of h_1 is ``q0``, or else ``q_star``, or else
        the fixed point of the network without the skip, and grows from there.
    q0 : float, optional
        Variance of the first pre-activation h_1: the q-map is followed from there, each layer with its own q. None
        means that it is q* from the first layer on.
    readout : bool
        Whether one more linear layer, of the same sigma_w, follows the last activation.

    Raises
    ------
    InputError
        When a field is out of its range, or lengths do not fit the depth.
    """

    activation: str | Activation | tuple[str | Activation, ...]
    depth: int
    weights: str | tuple[str, ...] = "gaussian"
    sigma_w: float | tuple[float, ...] | None = None
    sigma_b: float | tuple[float, ...] | None = None
    q_star: float | None = None
    widths: tuple[int, ...] | None = None
    residual: float | None = None
    q0: float | None = None
    readout: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.depth, bool) or not _is_integer(self.depth) or self.depth < 1:
            raise InputError(f"depth must be a positive whole number of layers, got {self.depth!r}.")
        object.__setattr__(self, "depth", int(self.depth))
        object.__setattr__(self, "readout", bool(self.readout))
        object.__setattr__(self, "activation", self._checked_activation())
        object.__setattr__(self, "weights", self._checked_weights())
        if self.widths is not None:
            object.__setattr__(self, "widths", self._checked_widths())
        for name, allow_zero, count in (("sigma_w", False, self.matrix_count), ("sigma_b", True, self.depth)):
            object.__setattr__(self, name, self._checked_numbers(name, count, allow_zero=allow_zero))
        for name in ("q_star", "q0"):
            object.__setattr__(self, name, _checked_number(name, getattr(self, name), allow_zero=True))
        if self.residual is not None:
            strength = _checked_number("residual", abs(self.residual), allow_zero=False)
            object.__setattr__(self, "residual", math.copysign(strength or 0.0, self.residual))
            if not self.is_square:
                raise InputError(
                    "a residual network adds x to phi(W x), so all its widths must be equal; "
                    f"got widths {self.widths}. Leave widths out, or residual."
                )
        if self.sigma_b is not None and self.sigma_w is None and self.q_star is None:
            raise InputError(
                "sigma_b alone does not fix the network: give sigma_w with it, or take both from "
                "critical_point(activation, sigma_b=...)."
            )

        if not self.is_uniform:
            self._check_layers_that_differ()

    def _check_layers_that_differ(self) -> None:
        differing = ", ".join(
            name for name in ("activation", "sigma_w", "sigma_b") if isinstance(getattr(self, name), tuple)
        )
        if self.sigma_w is None:
            raise InputError(
                f"layers that differ in {differing} have no critical point: give sigma_w with it."
            )
        if self.q_star is not None:
            raise InputError(
                f"layers that differ in {differing} have no stationary variance q_star: give q0, the variance of the "
                "first pre-activation."
            )

    def _checked_activation(self) -> str | Activation | tuple[str | Activation, ...]:
        if not isinstance(self.activation, (tuple, list)):
            return self.activation
        activations = tuple(self.activation)
        if len(activations) != self.depth:
            raise InputError(
                f"activation names {len(activations)} functions, but there are {self.depth} layers: give one for all, "
                "or one per layer, first layer first."
            )
        return activations[0] if all(one == activations[0] for one in activations) else activations

    def _checked_numbers(
        self, name: str, count: int, *, allow_zero: bool
    ) -> float | tuple[float, ...] | None:
        value = getattr(self, name)
        if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
            return _checked_number(name, value, allow_zero=allow_zero)
        numbers = tuple(
            _checked_number(f"{name}[{i}]", one, allow_zero=allow_zero) for i, one in enumerate(value)
        )
        if len(numbers) != count:
            what = "weight matrices" if name == "sigma_w" else "layers"
            raise InputError(
                f"{name} holds {len(numbers)} numbers, but there are {count} {what} (depth {self.depth}"
                f"{' and a read-out' if self.readout else ''}): give one number for all, or one for each, first layer "
                "first."
            )
        present = tuple(one for one in numbers if one is not None)
        if len(present) != count:
            raise InputError(f"{name} holds None; every layer needs a number.")
        return present[0] if len(set(present)) == 1 else present

    def _checked_weights(self) -> str | tuple[str, ...]:
        if isinstance(self.weights, str):
            laws: tuple[str, ...] = (self.weights,)
        else:
            laws = tuple(self.weights)
            if len(laws) != self.matrix_count:
                raise InputError(
                    f"weights names {len(laws)} laws, but there are {self.matrix_count} weight matrices "
                    f"(depth {self.depth}{' and a read-out' if self.readout else ''}): give one law for all, "
                    "or one per matrix, first layer first."
                )
        unknown = [law for law in laws if law not in WEIGHT_LAWS]
        if unknown:
            raise InputError(f"weights must be one of {', '.join(WEIGHT_LAWS)}, got {unknown[0]!r}.")
        return laws[0] if isinstance(self.weights, str) else laws

    def _checked_widths(self) -> tuple[int, ...]:
        widths = tuple(self.widths or ())
        expected = self.matrix_count + 1
        if len(widths) != expected:
            raise InputError(
                f"widths must hold N_0 .. N_L, {expected} numbers for depth {self.depth}"
                f"{' and a read-out' if self.readout else ''}; got {len(widths)}."
            )
        if any(isinstance(width, bool) or not _is_integer(width) or width < 1 for width in widths):
            raise InputError(f"widths must be positive whole numbers, got {widths}.")
        return tuple(int(width) for width in widths)

    @property
    def matrix_count(self) -> int:
        """Number of weight matrices in J: the depth, and one more with a read-out."""
        return self.depth + int(self.readout)

    @property
    def is_square(self) -> bool:
        """Whether all widths are equal."""
        return self.widths is None or len(set(self.widths)) == 1

    @property
    def layer_weights(self) -> tuple[str, ...]:
        """The weight law of every matrix, first layer first, length `matrix_count`."""
        return (self.weights,) * self.matrix_count if isinstance(self.weights, str) else self.weights

    @property
    def is_uniform(self) -> bool:
        """Whether all layers share activation, sigma_w and sigma_b."""
        return not any(isinstance(value, tuple) for value in (self.activation, self.sigma_w, self.sigma_b))

    @property
    def activations(self) -> tuple[str | Activation, ...]:
        """The activation of every layer where they differ, or the one of all."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,)

    @property
    def activation_name(self) -> str:
        """The activation's name, whether it was given by name or as an `Activation`; "mixed" where layers differ."""
        return "mixed" if isinstance(self.activation, tuple) else _name_of(self.activation)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON types; an activation object is written by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        names = [_name_of(one) for one in self.activations]
        values["activation"] = names if isinstance(self.activation, tuple) else names[0]
        for name in LISTS:
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ensemble:
        """The ensemble that `to_dict` wrote, read back from JSON or not.

        Raises
        ------
        InputError
            When a field is unknown (a file by a newer version) or a required one is missing.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"an ensemble has no field {unknown[0]!r}; the fields are {', '.join(sorted(known))}. "
                "If it comes from a file, a newer version of isometry may have written it."
            )
        missing = sorted({"activation", "depth"} - set(values))
        if missing:
            raise InputError(f"an ensemble needs the field {missing[0]!r}.")
        arguments = dict(values)
        for name in ("activation", *LISTS):
            if isinstance(arguments.get(name), list):
                arguments[name] = tuple(arguments[name])
        return cls(**arguments)


def _name_of(activation: str | Activation) -> str:
    return activation if isinstance(activation, str) else activation.name


def _is_integer(value: object) -> bool:
    return isinstance(value, int) or (hasattr(value, "__index__") and not isinstance(value, float))


def _checked_number(name: str, value: float | None, *, allow_zero: bool) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, got {value!r}.") from None
    if not math.isfinite(number) or number < 0 or (number == 0 and not allow_zero):
        raise InputError(
            f"{name} must be a finite number {'of zero or more' if allow_zero else 'above zero'}, got {value!r}."
        )
    return number
