"""What theory knows of the ensemble of a measured network: the numbers that advice compares with. Internal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isometry.errors import IsometryError
from isometry.spectrum import Spectrum
from isometry.spectrum.advice import WIDE
from isometry.theory import Ensemble, critical_point, predict


def with_theory(spectrum: Spectrum) -> Spectrum:
    """The spectrum with the critical point and the orthogonal law of its recorded ensemble in its provenance.

    Nothing is added where no ensemble is recorded, or it has no single sigma_w, a skip, or no critical point; the law
    only where Gaussian weights spread the spectrum.

    Notes
    -----
    The critical point is that with the biases of the ensemble (Schoenholz et al. 2017, arXiv 1611.01232). The law is
    that of orthogonal weights at this point, at the same depth (Pennington et al. 2018, arXiv 1802.09979).
    """
    recorded = spectrum.provenance.get("ensemble")
    if not isinstance(recorded, Mapping):
        return spectrum
    found: dict[str, Any] = {}
    with contextlib.suppress(IsometryError, TypeError, ValueError, KeyError):
        ensemble = Ensemble.from_dict(recorded)
        sigma_w, sigma_b = ensemble.sigma_w, ensemble.sigma_b or 0.0
        if (
            isinstance(sigma_w, tuple)
            or isinstance(sigma_b, tuple)
            or sigma_w is None
            or isinstance(ensemble.activation, tuple)
            or ensemble.residual is not None
        ):
            return spectrum
        point = critical_point(ensemble.activation, sigma_b=sigma_b)
        found |= {"sigma_w": sigma_w, "critical_sigma_w": point.sigma_w}
        if point.stable:
            found["critical_q_star"] = point.q_star
        summary = spectrum.reported
        top = summary.log10_s_max - summary.log10_scale
        if ensemble.weights == "gaussian" and top > math.log10(WIDE):
            law = predict(replace(ensemble, weights="orthogonal", sigma_w=point.sigma_w, q0=None)).reported
            found["orthogonal_s_max_over_rms"] = 10 ** (law.log10_s_max - law.log10_scale)
    if not found:
        return spectrum
    return replace(spectrum, provenance={**spectrum.provenance, "theory": found})
