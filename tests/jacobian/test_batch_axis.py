"""batched=True equals a loop over samples with the axis kept; where it cannot, that is refused or said."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry import measure
from isometry.errors import FallbackWarning, IsometryError
from isometry.jacobian import JacobianOperator


def evaluated_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4).double().eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.running_mean)
    return norm


KINDS = {
    # Each sample for itself: equal to the loop.
    "own norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "batch-norm in evaluation": evaluated_norm(),
    "views": lambda x: x.reshape(-1, 2, 2).sin().reshape(len(x), -1),
    "squeezed": lambda x: x.squeeze().sin() if len(x) > 1 else x.sin(),
    "instance norm": lambda x: nn.functional.instance_norm(x[:, None])[:, 0],
    # Others enter, or the batch: no loop gives these.
    "norm of the wrong axis": lambda x: x / x.norm(dim=1),
    "norm of the batch": lambda x: x / x.norm(dim=0),
    "transposed": lambda x: x.T.sin(),
    "centred": lambda x: x - x.mean(0),
    "reversed": lambda x: x.flip(0).sin(),
    "first sample": lambda x: x.sin() * x[0].detach(),
    "size of the batch": lambda x: x.sin() / x.shape[0],
    "place": lambda x: x.sin() * torch.linspace(1, 2, 4, dtype=x.dtype)[: len(x), None],
    "another path": lambda x: x.sin() if len(x) > 1 else 2 * x.cos(),
    "cut-off wrong norm": lambda x: x / x.detach().norm(dim=1),
}  # fmt: skip
WORKS = ("own norm", "batch-norm in evaluation", "views", "squeezed", "instance norm")


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_a_loop_or_is_refused_or_warned_of(kind: str, size: int) -> None:
    model = KINDS[kind]
    x = torch.randn(size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = measure(model, x, "exact", batched=True, progress=False)
    except IsometryError:
        assert kind not in WORKS
        return
    if any("depends on the batch" in str(one.message) for one in said):
        assert kind not in WORKS
        return
    for number in range(size):
        one = x[number : number + 1]
        dense = torch.autograd.functional.jacobian(model, one).reshape(-1, 4)
        expected = torch.linalg.svdvals(dense)[0].item()
        assert found.extremes.top[number, 0] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_what_others_share_is_no_reason_to_warn() -> None:
    # As long as the batch, but not of its samples.
    x, shared = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JacobianOperator(lambda x, w: (x @ w).sin(), x, args=(shared,), batched=True)
        JacobianOperator(lambda x, y: x * y, x, args=(shared,), batched=True)
    with pytest.warns(FallbackWarning, match="depends on the batch"):
        JacobianOperator(lambda x, y: x * y.mean() * len(x), x, args=(shared,), batched=True)


def test_a_sample_is_cut_at_the_source_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(5, 3), nn.Linear(3, 3)

        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embed(ids)
            return torch.tanh(self.inner(hidden)) * (1 + ids.float().mean())[..., None]

    with pytest.warns(FallbackWarning, match="depends on the batch"):
        operator = JacobianOperator(Model().eval(), torch.tensor([0, 3, 4]), source="inner", batched=True)
    assert np.prod(operator.shape) == 9
