"""No setting of the whole process changes a number, and each is afterwards as the caller set it, errors included."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isometry import Spectrum, measure
from isometry.errors import IsometryError
from isometry.estimators import leading_triplets, smallest_singular_value
from isometry.jacobian import JacobianOperator, MatrixOperator


class Mixed(nn.Module):
    """A circular convolution, attention, a product of two factors, and a tensor made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
        self.attention = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 8)

    def forward(self, z: Tensor) -> Tensor:
        z = torch.tanh(self.convolution(z.T[None])[0].T)
        z = z + self.attention(z, z, z)[0]
        z = z * torch.linspace(0.5, 1.5, 8, dtype=z.dtype)
        return torch.addmm(self.linear.bias, torch.tanh(z), self.linear.weight.T, alpha=0.3)


def restored(get: Callable[[], Any], set_: Callable[[Any], None], value: Any) -> Callable[[], Any]:
    @contextmanager
    def switched() -> Iterator[None]:
        before = get()
        set_(value)
        try:
            yield
            assert get() == value
        finally:
            set_(before)

    return switched


def fill(value: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = value


@contextmanager
def numpy_raises() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield
        assert set(np.geterr().values()) == {"raise"}


def default_dtype(dtype: torch.dtype) -> Callable[[], Any]:
    return restored(torch.get_default_dtype, torch.set_default_dtype, dtype)


SWITCHES: dict[str, Callable[[], Any]] = {
    "default dtype float64": default_dtype(torch.float64),
    "default dtype float16": default_dtype(torch.float16),
    "default dtype bfloat16": default_dtype(torch.bfloat16),
    "deterministic": restored(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "no filling": restored(lambda: torch.utils.deterministic.fill_uninitialized_memory, fill, False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
    "precision high": restored(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"
    ),
    "precision medium": restored(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "device meta": lambda: torch.device("meta"),
    "default device meta": restored(torch.get_default_device, torch.set_default_device, torch.device("meta")),
    "one thread": restored(torch.get_num_threads, torch.set_num_threads, 1),
    "anomaly": torch.autograd.set_detect_anomaly,
    "flash attention": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "fast path": restored(
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, True
    ),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "no garbage collection": restored(gc.isenabled, lambda on: gc.enable() if on else gc.disable(), False),
    "NumPy raises": numpy_raises,
}
ARGUMENTS = {"anomaly": (True,)}
# The second measures what its deflation leaves over by the Lanczos recurrence.
METHODS = {"exact": {}, "randomized": {"rank": 3, "probes": 4, "steps": 8}}


def settings() -> list[object]:
    return [
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.get_num_threads(),
        torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled(), gc.isenabled(),
        np.geterr(), list(warnings.filters),
    ]  # fmt: skip


def numbers(spectrum: Spectrum) -> list[np.ndarray]:
    q, e = spectrum.quadrature, spectrum.extremes
    return [q.nodes, q.weights, q.floor, e.top, e.top_residual, e.bottom, e.bottom_residual]


def same(found: Spectrum, plain: Spectrum, name: str) -> None:
    # Other kernels sum in another order: 100 units of rounding of s_max.
    bound = 1e-5 * plain.s_max if name in ("no oneDNN", "one thread", "deterministic") else 0.0
    for a, b in zip(numbers(found), numbers(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


@pytest.fixture(scope="module")
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


X = torch.linspace(-1, 1, 48).reshape(6, 8)


@pytest.fixture(scope="module")
def plain(model: Mixed) -> dict[str, Spectrum]:
    """What is measured with no switch thrown."""
    return {name: measure(model, X, name, progress=False, **options) for name, options in METHODS.items()}


@pytest.mark.filterwarnings("ignore:the input's first axis looks like a batch")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_global_switch_changes_no_number_and_is_left_as_it_was(
    name: str, method: str, model: Mixed, plain: dict[str, Spectrum]
) -> None:
    outside = settings()
    with SWITCHES[name](*ARGUMENTS.get(name, ())):
        before = settings()
        found = measure(model, X, method, progress=False, **METHODS[method])
        assert settings() == before
        with pytest.raises(IsometryError):
            measure(nn.Linear(3, 3), torch.zeros(4, device="cpu"), method, progress=False)
        assert settings() == before
    assert settings() == outside
    same(found, plain[method], name)


@pytest.fixture(scope="module")
def found() -> Callable[[], list[Tensor]]:
    """Products and values of a plain function, of a recurrent layer, and of a matrix, whose products are its own."""
    torch.manual_seed(1)
    x, matrix, lstm = torch.randn(20), torch.randn(24, 16), nn.LSTM(4, 5)
    a, long = torch.randn(30, 20), torch.randn(3, 4)
    v = torch.randn(2, 3, 4)

    def compute() -> list[Tensor]:
        function = JacobianOperator(lambda z: torch.tanh(a @ z), x)
        recurrent = JacobianOperator(lstm, long, output=0)
        leading = leading_triplets(MatrixOperator(matrix), 3)
        smallest = smallest_singular_value(MatrixOperator(matrix))
        return [
            function.rmatmat(function.matmat(x[None])),
            recurrent.rmatmat(recurrent.matmat(v)),
            *(
                torch.from_numpy(n)
                for n in (leading.values, leading.residuals, smallest.upper, smallest.residual)
            ),
        ]

    return compute


@pytest.fixture(scope="module")
def plainly(found: Callable[[], list[Tensor]]) -> list[Tensor]:
    return found()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_no_number_of_an_operator_or_an_estimator(
    name: str, found: Callable[[], list[Tensor]], plainly: list[Tensor]
) -> None:
    with SWITCHES[name](*ARGUMENTS.get(name, ())):
        before = settings()
        switched = found()
        assert settings() == before
    assert not any(t.is_inference() or t.requires_grad for t in switched[:2])
    for one, other in zip(plainly, switched, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_settings_of_two_threads_at_once_come_back(model: Mixed) -> None:
    """Each saving and restoring for itself, one would put back what the other had set."""
    before, plain = settings(), measure(model, X, "exact", progress=False)
    found: list[Spectrum] = []

    def work(number: int) -> None:
        for _ in range(4):
            dtype = torch.float64 if number else torch.float32
            spectrum = measure(model, X, "exact", progress=False, dtype=dtype)
            if not number:
                found.append(spectrum)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = settings()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert settings() == inside
    assert settings() == before
    for spectrum in found:
        same(spectrum, plain, "")
