"""Who is blamed when workers die: engines that break on purpose, with no real work in them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.errors import IsometryWarning, SweepError
from isometry.sweeps import Point, coordinator, points_of
from isometry.sweeps.coordinator import run_all
from isometry.sweeps.work import Outcome
from isometry.sweeps.worker_process import WorkerDied

POINTS = points_of({"fixed": {"model": "mlp", "width": 4}, "seeds": 12})


class KilledWorker(Exception):
    """As Dask raises it, told by its name."""

    allowed_failures = 1


class Dies:
    """An engine whose workers die at some points.

    Parameters
    ----------
    killers : set of int
        Seeds of the points that kill their worker, each time.
    certain : bool
        Whether a death is reported of its own point alone, as by processes, or of the next one too, as Dask may suspect
        a bystander.
    """

    def __init__(self, killers: set[int], window: int, certain: bool) -> None:
        self.killers, self.window, self.certain = killers, window, certain
        self.pending: list[tuple[Future[Outcome], Point]] = []
        self.lock = threading.Lock()
        self.ran: Counter[int] = Counter()
        self.cause = ""

    def submit(self, function, point, folder):
        future: Future[Outcome] = Future()
        with self.lock:
            self.pending.append((future, point))
        threading.Timer(0.002, self.run).start()
        return future

    def run(self) -> None:
        with self.lock:
            pending, self.pending = self.pending, []
            self.end(pending)

    def end(self, pending) -> None:
        victims = 0
        for future, point in pending:
            seed = point.values["seed"]
            self.ran[seed] += 1
            if seed in self.killers:
                victims = 0 if self.certain else 2
                future.set_exception(WorkerDied("exit code 7") if self.certain else KilledWorker("gone"))
            elif victims > 1:
                victims = 0
                future.set_exception(KilledWorker("was beside it"))
            else:
                future.set_result(Outcome(worker="here"))

    def trouble(self) -> str:
        return self.cause

    def stop(self) -> None:
        pass


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 11), max_size=5), st.sampled_from([1, 3, 100]), st.booleans())
def test_every_point_has_one_outcome_and_only_killers_fail(killers, window, certain):
    engine, taken = Dies(killers, window, certain), {}

    def take(point, outcome):
        assert point.key not in taken
        taken[point.key] = outcome

    run_all(POINTS, engine, take, folder=".")
    assert len(taken) == len(POINTS)
    failed = {point.values["seed"] for point in POINTS if taken[point.key].failure is not None}
    assert failed == killers
    if certain:
        assert engine.ran == {seed: 3 if seed in killers else 1 for seed in range(12)}


def test_points_are_taken_one_by_one_when_there_is_room():
    made = []

    def points():
        for point in POINTS:
            made.append(point)
            yield point

    seen = []
    run_all(points(), Dies(set(), 3, True), lambda *_: seen.append(len(made)), folder=".")
    assert all(count <= done + 4 for done, count in enumerate(seen))


def test_a_silent_engine_says_why_once(monkeypatch):
    monkeypatch.setattr(coordinator, "_SILENCE", 0.02)

    class Silent(Dies):
        def run(self) -> None:
            time.sleep(0.2)
            super().run()

    engine = Silent(set(), 100, True)
    engine.cause = "there is no worker left"
    with pytest.warns(IsometryWarning, match="there is no worker left: the sweep waits") as said:
        run_all(POINTS[:2], engine, lambda *_: None, folder=".")
    assert len(said) == 1


def test_what_storing_raises_ends_the_work_and_nothing_goes_on():
    class Slow(Dies):
        def run(self) -> None:
            future, _ = self.pending[0]
            if not future.done():
                future.set_result(Outcome())

    engine = Slow(set(), 100, True)

    def full(point, outcome):
        raise SweepError("no room")

    with pytest.raises(SweepError, match="no room"):
        run_all(POINTS, engine, full, folder=".")
    assert all(future.done() for future, _ in engine.pending)
    assert sum(future.cancelled() for future, _ in engine.pending) == len(POINTS) - 1


def test_a_scheduler_that_is_gone_ends_the_sweep():
    class Gone(Dies):
        def run(self) -> None:
            for future, _ in self.pending:
                future.cancel()

    with pytest.raises(SweepError, match="its scheduler is gone"):
        run_all(POINTS[:2], Gone(set(), 100, True), lambda *_: None, folder=".")
