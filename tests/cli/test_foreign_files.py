"""Weights, inputs, data, checkpoints and grids made by hand: every reader ends in an error of ours, and none waits."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isometry.errors import InputError, IsometryError, LoadError, SpecError, StoreError
from isometry.loading.inputs import load_input
from isometry.loading.models import LoadedModel, load_model
from isometry.loading.weights import load_weights
from isometry.sweeps.configuration import point_of
from isometry.sweeps.grid import points_of
from isometry.training import load_dataset
from isometry.training.checkpoint import load_checkpoint, save_checkpoint
from isometry.training.data import read_idx
from isometry.training.loop import _batches


def model() -> LoadedModel:
    return LoadedModel(nn.Linear(3, 2), "by hand", "by hand", (3,))


def state(**changes: Any) -> dict[str, Any]:
    return {**nn.Linear(3, 2).state_dict(), **changes}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (state(weight=torch.ones(2, 3).to_sparse()), "of layout sparse_coo, not dense"),
        (state(weight=torch.ones(2, 3).to_sparse_csr()), "of layout sparse_csr, not dense"),
        (state(weight=torch.empty(2, 3, device="meta")), "without numbers, on the device 'meta'"),
        (state(weight=torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)), "of quantized numbers"),
        (state(weight=torch.ones(3)), "do not fit the model"),
        (state(weight=torch.ones(2, 3, dtype=torch.complex64)), "weight is complex in the file and real"),
        ({1: torch.ones(2, 3)}, "holds no state dictionary"),
        ({"state_dict": {"state_dict": {}}}, "holds no state dictionary"),
        ([1, 2], "holds no state dictionary"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize")
def test_weights_that_are_no_dense_numbers(found, words, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(found, path)
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(LoadError, match=words):
        load_weights(module, path)
    assert module.weight.equal(before)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 1, 0, torch.qint8),
    ],
)
def test_an_input_that_is_no_dense_numbers(tensor, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(tensor, path)
    with pytest.raises(LoadError, match=r"holds a tensor (of|without)"):
        load_input(str(path), model(), count=None, seed=0)


def npy(shape: str, dtype: str = "'<f8'", data: bytes = b"") -> bytes:
    """A NumPy file that declares this shape."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


def zipped(content: bytes, name: str = "x.npy") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


