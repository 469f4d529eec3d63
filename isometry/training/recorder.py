"""`SpectrumRecorder`: measure the Jacobian spectrum of a network every so many steps, store it and log it.

What `isometry.training.callbacks.IsometryCallback` does in every loop. Of a writer only ``add_scalar`` is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isometry.errors import InputError, StoreError
from isometry.spectrum import Spectrum

if TYPE_CHECKING:
    from isometry.store import Store

# Samples of log10 s that stand for a distribution in a histogram, each for the same share of it.
HISTOGRAM_SAMPLES = 512


class ScalarWriter(Protocol):
    """The method of TensorBoard's ``SummaryWriter`` in use; ``add_histogram`` is used where it exists."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


class SpectrumRecorder:
    """Measures, stores and logs; the parameters are those of `isometry.training.callbacks.IsometryCallback`."""

    def __init__(
        self,
        x: Any = None,
        *,
        every: int = 100,
        store: str | Path | Store | None = None,
        part: Callable[[nn.Module, Tensor], tuple[Any, Tensor]] | None = None,
        name: str = "training",
        resume: bool = False,
        writer: ScalarWriter | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a whole number of steps, one or more; got {every!r}.")
        self.x = x
        self.every = every
        place = store if store is None or isinstance(store, str | Path) else store.path
        self.path = None if place is None else Path(place)
        self.part = part
        self.name = name
        self.resume = resume
        self.writer = writer
        self.provenance = dict(provenance or {})
        self.options = {"progress": False, **options}
        self.spectra: dict[int, Spectrum] = {}
        self.seconds = 0.0
        self._began: float | None = None
        self._ended = 0.0

    # ---- in a loop of your own -----------------------------------------------------------------------

    def spectrum_name(self, step: int) -> str:
        """Name in the file of what is measured at that step."""
        return f"{self.name} step {step}"

    @property
    def overhead(self) -> float:
        """Time spent on recording, as a share of the training's own time between the first call and the last.

        0.02 is two seconds of recording for every hundred of training; nan before the second call.
        """
        own = self._ended - self._began - self.seconds if self._began is not None else 0.0
        return self.seconds / own if own > 0 else math.nan

    def on_step(self, model: nn.Module, step: int, batch: Any = None) -> Spectrum | None:
        """Measure the model after `step` updates, if it is due. Returns the spectrum, or None between measurements.

        The model is measured in evaluation mode and left as it was: modes of all modules, gradients, and the global
        random state. Recording does not change what is learned.

        Parameters
        ----------
        model : nn.Module
        step : int
            Updates made so far.
        batch : tensor, or tuple, list or mapping of tensors, optional
            The next training batch; its first sample is the input where none was given.

        Raises
        ------
        InputError
            When there is no input to measure at.
        StoreError
            When the file cannot be written, or holds that spectrum already and this is no resumed run.
        """
        now = time.perf_counter()
        self._began = now if self._began is None else self._began
        self._ended = now
        if step % self.every:
            return None
        if torch.cuda.is_initialized():
            # Queued work belongs to the training.
            torch.cuda.synchronize()
        began = self._ended = time.perf_counter()
        spectrum = self._stored(step)
        if spectrum is None:
            spectrum = self._measured(model, step, batch)
            self._store(spectrum)
        self.spectra[step] = spectrum
        if self.writer is not None:
            write_spectrum(self.writer, self.scalars(spectrum), spectrum, step)
        self._ended = time.perf_counter()
        self.seconds += self._ended - began
        return spectrum

    def scalars(self, spectrum: Spectrum) -> dict[str, float]:
        """The finite numbers of the spectrum and the cost so far, under the names of a logger."""
        numbers = {**spectrum.summary(), "recording_overhead": self.overhead}
        return {f"isometry/{key}": value for key, value in numbers.items() if math.isfinite(value)}

    def _measured(self, model: nn.Module, step: int, batch: Any) -> Spectrum:
        from isometry.measurement import measure

        x = self._input(batch)
        if isinstance(x, Tensor):
            # As the trunk's stem takes it; what else the model takes, the measurement moves itself.
            reference = next(model.parameters(), x)
            x = x.to(device=reference.device, dtype=reference.dtype if x.is_floating_point() else x.dtype)
        record = {**self.provenance, "step": step}
        if math.isfinite(self.overhead):
            record["recording_overhead"] = self.overhead
        with evaluating(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            function, point = (model, x) if self.part is None else self.part(model, x)
            # An interrupt ends the training, not only the measurement.
            return measure(
                function, point, name=self.spectrum_name(step), provenance=record,
                **{"on_interrupt": "raise"} | self.options,
            )  # fmt: skip

    def _input(self, batch: Any) -> Any:
        if self.x is None and not self.options.get("args") and not self.options.get("kwargs"):
            sample = _first_tensor(batch)
            if sample is None:
                raise InputError(
                    "there is no input to measure at: give x, as IsometryCallback(x, ...), or the batch, as "
                    "on_step(model, step, batch)."
                )
            # The first sample is kept, so that spectra of different steps are of the same input.
            self.x = sample[:1].detach().clone()
            self.options.setdefault("batched", True)
        return self.x

    def _stored(self, step: int) -> Spectrum | None:
        if self.path is None or not self.path.exists():
            return None
        from isometry.store import open_store

        store, name = open_store(self.path, "r"), self.spectrum_name(step)
        if name not in store:
            return None
        if not self.resume:
            raise StoreError(
                f"{self.path} already holds {name!r}, of another run. Record into another file or under another name, "
                "or say resume=True if this run goes on where that one stopped."
            )
        return store[name]

    def _store(self, spectrum: Spectrum) -> None:
        if self.path is not None:
            from isometry.store import open_store

            open_store(self.path, "a").add(spectrum, name=spectrum.name)


def write_spectrum(writer: Any, scalars: Mapping[str, float], spectrum: Spectrum, step: int) -> None:
    """Log the scalars and, if the writer takes one, a histogram of log10 s."""
    if hasattr(writer, "write"):
        writer.write(scalars, histogram_samples(spectrum), step)
        return
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, step)
    if hasattr(writer, "add_histogram"):
        write_histogram(writer, spectrum, step)


def write_histogram(writer: Any, spectrum: Spectrum, step: int) -> None:
    """Log the distribution of log10 s as a histogram."""
    values = histogram_samples(spectrum)
    if values.size:
        writer.add_histogram("isometry/log10_s", values, step)


def histogram_samples(spectrum: Spectrum) -> NDArray[np.float64]:
    """Samples of log10 s, each for the same share of the values; those below the floor at the floor."""
    levels = (np.arange(HISTOGRAM_SAMPLES) + 0.5) / HISTOGRAM_SAMPLES
    values = spectrum.log10_quantile(levels)
    if spectrum.floor > 0:
        values = np.maximum(values, math.log10(spectrum.floor))
    return values[np.isfinite(values)]


def trunk_part(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The trunk of a reference network, and its input when the network is given the image x.

    Its Jacobian is square and predicted by theory; stem and head are left out.

    Raises
    ------
    InputError
        When the model has no trunk.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise InputError(
            f"{type(model).__name__} has no trunk: record the whole model (part=None), or write a part(model, x) of "
            "your own that gives a function and a point."
        )
    stem = getattr(model, "stem", None)
    with torch.no_grad():
        return trunk, x if stem is None else stem(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards every module of it in the mode it was in: some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _first_tensor(batch: Any) -> Tensor | None:
    """The first floating-point tensor with a batch axis in a batch of a data loader."""
    if isinstance(batch, Tensor):
        return batch if batch.is_floating_point() and batch.dim() > 0 and batch.shape[0] > 0 else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
