"""A Spectrum as an element of the file, and back, bit for bit.

The distribution is stored as it is (nodes and weights, or a curve with point masses), with the extremes where there are
any; moments, quantiles and bounds that follow from it stand beside it, so that the file speaks for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from isometry.errors import InputError, StoreError
from isometry.spectrum import Curve, Extremes, LogValues, Quadrature, Spectrum
from isometry.spectrum.cdf_bounds import cdf_bounds
from isometry.store.admission import attribute, holds, member
from isometry.store.attributes import NESTED, plain, read_attributes
from isometry.store.consistency import implausible, impossible
from isometry.store.digest import digest_problems
from isometry.store.elements import Element, chosen, damaged, encoding_of, examine_array
from isometry.store.error_models import (
    ATTRIBUTES,
    channels_of_old,
    counted_of_old,
    decode_error_model,
    encode_error_model,
    error_model_of_old,
)
from isometry.store.layout import (
    BAND_CONFIDENCE,
    BAND_FIELDS,
    COUNTED,
    COUNTED_ENCODINGS,
    CURVE_ENCODING,
    CURVE_ENCODINGS,
    DERIVED_FIELDS,
    EXTREME_FIELDS,
    LEVELS,
    LOGARITHMS,
    MOMENT_ORDERS,
    OF_INPUTS,
    OLD_CURVE_ENCODING,
    OLD_QUADRATURE_ENCODINGS,
    OLD_QUADRATURE_FIELDS,
    QUADRATURE_ENCODING,
    SPECTRUM_FIELDS,
    UNCOUNTED_ENCODINGS,
    UNCOUNTED_FIELDS,
    UNRANDOM_FIELDS,
    VALUES_ENCODING,
    VALUES_FIELDS,
    optional_fields,
)
from isometry.store.summaries import SUMMARY, Listed, encode_summary, read_listed, summary_problems

Arrays = dict[str, NDArray[Any]]

_WITH_SHORT_ARRAYS = {UNCOUNTED_ENCODINGS[-1], *COUNTED_ENCODINGS, VALUES_ENCODING, CURVE_ENCODING}
# What is written for others and not read back.
_FOLLOWING = DERIVED_FIELDS.keys() | BAND_FIELDS.keys()

# Attributes of the layout itself; everything else on the group is provenance.
HEADER = frozenset(
    {"encoding_type", "encoding_version", "written_by", "kind", "method", "shape", "null_dimension", "products",
     "seconds", "unbounded_above", SUMMARY} | ATTRIBUTES
)  # fmt: skip


def encode(spectrum: Spectrum, *, written_by: str) -> Element:
    """The element that holds a spectrum.

    Raises
    ------
    StoreError
        When its parts do not fit together or contradict each other, or its provenance is not plain JSON.
    """
    distribution, extremes = spectrum.distribution, spectrum.extremes
    arrays: Arrays = {}
    details: dict[str, Any] = {}
    if isinstance(distribution, Quadrature):
        encoding = QUADRATURE_ENCODING
        arrays |= {key: np.asarray(getattr(distribution, key)) for key in UNCOUNTED_FIELDS}
        if np.any(distribution.counted == distribution.errors.random):
            arrays[COUNTED] = np.asarray(distribution.counted)
        arrays |= band(spectrum)
        details = encode_error_model(distribution.errors)
    elif isinstance(distribution, LogValues):
        encoding = VALUES_ENCODING
        arrays |= {key: np.asarray(getattr(distribution, key)) for key in VALUES_FIELDS}
        details = encode_error_model(distribution.errors)
    else:
        encoding = CURVE_ENCODING
        arrays |= {
            "log_s": np.asarray(distribution.log_s),
            "cdf": np.asarray(distribution.cdf_continuous),
            "density": np.asarray(distribution.log_density),
            "atom_log_s": np.asarray(distribution.atom_log_s),
            "atom_mass": np.asarray(distribution.atom_mass),
            "even_moment": np.arange(1, len(distribution.log_even_moments) + 1),
            "log_even_moments": np.array(distribution.log_even_moments, float),
        }
        details = {"unbounded_above": np.int8(distribution.unbounded)}
    if extremes is not None:
        arrays |= {key: np.asarray(getattr(extremes, key)) for key in EXTREME_FIELDS}
    arrays |= derived(spectrum)
    if isinstance(distribution, Quadrature):
        for key in _saying_nothing(distribution, arrays):
            del arrays[key]
    header: dict[str, Any] = {
        "kind": spectrum.kind,
        "method": _text(spectrum.method),
        "null_dimension": np.int64(spectrum.null_dimension),
        "products": np.int64(spectrum.products),
        "seconds": float(spectrum.seconds),
        "written_by": written_by,
        **details,
    }
    if spectrum.shape is not None:
        header["shape"] = np.array(spectrum.shape, np.int64)
    provenance = plain(spectrum.provenance)
    provenance.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    header[SUMMARY] = encode_summary(spectrum, provenance["created"])
    element = Element(encoding, SPECTRUM_FIELDS[encoding], arrays, header, provenance)
    element.dimension_sizes()
    if problems := impossible(spectrum):
        raise StoreError(
            f"the spectrum {spectrum.name!r} contradicts itself and was not stored: {'; '.join(problems)}."
        )
    return element


def _saying_nothing(quadrature: Quadrature, arrays: Arrays) -> set[str]:
    """Derived arrays that are left out: a reader knows them from the others."""
    names = set() if quadrature.errors.random else set(UNRANDOM_FIELDS)
    if len(quadrature.floor) == 1:
        names.add(OF_INPUTS)
    least = np.finfo(float).tiny
    return names | {
        key
        for key, plain_one in LOGARITHMS.items()
        if np.all((arrays[plain_one] >= least) & (arrays[plain_one] < np.inf))
    }


def decode(group: h5py.Group, name: str) -> Spectrum:
    """The spectrum a group holds.

    Raises
    ------
    StoreError
        When something in it is missing, damaged or contradicts itself.
    """
    problems = digest_problems(group) + _header(group)[1]
    arrays, found = _read(group, derived_too=False)
    problems = found + problems
    if problems:
        raise StoreError(damaged(group, problems))
    try:
        spectrum = _build(group, name, arrays)
    except InputError as error:
        raise StoreError(damaged(group, [str(error)])) from error
    if problems := impossible(spectrum):
        raise StoreError(damaged(group, problems))
    return spectrum


def problems_of(group: h5py.Group, name: str) -> list[str]:
    """Everything that is wrong with a stored spectrum, each problem begun by the dataset or attribute it is about."""
    arrays, problems = _read(group, derived_too=True)
    problems += _value_problems(arrays)
    problems += _header(group)[1]
    if problems:
        return problems + digest_problems(group)
    try:
        spectrum = _build(group, name, arrays)
    except (InputError, ValueError, TypeError) as error:
        return [str(error)]
    if problems := impossible(spectrum):
        return problems + digest_problems(group)
    expected = derived(spectrum)
    # The moments are sums of positive terms, equal on every machine to some ulps. Quantiles are not compared: where
    # the cdf meets a level exactly, rounding decides between two nodes.
    problems = [
        f"{key}: does not follow from the distribution it stands beside"
        for key, absolute in (("moment", 0.0), ("log10_moment", 1e-8))
        if key in arrays
        and not np.allclose(arrays[key], expected[key], rtol=1e-8, atol=absolute, equal_nan=True)
    ]
    problems += (
        summary_problems(group, spectrum) + implausible(spectrum) + _derived_problems(spectrum, arrays)
    )
    return problems + _band_problems(spectrum, arrays) + digest_problems(group)


def describe(group: h5py.Group, name: str) -> dict[str, Any]:
    """Attributes and sizes of a stored spectrum; no dataset is read."""
    chosen(group, SPECTRUM_FIELDS)
    header, problems = _header(group)
    if problems:
        raise StoreError(damaged(group, problems))
    scales = {key: member(group, key) for key in ("input", "probe")}
    sizes = {key: len(scale) for key, scale in scales.items() if isinstance(scale, h5py.Dataset)}
    shape = header.pop("shape")
    return {
        "name": name,
        "encoding": list(encoding_of(group)),
        **header,
        "shape": None if shape is None else list(shape),
        "inputs": sizes.get("input", 1),
        "probes": sizes.get("probe", 1),
        "provenance": _provenance(group),
    }


def listed(group: h5py.Group, name: str) -> Listed:
    """What a list shows of a stored spectrum: its summary, or what follows from its arrays where none was stored."""
    found = read_listed(group, name)
    if found is None:
        spectrum = decode(group, name)
        found = Listed(spectrum.reported, spectrum.provenance.get("created"), spectrum.partial)
    return found


def is_partial(group: h5py.Group | h5py.Dataset) -> bool:
    """Whether a stored spectrum is a part of an interrupted measurement; no array is read."""
    if '"interrupted"' not in str(attribute(group, NESTED)):
        return False
    stopped = read_attributes(group).get("stopped")
    return isinstance(stopped, Mapping) and stopped.get("reason") == "interrupted"


def derived(spectrum: Spectrum) -> Arrays:
    """Moments with their standard errors, and quantiles with bounds of the cdf, as in DERIVED_FIELDS."""
    distribution = spectrum.distribution
    with np.errstate(all="ignore"):  # what leaves the range of floats is inf or 0 here, and finite in log10
        log_quantile = distribution.quantile(LEVELS)
        # exp(ln s) may fall an ulp short of the node s that it came from: the bounds are taken just above.
        if isinstance(distribution, Quadrature):
            places = np.maximum(np.exp(log_quantile) * (1 + 1e-12), spectrum.floor)
            lower, upper = spectrum.cdf_bounds(np.minimum(places, np.finfo(float).max))
        else:
            lower, upper = distribution.cdf_bounds(log_quantile + 1e-12)
        return {
            "order": np.array(MOMENT_ORDERS),
            "moment": np.array([spectrum.moment(k) for k in MOMENT_ORDERS]),
            "log10_moment": np.array([spectrum.log10_moment(k) for k in MOMENT_ORDERS]),
            "moment_stderr_probes": np.array([spectrum.moment_stderr(k) for k in MOMENT_ORDERS]),
            "moment_stderr_inputs": np.array(
                [spectrum.moment_stderr(k, over="inputs") for k in MOMENT_ORDERS]
            ),
            "level": np.array(LEVELS),
            "quantile": np.exp(log_quantile),
            "log10_quantile": log_quantile / np.log(10),
            "cdf_lower": np.asarray(lower),
            "cdf_upper": np.asarray(upper),
        }


def band(spectrum: Spectrum) -> Arrays:
    """The confidence band of the cdf on a grid, as in BAND_FIELDS: where the mass is, and over the whole range."""
    low, high = spectrum.support
    with np.errstate(over="ignore"):
        where = np.unique(spectrum.quantile(np.linspace(0, 1, 33)))
    # Just below and just above, because the very nodes are known to rounding only.
    places = np.concatenate([where * (1 - 1e-6), where * (1 + 1e-6)])
    # Where these are all the nodes, the band has no step elsewhere.
    if 0 < low <= high and np.unique(spectrum.quadrature.nodes_above_floor).size > where.size:
        places = np.concatenate([places, np.geomspace(low, min(high, np.finfo(float).max / 2), 62)])
    places = np.unique(np.minimum(places, np.finfo(float).max))
    lower, upper = spectrum.cdf_band(places, BAND_CONFIDENCE)
    return {"band_s": places, "band_lower": lower, "band_upper": upper}


def _derived_problems(spectrum: Spectrum, arrays: Arrays) -> list[str]:
    """Where quantiles and bounds contradict the distribution; two nodes apart by rounding may stand for each other."""
    problems = [
        f"{key}: is not {', '.join(map(str, expected))}"
        for key, expected in (("order", MOMENT_ORDERS), ("level", LEVELS))
        if not np.array_equal(arrays[key], expected)
    ]
    if problems:
        return problems
    level = np.array(LEVELS)
    with np.errstate(all="ignore"):
        key = "log10_quantile" if "log10_quantile" in arrays else "quantile"
        log_s = np.log(arrays[key]) if key == "quantile" else arrays[key] * np.log(10)
    d = spectrum.distribution
    if (
        np.any(np.isnan(log_s))
        or np.any(d.cdf(log_s + 1e-6) < level - 1e-6)
        or np.any(d.cdf(log_s - 1e-6, left=True) > level + 1e-6)
    ):
        problems.append(f"{key}: is not where the cdf reaches the level")
    with np.errstate(over="ignore", under="ignore"):
        if not np.allclose(arrays["quantile"], np.exp(log_s), rtol=1e-6, atol=0.0):
            problems.append("quantile: is not 10 to the power log10_quantile")
    lower, upper = arrays.get("cdf_lower", np.zeros(1)), arrays.get("cdf_upper", np.ones(1))
    if not (np.all(lower >= 0) and np.all(lower <= upper + 1e-9) and np.all(upper <= 1 + 1e-9)):
        problems.append("cdf_lower: does not bound with cdf_upper a cdf")
    for key in ("moment_stderr_probes", "moment_stderr_inputs"):
        if key in arrays and np.any(arrays[key] < 0):
            problems.append(f"{key}: {int(np.sum(arrays[key] < 0))} negative values")
    return problems


def _band_problems(spectrum: Spectrum, arrays: Arrays) -> list[str]:
    """Where the stored band contradicts the nodes.

    It must hold what the nodes say before chance is allowed for. That it equals today's band is not asked: another
    version may know a narrower one.
    """
    if "band_s" not in arrays:
        return []
    s, lower, upper = (arrays[key] for key in BAND_FIELDS)
    problems = []
    if not np.all(s >= 0) or not np.all(np.diff(s) > 0):
        return ["band_s: is not a grid of singular values that increases"]
    for key, values in (("band_lower", lower), ("band_upper", upper)):
        if not (np.all((values >= 0) & (values <= 1)) and np.all(np.diff(values) >= -1e-9)):
            problems.append(f"{key}: is not a cdf: it falls, or leaves [0, 1]")
    d = spectrum.quadrature
    least, most = cdf_bounds(d, spectrum.extremes, d.errors, s).of_the_rules
    if np.any(lower > least + 1e-6):
        problems.append("band_lower: lies above what the nodes give")
    if np.any(upper < most - 1e-6):
        problems.append("band_upper: lies below what the nodes give")
    return problems


def _text(method: str) -> str:
    if isinstance(method, str) and method and method.isprintable():
        return method
    raise StoreError(f"the method of a spectrum is printable text such as 'lanczos'; got {method!r}.")


def _read(group: h5py.Group, *, derived_too: bool) -> tuple[Arrays, list[str]]:
    """Arrays of the group by name, without those that are missing or misshapen, and what is wrong."""
    fields = chosen(group, SPECTRUM_FIELDS)
    absent = {
        name
        for names in optional_fields(encoding_of(group))
        if not any(holds(group, name) or isinstance(attribute(group, name), np.ndarray) for name in names)
        for name in names
    }
    arrays: Arrays = {}
    problems: list[str] = []
    sizes: dict[str, int] = {}
    for name, what in fields.items():
        if name in absent or (name in _FOLLOWING and not derived_too):
            continue
        values, found = examine_array(group, name, what, sizes)
        problems += found
        if values is not None:
            arrays[name] = values
    return arrays, problems


def _build(group: h5py.Group, name: str, arrays: Arrays) -> Spectrum:
    header = _header(group)[0]
    provenance = _provenance(group)
    spectrum = Spectrum(
        chosen(group, _DISTRIBUTIONS)(group, arrays),
        method=header["method"],
        shape=header["shape"],
        extremes=Extremes(**{key: arrays[key] for key in EXTREME_FIELDS}) if "top" in arrays else None,
        name=name,
        products=header["products"],
        seconds=header["seconds"],
        provenance=provenance,
    )
    encoding = encoding_of(group)
    if encoding in UNCOUNTED_ENCODINGS:
        return replace(spectrum, distribution=counted_of_old(spectrum.quadrature))
    if encoding not in OLD_QUADRATURE_ENCODINGS:
        return spectrum
    quadrature = spectrum.quadrature
    errors = error_model_of_old(quadrature, provenance, quadrature.errors.dimension)
    return replace(
        spectrum,
        distribution=counted_of_old(replace(quadrature, errors=errors)),
        provenance=provenance | channels_of_old(provenance, spectrum.shape),
    )


def _provenance(group: h5py.Group) -> dict[str, Any]:
    # Before short arrays were attributes, a record may have had an entry of the same name.
    arrays = chosen(group, SPECTRUM_FIELDS).keys() if encoding_of(group) in _WITH_SHORT_ARRAYS else ()
    return read_attributes(group, reserved=HEADER | set(arrays))


def _header(group: h5py.Group) -> tuple[dict[str, Any], list[str]]:
    """The attributes of the layout as plain values, and what is wrong with them."""
    header: dict[str, Any] = {}
    problems = []
    for key, (kind, words) in _HEADER_KINDS.items():
        value = attribute(group, key)
        if value is None and key != "shape":
            problems.append(f"{key}: the attribute is missing")
        elif value is not None and not _of_kind(value, kind):
            problems.append(f"{key}: is {value!r}, not {words}")
        else:
            header[key] = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if problems:
        return header, problems
    if header["shape"] is not None:
        header["shape"] = tuple(header["shape"])
    zeros = abs(header["shape"][0] - header["shape"][1]) if header["shape"] else 0
    if header["null_dimension"] != zeros:
        problems.append(f"null_dimension: is {header['null_dimension']}, and the shape forces {zeros} zeros")
    wanted = "predicted" if encoding_of(group) in (OLD_CURVE_ENCODING, *CURVE_ENCODINGS) else "measured"
    if header["kind"] != wanted:
        problems.append(f"kind: is {header['kind']!r}, and what is stored is {wanted}")
    return header, problems


def _of_kind(value: Any, kind: str) -> bool:
    if kind == "text":
        return isinstance(value, str) and bool(value) and value.isprintable()
    if np.shape(value) != ((2,) if kind == "sides" else ()) or isinstance(value, str):
        return False
    if kind == "time":
        return bool(0 <= value < np.inf)
    return np.asarray(value).dtype.kind in "iu" and bool(np.all(np.asarray(value) >= (kind == "sides")))


_HEADER_KINDS = {
    "kind": ("text", "a text"),
    "method": ("text", "a text"),
    "shape": ("sides", "two whole numbers from 1 on"),
    "null_dimension": ("count", "a whole number from 0 on"),
    "products": ("count", "a whole number from 0 on"),
    "seconds": ("time", "a time from 0 on"),
    "written_by": ("text", "a text"),
}


def _quadrature(group: h5py.Group, arrays: Arrays) -> Quadrature:
    nodes, weights, floor, resolved = (arrays[key] for key in UNCOUNTED_FIELDS)
    counted = {COUNTED: arrays[COUNTED]} if COUNTED in arrays else {}
    return Quadrature(nodes, weights, floor, resolved, decode_error_model(group), **counted)


def _log_values(group: h5py.Group, arrays: Arrays) -> LogValues:
    values, error, zeros = (arrays[key] for key in VALUES_FIELDS)
    return LogValues(values, error, zeros.astype(np.int64), decode_error_model(group))


def _old_quadrature(group: h5py.Group, arrays: Arrays) -> Quadrature:
    nodes, weights, floor, resolved = (arrays[key] for key in OLD_QUADRATURE_FIELDS)
    return Quadrature(nodes, weights, floor, resolved)


def _old_curve(group: h5py.Group, arrays: Arrays) -> Curve:
    return Curve(
        arrays["log_s"], arrays["cdf"], arrays["density"], arrays["atom_log_s"], arrays["atom_mass"],
        tuple(arrays["log_even_moments"].tolist()),
    )  # fmt: skip


def _curve(group: h5py.Group, arrays: Arrays) -> Curve:
    unbounded = attribute(group, "unbounded_above")
    if np.shape(unbounded) != () or unbounded not in (0, 1):
        raise InputError(f"unbounded_above: is {unbounded!r}, not 0 or 1")
    return replace(_old_curve(group, arrays), unbounded=bool(unbounded))


_DISTRIBUTIONS: dict[tuple[str, int], Callable[[h5py.Group, Arrays], Quadrature | LogValues | Curve]] = {
    **dict.fromkeys(OLD_QUADRATURE_ENCODINGS, _old_quadrature),
    **dict.fromkeys((*UNCOUNTED_ENCODINGS, *COUNTED_ENCODINGS), _quadrature),
    VALUES_ENCODING: _log_values,
    OLD_CURVE_ENCODING: _old_curve,
    **dict.fromkeys(CURVE_ENCODINGS, _curve),
}


def _value_problems(arrays: Arrays) -> list[str]:
    """What no spectrum can hold, dataset by dataset."""
    problems = []
    for key in ("nodes", "weights", "floor", "cdf", "density", "atom_mass"):
        if key in arrays:
            problems += _number_problems(key, arrays[key])
    for key in ("top", "top_residual", "bottom", "bottom_residual"):
        if key in arrays and np.any(arrays[key] < 0):
            problems.append(f"{key}: {int(np.sum(arrays[key] < 0))} negative values")
    if "weights" in arrays and arrays["weights"].ndim == 3:
        sums = arrays["weights"].sum(-1)
        wrong = np.argwhere(~(np.abs(sums - 1) <= 1e-6))
        if wrong.size:
            where = tuple(int(index) for index in wrong[0])
            problems.append(
                f"weights: the rows of {len(wrong)} of {sums.size} (input, probe) pairs do not sum to 1; that of "
                f"{where} sums to {sums[where]:.6g}"
            )
    if "log_s" in arrays:
        if not np.all(np.isfinite(arrays["log_s"])):
            problems.append(f"log_s: {int(np.sum(~np.isfinite(arrays['log_s'])))} values are NaN or inf")
        elif not np.all(np.diff(arrays["log_s"]) > 0):
            problems.append("log_s: does not increase strictly")
    if "cdf" in arrays and np.all(np.isfinite(arrays["cdf"])) and np.any(np.diff(arrays["cdf"]) < 0):
        problems.append("cdf: falls somewhere")
    if "cdf" in arrays and "atom_mass" in arrays:
        total = float(arrays["cdf"][-1] if arrays["cdf"].size else 0.0) + float(arrays["atom_mass"].sum())
        if not abs(total - 1) < 1e-5:
            problems.append(f"cdf: its last value and atom_mass add up to {total:.6g}, not 1")
    return problems


def _number_problems(key: str, values: NDArray[Any]) -> list[str]:
    problems = []
    if not np.all(np.isfinite(values)):
        problems.append(f"{key}: {int(np.sum(~np.isfinite(values)))} values are NaN or inf")
    if np.any(values < 0):
        problems.append(f"{key}: {int(np.sum(values < 0))} negative values")
    return problems
