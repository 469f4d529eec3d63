"""`run_point`: compute one point on a worker. Internal; it opens no file of spectra.

`run_point` is the only function submitted to an executor. Exceptions of the point are part of the returned outcome, so
an exception raised by the future is one of the executor.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
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
from isometry.nn.options import NETWORKS
from isometry.sweeps.configuration import Point
from isometry.sweeps.keys import network_keys
from isometry.sweeps.names import LAW, ON_THE_WAY

if TYPE_CHECKING:
    from isometry.loading import LoadedInput, LoadedModel
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
    try:
        with _ONE_AT_A_TIME, one_thread(), contextlib.redirect_stdout(sys.stderr):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", IsometryWarning)
                if point.kind == "train":
                    spectra, record = _train(point, Path(folder))
                elif point.kind == "predict":
                    spectra = (_predict(point),)
                else:
                    spectra = _measure(point, Path(folder))
            words = sorted(
                {str(entry.message) for entry in said if issubclass(entry.category, IsometryWarning)}
            )
            if words:
                spectra = tuple(_noted(spectrum, words) for spectrum in spectra)
    except (Exception, SystemExit) as error:
        failure = failure_of(error)
    return Outcome(
        spectra, record, failure, time.perf_counter() - began, f"{socket.gethostname()}:{os.getpid()}"
    )


def failure_of(error: BaseException) -> Failure:
    """The record of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    trace = "".join(traceback.format_list(frames[1:])) if frames else ""
    return Failure(type(error).__name__, str(error), trace)


def theory_name(ensemble: Mapping[str, Any]) -> str:
    """Name under which the law of an ensemble is stored, once for all points compared with it."""
    weights = ensemble["weights"] if isinstance(ensemble["weights"], str) else "mixed"
    digest = hashlib.sha256(json.dumps(dict(ensemble), sort_keys=True).encode()).hexdigest()
    return f"theory {ensemble['activation']}, {weights}, depth {ensemble['depth']} [{digest[:16]}]"


# ---- kinds ---------------------------------------------------------------------------------------------


def _measure(point: Point, folder: Path) -> tuple[Spectrum, ...]:
    import torch

    from isometry.loading import device_of, load_input, load_weights
    from isometry.measurement import measure
    from isometry.measurement.provenance import recorded_ensemble

    values = dict(point.values)
    device = device_of(values.pop("device", None))
    model = model_of(values, folder)
    if "weights" in values:
        load_weights(model.module, folder / values["weights"])
    at = load_input(
        placed_input(values.get("input"), folder), model, count=values.get("inputs"), seed=values["seed"],
        batch_axis=values["batch_axis"],
    )  # fmt: skip
    model.module.to(device)
    part = "source" in values or "target" in values
    ensemble = recorded_ensemble(
        model.module, at.tensor, part=part, loaded="weights" in values, stationary=at.stationary
    )
    options: dict[str, Any] = {
        key: values[key]
        for key in (
            "method", "probes", "steps", "top", "rank", "tol", "rtol", "quantity", "budget", "probe", "memory_limit",
            "source", "target", "output", "seed",
        )
        if key in values
    }  # fmt: skip
    if "dtype" in values:
        options["dtype"] = getattr(torch, values["dtype"])
    provenance = {
        "model_spec": model.spec, "input_spec": at.description, "weights_file": values.get("weights"),
        "ensemble": ensemble, "sweep": point.record(),
    }  # fmt: skip
    spectrum = measure(
        model.module, at.tensor, batched=at.batched, device=device, name=point.name, progress=False,
        # No partial results: an interrupt ends the sweep, and the point is computed again later.
        on_interrupt="raise", provenance=provenance, **options,
    )  # fmt: skip
    return _compared(point, spectrum, model, at) if point.kind == "compare" else (spectrum,)


def _compared(point: Point, spectrum: Spectrum, model: LoadedModel, at: LoadedInput) -> tuple[Spectrum, ...]:
    """The law, and the measurement with the comparison in its provenance."""
    from isometry.comparison import compare
    from isometry.depth.layer_prediction import predict_from_layers

    if point.values["theory"] == "layers":
        x = at.tensor[0] if at.batched else at.tensor
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
        place, _, name = kind.rpartition(":")
        spec = f"{folder / place}:{name}" if place.endswith(".py") else kind
        loaded = replace(load_model(spec, seed=seed), spec=kind)
    if values["eval"]:
        loaded.module.eval()
    return loaded


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
