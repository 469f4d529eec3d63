"""Recurrent layers, which keep their weights in a list of their own, in every precision and form; against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isometry import measure
from isometry.jacobian import JacobianOperator

# The list of weights of a simpler layer is the beginning of that of these.
FORMS = [
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"proj_size": 2, "num_layers": 2, "bidirectional": True},
]
CASES = [
    (kind, form)
    for kind in (nn.RNN, nn.GRU, nn.LSTM)
    for form in FORMS
    if kind is nn.LSTM or "proj_size" not in form
]


def made(kind: type[nn.RNNBase], form: dict[str, Any], **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(3, 4, batch_first=True, **form, **options)


def by_autograd(model: nn.Module, x: Tensor) -> Tensor:
    """J of the first output, (m, n)."""
    found = torch.autograd.functional.jacobian(lambda z: model(z)[0], x)
    return found.reshape(-1, x.numel())


@pytest.mark.parametrize(
    ("kind", "form", "stored"),
    # The precision is that of tensors, whatever the layer does with them: each once, with the longest list of weights.
    [(*case, torch.float16) for case in CASES]
    + [(*CASES[-1], kind) for kind in (torch.float32, torch.bfloat16, torch.float64)],
    ids=str,
)
def test_a_recurrent_layer_in_float64_whatever_it_is_stored_in(
    kind: type[nn.RNNBase], form: dict[str, Any], stored: torch.dtype
) -> None:
    model, x = made(kind, form, dtype=stored), torch.randn(5, 3, dtype=torch.float64)
    operator = JacobianOperator(model, x, output=0, dtype=torch.float64)
    found = operator.rmatmat(torch.eye(operator.shape[0]).reshape(-1, *operator.output_shape))
    expected = by_autograd(model.double(), x)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "form"), CASES, ids=str)
def test_a_recurrent_layer_in_half_is_measured_in_float32(
    kind: type[nn.RNNBase], form: dict[str, Any]
) -> None:
    model, x = made(kind, form, dtype=torch.float16), torch.randn(5, 3).half()
    found = measure(model, x, "exact", output=0, progress=False)
    expected = torch.linalg.svdvals(by_autograd(model.float(), x.float()))
    assert found.provenance["dtype"] == "float32"
    torch.testing.assert_close(torch.from_numpy(found.singular_values).float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "form"), CASES, ids=str)
def test_a_batch_of_a_recurrent_layer_is_a_loop_over_its_samples(
    kind: type[nn.RNNBase], form: dict[str, Any]
) -> None:
    model, x = made(kind, form), torch.randn(2, 3, 3)
    operator = JacobianOperator(model, x, output=0, dtype=torch.float64, batched=True)
    v = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    found, back = operator.matmat(v), operator.rmatmat(operator.matmat(v))
    for index in range(2):
        one = JacobianOperator(model, x[index], output=0, dtype=torch.float64)
        torch.testing.assert_close(found[:, index], one.matmat(v[:, index]), rtol=0, atol=1e-14)
        torch.testing.assert_close(back[:, index], one.rmatmat(found[:, index]), rtol=0, atol=1e-14)
