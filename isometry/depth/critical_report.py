"""What `critical_init_` saw and did, as values and as text. Internal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import number_text, plain


@dataclass(frozen=True)
class InitialisedWeight:
    """What one weight was filled with.

    Parameters
    ----------
    name : str
        Of the parameter.
    role : str
        What it is in the network: "layer", "last of a branch", "query, key, value", ...
    gain : float
        By which it multiplies the root mean square of what it is given: the norm of its rows, 0 where it was set to
        zero; for a normalisation's weight its entries.
    """

    name: str
    role: str
    gain: float


@dataclass(frozen=True)
class CriticalInit:
    """What `critical_init_` saw and did.

    Parameters
    ----------
    model : torch.nn.Module
        The model, initialised.
    kind : {"chain", "network"}
        Whether its run is one layer after another.
    found : dict
        What stands between the layers -> how often: "residual sum", "attention", "normalisation", ...
    weights : tuple of InitialisedWeight
        In the order of the run.
    left_alone : dict
        Name of a module or parameter -> why it was left alone, or what is not handled there.
    before, after : Spectrum
        Of the Jacobian at the input, with the same probes. A network that overflows before is measured in float64.
    """

    model: nn.Module
    kind: str
    found: Mapping[str, int]
    weights: tuple[InitialisedWeight, ...]
    left_alone: Mapping[str, str]
    before: Spectrum
    after: Spectrum

    def __str__(self) -> str:
        seen = ", ".join(f"{count} x {what}" for what, count in self.found.items())
        lines = [f"critical_init_: a {self.kind}{f' with {seen}' if seen else ''}"]
        roles: dict[tuple[str, str], list[str]] = {}
        for weight in self.weights:
            roles.setdefault((weight.role, number_text(weight.gain)), []).append(weight.name)
        for (role, gain), names in roles.items():
            lines.append(f"  {role}, gain {gain}: {listed(names)}")
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_alone.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"  left alone: {listed(names)}: {why}" for why, names in reasons.items()]
        for label, one in (("before", self.before), ("after", self.after)):
            lines.append(
                f"  {label:<6}  mean s^2 {number_text(one.mean_square)} +- {number_text(one.mean_square_stderr)}, "
                f"s_max {number_text(one.s_max)}, {one.spread_bounds()[0]:.0%} within a factor 2 of the scale"
            )
        return plain("\n".join(lines), keep="\n")


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
