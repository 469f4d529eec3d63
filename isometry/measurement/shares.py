"""The share of each of several inputs in the mean square singular value.

J = (J_1, ..., J_P) of inputs joined to one vector has ||J||_F^2 = sum_p ||J_p||_F^2. For u standard normal,
E ||J_p^T u||^2 = ||J_p||_F^2 (Hutchinson 1990, Commun. Stat. Simul. Comput. 19, 433); the rows of the identity in place
of u give it exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isometry.jacobian import JacobianOperator

# All rows of J where there are no more of them than this, else so many random combinations of rows.
_ROWS, _PROBES, _BLOCK = 256, 64, 16


def recorded_shares(operator: JacobianOperator, seed: int) -> dict[str, Any]:
    """``{"shares": ...}``: of each input its path, its shape and its share with its standard error; else nothing.

    The share is that in the mean square over all samples of a batch. Its standard error is 0 where all rows of J were
    taken; both are None where J is zero.
    """
    if not operator.parts:
        return {}
    exact = operator.shape[0] <= _ROWS
    masses = _masses(operator, seed, exact=exact)
    total = masses.sum(axis=1)
    found = []
    for number, part in enumerate(operator.parts):
        share = float(masses[:, number].sum() / total.sum()) if total.sum() > 0 else math.nan
        # Of a ratio of two means (delta method).
        spread = float(np.linalg.norm(masses[:, number] - share * total))
        error = 0.0 if exact else spread / (math.sqrt(1 - 1 / len(total)) * float(total.sum() or math.nan))
        known = math.isfinite(share)
        found.append(
            {
                "path": part.path,
                "shape": list(part.shape),
                "share": share if known else None,
                "stderr": error if known else None,
            }
        )
    return {"shares": found}


def _masses(operator: JacobianOperator, seed: int, *, exact: bool) -> NDArray[np.float64]:
    """||J_p^T u||^2 summed over the samples of a batch, up to one factor, for every u and input: (probes, inputs)."""
    m, inputs = operator.shape[0], operator.batch or 1
    lead = () if operator.batch is None else (operator.batch,)
    count = m if exact else _PROBES
    rows: list[torch.Tensor] = []
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        if exact:
            block = torch.zeros(size, m, dtype=torch.float64)
            block[torch.arange(size), start + torch.arange(size)] = 1.0
            vectors = block[:, None].expand(size, inputs, m)
        else:
            draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 11, start])))
            vectors = torch.from_numpy(draws.standard_normal((size, inputs, m)))
        out = operator.rmatmat(vectors.reshape(size, *lead, *operator.output_shape).to(operator.point))
        rows.append(out.reshape(size, inputs, -1).double().cpu())
    found = torch.cat(rows)
    # Squares of small numbers leave the range of floats.
    found = found / (float(found.abs().max()) or 1.0)
    sums = [found[..., part.start : part.stop].square().sum(dim=(1, 2)) for part in operator.parts]
    return torch.stack(sums, dim=1).numpy()
