"""A process killed at any moment leaves a valid file with everything whose storing had returned."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from store_samples import assert_same, measured, predicted

from isometry.errors import StoreError
from isometry.store import journal, open_store
from isometry.store.journal import journal_path

WRITER = Path(__file__).parent / "writer_process.py"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it or cleans up after it."""


class Interrupter:
    """Ends the program, or fills the disk, at the n-th step of a commit; a step is a write of a piece, or a sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.left, self.error = at, error
        write, sync = journal._write_at, journal._sync

        def write_in_pieces(file, offset, data):
            # 512 bytes are what the code takes to be written whole; the long ends need not be cut as finely.
            piece = 512 if len(data) <= 512 else 4096
            for start in range(0, len(data), piece):
                self.step()
                write(file, offset + start, data[start : start + piece])

        def counted_sync(file):
            self.step()
            sync(file)

        monkeypatch.setattr(journal, "_write_at", write_in_pieces)
        monkeypatch.setattr(journal, "_sync", counted_sync)

    def step(self) -> None:
        if self.left == 0:
            raise self.error
        self.left -= 1


# Made once: what is reported of a spectrum is computed once for each object.
NEW, OTHER = measured(99, name="new"), replace(predicted(), name="s3")


def acts():
    """Every kind of change, as (label, function of a store)."""
    return [
        ("add", lambda store: store.add(NEW)),
        ("overwrite", lambda store: store.add(OTHER, overwrite=True)),
        ("remove", lambda store: store.remove("s8")),
        ("append", lambda store: store.append_series("curve", {"step": list(range(900))})),
    ]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Nine spectra: enough for HDF5 to keep the names in an index of several blocks."""
    path = tmp_path_factory.mktemp("kills") / "original.h5"
    store = open_store(path, "a")
    for seed in range(9):
        store.add(measured(seed), name=f"s{seed}")
    store.add_series("curve", {"step": list(range(300))})
    return path


@pytest.mark.parametrize(
    ("act", "stride"),
    [pytest.param(act, 6 if label == "overwrite" else 3, id=label) for label, act in acts()]
    + [pytest.param(act, 1, id=f"{label}, every step", marks=pytest.mark.slow) for label, act in acts()],
)
@pytest.mark.parametrize(
    "error", [Killed(), OSError(28, "No space left on device")], ids=["kill", "full disk"]
)
def test_stopping_at_any_step_leaves_the_file_as_before_or_as_after(act, stride, error, original, tmp_path):
    path = tmp_path / "a.h5"
    before = original.read_bytes()
    shutil.copyfile(original, path)
    act(open_store(path, "a"))
    after = path.read_bytes()
    outcomes = []
    for at in range(0, 10_000, stride):
        shutil.copyfile(original, path)
        store = open_store(path, "a")
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupter = Interrupter(monkeypatch, at, error)
            with contextlib.suppress(Killed, StoreError):
                act(store)
            if interrupter.left > 0:
                break  # this act has fewer steps: it went through
        store.names()  # whoever opens the file next finishes what is to be finished
        assert not journal_path(path).exists()
        found = path.read_bytes()
        if found != after:
            # Bytes beyond the old end that nothing points to may stay behind; nothing within may differ.
            assert found[: len(before)] == before, f"torn at step {at}"
        outcomes.append(found == after)
    # Once decided it stays decided, and both sides were really met.
    assert outcomes == sorted(outcomes)
    assert len(outcomes) > 4
    assert outcomes[0] is False
    assert outcomes[-1] is True
    # The next writer takes a file with such a rest at its end as it takes any other.
    path.write_bytes(before + b"\x55" * 5000)
    act(open_store(path, "a"))
    assert open_store(path).validate() == []


