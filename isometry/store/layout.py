"""What stands in a file of spectra: names, dimensions, units and meaning of everything, and the versions.

/                     format, schema_version, written_by
/spectra/NAME         one group per spectrum: encoding_type "spectrum-quadrature", "spectrum-values" or "spectrum-curve"
/series/NAME          one group per table of curves: encoding_type "series"

Every group carries its encoding type and version, and a reader is chosen by that pair: a changed layout gets a new
version and the old reader stays. docs/file-format.md says the same to people with other tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isometry.errors import StoreError

FORMAT = "isometry-spectra"
SCHEMA_VERSION = 1
SPECTRA, SERIES = "spectra", "series"

# Version 2 added the band of the cdf; version 3 the error model, and its `resolved` was `certain` before.
OLD_QUADRATURE_ENCODINGS = (("spectrum-quadrature", 1), ("spectrum-quadrature", 2))
# Version 4, and 3 of a curve, have short arrays as attributes of the group, and the summary. Version 5 has `counted`.
UNCOUNTED_ENCODINGS = (("spectrum-quadrature", 3), ("spectrum-quadrature", 4))
# Version 6 leaves out derived arrays where they say nothing.
COUNTED_ENCODINGS = (("spectrum-quadrature", 5), ("spectrum-quadrature", 6))
QUADRATURE_ENCODING = COUNTED_ENCODINGS[-1]
# Version 2 added whether the support has no upper end.
OLD_CURVE_ENCODING = ("spectrum-curve", 1)
CURVE_ENCODINGS = (("spectrum-curve", 2), ("spectrum-curve", 3))
CURVE_ENCODING = CURVE_ENCODINGS[-1]
VALUES_ENCODING = ("spectrum-values", 1)
SERIES_ENCODING = ("series", 1)

MOMENT_ORDERS = (1, 2, 3, 4)
BAND_CONFIDENCE = 0.95
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Field:
    """What one dataset holds: its dimensions, units and meaning.

    ``kind`` is "float" (float64), "bool" (int8 of 0 and 1, as xarray keeps truth values) or "int" (int32).
    ``attributes`` stand on the dataset beside units and description.
    """

    dimensions: tuple[str, ...]
    units: str
    description: str
    kind: str = "float"
    attributes: Mapping[str, float] = field(default_factory=dict)


_S = "units of output per unit of input"
_MASS = "1"

DIMENSIONS = {
    "input": Field(("input",), "1", "which of the inputs whose Jacobians were measured", "int"),
    "probe": Field(
        ("probe",), "1", "which random probe vector of the input; one where no probe was random", "int"
    ),
    "node": Field(("node",), "1", "which quadrature node of the probe; nodes of weight 0 are padding", "int"),
    "rank": Field(("rank",), "1", "rank of a singular value, 0 for the largest", "int"),
    "log_s": Field(("log_s",), "1", "ln s, natural logarithm of the singular value, strictly increasing"),
    "atom": Field(("atom",), "1", "which point mass", "int"),
    "even_moment": Field(("even_moment",), "1", "k of the moment E[s^(2k)]", "int"),
    "order": Field(
        ("order",), "1", "k of the moment m_k = E[s^(2k)], the normalised trace of (J J^T)^k", "int"
    ),
    "level": Field(("level",), _MASS, "probability of a quantile"),
    "band_s": Field(("band_s",), _S, "singular value s at which the band of the cdf is given, increasing"),
    "row": Field(("row",), "1", "which entry of the series, in the order of writing", "int"),
}

QUADRATURE_FIELDS = {
    "nodes": Field(("input", "probe", "node"), _S, "singular values s at the quadrature nodes, in any order"),
    "weights": Field(
        ("input", "probe", "node"), _MASS, "mass of each node; the weights of one probe of one input sum to 1"
    ),
    "floor": Field(("input",), _S, "singular values at or below it cannot be told from zero"),
    "resolved": Field(
        ("input", "probe", "node"), "1",
        "1 where the node is a resolved singular value with its own mass, 0 where it is a Gauss node "
        "whose mass stands for its neighbourhood", "bool",
    ),
    "counted": Field(
        ("input", "probe", "node"), "1",
        "1 where the mass is the number of singular values there over their number, without chance: they were found "
        "one by one, or all are the same; 0 where a random probe saw it", "bool",
    ),
}  # fmt: skip

# Left out where no mass is a count, or, without random probes, all are.
COUNTED = "counted"
UNCOUNTED_FIELDS = {key: what for key, what in QUADRATURE_FIELDS.items() if key != COUNTED}
OLD_QUADRATURE_FIELDS = {
    "certain" if key == "resolved" else key: what for key, what in UNCOUNTED_FIELDS.items()
}

VALUES_FIELDS = {
    "log_values": Field(
        ("input", "rank"), "1", "ln s of every singular value, natural logarithm, descending; -inf for s = 0"
    ),
    "log_error": Field(
        ("input", "rank"), "1", "bound of the error of log_values, the relative error of s; 0 for a zero"
    ),
    "proved_zeros": Field(
        ("input",), "1",
        "how many of the zeros a pattern of zeros in a factor of J proves; the others are zero to its rounding", "int",
    ),
}  # fmt: skip

CURVE_FIELDS = {
    "log_s": DIMENSIONS["log_s"],
    "cdf": Field(("log_s",), _MASS, "mass of the continuous part at or below log_s"),
    "density": Field(("log_s",), "mass per unit of ln s", "density of the continuous part, d mass / d ln s"),
    "atom_log_s": Field(("atom",), "1", "ln s of each point mass, -inf for s = 0"),
    "atom_mass": Field(("atom",), _MASS, "mass of each point mass"),
    "even_moment": DIMENSIONS["even_moment"],
    "log_even_moments": Field(("even_moment",), "1", "ln E[s^(2k)], exact"),
}

EXTREME_FIELDS = {
    "top": Field(("input", "rank"), _S, "largest singular values found, descending; NaN where there are fewer"),
    "top_residual": Field(
        ("input", "rank"), _S,
        "max(||J v - s u||, ||J^T u - s v||) of each: some singular value lies within this distance",
    ),
    "bottom": Field(("input",), _S, "smallest singular value found, an upper bound of the smallest"),
    "bottom_residual": Field(("input",), _S, "residual of bottom, as in top_residual"),
    "bottom_resolved": Field(("input",), "1", "1 where bottom is the smallest singular value, 0 where it is a bound",
                             "bool"),
}  # fmt: skip

# What follows from the datasets above: there for readers without this package, and compared by validate.
DERIVED_FIELDS = {
    "order": DIMENSIONS["order"],
    "level": DIMENSIONS["level"],
    "moment": Field(("order",), "units of s to the power 2 * order", "m_k = E[s^(2k)]; inf or 0 out of range"),
    "log10_moment": Field(("order",), "1", "log10 of moment, also where that leaves the range of floats"),
    "moment_stderr_probes": Field(
        ("order",), "units of s to the power 2 * order",
        "standard error of moment over the random probes; 0 where nothing was random, NaN for a single probe",
    ),
    "moment_stderr_inputs": Field(
        ("order",), "units of s to the power 2 * order", "standard error of moment over the inputs; NaN for one input"
    ),
    "quantile": Field(("level",), _S, "smallest s whose cdf reaches the level; 0 inside the mass at zero"),
    "log10_quantile": Field(("level",), "1", "log10 of quantile, also where that leaves the range of floats"),
    "cdf_lower": Field(
        ("level",), _MASS,
        "rigorous lower bound of the cdf at quantile, or at the floor where that is higher "
        "(Chebyshev-Markov-Stieltjes; truncation error only)",
    ),
    "cdf_upper": Field(("level",), _MASS, "rigorous upper bound of the cdf at the same places"),
}  # fmt: skip

# The same, since version 2 of a quadrature. A later version of isometry may know narrower limits from the same nodes.
# Since version 6 not where no probe was random.
BAND_FIELDS = {
    "band_s": DIMENSIONS["band_s"],
    "band_lower": Field(
        ("band_s",), _MASS,
        "lower limit of the fraction of singular values <= band_s: truncation, random probes, residuals and rounding "
        "together; with band_upper it holds the true cdf at each band_s with the probability `confidence`",
        attributes={"confidence": BAND_CONFIDENCE},
    ),
    "band_upper": Field(
        ("band_s",), _MASS, "upper limit of the same fraction", attributes={"confidence": BAND_CONFIDENCE}
    ),
}  # fmt: skip

SPECTRUM_FIELDS = {
    OLD_QUADRATURE_ENCODINGS[0]: OLD_QUADRATURE_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS,
    OLD_QUADRATURE_ENCODINGS[1]: OLD_QUADRATURE_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS | BAND_FIELDS,
    **dict.fromkeys(UNCOUNTED_ENCODINGS, UNCOUNTED_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS | BAND_FIELDS),
    VALUES_ENCODING: VALUES_FIELDS | DERIVED_FIELDS,
    **dict.fromkeys(COUNTED_ENCODINGS, QUADRATURE_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS | BAND_FIELDS),
    **dict.fromkeys((OLD_CURVE_ENCODING, *CURVE_ENCODINGS), CURVE_FIELDS | EXTREME_FIELDS | DERIVED_FIELDS),
}
_OPTIONAL = (frozenset(EXTREME_FIELDS), frozenset({COUNTED}))
# Derived arrays that say nothing: 0 or the cdf itself where no probe was random, NaN of one input, plain logarithms.
UNRANDOM_FIELDS = frozenset({"moment_stderr_probes", "cdf_lower", "cdf_upper", *BAND_FIELDS})
OF_INPUTS = "moment_stderr_inputs"
LOGARITHMS = {"log10_moment": "moment", "log10_quantile": "quantile"}
_LEFT_OUT = (UNRANDOM_FIELDS, frozenset({OF_INPUTS}), *(frozenset({key}) for key in LOGARITHMS))
# What is a dataset however short it is, with named dimensions for xarray.
DATASETS = frozenset({"nodes", "weights", "log_values", "log_error", "log_s", "cdf", "density"})


def optional_fields(encoding: tuple[str, int]) -> tuple[frozenset[str], ...]:
    """Fields that may be missing in a group of this encoding, those of one set together."""
    return _OPTIONAL + (_LEFT_OUT if encoding == QUADRATURE_ENCODING else ())


def checked_name(name: object, what: str = "a spectrum") -> str:
    """The name, where it can name a group.

    Raises
    ------
    StoreError
        When it is not 1 to 200 printable characters, holds a slash or backslash, or begins or ends unseen.
    """
    if not isinstance(name, str) or not name:
        raise StoreError(
            f"{what} is stored under a name, and there is none: give name=..., text such as 'tanh, depth 100'."
        )
    allowed = name.isprintable() and not any(sign in name for sign in "/\\")
    if allowed and not name.startswith(".") and name == name.strip() and len(name.encode()) <= 200:
        return name
    cure = "".join("-" if sign in "/\\" else sign if sign.isprintable() else " " for sign in name)
    cure = cure.encode()[:200].decode(errors="ignore").strip(" ").lstrip(". ").strip()
    raise StoreError(
        f"{name!r} cannot be the name of {what} in a file: a name is up to 200 bytes of printable characters without "
        f"'/' and '\\', and neither begins with '.' nor begins or ends with a space. Try {cure or 'spectrum'!r}."
    )
