"""A module is measured on a private copy: whatever it refers to itself by, the copy refers to the copy."""

from __future__ import annotations

import copy
import functools
import io
import subprocess
import sys
import threading
import types
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from isometry import measure
from isometry.errors import FallbackWarning, InputError
from isometry.jacobian import JacobianOperator


class Two(nn.Module):
    """tanh(B tanh(A z)); ``tie`` ties it up with itself in some way."""

    def __init__(self, tie: Callable[[Two], None] = lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 4))
        tie(self)

    def inner(self, z: Tensor) -> Tensor:
        return torch.tanh(self.a(z)) * self.scale

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.b(self.inner(z)))


def by_lambda(model: Two) -> None:
    model.inner = lambda z: torch.tanh(model.a(z)) * model.scale


def by_closure_over_submodules(model: Two) -> None:
    layers, scale = [model.a], model.scale

    def inner(z: Tensor) -> Tensor:
        for layer in layers:
            z = layer(z)
        return torch.tanh(z) * scale

    model.inner = inner


def by_default_argument(model: Two) -> None:
    model.inner = lambda z, layer=model.a: torch.tanh(layer(z)) * model.scale


def by_recursive_function(model: Two) -> None:
    def inner(z: Tensor, depth: int = 1) -> Tensor:
        return inner(model.a(z), depth - 1) if depth else torch.tanh(z) * model.scale

    model.inner = inner


def by_bound_method(model: Two) -> None:
    old = model.forward
    model.forward = types.MethodType(lambda self, z: old(z) * self.scale, model)


def by_partial(model: Two) -> None:
    model.inner = functools.partial(lambda layer, z, by: torch.tanh(layer(z)) * by, model.a, by=model.scale)


def by_weak_reference(model: Two) -> None:
    reference, proxy = weakref.ref(model.a), weakref.proxy(model)
    model.inner = lambda z: torch.tanh(reference()(z)) * proxy.scale


def by_containers(model: Two) -> None:
    pair = namedtuple("pair", "layer scale")
    model.held = OrderedDict(x=[{"y": (model.a,)}, pair(model.a, model.scale)])
    model.held["itself"] = model.held
    model.inner = lambda z: torch.tanh(model.held["x"][0]["y"][0](z)) * model.held["x"][1].scale


def by_plain_object(model: Two) -> None:
    model.held = SimpleNamespace(layer=model.a, weight=model.a.weight)
    model.inner = lambda z: torch.tanh(z @ model.held.weight.T + model.held.layer.bias) * model.scale


def by_list_of_unregistered_modules(model: Two) -> None:
    model.held = [nn.Linear(4, 4)]
    model.inner = lambda z: torch.tanh(model.held[0](model.a(z))) * model.scale


def by_hook(model: Two) -> None:
    model.a.register_forward_hook(lambda _, __, out: out + model.b(out))


def tied(model: Two) -> None:
    model.b.weight, model.held = model.a.weight, [model.b.weight]


def with_what_cannot_be_copied(model: Two) -> None:
    model.lock, model.generator = threading.RLock(), (n for n in range(3))
    model.file, model.stream, model.module = io.StringIO(), sys.stdout, sys
    model.made = model.a.weight * 2
    model.nothing = weakref.ref(nn.Linear(1, 1))


def with_slots(model: Two) -> None:
    class Slotted(Two):
        __slots__ = ("held",)

    model.__class__ = type("Plain", (Two,), {})
    model.c = Slotted()
    model.c.held = model.a
    model.inner = lambda z: torch.tanh(model.c.held(z)) * model.scale


def parametrized(model: Two) -> None:
    parametrizations.weight_norm(model.a)
    parametrizations.spectral_norm(model.b).eval()


def with_old_norms(model: Two) -> None:
    nn.utils.weight_norm(model.a)
    nn.utils.spectral_norm(model.b).eval()


def scripted(model: Two) -> None:
    model.a = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))


def traced_by_fx(model: Two) -> None:
    model.a = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))


def compiled(model: Two) -> None:
    model.a = torch.compile(model.a, backend="eager")


def compiled_in_place(model: Two) -> None:
    model.a.compile(backend="eager")


TIES = [
    by_lambda, by_closure_over_submodules, by_default_argument, by_recursive_function, by_bound_method, by_partial,
    by_weak_reference, by_containers, by_plain_object, by_list_of_unregistered_modules, by_hook, tied,
    with_what_cannot_be_copied, with_slots, parametrized, with_old_norms, scripted, traced_by_fx, compiled,
    compiled_in_place,
]  # fmt: skip

X = torch.tensor([0.3, -0.2, 0.5, 0.1])


