"""J as a product of segments between the cuts of the recording, against dense Jacobians in float64."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from recorded_models import Dense, Lists, ResNet, UNet, chain, encoder, weights_shared
from torch import Tensor, nn

from isometry.errors import InputError, ModelError
from isometry.jacobian import JacobianSegments
from isometry.jacobian.replay.cuts import cuts_of
from isometry.jacobian.replay.graph import Edge, Graph, edges_between


def dense(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    out = torch.autograd.functional.jacobian(function, x)
    return out.reshape(-1, x.numel())


def matrix_of(operator) -> Tensor:
    """The dense matrix of an operator, from J v; J^T u has to be of the same matrix."""
    eye = torch.eye(operator.shape[1], dtype=operator.dtype).reshape(-1, *operator.input_shape)
    columns = operator.matmat(eye).reshape(operator.shape[1], -1).T
    eye = torch.eye(operator.shape[0], dtype=operator.dtype).reshape(-1, *operator.output_shape)
    rows = operator.rmatmat(eye).reshape(operator.shape[0], -1)
    torch.testing.assert_close(columns, rows, rtol=1e-12, atol=1e-14)
    return columns


MODELS = {
    # the model, the shape of its input, and the number of segments
    "deep chain": (chain, (5,), 80),
    "resnet": (ResNet, (1, 2, 8, 8), 14),
    "encoder": (encoder, (1, 3, 6), 8),
    "encoder, norm first": (lambda: encoder(norm_first=True), (1, 3, 6), 4),
    "lists": (Lists, (5,), 6),
    "functional": (lambda: weights_shared, (3, 4), 4),
    "dense": (Dense, (4,), 3),
    "unet": (UNet, (1, 1, 6), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_product_of_the_segments_is_the_jacobian(name: str) -> None:
    make, shape, count = MODELS[name]
    torch.manual_seed(0)
    model = make()
    if isinstance(model, nn.Module):
        model = model.double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    expected = dense(model, x)
    segments = JacobianSegments(model, x)
    assert len(segments) == count
    product = torch.eye(x.numel(), dtype=torch.float64)
    for number in range(len(segments)):
        product = matrix_of(segments.operator(number, number + 1)) @ product
    # A product of 80 matrices rounds by some hundred units.
    tolerance = {"rtol": 0, "atol": 200 * 2.2e-16 * float(expected.abs().max())}
    torch.testing.assert_close(product, expected, **tolerance)
    torch.testing.assert_close(matrix_of(segments.operator(0, len(segments))), expected, **tolerance)


def test_segments_are_named_by_the_calls_that_they_ran_in() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, dtype=torch.float64)
    found = JacobianSegments(Lists().double(), x)
    assert [[stack[-1].name for stack in segment.stacks] for segment in found.segments] == [
        ["layers.0", ""], ["layers.1", ""], ["layers.2", ""], ["shared"], [""], ["shared"],
    ]  # fmt: skip
    # The calls of one module are told apart.
    assert [found.segments[k].calls[-1][:2] for k in (3, 5)] == [("shared", 1), ("shared", 2)]
    assert found.times_called("shared") == 2
    assert found.segments[4].operations == ("tanh",)
    # What a block of torchvision's ResNet has in common is the block itself.
    found = JacobianSegments(ResNet().double().eval(), torch.randn(1, 2, 8, 8, dtype=torch.float64))
    names = [segment.calls[-1].name for segment in found.segments]
    assert names[4:8] == ["layer1.0", "layer1.0.relu", "layer1.1", "layer1.1.relu"]
    assert names[-2:] == ["avgpool", "fc"]


def test_the_branch_of_a_residual_segment_is_that_of_f() -> None:
    torch.manual_seed(0)
    model = Lists().double()
    x = torch.randn(5, dtype=torch.float64)
    found = JacobianSegments(model, x)
    assert [segment.is_residual for segment in found.segments] == [True] * 3 + [False] * 3
    for number, layer in enumerate(model.layers):
        branch = found.branch(number)
        assert branch is not None
        expected = dense(lambda z, layer=layer: torch.tanh(layer(z)), x)
        torch.testing.assert_close(matrix_of(branch), expected, rtol=1e-12, atol=1e-14)
        stream = matrix_of(found.operator(number, number + 1))
        torch.testing.assert_close(stream, expected + torch.eye(5).double(), rtol=1e-12, atol=1e-14)
        x = (x + torch.tanh(layer(x))).detach()
    assert found.branch(3) is None
    # A skip with a projection is no identity.
    resnet = JacobianSegments(ResNet().double().eval(), torch.randn(1, 2, 8, 8, dtype=torch.float64))
    assert [segment.calls[-1].name for segment in resnet.segments if segment.is_residual] == [
        "layer1.0", "layer1.1", "layer2.1",
    ]  # fmt: skip


def test_a_batch_is_split_where_its_samples_lie_apart() -> None:
    class Turned(nn.Module):
        """Between its layers the samples lie along the second axis."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x).transpose(0, 1)).transpose(0, 1))

    torch.manual_seed(0)
    model = Turned().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    found = JacobianSegments(model, x, batched=True)
    # Three samples and three features: the shapes do not tell what the axes are.
    assert len(found) == 3
    assert found.operator(0, 1).shape == (3, 4)
    for sample in range(3):
        eye = torch.zeros(4, 3, 4, dtype=torch.float64)
        eye[:, sample] = torch.eye(4)
        out = eye
        for number in range(len(found)):
            out = found.operator(number, number + 1).matmat(out)
        torch.testing.assert_close(out[:, sample].T, dense(lambda z: model(z[None])[0], x[sample]))


