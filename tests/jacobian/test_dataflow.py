"""`Dataflow`: the operations of a run by name, with their sources, parameters and constant factors."""

import torch
import torch.nn.functional as F
from torch import nn

from isometry.jacobian import Dataflow, JacobianOperator


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.matrix, self.scale = nn.Parameter(torch.eye(4)), nn.Parameter(torch.full((4,), 3.0))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        constant = self.linear(torch.ones(1, 3, 4))
        y = self.attention(x, constant, constant, need_weights=False)[0]
        y = torch.add(x, self.scale * y, alpha=0.5)
        return F.linear(y @ self.matrix, self.matrix.detach()) / 4


def test_operations_with_parameters_and_factors():
    torch.manual_seed(0)
    flow = Dataflow.of(JacobianOperator(Several().eval(), torch.randn(1, 3, 4)))
    uses = {use.name: (operation, use) for operation in flow.operations for use in operation.parameters}
    # What does not depend on the input is no operation of the flow: queries are, keys, values and the linear are not.
    assert uses.keys() == {
        "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "attention.out_proj.bias",
        "matrix", "scale",
    }  # fmt: skip
    operation, use = uses["attention.in_proj_weight"]
    assert not use.is_whole
    assert use.offset == 0
    assert operation.calls[-1].name == "attention"
    operation, use = uses["scale"]
    assert operation.name == "mul"
    assert use.root_mean_square == 3
    assert list(operation.factors.values()) == [3.0]
    (added,) = [
        operation for operation in flow.operations if operation.name == "add" and len(operation.sources) == 2
    ]
    assert added.factors == {1: 0.5}
    divided = flow.operations[-1]
    assert divided.name == "div"
    assert divided.factors == {0: 0.25}
    assert flow.output in divided.results


def test_matrices_are_told_from_their_transposes():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return (x @ self.a @ self.b) @ self.b.t() @ self.a.t()

    flow = Dataflow.of(JacobianOperator(Both(), torch.randn(1, 4)))
    found = [(use.name, use.is_transposed) for operation in flow.operations for use in operation.parameters]
    assert found == [("a", False), ("b", False), ("b", True), ("a", True)]


def test_operations_without_effect_on_the_output_are_left_out():
    class Aside(nn.Module):
        def forward(self, x):
            torch.tanh(x)
            return torch.sigmoid(x)

    flow = Dataflow.of(JacobianOperator(Aside(), torch.ones(3)))
    names = [operation.name for operation in flow.operations]
    assert "sigmoid" in names
    assert "tanh" not in names
