"""Other laws that a comparison may or may not tell from the predicted one, as replicas of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from isometry.comparison.replicas import Replicas
from isometry.errors import IsometryError
from isometry.spectrum import Spectrum

if TYPE_CHECKING:
    from isometry.theory.ensemble import Ensemble

STEP = 0.03
# A point this near chi = 1 is the critical one, and a variance that changes by less is stationary.
NEAR = 1e-2
# Activations that are taken for each other.
ALIKE = (("tanh", "erf_scaled", "hard_tanh"), ("relu", "leaky_relu(0.1)"), ("gelu", "silu"))


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another law by its name, and replicas of it."""

    name: str
    replicas: Replicas


def alternatives(replicas: Replicas, law: Spectrum) -> list[Alternative]:
    """Laws next to this one.

    Of an ensemble: sigma_w off by 3 % at the same input, and near a stationary critical point a quarter more layers,
    twice the q* and similar activations, each at its own critical point. Else all values off by 3 %. The replicas
    of another law are those of the law, every value moved to the other law's place of the same level.
    """
    ensemble = _ensemble(law)
    if ensemble is None:
        return [
            Alternative(f"all s {100 * sign * STEP:+.0f} %", replicas.scaled(math.log1p(sign * STEP)))
            for sign in (1, -1)
        ]
    # Late: a comparison without theory does without scipy.
    from isometry.theory.prediction import predict

    found = []
    for name, other in _others(ensemble, law):
        try:
            moved = replicas.moved(law.distribution, predict(other).distribution)
        except IsometryError:
            continue
        found.append(Alternative(name, moved))
    return found


def _ensemble(law: Spectrum) -> Ensemble | None:
    """The ensemble that a prediction is for, where its layers are alike."""
    fields = law.provenance.get("ensemble")
    if law.kind != "predicted" or not isinstance(fields, Mapping) or law.provenance.get("own_layers"):
        return None
    from isometry.theory.ensemble import Ensemble

    try:
        ensemble = Ensemble.from_dict(fields)
    except IsometryError:
        return None
    return ensemble if ensemble.is_uniform else None


def _others(ensemble: Ensemble, law: Spectrum) -> Iterator[tuple[str, Ensemble]]:
    sigma_w, sigma_b = float(law.provenance["sigma_w"]), float(law.provenance["sigma_b"])
    q, last = law.provenance["q_first"], law.provenance["q_last"]
    for sign in (1, -1):
        w = (1 + sign * STEP) * sigma_w
        # The same input.
        q0 = None if q is None else (w / sigma_w) ** 2 * max(q - sigma_b**2, 0.0) + sigma_b**2
        yield (
            f"sigma_w {100 * sign * STEP:+.0f} %",
            replace(ensemble, sigma_w=w, sigma_b=sigma_b, q_star=None, q0=q0),
        )
    stationary = q is None or abs(last - q) < NEAR * q
    if not stationary or abs(law.provenance["chi"] - 1.0) > NEAR or ensemble.residual is not None:
        return
    if isinstance(ensemble.weights, str) and ensemble.widths is None:
        yield "depth +25 %", replace(ensemble, depth=math.ceil(1.25 * ensemble.depth))
    from isometry.theory.meanfield.critical import critical_point

    name = ensemble.activation_name
    others = [(other, other, 1.0) for group in ALIKE if name in group for other in group if other != name]
    for label, other, factor in [*([] if q is None else [("q* x 2", name, 2.0)]), *others]:
        try:
            point = critical_point(other, q_star=factor * (1.0 if q is None else q))
        except IsometryError:
            continue
        yield (
            label,
            replace(
                ensemble, activation=other, sigma_w=point.sigma_w, sigma_b=point.sigma_b, q_star=None,
                q0=None if q is None else point.q_star,
            ),
        )  # fmt: skip
