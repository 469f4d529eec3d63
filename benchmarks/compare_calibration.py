"""What can `isometry.compare` tell? False alarms on right networks, and power over wrong laws.

Claims: of networks compared with their own law 3 to 7 % are told apart from it, over dense and convolutional
networks, Gaussian and orthogonal weights, depths 4 to 64, widths 16 to 1,000, measured exactly or by random probes; and
at width 200 and depth 16 the table of wrong laws (sigma_w off by 3 %, erf or hard-tanh for tanh, a quarter more layers,
twice the q*) says which are told, beside the power that `compare` itself reports. Networks are those of `isometry.nn`.
A case that the result file holds is not run again.

    python benchmarks/compare_calibration.py       # 20 cases of 20 networks, 4 of 16 by probes, 4 x 6 wrong laws of 20
    python benchmarks/compare_calibration.py --draws 4 --quick    # small widths only
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import isometry
from isometry.nn import MLP, VanillaCNN

RESULTS = Path(__file__).parent / "results" / "compare_calibration.json"
LEVEL = 0.05

# (activation, weights, q*, depth, width or channels, side of the map or 0)
RIGHT = (
    ("tanh", "gaussian", 0.5, 4, 60, 0),
    ("tanh", "gaussian", 0.5, 16, 200, 0),
    ("tanh", "gaussian", 0.05, 64, 200, 0),
    ("tanh", "gaussian", 0.5, 4, 1000, 0),
    ("tanh", "orthogonal", 0.1, 4, 60, 0),
    ("tanh", "orthogonal", 0.1, 16, 200, 0),
    ("tanh", "orthogonal", 0.1, 64, 400, 0),
    ("tanh", "orthogonal", 0.5, 4, 1000, 0),
    ("relu", "gaussian", 1.0, 4, 60, 0),
    ("relu", "gaussian", 1.0, 16, 128, 0),
    ("relu", "gaussian", 1.0, 64, 300, 0),
    ("relu", "orthogonal", 1.0, 8, 200, 0),
    ("hard_tanh", "orthogonal", 0.3, 16, 200, 0),
    ("hard_tanh", "gaussian", 0.3, 16, 500, 0),
    ("erf_scaled", "orthogonal", 0.3, 32, 300, 0),
    ("tanh", "orthogonal", 0.2, 4, 16, 8),
    ("tanh", "orthogonal", 0.05, 16, 32, 4),
    ("tanh", "orthogonal", 0.05, 64, 60, 4),
    ("tanh", "gaussian", 0.2, 4, 16, 4),
    ("tanh", "gaussian", 0.2, 16, 16, 4),
)
# The same, measured with so many probes and steps.
PROBED = (
    ("tanh", "gaussian", 0.5, 8, 200, 0),
    ("tanh", "orthogonal", 0.1, 16, 200, 0),
    ("relu", "orthogonal", 1.0, 8, 200, 0),
    ("tanh", "orthogonal", 0.2, 8, 16, 4),
)
PROBES, STEPS = 8, 16
# Depth 16, width 200.
NETWORKS = (("gaussian", 0.5), ("gaussian", 0.05), ("orthogonal", 0.5), ("orthogonal", 0.05))
WRONG = ("right", "sigma_w +3 %", "sigma_w -3 %", "erf", "hard_tanh", "depth +25 %", "q* x 2")
WIDTH, DEPTH = 200, 16


def critical(activation: str, depth: int, weights: str, q_star: float) -> isometry.Ensemble:
    """The critical ensemble at q*."""
    point = isometry.critical_point(activation, q_star=q_star)
    return isometry.Ensemble(
        activation, depth, weights=weights, sigma_w=point.sigma_w, sigma_b=point.sigma_b, q_star=q_star
    )


def measured(
    ensemble: isometry.Ensemble, width: int, side: int, seed: int, *, probed: bool = False
) -> isometry.Spectrum:
    """A network of the ensemble, measured at a Gaussian input of the stationary mean square."""
    init = ensemble.weights if not side or ensemble.weights == "gaussian" else "delta_orthogonal"
    kind = VanillaCNN if side else MLP
    model = kind(
        ensemble.depth, width, ensemble.activation_name, init, sigma_w=ensemble.sigma_w, sigma_b=ensemble.sigma_b,
        seed=seed, dtype=torch.float64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(10_000 + seed)
    x = torch.randn(width, *([side, side] if side else []), generator=generator, dtype=torch.float64)
    mean_square = (ensemble.q_star - ensemble.sigma_b**2) / ensemble.sigma_w**2
    x *= math.sqrt(mean_square / float(x.square().mean()))
    if probed:
        return isometry.measure(model, x, "lanczos", probes=PROBES, steps=STEPS, seed=seed, progress=False)
    return isometry.measure(model, x, "exact", progress=False)


def wrong_law(name: str, ensemble: isometry.Ensemble) -> isometry.Ensemble:
    """Another ensemble, given the same input where it has a stationary one of its own no more."""
    q = ensemble.q_star
    if name.startswith("sigma_w"):
        factor = 1.03 if "+" in name else 0.97
        bias = ensemble.sigma_b**2
        q0 = factor**2 * (q - bias) + bias
        return replace(ensemble, sigma_w=factor * ensemble.sigma_w, q_star=None, q0=q0)
    other = {
        "right": ensemble,
        "erf": critical("erf_scaled", DEPTH, ensemble.weights, q),
        "hard_tanh": critical("hard_tanh", DEPTH, ensemble.weights, q),
        "depth +25 %": critical("tanh", DEPTH * 5 // 4, ensemble.weights, q),
        "q* x 2": critical("tanh", DEPTH, ensemble.weights, 2 * q),
    }[name]
    return replace(other, q0=other.q_star)


def ks_of_laws(one: isometry.Spectrum, two: isometry.Spectrum) -> dict[str, float]:
    """KS distance of two laws in shape, and the difference of ln m_1."""
    found = isometry.compare(one, two, width=math.inf)
    return {"ks_shape": found.shape.ks, "log_mean_square": found.raw.log_moment_ratios[0]}


def row_of(comparison: isometry.Comparison) -> dict[str, Any]:
    """The numbers of one comparison that the tables need."""
    p = comparison.p
    found = {"distance": p.distance, "mean_square": p.mean_square, "edges": p.edges, "joint": p.joint,
             "smallest": p.smallest}  # fmt: skip
    # nan is no JSON.
    rounded = {name: None if math.isnan(value) else float(f"{value:.4g}") for name, value in found.items()}
    return {**rounded, "agrees": comparison.agrees}


def alarms(results: dict[str, Any], draws: int, quick: bool, *, probed: bool) -> None:
    """Right networks: how often each p-value is below the level."""
    table = results.setdefault("probed" if probed else "right", {})
    for case in PROBED if probed else RIGHT:
        activation, weights, q_star, depth, width, side = case
        key = f"{activation} {weights} q* {q_star:g} depth {depth} {'channels' if side else 'width'} {width}"
        key += f" map {side}x{side}" if side else ""
        if (quick and width > 128) or len(table.get(key, {}).get("rows", [])) >= draws:
            continue
        began = time.process_time()
        ensemble = critical(activation, depth, weights, q_star)
        law, rows, source = None, [], ""
        for seed in range(draws):
            spectrum = measured(ensemble, width, side, seed, probed=probed)
            if law is None:
                law = isometry.predict(spectrum.provenance["ensemble"])
            found = isometry.compare(spectrum, law, width=width)
            rows.append(row_of(found))
            source = found.expected_fluctuation.source
        table[key] = {"rows": rows, "chance": source, "seconds": time.process_time() - began}
        save(results)
        print(f"{key}: {share_told(rows):.0%} told ({source}), {table[key]['seconds']:.0f} s", flush=True)


def share_told(rows: list[dict[str, Any]], name: str = "smallest") -> float:
    """Share of rows whose p-value of this name is below the level; nan for none."""
    known = [row[name] for row in rows if row[name] is not None]
    return sum(p < LEVEL for p in known) / len(known) if known else math.nan


def power(results: dict[str, Any], draws: int) -> None:
    """Networks of width 200 and depth 16 against wrong laws."""
    for weights, q_star in NETWORKS:
        name = f"tanh {weights} q* {q_star:g}"
        if len(results.setdefault("wrong", {}).get(name, {}).get("right", {}).get("rows", [])) >= draws:
            continue
        ensemble = critical("tanh", DEPTH, weights, q_star)
        spectra = [measured(ensemble, WIDTH, 0, 500 + seed) for seed in range(draws)]
        right = isometry.predict(wrong_law("right", ensemble))
        found: dict[str, Any] = {}
        for kind in WRONG:
            law = isometry.predict(wrong_law(kind, ensemble))
            rows = [row_of(isometry.compare(spectrum, law, width=WIDTH)) for spectrum in spectra]
            found[kind] = {"rows": rows, **ks_of_laws(right, law)}
            print(f"{name} against {kind}: {share_told(rows):.0%} told", flush=True)
        against = isometry.compare(spectra[0], right, width=WIDTH)
        found["right"] |= {"power": against.power, "differences": against.differences}
        results["wrong"][name] = found
        save(results)


def save(results: dict[str, Any]) -> None:
    """Write the results, whole."""
    text = json.dumps(results, indent=1)
    RESULTS.with_suffix(".new").write_text(text + "\n")
    RESULTS.with_suffix(".new").replace(RESULTS)


def report(results: dict[str, Any]) -> None:
    """The tables."""
    for kind in ("right", "probed"):
        cases = results.get(kind, {})
        rows = [row for case in cases.values() for row in case["rows"]]
        how = f" by {PROBES} probes" if kind == "probed" else ""
        print(f"\n{len(rows)} right networks of {len(cases)} ensembles{how}: share with p < {LEVEL}")
        for name in ("distance", "mean_square", "edges", "joint", "smallest"):
            print(f"  {name:12s} {share_told(rows, name):.1%}")
    print(f"\nwidth {WIDTH}, depth {DEPTH}: wrong laws told, and the power that compare reports")
    print(
        "(KS of the two laws in shape; ln of their m_1; what differs most, in standard deviations of one network)"
    )
    for name, found in results.get("wrong", {}).items():
        for kind, entry in found.items():
            other = "erf_scaled" if kind == "erf" else kind
            power = found["right"]["power"].get(other, math.nan)
            number, deviations = found["right"]["differences"].get(other, ("", math.nan))
            laws = f"{entry['ks_shape']:.4f}  {entry['log_mean_square']:+.3f}  {number} {deviations:.1f}"
            told = share_told(entry["rows"])
            print(f"  {name:24s} {kind:14s} {told:4.0%}  ({power:4.0%})  {laws}")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="widths up to 128 only, no wrong laws")
    parser.add_argument(
        "--report", action="store_true", help="print the tables of the result file, run nothing"
    )
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.report:
        if not options.quick:
            power(results, options.draws)
        for probed in (False, True):
            alarms(results, min(options.draws, 16) if probed else options.draws, options.quick, probed=probed)
    report(results)


if __name__ == "__main__":
    main()
