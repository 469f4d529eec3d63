"""Submit points and collect their outcomes; a point that kills its worker fails, and no other point is lost. Internal.

The deaths of workers are counted for each point, which fails after the third; until then it runs again after all
others. Processes started here, or beside a worker of Dask, tell which point they ran. Where a worker of Dask dies, Dask
reports that for each point that was on it, after it has tried the point on several. These points are suspects, and are
run one at a time when every other point is done; one that runs alone when a worker dies is the cause.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Future
from queue import Empty, SimpleQueue

from isometry.errors import IsometryWarning, SweepError, warn_caller
from isometry.sweeps.configuration import Point
from isometry.sweeps.engines import Engine
from isometry.sweeps.work import Failure, Outcome, failure_of, run_point
from isometry.sweeps.worker_process import TookTooLong, WorkerDied

# Deaths of workers after which the point that they ran has failed.
DEATHS = 3
# Seconds without an outcome after which the engine is asked for a reason.
_SILENCE = 15.0


def run_all(
    points: Iterable[Point], engine: Engine, take: Callable[[Point, Outcome], None], *, folder: str
) -> None:
    """Run every point and pass its outcome to ``take``, in the order in which points finish.

    Parameters
    ----------
    points : iterable of Point
        Taken one by one when there is room for them.
    engine : Engine
    take : callable
        Called in this thread with a point and its outcome. An exception of its own ends the run.
    folder : str
        Where relative paths begin.

    Raises
    ------
    SweepError
        When the engine is lost.
    """
    _Run(points, engine, take, folder).run()


class _Run:
    """The state of `run_all`."""

    def __init__(
        self, points: Iterable[Point], engine: Engine, take: Callable[[Point, Outcome], None], folder: str
    ) -> None:
        self.engine, self.take, self.folder = engine, take, folder
        self.fresh = iter(points)
        self.again: deque[Point] = deque()
        self.suspects: deque[Point] = deque()
        self.deaths: Counter[str] = Counter()
        self.flying: dict[Future[Outcome], Point] = {}
        self.ended: SimpleQueue[Future[Outcome]] = SimpleQueue()

    def run(self) -> None:
        # Whether a suspect ran alone already.
        tried_alone = False
        try:
            while True:
                self.launch()
                alone = not self.flying
                if alone:
                    if not self.suspects:
                        return
                    point = self.suspects.popleft()
                    if not (self.suspects or tried_alone) and self.deaths[point.key] >= DEATHS:
                        # A point beside the cause dies no more often than the cause: a single suspect is the cause.
                        self.fail(point, "as Dask reports")
                        continue
                    tried_alone = True
                    self.submit(point)
                self.collect(alone=alone)
        finally:
            # Stopping cancels what has not started; a user's executor finishes the points it is computing.
            for future in self.flying:
                future.cancel()

    def launch(self) -> None:
        """Submit as many points as the engine takes: new ones first, then those whose worker has died."""
        while len(self.flying) < self.engine.window:
            point = next(self.fresh, None)
            if point is None and not self.again:
                return
            self.submit(self.again.popleft() if point is None else point)

    def submit(self, point: Point) -> None:
        try:
            future = self.engine.submit(run_point, point, self.folder)
        except BrokenExecutor as error:
            raise _broken() from error
        except RuntimeError as error:
            raise SweepError(
                f"the executor takes no more work ({error}); finished points are kept. Run again to go on"
            ) from error
        self.flying[future] = point
        future.add_done_callback(self.ended.put)

    def collect(self, *, alone: bool) -> None:
        """Wait for the next point, and pass on its outcome or count the death of its worker."""
        future = self.next_ended()
        point = self.flying.pop(future)
        try:
            outcome = future.result()
        except CancelledError as error:
            raise SweepError(
                "the executor gave up its work (it was closed, or its scheduler is gone); finished points are kept. "
                "Run again to go on"
            ) from error
        except SweepError:
            raise
        except BrokenExecutor as error:
            raise _broken() from error
        except TookTooLong as error:
            outcome = Outcome(failure=Failure("TimeoutError", str(error)))
        except WorkerDied as error:
            self.died(point, 1, str(error), certain=True)
            return
        except Exception as error:
            # Of Dask, recognised by its name: distributed is imported by users of Dask only.
            if type(error).__name__ == "KilledWorker":
                count = 1 + int(getattr(error, "allowed_failures", 0) or 0)
                self.died(point, count, "as Dask reports", certain=alone)
                return
            # The point or its result could not be pickled.
            outcome = Outcome(failure=failure_of(error))
        self.take(point, outcome)

    def next_ended(self) -> Future[Outcome]:
        said = ""
        while True:
            try:
                return self.ended.get(timeout=_SILENCE)
            except Empty:
                trouble = self.engine.trouble()
                if trouble and trouble != said:
                    warn_caller(
                        f"{trouble}: the sweep waits. Add workers, or stop and run again later: finished points are "
                        "kept",
                        IsometryWarning,
                    )
                said = trouble

    def died(self, point: Point, count: int, how: str, *, certain: bool) -> None:
        """Count the deaths of workers that ran the point, and run it again unless it has failed."""
        self.deaths[point.key] += count
        if not certain:
            self.suspects.append(point)
        elif self.deaths[point.key] >= DEATHS:
            self.fail(point, how)
        else:
            self.again.append(point)

    def fail(self, point: Point, how: str) -> None:
        count = self.deaths[point.key]
        text = (
            f"its worker died each of the {count} times that it ran ({how}): ended by its own code, crashed in native "
            "code, or killed by the system, perhaps for want of memory"
        )
        self.take(point, Outcome(failure=Failure("WorkerDied", text)))


def _broken() -> SweepError:
    return SweepError(
        "a worker died and took the executor with it. Finished points are kept; run again to continue, without "
        "executor= or with a new one. With processes of its own a sweep continues by itself"
    )