def test_without_the_journal_the_same_kills_would_tear_the_file(original, tmp_path):
    """The test above can fail: the file as it stands between two steps, before anybody finishes it."""
    path = tmp_path / "a.h5"
    for at in range(0, 10_000, 4):
        shutil.copyfile(original, path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupter = Interrupter(monkeypatch, at, Killed())
            with contextlib.suppress(Killed):
                dict(acts())["overwrite"](open_store(path, "a"))
            if interrupter.left > 0:
                break
        journal_path(path).unlink(missing_ok=True)
        try:
            problems = open_store(path).validate()
        except StoreError:
            problems = ["cannot be opened"]
        if problems:
            return
    pytest.fail(
        "no step leaves a torn file: then the journal is not needed, or the steps are not those of a kill"
    )


def test_a_kill_while_a_kill_is_made_good_loses_nothing(original, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copyfile(original, path)
    open_store(path, "a").add(NEW)
    after = path.read_bytes()
    for at in range(10_000):
        shutil.copyfile(original, path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(journal, "_apply", die)
            with pytest.raises(Killed):
                open_store(path, "a").add(NEW)
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupter = Interrupter(monkeypatch, at, Killed())
            with contextlib.suppress(Killed):
                open_store(path).names()
            if interrupter.left > 0:
                break
        assert "new" in open_store(path)
        assert path.read_bytes() == after
    assert at > 3


def die(*arguments: object) -> None:
    raise Killed


class Decided(NamedTuple):
    """A change that was decided and not put in place: the file, its journal, and the file as it must become."""

    path: Path
    file: bytes
    packed: bytes
    journal: journal.Journal
    after: bytes

    def recovered(self, file: bytes) -> bytes:
        """The file after the next opening, where a kill had left it with these bytes."""
        self.path.write_bytes(file)
        journal_path(self.path).write_bytes(self.packed)
        with open(self.path, "r+b", buffering=0) as raw:
            journal.recover(self.path, raw)
        assert not journal_path(self.path).exists()
        return self.path.read_bytes()


@pytest.fixture(params=[pytest.param(act, id=label) for label, act in acts()])
def decided(request, original, tmp_path) -> Decided:
    path = tmp_path / "a.h5"
    shutil.copyfile(original, path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(journal, "_apply", die)
        with pytest.raises(Killed):
            request.param(open_store(path, "a"))
    file, packed = path.read_bytes(), journal_path(path).read_bytes()
    made = journal._unpack(packed)
    assert made is not None
    open_store(path).names()
    return Decided(path, file, packed, made, path.read_bytes())


def test_a_kill_within_a_block_loses_nothing(decided):
    """After so many bytes of every block of a change, of four blocks in turn every number modulo 64: half is old."""
    file = bytearray(decided.file)
    for number, change in enumerate(decided.journal.changes):
        for count in range(number % 4, 64, 4):
            # Over the blocks each of the eight pieces of 64 bytes has its turn.
            count = min(count + 64 * ((number + count // 4) % 8), len(change.after))
            torn = bytearray(file)
            torn[change.offset : change.offset + count] = change.after[:count]
            assert decided.recovered(bytes(torn)) == decided.after, (number, count)
        file[change.offset : change.offset + len(change.after)] = change.after
    assert len(decided.journal.changes) > 3


def test_blocks_written_in_any_order_and_in_part_lose_nothing(decided):
    """After a power cut: the disk has some blocks, some in part, one with neither old bytes nor new."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        torn = bytearray(decided.file)
        for change in decided.journal.changes:
            first, last = sorted(generator.integers(0, len(change.after) + 1, 2))
            torn[change.offset + first : change.offset + last] = change.after[first:last]
        change = decided.journal.changes[generator.integers(len(decided.journal.changes))]
        torn[change.offset : change.offset + len(change.after)] = generator.bytes(len(change.after))
        # Cutting the file to its size may have come first.
        size = decided.journal.final_size if generator.random() < 0.5 else len(torn)
        assert decided.recovered(bytes(torn[:size])) == decided.after


def test_a_journal_cut_after_any_byte_is_forgotten(decided, original):
    """Nothing within the file was touched then; what was appended is beyond what anything points to."""
    before = original.read_bytes()
    for count in [*range(0, 200, 3), *range(200, len(decided.packed), 193), len(decided.packed) - 1]:
        cut = decided._replace(packed=decided.packed[:count])
        assert cut.recovered(decided.file)[: len(before)] == before, count


def test_a_change_cut_after_any_byte_of_what_is_appended_is_forgotten(decided, original):
    before = original.read_bytes()
    for size in range(len(before), len(decided.file), 997):
        decided.path.write_bytes(decided.file[:size])
        assert open_store(decided.path).names() == open_store(original).names()
    assert open_store(decided.path).validate() == []


def test_a_journal_of_version_1_is_still_replayed(decided):
    """It has the old bytes of each block before the new ones."""
    made = decided.journal
    parts = [journal._MAGIC_1, journal._HEADER.pack(made.extended_size, made.final_size, len(made.changes))]
    for change in made.changes:
        old = decided.file[change.offset : change.offset + len(change.after)]
        parts += [journal._ENTRY.pack(change.offset, len(old)), old, change.after]
    body = b"".join(parts)
    assert (
        decided._replace(packed=body + hashlib.sha256(body).digest()).recovered(decided.file) == decided.after
    )


def test_a_journal_of_another_file_is_not_applied(original, tmp_path):
    path = tmp_path / "a.h5"
    shutil.copyfile(original, path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(journal, "_apply", die)
        with pytest.raises(Killed):
            open_store(path, "a").add(NEW)
    assert journal_path(path).exists()
    # The file is exchanged for another one of the same name before anybody opens it.
    path.unlink()
    other = tmp_path / "other.h5"
    open_store(other, "a").add(predicted())
    os.replace(other, path)
    exchanged = path.read_bytes()
    assert open_store(path).names() == ["predicted"]
    assert path.read_bytes() == exchanged
    assert not journal_path(path).exists()


def start(path: Path, task: str, argument: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, WRITER, path, task, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(WRITER.parent)} | environment,
    )


def kill_at_random(path: Path, rounds: int, seed: int) -> int:
    """Kill ``rounds`` writers in turn; return how many spectra were known to be stored.

    Within the time in which the first one stores two or three; later ones, with more in the file, store fewer.
    """
    moments = random.Random(seed)
    promised: dict[str, int] = {}
    rows = 0
    open_store(path, "a")
    with start(path, "forker", "") as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        for number in range(rounds):
            forker.stdin.write(f"run{number}\n")
            forker.stdin.flush()
            process = None
            while process is None:  # the process may say its first name before its parent says its number
                word, _, value = forker.stdout.readline().partition(" ")
                if word == "process":
                    process = int(value)
                else:
                    promised[word.strip()] = int(word.rsplit("-", 1)[1])
            if number == 0:
                began = time.monotonic()
                promised[forker.stdout.readline().strip()] = 0
                pace = time.monotonic() - began
            time.sleep(moments.uniform(0.0, 2.5 * pace))
            os.kill(process, signal.SIGKILL)
            while (line := forker.stdout.readline().strip()) != "dead":
                promised[line] = int(line.rsplit("-", 1)[1])
            with h5py.File(path, "r") as file:  # any other program, before we open it
                assert file.attrs["format"] == "isometry-spectra"
            store = open_store(path)
            assert set(promised) <= set(store.names())
            if "curve" in store.series_names():
                rows, before = len(store.series("curve")), rows
                assert rows >= before
        forker.stdin.close()
    store = open_store(path)
    assert store.validate() == []
    for name, spectrum_seed in promised.items():
        assert_same(measured(spectrum_seed, name=name), store[name])
    assert not list(path.parent.glob(".*.new"))
    return len(promised)


def test_eight_writers_killed_at_random_lose_nothing(tmp_path):
    # Some must have been stored for this to mean anything.
    assert kill_at_random(tmp_path / "a.h5", 8, seed=0) > 2


@pytest.mark.slow
def test_a_hundred_writers_killed_at_random_lose_nothing(tmp_path):
    assert kill_at_random(tmp_path / "a.h5", 100, seed=1) > 10


def test_writers_in_competition_lose_nothing(tmp_path):
    """Whether or not HDF5's own locks are switched off, as on many clusters; the file is not even there at first."""
    path = tmp_path / "a.h5"
    switches = ("TRUE", "FALSE", "BEST_EFFORT")
    writers = [start(path, "some", f"with-{switch}", HDF5_USE_FILE_LOCKING=switch) for switch in switches]
    said = [writer.communicate()[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    store = open_store(path)
    assert sorted(name for names in said for name in names) == sorted(store.names())
    assert len(store) == 15
    assert store.validate() == []


def test_threads_share_a_store(tmp_path):
    store = open_store(tmp_path / "a.h5", "a")

    def work(label: str) -> None:
        for number in range(4):
            store.add(measured(number), name=f"{label}-{number}")
            assert_same(measured(number, name=f"{label}-{number}"), store[f"{label}-{number}"])

    threads = [threading.Thread(target=work, args=(label,)) for label in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 12
    assert store.validate() == []


def test_a_writer_waits_for_the_lock_and_says_so_when_it_gives_up(tmp_path):
    path = tmp_path / "a.h5"
    open_store(path, "a")
    with start(path, "hold", "") as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreError, match=r"in use for 0\.2 s.*there is no lock file to delete"):
            open_store(path, "a", timeout=0.2)
        # Killed while it holds the lock: it blocks nobody any longer.
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert open_store(path, "a", timeout=5).add(measured()) == "measured"


def test_a_reader_with_another_tool_delays_a_writer_and_no_more(tmp_path):
    store = open_store(tmp_path / "a.h5", "a", timeout=0.1)
    store.add(measured())
    with h5py.File(store.path, "r"):
        assert store.names() == ["measured"]
        if os.environ.get("HDF5_USE_FILE_LOCKING", "TRUE").upper() in ("TRUE", "1", "BEST_EFFORT"):
            with pytest.raises(StoreError, match=r"h5py\.File still open"):
                store.add(predicted())
    store.add(predicted())
    assert store.names() == ["measured", "predicted"]
