"""Block profiles in a file of spectra: a series with a row for each block, and the spectra of the running product.

The series is called "NAME blocks", after the spectrum NAME of the whole network; the spectra of products that end
inside it "NAME to BLOCK". What is stored last is the series: a profile that a reader finds is whole.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from isometry.errors import InputError, StoreError
from isometry.spectrum.block_profile import LEVELS, PER_BLOCK, BlockProfile, ResidualGain
from isometry.store.store import Store

_SUFFIX = " blocks"
_MEANING = {
    "block": "number of the block, counted from 1",
    "outputs": "outputs of the block, rows of its Jacobian",
    "inputs": "inputs of the block, columns of its Jacobian",
    "chi": "mean square singular value of the block's own Jacobian",
    "chi_stderr": "standard error of chi over random probes",
    "s_max": "largest singular value of the block's own Jacobian",
    "s_max_residual": "some singular value of the block lies within this of s_max",
    "log10_mean_square": "log10 of the mean square singular value of the product of all blocks so far",
    "log10_mean_square_stderr": "standard error of log10_mean_square over random probes, decades",
    "log10_gain": "log10 of the factor by which the block changes the mean square of the product",
    "log10_gain_stderr": "standard error of log10_gain over random probes, decades",
}


def series_name(name: str) -> str:
    """Name of the series that holds the profile of the network whose spectrum is called so."""
    return f"{name}{_SUFFIX}"


def add_profile(store: Store, profile: BlockProfile, *, overwrite: bool = False) -> str:
    """Store a profile beside the spectrum of its network; returns the name of its series.

    Raises
    ------
    StoreError
        When a name is taken or impossible, or the file cannot be written.
    """
    running = []
    for depth, spectrum in sorted(profile.running.items()):
        name = profile.name if depth == len(profile) else f"{profile.name} to {profile.blocks[depth - 1]}"
        if depth < len(profile):
            store.add(replace(spectrum, name=name), overwrite=overwrite)
        elif name not in store:
            # As a rule the spectrum of the whole is in the file already.
            store.add(replace(spectrum, name=name))
        running.append([depth, name])
    columns = {
        "block": np.arange(1, len(profile) + 1),
        "outputs": profile.shapes[:, 0],
        "inputs": profile.shapes[:, 1],
        **{key: getattr(profile, key) for key in PER_BLOCK},
        **{_quantile(level): profile.log10_quantiles[:, k] for k, level in enumerate(LEVELS)},
    }
    return store.add_series(
        series_name(profile.name),
        columns,
        {
            "profile_of": profile.name, "blocks": list(profile.blocks), "kinds": list(profile.kinds),
            "running": running, "verdict": profile.verdict(), "record": dict(profile.provenance),
            "residual_sums": [asdict(found) for found in profile.residual_sums],
        },
        units=dict.fromkeys(columns, "1"),
        descriptions={key: _MEANING.get(key, "log10 of a quantile of the block's singular values") for key in columns},
        overwrite=overwrite,
    )  # fmt: skip


def profile_names(store: Store) -> list[str]:
    """Names of the spectra whose networks have a profile in the file, in the order of their storing."""
    return [name.removesuffix(_SUFFIX) for name in store.series_names() if name.endswith(_SUFFIX)]


def read_profile(store: Store, name: str) -> BlockProfile:
    """The profile of the network whose spectrum is called ``name``.

    Raises
    ------
    StoreError
        When there is none, or it is damaged. Spectra of the running product that were removed are left out.
    """
    series = store.series(series_name(name))
    try:
        record = series.attributes
        known = set(store.names())
        return BlockProfile(
            blocks=tuple(map(str, record["blocks"])),
            kinds=tuple(map(str, record["kinds"])),
            shapes=np.stack([series["outputs"], series["inputs"]], axis=1),
            log10_quantiles=np.stack([series[_quantile(level)] for level in LEVELS], axis=1),
            running={int(depth): store[stored] for depth, stored in record["running"] if stored in known},
            # Profiles of the first version have none.
            residual_sums=tuple(ResidualGain(**found) for found in record.get("residual_sums", ())),
            name=name,
            provenance=record["record"],
            **{key: series[key] for key in PER_BLOCK},
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise StoreError(
            f"the series {series_name(name)!r} of {store.path} is no profile of blocks: {error}."
        ) from error


def _quantile(level: float) -> str:
    return f"log10_quantile_{level:g}"