def dense(operator: JacobianOperator) -> Tensor:
    """J, from its columns, and from its rows."""
    columns = operator.matmat(torch.eye(4)).T
    torch.testing.assert_close(operator.rmatmat(torch.eye(4)), columns)
    return columns


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit.script).* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("tie", TIES, ids=lambda tie: tie.__name__)
def test_a_model_that_refers_to_itself_is_measured_in_float64_and_is_its_own(
    tie: Callable[[Two], None],
) -> None:
    """float64 of a float32 model: an original that is used in place of its copy has the wrong type. And a snapshot:
    zeroing every tensor of the original changes no product."""
    model = Two(tie)
    held = [*model.parameters(), *model.buffers()]
    if tie is by_list_of_unregistered_modules:
        held += model.held[0].parameters()
    versions = [(id(t), t._version, t.requires_grad) for t in held]
    attributes = [(part, dict(part.__dict__)) for part in model.modules()]
    operator = JacobianOperator(model, X, dtype=torch.float64)
    found = dense(operator)
    assert [(id(t), t._version, t.requires_grad) for t in held] == versions
    assert all(part.__dict__.keys() == old.keys() for part, old in attributes)
    assert all(part.__dict__[name] is value for part, old in attributes for name, value in old.items())
    expected = torch.autograd.functional.jacobian(model, X)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-6)
    for tensor in held:
        tensor.data.zero_()
    torch.testing.assert_close(dense(operator), found, rtol=0, atol=0)


class Closed:
    """An object that holds a module where no copy reaches it."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def test_an_object_that_holds_a_module_out_of_reach_is_said_or_refused_with_the_cause() -> None:
    model = Two()
    closed = Closed(model.a)
    model.inner = lambda z: torch.tanh(closed.layer(z)) * model.scale
    with pytest.warns(
        FallbackWarning, match=r"its tensor 'a\.(weight|bias)' not through its modules"
    ) as said:
        operator = JacobianOperator(model, X)
    assert said[0].filename == __file__
    torch.testing.assert_close(dense(operator), torch.autograd.functional.jacobian(model, X))
    with pytest.raises(InputError, match=r"'a\.(weight|bias)'.*Convert the model first, model.to\(dtype\)"):
        JacobianOperator(model, X, dtype=torch.float64)


def test_operators_of_groups_of_inputs_share_one_copy_of_the_model_and_of_the_inputs() -> None:
    model, x = Two(), torch.randn(3, 4)
    operator = JacobianOperator(model, x, batched=True)
    before = operator.matmat(torch.ones(1, 3, 4))
    with torch.no_grad():
        for tensor in (x, *model.parameters(), model.scale):
            tensor.zero_()
    for index in range(3):
        part = operator.of_inputs(range(index, index + 1))
        torch.testing.assert_close(part.matmat(torch.ones(1, 1, 4))[0, 0], before[0, index])
    sizes = [t.nbytes for t in (*model.parameters(), model.scale)]
    assert operator.copied_bytes == sum(sizes)


# ---- threads and interrupts ----------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[object]:
    """Identity, version and settings of all that a model holds."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(id(t), type(t), t._version, t.requires_grad, t.data_ptr(), t.tolist()) for t in tensors],
        [None if t.grad is None else (id(t.grad), t.grad.tolist()) for t in tensors],
        [
            (
                name,
                part.training,
                sorted(part.__dict__),
                *map(list, (part._forward_hooks, part._forward_pre_hooks)),
            )
            for name, part in model.named_modules()
        ],
    ]


def sound(model: nn.Module, x: Tensor) -> None:
    """The model trains, is saved and copied as ever."""
    assert all(type(p) is nn.Parameter and p.requires_grad for p in model.parameters())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    torch.save(model.state_dict(), io.BytesIO())
    copy.deepcopy(model)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z, z, z)[0]


MODELS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), (4,)),
    "cnn": lambda: (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Flatten(0)), (2, 4, 4)),
    "norms": lambda: (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()), (3, 4)),
    "batch norm": lambda: (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), (1, 4)),
    "attention": lambda: (Attention(), (3, 4)),
    "encoder": lambda: (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), (3, 4)),
    "parametrized": lambda: (parametrizations.weight_norm(nn.Linear(4, 4)), (4,)),
    "spectral norm": lambda: (parametrizations.spectral_norm(nn.Linear(4, 4)).eval(), (4,)),
    "in place": lambda: (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), (4,)),
    "own attributes": lambda: (Two(), (4,)),
}


