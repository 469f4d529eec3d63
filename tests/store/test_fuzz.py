"""Files whose bytes were changed: the reader refuses them or reads what was stored, and nothing else ever comes out.

Each mutated file is read in a process of its own (reader_process.py), so that a crash or a hang of HDF5 would be seen
as one, and not end the tests.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reader_process import SERIES
from store_samples import measured, predicted

from isometry.store import open_store

READER = Path(__file__).with_name("reader_process.py")
# A sound file takes some hundredths of a second; what takes this long does not end.
PATIENCE = 30.0


class Watched:
    """The reading process, started anew where it died."""

    def __init__(self, reference: Path) -> None:
        self.reference = reference
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(READER), str(self.reference)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, path: Path) -> str:
        """What came of reading the file: "same", "refused: ...", "wrong: ...", "raised: ...", "hang" or "crash"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return line.rstrip("\n")
        self.stop()
        word = f"crash: exit code {self.process.returncode}" if ready else "hang"
        self.process = self._start()
        return word

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "sample.h5"
    store = open_store(path, "a")
    store.add(measured())
    store.add(predicted())
    columns = {"step": np.arange(5), "loss": np.linspace(-1, 1, 5), "right": np.arange(5) % 2 == 0}
    store.add_series(
        SERIES,
        columns,
        {"note": "a text", "rate": 0.5, "options": [1, None]},
        units={"loss": "nats per digit"},
    )
    store.append_series(SERIES, {key: values[:2] for key, values in columns.items()})
    return path


@pytest.fixture(scope="module")
def read(sample: Path) -> Iterator[Callable[[bytes], str]]:
    """Read these bytes as a file, in the watched process."""
    watched = Watched(sample)
    path = sample.with_name("mutated.h5")

    def outcome(content: bytes) -> str:
        path.write_bytes(content)
        return watched.read(path)

    yield outcome
    watched.stop()


def judge(outcome: str) -> None:
    """An IsometryError or a correct spectrum."""
    assert outcome == "same" or outcome.startswith("refused: "), outcome


# A place as a fraction of the file, so that an example shrinks and repeats whatever the file's length.
PLACE = st.floats(0, 1, exclude_max=True)
# ISOMETRY_FUZZ=2000 tries that many of each kind, other ones every time.
MANY = settings(
    max_examples=10 if "ISOMETRY_FUZZ" not in os.environ else int(os.environ["ISOMETRY_FUZZ"]),
    deadline=None,
    derandomize="ISOMETRY_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_the_sound_file_reads_as_itself(sample: Path, read: Callable[[bytes], str]) -> None:
    assert read(sample.read_bytes()) == "same"


@MANY
@given(PLACE, st.integers(0, 7))
def test_a_flipped_bit(sample: Path, read: Callable[[bytes], str], place: float, bit: int) -> None:
    content = bytearray(sample.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    judge(read(bytes(content)))


@MANY
@given(PLACE, st.binary(min_size=1, max_size=64))
def test_an_overwritten_range(sample: Path, read: Callable[[bytes], str], place: float, new: bytes) -> None:
    content = sample.read_bytes()
    start = int(place * len(content))
    judge(read((content[:start] + new + content[start + len(new) :])[: len(content)]))


@MANY
@given(PLACE, st.integers(1, 4096))
def test_a_zeroed_range(sample: Path, read: Callable[[bytes], str], place: float, length: int) -> None:
    content = bytearray(sample.read_bytes())
    start = int(place * len(content))
    content[start : start + length] = bytes(len(content[start : start + length]))
    judge(read(bytes(content)))


@MANY
@given(PLACE)
@example(0.0)
def test_a_truncated_file(sample: Path, read: Callable[[bytes], str], place: float) -> None:
    content = sample.read_bytes()
    judge(read(content[: int(place * len(content))]))


@MANY
@given(PLACE, PLACE, st.integers(1, 256))
def test_a_piece_in_the_place_of_another(
    sample: Path, read: Callable[[bytes], str], source: float, target: float, length: int
) -> None:
    content = bytearray(sample.read_bytes())
    first, second = int(source * len(content)), int(target * len(content))
    piece = content[first : first + length]
    piece = piece[: len(content) - second]
    content[second : second + len(piece)] = piece
    judge(read(bytes(content)))


def test_every_text_and_number_of_an_attribute_is_watched(sample: Path, read: Callable[[bytes], str]) -> None:
    """Bytes that nothing but the digest holds: each changed alone makes the spectrum unreadable, not different."""
    content = sample.read_bytes()
    for text in (
        b"VanillaCNN(depth=4)",
        b"(1, 8, 8) float64",
        b"2026-01-02T03:04:05",
        b"lanczos",
        b"a text",
        b"nats per digit",
    ):
        place = content.find(text)
        assert place > 0, text
        changed = bytearray(content)
        changed[place] ^= 1
        assert read(bytes(changed)).startswith("refused: "), text


def test_a_heap_of_texts_without_an_end_is_an_error_and_no_hang(
    sample: Path, read: Callable[[bytes], str]
) -> None:
    """HDF5 2.0 goes round a global heap collection for ever whose entries were zeroed."""
    content = sample.read_bytes()
    place = content.find(b"GCOL")
    found = 0
    while place >= 0:
        changed = bytearray(content)
        changed[place + 16 : place + 512] = bytes(496)
        judge(read(bytes(changed)))
        found += 1
        place = content.find(b"GCOL", place + 1)
    assert found >= 2