BROKEN = {
    "8 TB": npy("(1000000, 1000000)"),
    "more than an address": npy("(4294967296, 4294967296, 4294967296)"),
    "negative": npy("(-1, 3)"),
    "deep": npy("(" * 60 + ")" * 60),
    "not a shape": npy("'three'"),
    "objects": npy("(3,)", "'|O'", b"\x80\x04N."),
    "nothing": b"",
    "cut": npy("(3,)")[:20],
    "short": npy("(3,)", data=bytes(20)),
    "long double": npy("(3,)", f"'{np.dtype('g').str}'", bytes(3 * np.dtype("g").itemsize)),
    "noise": b"\x93NUMPY" + bytes(range(256)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_array_is_an_error_of_ours(content, tmp_path):
    for suffix, made in ((".npy", content), (".npz", content), (".npz", zipped(content)), (".pt", content)):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(made)
        with pytest.raises(LoadError):
            load_input(str(path), model(), count=None, seed=0)
    (tmp_path / "data.npz").write_bytes(zipped(content))
    with pytest.raises(InputError):
        load_dataset(str(tmp_path / "data.npz"))
    with pytest.raises(LoadError):
        load_weights(nn.Linear(3, 2), tmp_path / "x.pt")


def flipped(content: bytes, count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        changed = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 8)):
            changed[place] = generator.integers(256)
        found.append(bytes(changed))
    return found


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except IsometryError:
        return "refused"
    return "read"


@pytest.mark.filterwarnings("ignore")
def test_bytes_changed_in_weights_inputs_and_checkpoints_raise_nothing_else(tmp_path):
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    plan = {"options": {"schedule": "constant", "steps": 3}}
    saved = tmp_path / "a.pt"
    made = []
    torch.save(module.state_dict(), saved)
    made += [(content, lambda: load_weights(module, saved)) for content in flipped(saved.read_bytes(), 100)]
    torch.save(torch.ones(3), saved)
    read = lambda: load_input(str(saved), model(), count=None, seed=0)  # noqa: E731
    made += [(content, read) for content in flipped(saved.read_bytes(), 100)]
    save_checkpoint(saved, module, optimizer, plan, 1, {"loss": [1.0]})
    resume = lambda: load_checkpoint(saved, module, optimizer, plan)  # noqa: E731
    made += [(content, resume) for content in flipped(saved.read_bytes(), 100)]
    seen = set()
    for content, act in made:
        saved.write_bytes(content)
        seen.add(outcome(act))
    assert "refused" in seen


@pytest.mark.parametrize("found", [[], 7, {"version": 1}, {"version": 1, "plan": "[" * 5000},
                                   {"version": 1, "plan": "7"}, {"version": "new", "plan": "{}"},
                                   {"version": float("inf"), "plan": "{}"}])  # fmt: skip
def test_a_checkpoint_of_another_kind(found, tmp_path):
    torch.save(found, tmp_path / "a.pt")
    module = nn.Linear(3, 2)
    with pytest.raises(StoreError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "a.pt", module, torch.optim.SGD(module.parameters()), {"options": {}})


def squeezed(path: Path) -> None:
    """Compress the entries of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("kind", ["weights", "tensor", "array", "data", "idx", "checkpoint"])
def test_what_would_unpack_to_far_more_than_it_takes_is_refused_before(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("isometry.training.archives._PLENTY", 2**16)
    module, zeros = nn.Linear(3, 2), np.zeros(2**20, "u1")
    path = tmp_path / {"array": "a.npz", "data": "a.npz", "idx": "a.gz"}.get(kind, "a.pt")
    if kind == "idx":
        path.write_bytes(gzip.compress(zeros.tobytes()))
    elif path.suffix == ".npz":
        np.savez_compressed(path, **({"x": zeros, "y": zeros} if kind == "data" else {"x": zeros}))
    else:
        torch.save(torch.from_numpy(zeros), path)
        squeezed(path)
    act: Callable[[], object] = {
        "weights": lambda: load_weights(module, path),
        "data": lambda: load_dataset(str(path)),
        "idx": lambda: read_idx(path),
        "checkpoint": lambda: load_checkpoint(path, module, torch.optim.SGD(module.parameters()), {}),
    }.get(kind, lambda: load_input(str(path), model(), count=None, seed=0))
    with pytest.raises(IsometryError, match="would unpack to"):
        act()


def test_one_number_that_stands_for_terabytes_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "x.pt")
    with pytest.raises(LoadError, match=r"of 1,000,000,000,000 numbers, for which the file holds 4 bytes"):
        load_input(str(tmp_path / "x.pt"), model(), count=None, seed=0)


@pytest.mark.timeout(20)
def test_no_reader_waits_for_a_pipe(tmp_path):
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters())
    for name in ("a.pt", "a.npy", "a.npz"):
        os.mkfifo(tmp_path / name)
    acts: list[Callable[[], object]] = [
        lambda: load_weights(module, tmp_path / "a.pt"),
        lambda: load_input(str(tmp_path / "a.pt"), model(), count=None, seed=0),
        lambda: load_input(str(tmp_path / "a.npy"), model(), count=None, seed=0),
        lambda: load_dataset(str(tmp_path / "a.npz")),
        lambda: load_checkpoint(tmp_path / "a.pt", module, optimizer, {}),
        lambda: point_of({"model": "mlp", "weights": str(tmp_path / "a.pt")}),
        lambda: point_of({"model": "mlp", "input": str(tmp_path / "a.npy")}),
    ]
    for act in acts:
        with pytest.raises(IsometryError):
            act()


@pytest.mark.parametrize(
    "spec",
    ["99999x99999x99999", "9" * 15, "9" * 400, "9" * 5000, "9" * 5000 + ".npy", "x".join(["9" * 15] * 50)],
)
def test_an_input_that_no_memory_holds(spec):
    with pytest.raises(SpecError):
        load_input(spec, model(), count=None, seed=0)


@pytest.mark.parametrize("label", [2**40, 2**63])
def test_a_label_that_counts_no_classes(label, tmp_path):
    labels = np.array([0, 1, 2, label], "u8")
    np.savez(
        tmp_path / "a.npz",
        x=np.random.default_rng(0).random((4, 2, 2)),
        y=labels,
        x_test=np.eye(2)[None],
        y_test=[0],
    )
    with pytest.raises(InputError, match=f"has the label {label}"):
        load_dataset(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "names", [{"model": "a\0b.py:net", "input": "3"}, {"model": "mlp", "weights": "a\0b.pt"}]
)
def test_a_path_with_a_zero_names_no_file(names):
    with pytest.raises(SpecError, match="which can not be read: embedded null byte"):
        point_of(names)


@pytest.mark.parametrize(
    "text",
    ["axes = " + "[" * 100_000, "a = " + "{a=" * 5000, "a." * 5000 + "a = 1", "seeds = " + "9" * 5000,
     "\0", "[axes]\ndepth = [inf, nan]", "[axes]\ndepth = [[[1]]]"],
    ids=["deep list", "deep table", "deep key", "long number", "zero", "infinity", "lists"],
)  # fmt: skip
def test_a_grid_that_no_reader_can_take(text, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(SpecError):
        points_of(path)


@pytest.mark.parametrize("seed", [2**64, 2**70, 10**30])
def test_a_seed_of_more_than_64_bits_is_refused_by_name(seed, tmp_path):
    (tmp_path / "net.py").write_text("import torch\n\n\ndef make():\n    return torch.nn.Linear(3, 2)\n")
    for act in (
        lambda: load_model(f"mlp:depth=1,width=2,seed={seed}"),
        lambda: load_model(f"{tmp_path / 'net.py'}:make", seed=seed),
    ):
        with pytest.raises(InputError, match=r"seed.*2\^64"):
            act()
    assert load_model(f"mlp:depth=1,width=2,seed={2**64 - 1}")


def test_any_seed_of_a_training_run_gives_an_order():
    for seed in (0, 2**60, 2**64, 10**30):
        assert sorted(next(_batches(5, 5, seed, 0)).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link"])
def test_what_stands_in_the_place_of_the_lock_of_a_sweep_is_left_alone(kind, tmp_path):
    from isometry.sweeps.ledger import coordinating

    (tmp_path / "secret").write_text("secret")
    beside = tmp_path / ".a.h5.sweep"
    if kind == "pipe":
        os.mkfifo(beside)
    else:
        beside.symlink_to(tmp_path / ("secret" if kind == "link" else "absent"))
    with (
        pytest.raises(StoreError, match=r"\.a\.h5\.sweep|no lock can be made"),
        coordinating(Path(tmp_path / "a.h5")),
    ):
        pass
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (tmp_path / "absent").exists()
