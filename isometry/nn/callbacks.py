"""Record Jacobian spectra while a network learns: in `isometry.nn.training`, in a loop of your own, or in Lightning.

    recorder = SpectrumRecorder("run.h5", x, every=100)
    for step in range(1001):
        recorder.on_step(model, step)      # measures at steps 0, 100, 200, ...
        ...

Neither Lightning nor TensorBoard is needed: the first is imported when `lightning_callback` is called, of the second
any object with ``add_scalar(tag, value, step)`` will do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isometry.errors import InputError, StoreError
from isometry.spectrum import Spectrum


class ScalarWriter(Protocol):
    """What is asked of TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


class SpectrumRecorder:
    """Measures the Jacobian spectrum of a network every so many steps, into a file of spectra.

    Parameters
    ----------
    path : str or Path, optional
        HDF5 file; a spectrum is stored as "NAME step 100". None keeps them in `spectra` only.
    x : Tensor
        One input of the network, without a batch axis; with ``batched=True`` among the options several, stacked.
    every : int
        Steps between measurements; step 0 is measured.
    part : callable, optional
        ``part(model, x)`` gives the function and the point to measure at; by default the model and x themselves.
        `trunk_part` takes the trunk of a reference network.
    name : str
        First word of the names in the file.
    resume : bool
        Take a spectrum that is in the file already for that of its step, as a resumed run wants. Without it such a
        spectrum is an error, for it belongs to another run.
    writer : object with ``add_scalar``, optional
        Such as TensorBoard's ``SummaryWriter``; gets every number of :meth:`isometry.Spectrum.summary` under
        ``isometry/...``, nan for what lies below the floor.
    **options
        Further arguments of `isometry.measure`, such as ``method``, ``probes``, ``steps``, ``seed``, ``batched``.

    Attributes
    ----------
    spectra : dict of int to Spectrum
        What was measured or found, by step.

    Raises
    ------
    InputError
        When `every` is not a whole number of one or more.
    """

    def __init__(
        self,
        path: str | Path | None,
        x: Tensor,
        *,
        every: int = 100,
        part: Callable[[nn.Module, Tensor], tuple[Any, Tensor]] | None = None,
        name: str = "training",
        resume: bool = False,
        writer: ScalarWriter | None = None,
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every must be a whole number of steps, one or more; got {every!r}.")
        self.path = None if path is None else Path(path)
        self.x = x
        self.every = every
        self.part = part
        self.name = name
        self.resume = resume
        self.writer = writer
        self.options = {"progress": False, **options}
        self.spectra: dict[int, Spectrum] = {}

    def spectrum_name(self, step: int) -> str:
        """Name in the file of what is measured at that step."""
        return f"{self.name} step {step}"

    def on_step(self, model: nn.Module, step: int) -> Spectrum | None:
        """Measure if it is time: the model after `step` updates. Gives the spectrum, or None between measurements.

        The model is measured in evaluation mode and left in the mode it was in, with its gradients and with the
        global random state as they were: recording does not change what is learned.

        Raises
        ------
        StoreError
            When the file cannot be written, or holds that spectrum already and this is no resumed run.
        """
        if step % self.every:
            return None
        spectrum = self._stored(step)
        if spectrum is None:
            spectrum = self._measured(model, step)
            self._store(spectrum)
        self.spectra[step] = spectrum
        if self.writer is not None:
            for tag, value in spectrum.summary().items():
                self.writer.add_scalar(f"isometry/{tag}", value, step)
        return spectrum

    def lightning_callback(self) -> Any:
        """A Lightning ``Callback`` that calls `on_step` before every training batch and after the last.

        Raises
        ------
        InputError
            When neither ``lightning`` nor ``pytorch_lightning`` is installed.
        """
        base = _lightning_callback_class()
        recorder = self

        class _Recording(base):  # type: ignore[misc, valid-type]
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                # With accumulated gradients several batches belong to one step.
                if trainer.global_step not in recorder.spectra:
                    recorder.on_step(module, trainer.global_step)

            def on_train_end(self, trainer: Any, module: Any) -> None:
                if trainer.global_step not in recorder.spectra:
                    recorder.on_step(module, trainer.global_step)

        return _Recording()

    def _measured(self, model: nn.Module, step: int) -> Spectrum:
        from isometry.measurement import measure

        reference = next(model.parameters(), self.x)
        x = self.x.to(device=reference.device, dtype=reference.dtype)
        was_training = model.training
        model.eval()
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                function, point = (model, x) if self.part is None else self.part(model, x)
                return measure(
                    function, point, name=self.spectrum_name(step), provenance={"step": step}, **self.options
                )
        finally:
            model.train(was_training)

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


def trunk_part(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The trunk of a reference network, and its input when the network is given the image x.

    That is the square Jacobian which the theory predicts; stem and head, a few layers among thousands, are left out.

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


def _lightning_callback_class() -> type:
    for module in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found: type = importlib.import_module(module).Callback
        except ImportError:
            continue
        return found
    raise InputError(
        "neither lightning nor pytorch_lightning is installed: pip install lightning, or call on_step(model, step) "
        "from your own loop."
    )