@pytest.fixture
def frequent_switches():
    """Threads take turns every ten microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(*calls: Callable[[], object]) -> list[object]:
    results: list[object] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.filterwarnings("ignore:the input's first axis looks like a batch")
@pytest.mark.parametrize("kind", MODELS)
def test_two_threads_measure_one_model(kind: str, frequent_switches: None) -> None:
    torch.manual_seed(1)
    model, shape = MODELS[kind]()
    x = torch.randn(*shape)
    before, expected = state_of(model), measure(model, x, "lanczos", progress=False, probes=2, steps=4)

    def measured() -> list[float]:
        return [measure(model, x, "lanczos", progress=False, probes=2, steps=4).s_max for _ in range(3)]

    found = in_threads(measured, measured)
    assert found == [[expected.s_max] * 3] * 2
    assert state_of(model) == before
    sound(model, x)


@pytest.mark.filterwarnings("ignore:the input's first axis looks like a batch")
@pytest.mark.parametrize("kind", ["mlp", "attention", "parametrized"])
def test_one_thread_trains_while_another_measures(kind: str, frequent_switches: None) -> None:
    torch.manual_seed(1)
    model, shape = MODELS[kind]()
    x = torch.randn(*shape)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    ended = threading.Event()

    def train() -> list[float]:
        losses = []
        for _ in range(150):
            optimiser.zero_grad()
            loss = (model(x) - 0.1).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        ended.set()
        return losses

    def measured() -> int:
        count = 0
        while not ended.is_set() or not count:
            measure(model, x, "lanczos", progress=False, probes=2, steps=3)
            count += 1
        return count

    identities = [id(p) for p in model.parameters()]
    losses, count = in_threads(train, measured)
    assert losses[-1] < 0.2 * losses[0]
    assert count > 0
    assert [id(p) for p in model.parameters()] == identities
    assert [id(p) for group in optimiser.param_groups for p in group["params"]] == identities
    sound(model, x)


def test_one_operator_serves_two_threads(frequent_switches: None) -> None:
    """By torch.func too, whose products run the model."""

    class Custom(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z.sin()

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            return g * ctx.saved_tensors[0].cos()

        @staticmethod
        def jvp(ctx, g: Tensor) -> Tensor:
            return g * ctx.saved_tensors[0].cos()

    class Remembers(Two):
        def forward(self, z: Tensor) -> Tensor:
            self.scale += 1
            self.last = Custom.apply(self.a(z) * self.scale)
            return self.last + self.last * z

    model = Remembers()
    operator = JacobianOperator(model, X)
    assert operator.backend.startswith("torch.func")
    expected = operator.matmat(torch.eye(4))
    found = in_threads(*[lambda: [operator.matmat(torch.eye(4)) for _ in range(20)]] * 2)
    for result in found:
        assert all(torch.equal(one, expected) for one in result)


class Fails(Two):
    """Raises at the call that brings ``left`` to zero."""

    # Of the class: a copy of the module has its own attributes.
    left = 0

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def inner(self, z: Tensor) -> Tensor:
        self.scale.mul_(1.0)
        out = super().inner(z)
        self.last = out.detach()
        Fails.left -= 1
        if Fails.left == 0:
            raise self.error("now")
        return out


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
@pytest.mark.parametrize("options", [{}, {"source": "a"}, {"dtype": torch.float64}, {"target": "b"}], ids=str)
def test_an_exception_at_any_call_leaves_the_model_as_it_was(
    error: type[BaseException], options: dict
) -> None:
    model, raised = Fails(error), 0
    model.b.register_forward_hook(lambda *_: None)
    model(X).sum().backward()
    before = state_of(model)
    for number in range(1, 12):
        Fails.left = number
        try:
            operator = JacobianOperator(model, X, **options)
            operator.rmatmat(operator.matmat(torch.eye(4)))
        except BaseException:
            raised += 1
        assert state_of(model) == before
    # A RuntimeError may be that of a way of differentiating: another one is tried.
    assert raised > 0 or error is RuntimeError
    Fails.left = 0
    sound(model, X)


def test_an_interrupt_at_any_moment_leaves_the_model_as_it_was() -> None:
    """In a process of its own: PyTorch's transforms may not survive an interrupt between two of their own steps."""
    subprocess.run([sys.executable, __file__], check=True, timeout=300)


def interrupt_at_many_moments() -> None:
    """At every fourth place where a measurement enters or leaves a context, before it has begun to."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Tanh())
    x, before, entered, moment = torch.randn(1, 4), state_of(model), 0, 0

    def interrupt(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal entered
        if event == "call" and frame.f_code.co_name in ("__enter__", "__exit__"):
            entered += 1
            if entered == moment:
                sys.setprofile(None)
                raise KeyboardInterrupt

    # PyTorch imports parts of itself at first use, and an import that is broken off leaves half a module behind.
    measure(model, x, "lanczos", progress=False, probes=2, steps=2)
    while entered >= moment:
        entered, moment = 0, moment + 4
        with suppress(KeyboardInterrupt):
            sys.setprofile(interrupt)
            measure(model, x, "lanczos", progress=False, probes=2, steps=2, on_interrupt="raise")
            sys.setprofile(None)
        assert state_of(model) == before
        assert torch.is_grad_enabled()
    assert moment > 100
    sound(model, x)


if __name__ == "__main__":
    interrupt_at_many_moments()
