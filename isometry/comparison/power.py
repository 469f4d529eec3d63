"""Other laws that a comparison may or may not tell from the predicted one, as replicas of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from isometry.comparison.replicas import Replicas
from isometry.errors import IsometryError
from isometry.spectrum import Spectrum

STEP = 0.03


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another law by its name, and replicas of it."""

    name: str
    replicas: Replicas


def alternatives(replicas: Replicas, law: Spectrum) -> list[Alternative]:
    """Laws next to this one: sigma_w off by 3 % where the law is an ensemble's, else all values off by 3 %.

    The replicas of another law are those of the law, every value moved to the other law's place of the same level.
    """
    found = []
    for sign in (1, -1):
        step = f"{'+' if sign > 0 else '-'}{100 * STEP:.0f} %"
        other = _other_sigma_w(law, 1.0 + sign * STEP)
        if other is not None:
            found.append(Alternative(f"sigma_w {step}", replicas.moved(law.distribution, other.distribution)))
        else:
            found.append(Alternative(f"all s {step}", replicas.scaled(math.log1p(sign * STEP))))
    return found


def _other_sigma_w(law: Spectrum, factor: float) -> Spectrum | None:
    """The prediction with another sigma_w, biases and input as they are; None without an ensemble."""
    fields = law.provenance.get("ensemble")
    if law.kind != "predicted" or not isinstance(fields, Mapping) or law.provenance.get("own_layers"):
        return None
    # Late: a comparison without theory does without scipy.
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.finitewidth.slope_chain import alike_layers
    from isometry.theory.prediction import predict

    try:
        ensemble = Ensemble.from_dict(fields)
        _, variances = alike_layers(ensemble)
        sigma_w, sigma_b = factor * math.sqrt(variances.sigma_w2), math.sqrt(variances.sigma_b2)
        first = float(variances.q[0])
        q0 = None
        if not math.isnan(first):
            q0 = factor**2 * (first - variances.sigma_b2) + variances.sigma_b2
        return predict(replace(ensemble, sigma_w=sigma_w, sigma_b=sigma_b, q_star=None, q0=q0))
    except IsometryError:
        return None
