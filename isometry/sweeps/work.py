"""`run_point`: compute one point on a worker. Internal; it opens no file of spectra.

`run_point` is the only function submitted to an executor. Exceptions of the point are part of the returned outcome, so
an exception raised by the future is one of the executor.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isometry.errors import InputError, IsometryWarning
from isometry.loading.builtin import settings_text
from isometry.loading.inputs import FILES
from isometry.nn.options import NETWORKS
from isometry.sweeps.configuration import Point, digests, model_source
from isometry.sweeps.keys import network_keys
from isometry.sweeps.names import LAW, ON_THE_WAY
from isometry.sweeps.sources import imported_files

if TYPE_CHECKING:
    from isometry.loading import LoadedCall, LoadedModel
    from isometry.spectrum import Spectrum
    from isometry.theory.ensemble import Ensemble
    from isometry.training.record import TrainingRecord

# Seeding, warnings and redirected output are global to the process: threads run one point at a time.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """Why a point has no result: the class of the exception, its message, and where it came from."""

    kind: str
    message: str
    trace: str = ""

    @property
    def line(self) -> str:
        """The cause in one line."""
        first = (self.message.strip().splitlines() or ["(no message)"])[0]
        return f"{self.kind}: {first}"


@dataclass(frozen=True)
class Outcome:
    """Result of one point.

    Parameters
    ----------
    spectra : tuple of Spectrum
        Under the names they are stored by; the spectrum of the point itself, if any, comes last.
    record : TrainingRecord, optional
        The curves of a training run.
    failure : Failure, optional
        Set when the point failed; spectra and record are then empty.
    seconds : float
        Wall time on the worker.
    worker : str
        Host and process.
    """

    spectra: tuple[Spectrum, ...] = ()
    record: TrainingRecord | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    worker: str = ""


def run_point(point: Point, folder: str) -> Outcome:
    """Measure, predict, compare or train; an exception of the point is returned as a failure.

    Parameters
    ----------
    point : Point
    folder : str
        Where relative paths of the configuration begin.
    """
    began = time.perf_counter()
    failure: Failure | None = None
    spectra: tuple[Spectrum, ...] = ()
    record: TrainingRecord | None = None
    signals = _Interrupts()
    try:
        with signals, _ONE_AT_A_TIME, one_thread(), contextlib.redirect_stdout(sys.stderr):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", IsometryWarning)
                _check_files(point, Path(folder))
                if point.kind == "train":
                    spectra, record = _train(point, Path(folder))
                elif point.kind == "predict":
                    spectra = (_predict(point),)
                else:
                    spectra = _measure(point, Path(folder))
                _check_files(point, Path(folder))
            words = sorted(
                {str(entry.message) for entry in said if issubclass(entry.category, IsometryWarning)}
            )
            if words:
                spectra = tuple(_noted(spectrum, words) for spectrum in spectra)
    except BaseException as error:
        # What a model raises fails its point, KeyboardInterrupt included; Ctrl-C itself ends the sweep.
        if signals.interrupted:
            raise
        failure = failure_of(error)
    return Outcome(
        spectra, record, failure, time.perf_counter() - began, f"{socket.gethostname()}:{os.getpid()}"
    )


class _Interrupts:
    """Whether Ctrl-C was pressed while the block lasts; in a thread other than the main one it never is."""

    interrupted = False

    def __enter__(self) -> None:
        self._before: Any = None
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.default_int_handler(number, frame)


# Characters of a message and of a traceback that are kept.
_MESSAGE, _TRACE = 20_000, 100_000


def failure_of(error: BaseException) -> Failure:
    """The record of an exception."""
    try:
        message = str(error)
    except Exception as second:
        message = f"(its message cannot be made: {type(second).__name__})"
    frames = traceback.extract_tb(error.__traceback__)
    trace = "".join(traceback.format_list(frames[1:])) if frames else ""
    return Failure(type(error).__name__, message[:_MESSAGE], trace[-_TRACE:])


def theory_name(ensemble: Mapping[str, Any]) -> str:
    """Name under which the law of an ensemble is stored, once for all points compared with it."""
    weights = ensemble["weights"] if isinstance(ensemble["weights"], str) else "mixed"
    digest = hashlib.sha256(json.dumps(dict(ensemble), sort_keys=True).encode()).hexdigest()
    return f"theory {ensemble['activation']}, {weights}, depth {ensemble['depth']} [{digest[:16]}]"


def _check_files(point: Point, folder: Path) -> None:
    """Raise where a file is no longer the one that the point is named after."""
    found = digests(point.values, folder, point.name)
    changed = sorted(key for key in {*found, *point.files} if found.get(key) != point.files.get(key))
    if changed:
        raise InputError(
            f"{' and '.join(changed)} changed after the sweep had begun: run it again, and the point is that of "
            "the file as it is then"
        )


# Files of modules that models import, and the SHA-256 that each had when it was last read in this process.
_READ: dict[Path, str] = {}


def _read_imports_anew(values: Mapping[str, Any], folder: Path) -> None:
    """Have the modules that a model imports from its own folder be those that are there now.

    Python keeps a module that was imported once: also where its file has changed since, and where another model has
    imported one of the same name from another folder.
    """
    from isometry.loading.models import first_on_path

    source = model_source(values, folder)
    if source is None:
        return
    is_file = str(values["model"]).rpartition(":")[0].endswith(".py")
    base = source.resolve().parent if is_file else folder.resolve()
    files = {*imported_files(source), *(() if is_file else (source.resolve(),))}
    now = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    changed = any(_READ.get(file) != digest for file, digest in now.items())
    names = {_module_name(file, base) for file in files}
    # By device and inode: resolving the path of each of thousands of modules takes longer than a small point.
    own = {_identity(str(file)) for file in files} if changed else set()
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if name == "__main__" or not place:
            continue
        other = name in names and (file := Path(place).resolve()) in _READ and file not in files
        # All of them: one that is unchanged may hold what it took from one that is not.
        if other or (own and _identity(place) in own):
            del sys.modules[name]
    importlib.invalidate_caches()
    _READ.update(now)
    first_on_path(base)


def _identity(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _module_name(file: Path, base: Path) -> str:
    words = file.relative_to(base).with_suffix("").parts if file.is_relative_to(base) else (file.stem,)
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


# ---- kinds ---------------------------------------------------------------------------------------------


def _measure(point: Point, folder: Path) -> tuple[Spectrum, ...]:
    import torch

    from isometry.loading import device_of, load_weights
    from isometry.measurement import measure
    from isometry.measurement.provenance import recorded_ensemble

    values = dict(point.values)
    device = device_of(values.pop("device", None))
    model = model_of(values, folder)
    if "weights" in values:
        load_weights(model.module, folder / values["weights"])
    at = inputs_of(values, model, folder)
    model.module.to(device)
    part = "source" in values or "target" in values or bool(at.args or at.kwargs)
    ensemble = None if at.x is None else recorded_ensemble(
        model.module, at.x, part=part, loaded="weights" in values, stationary=at.stationary
    )  # fmt: skip
    options: dict[str, Any] = {
        key: values[key]
        for key in (
            "method", "probes", "steps", "top", "rank", "tol", "rtol", "quantity", "budget", "probe", "memory_limit",
            "source", "target", "output", "seed",
        )
        if key in values
    }  # fmt: skip
    wrt = values.get("wrt")
    further = {"args": at.args, "kwargs": dict(at.kwargs), "wrt": wrt[0] if wrt and len(wrt) == 1 else wrt}
    options |= {key: value for key, value in further.items() if value}
    if "dtype" in values:
        options["dtype"] = getattr(torch, values["dtype"])
    provenance = {
        "model_spec": model.spec, "input_spec": at.description, "weights_file": values.get("weights"),
        "ensemble": ensemble, "sweep": point.record(),
    }  # fmt: skip
    spectrum = measure(
        model.module, at.x, batched=at.batched, device=device, name=point.name, progress=False,
        # No partial results: an interrupt ends the sweep, and the point is computed again later.
        on_interrupt="raise", provenance=provenance, **options,
    )  # fmt: skip
    return _compared(point, spectrum, model, at) if point.kind == "compare" else (spectrum,)


def _compared(point: Point, spectrum: Spectrum, model: LoadedModel, at: LoadedCall) -> tuple[Spectrum, ...]:
    """The law, and the measurement with the comparison in its provenance."""
    from isometry.comparison import compare
    from isometry.depth.layer_prediction import predict_from_layers

    if point.values["theory"] == "layers":
        assert at.x is not None  # a law of layers takes no other inputs
        x = at.x[0] if at.batched else at.x
        law = replace(predict_from_layers(model.module.cpu(), x), name=f"{point.name} layers")
    else:
        ensemble = spectrum.provenance.get("ensemble")
        if ensemble is None:
            raise InputError("no ensemble is known for this network, so there is no law to compare with")
        law = replace(_law(json.dumps(ensemble)), name=theory_name(ensemble))
    law = replace(law, provenance={**law.provenance, "role": LAW})
    comparison = compare(spectrum, law).to_dict()
    kept = {key: value for key, value in comparison.items() if key not in ("measured", "predicted")}
    return law, replace(spectrum, provenance={**spectrum.provenance, "theory": law.name, "comparison": kept})


@functools.lru_cache(maxsize=64)
def _law(ensemble: str) -> Spectrum:
    """The law of an ensemble, given as JSON; cached, because seeds share it."""
    from isometry.theory.ensemble import Ensemble
    from isometry.theory.prediction import predict

    return predict(Ensemble.from_dict(json.loads(ensemble)))


def _predict(point: Point) -> Spectrum:
    from isometry.theory.prediction import predict

    spectrum = predict(ensemble_of(point.values))
    return replace(spectrum, name=point.name, provenance={**spectrum.provenance, "sweep": point.record()})


def ensemble_of(values: Mapping[str, Any]) -> Ensemble:
    """The ensemble of a prediction: that of the network which the same keys would sample.

    Raises
    ------
    InputError, TheoryError
        When the keys contradict each other, or the activation has no critical point there.
    """
    from isometry.nn.network import network_variances, residual_strength, trunk_ensemble

    depth, init, name = values["depth"], values["init"], values["activation"]
    variances = network_variances(
        init, (init,), name, values.get("sigma_w"), values.get("sigma_b"), values.get("q_star"), depth
    )
    residual = values.get("residual")
    if residual is not None or values["model"] == "resnet":
        residual = residual_strength(residual, depth)
    ensemble = trunk_ensemble(name, init, depth, variances, residual, None)
    if ensemble is None:
        raise InputError(f"there is no theory for activation {name!r} with init {init!r}")
    return replace(ensemble, q0=values.get("q0"), readout=values["readout"])


def _train(point: Point, folder: Path) -> tuple[tuple[Spectrum, ...], TrainingRecord]:
    from isometry.loading import device_of
    from isometry.training import IsometryCallback, trunk_part
    from isometry.training.data import load_dataset
    from isometry.training.loop import train
    from isometry.training.network import classifier
    from isometry.training.options import MEASUREMENT, NETWORK_OPTIONS, options_from

    values = dict(point.values)
    device = device_of(values.pop("device", None))
    data, every = values.pop("data"), values.pop("spectrum_every", None)
    place = folder / values.pop("folder") if "folder" in values else None
    name = str(folder / data) if Path(data).suffix else data
    dataset = load_dataset(name, place, limit=values.pop("limit", None))
    network = {key: values[key] for key in NETWORK_OPTIONS if key in values}
    model = classifier(dataset, **network, seed=values["seed"], device=device)
    # Measured during the run, or once at the end.
    recorder = IsometryCallback(
        dataset.test_images[0], every=every or max(values["steps"], 1), part=trunk_part, name=point.name,
        **MEASUREMENT,
    )  # fmt: skip
    record = train(
        model, dataset, options=options_from(values), callbacks=[recorder], progress=False,
        about={"sweep": point.record()},
    )  # fmt: skip
    sweep = {**point.record(), "role": ON_THE_WAY}
    spectra = tuple(
        replace(spectrum, provenance={**spectrum.provenance, "sweep": {**sweep, "step": step}})
        for step, spectrum in recorder.spectra.items()
    )
    return spectra, record


# ---- model, input, device -------------------------------------------------------------------------------------


def model_of(values: Mapping[str, Any], folder: Path) -> LoadedModel:
    """The network of a configuration, in its mode; relative paths begin at ``folder``."""
    from isometry.loading.models import built_in_model, load_model

    kind, seed = values["model"], values["seed"]
    if kind in NETWORKS:
        settings = {key: values[key] for key in network_keys(kind) if key in values} | {"seed": seed}
        loaded = built_in_model(kind, settings, f"{kind}:{settings_text(settings)}")
    else:
        _read_imports_anew(values, folder)
        place, _, name = kind.rpartition(":")
        spec = f"{folder / place}:{name}" if place.endswith(".py") else kind
        loaded = replace(load_model(spec, seed=seed), spec=kind)
    if values["eval"]:
        loaded.module.eval()
    return loaded


def inputs_of(values: Mapping[str, Any], model: LoadedModel, folder: Path) -> LoadedCall:
    """All inputs of a point's model; paths in the configuration begin at ``folder``."""
    from isometry.loading import load_call

    further = []
    for entry in values.get("args", ()):
        name, _, value = entry.partition("=")
        further.append(f"{name}={folder / value}" if Path(value).suffix in FILES else entry)
    ids = values.get("input_ids")
    return load_call(
        placed_input(values.get("input"), folder), model, arguments=further,
        ids=str(folder / ids) if isinstance(ids, str) else None if ids is None else str(ids),
        count=values.get("inputs"), seed=values["seed"], batch_axis=values["batch_axis"],
    )  # fmt: skip


def placed_input(spec: str | None, folder: Path) -> str | None:
    """An input's spec, with its path beginning at ``folder`` where it is a file."""
    return str(folder / spec) if spec is not None and Path(spec).suffix else spec


def _noted(spectrum: Spectrum, words: list[str]) -> Spectrum:
    return replace(spectrum, provenance={**spectrum.provenance, "warnings": words})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, so that the order of summation is the same on every engine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
