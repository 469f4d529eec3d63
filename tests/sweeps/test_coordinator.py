"""Who is blamed when workers die: engines that break on purpose, with no real work in them."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.errors import SweepError
from isometry.sweeps import Point, points_of
from isometry.sweeps.coordinator import run_all
from isometry.sweeps.work import Outcome

POINTS = points_of({"fixed": {"model": "mlp", "width": 4}, "seeds": 12})


class KilledWorker(Exception):
    """As Dask raises it, told by its name."""


class Dies:
    """An engine whose workers die at some points.

    Parameters
    ----------
    killers : set of int
        Seeds of the points that kill their worker, each time.
    as_pool : bool
        Whether one death takes everything under way with it, as in a pool of processes, or only its point and the next
        one, as Dask may suspect a bystander.
    """

    def __init__(self, killers: set[int], window: int | None, as_pool: bool) -> None:
        self.killers, self.window, self.as_pool = killers, window, as_pool
        self.pending: list[tuple[Future[Outcome], Point]] = []
        self.broken = False
        self.restarted = 0
        self.lock = threading.Lock()

    def submit(self, function, point, folder):
        if self.broken:
            raise BrokenProcessPool("broken before")
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
            if self.broken:
                future.set_exception(BrokenProcessPool("gone"))
                continue
            if seed in self.killers:
                self.broken = self.as_pool
                victims = 0 if self.as_pool else 2
                future.set_exception(BrokenProcessPool("gone") if self.as_pool else KilledWorker("gone"))
            elif victims > 1:
                victims = 0
                future.set_exception(KilledWorker("was beside it"))
            else:
                future.set_result(Outcome(worker="here"))

    def restart(self) -> None:
        self.broken = False
        self.restarted += 1

    def stop(self) -> None:
        pass


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 11), max_size=5), st.sampled_from([1, 3, None]), st.booleans())
def test_every_point_has_one_outcome_and_only_killers_fail(killers, window, as_pool):
    engine, taken = Dies(killers, window, as_pool), {}

    def take(point, outcome):
        assert point.key not in taken
        taken[point.key] = outcome

    run_all(POINTS, engine, take, folder=".")
    assert len(taken) == len(POINTS)
    failed = {point.values["seed"] for point in POINTS if taken[point.key].failure is not None}
    assert failed == killers
    assert bool(engine.restarted) == bool(killers)


def test_what_storing_raises_ends_the_work_and_nothing_goes_on():
    class Slow(Dies):
        def run(self) -> None:
            future, _ = self.pending[0]
            if not future.done():
                future.set_result(Outcome())

    engine = Slow(set(), None, True)

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
        run_all(POINTS[:2], Gone(set(), None, True), lambda *_: None, folder=".")