def test_what_cannot_be_recorded_is_refused_with_the_operation() -> None:
    def cut_off(x: Tensor) -> Tensor:
        with torch.no_grad():
            factor = x.round()
        return factor * x

    with pytest.raises(ModelError, match=r"cannot be recorded: .*round.*no_grad"):
        JacobianSegments(cut_off, torch.ones(4))
    assert len(JacobianSegments(lambda x: torch.cumprod(x.tanh(), 0), torch.ones(4)).segments) == 2
    with pytest.raises(InputError, match="numbered 0 to 0"):
        JacobianSegments(torch.tanh, torch.ones(4)).operator(0, 2)


def test_cuts_are_found_in_linear_time_by_counting() -> None:
    """On random graphs the cuts are the values without which the output cannot be reached."""
    generator = random.Random(0)
    for _ in range(200):
        count = generator.randint(2, 9)
        ends = [(generator.randrange(b), b) for b in range(1, count) for _ in range(generator.randint(1, 2))]
        graph = Graph(edges_between([Edge(a, b, None, "", "") for a, b in ends], 0, count - 1), 0, count - 1)
        without = [
            value
            for value in range(1, count - 1)
            if any(value in (e.source, e.result) for e in graph.edges)
            and not edges_between([e for e in graph.edges if value not in (e.source, e.result)], 0, count - 1)
        ]
        assert cuts_of(graph) == [0, *without, count - 1]


def test_segments_keep_the_parameters_they_were_made_with_and_those_of_a_function_are_refused() -> None:
    torch.manual_seed(0)
    model = Lists().double()
    x, ones = torch.randn(5, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64)
    own = JacobianSegments(model, x)
    kept = own.operator(1, 2).matmat(ones)
    segments = JacobianSegments(lambda z: model(z), x)
    first, second = segments.operator(0, 1), segments.operator(1, 2)
    with torch.no_grad():
        model.layers[1].weight.mul_(2)
    first.matmat(ones)
    with pytest.raises(ModelError, match="changed since"):
        second.matmat(ones)
    torch.testing.assert_close(own.operator(1, 2).matmat(ones), kept)


def random_program(seed: int) -> Callable[[Tensor], Tensor]:
    """A few operations on a (3, 6) tensor: layers, sums with earlier values, moves of entries, writes in place."""
    draw = random.Random(seed)
    plan = [(draw.randrange(8), draw.random() < 0.3, draw.randrange(1, 4)) for _ in range(draw.randint(2, 9))]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(plan), 6, 6, generator=generator, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        earlier = x
        for (operation, keep, size), weight in zip(plan, weights, strict=True):
            if operation == 0:
                x = torch.tanh(x @ weight)
            elif operation == 1:
                x = x + torch.sin(x @ weight)
            elif operation == 2:
                written = x.clone()
                written[:size] = torch.cos(x[:size])
                x = written
            elif operation == 3:
                x = torch.cat([x[:, size:], x[:, :size]], 1).flip(0)
            elif operation == 4:
                written = torch.exp(-x * x) * 2
                written += x
                x = written
            elif operation == 5:
                x = x + earlier
            elif operation == 6:
                x = x.reshape(6, 3).reshape(3, 6)
            else:
                x = torch.relu_(x * 1.5) + 0.1 * x.mean()
            earlier = x if keep else earlier
        return x

    return run


def test_random_programs_are_the_product_of_their_segments() -> None:
    counts = []
    for seed in range(20):
        program = random_program(seed)
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        segments = JacobianSegments(program, x)
        product = torch.eye(18, dtype=torch.float64)
        for number in range(len(segments)):
            factor = matrix_of(segments.operator(number, number + 1))
            product = factor @ product
            branch = segments.branch(number)
            if branch is not None:
                skip = factor - matrix_of(branch)
                torch.testing.assert_close(skip, torch.diag(skip.diagonal()), rtol=0, atol=1e-12)
                assert bool((skip.diagonal() != 0).all())
        expected = dense(program, x)
        atol = 1e-12 * float(expected.abs().max())
        torch.testing.assert_close(product, expected, rtol=0, atol=atol)
        counts.append(len(segments))
    # Not all of them are one segment, and not all are chains.
    assert min(counts) == 1
    assert max(counts) > 6
