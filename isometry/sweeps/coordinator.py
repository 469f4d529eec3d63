"""Submit points and collect their outcomes; a point that kills its worker fails, and no other point is lost. Internal.

When a worker dies, the executor does not tell which of the points in progress caused it. All of them become suspects:
they are set aside until every other point is done, and are then run one at a time. A suspect that runs alone when a
worker dies is the cause, and fails; the other suspects get their results. Dask retries a point several times before it
reports that its worker died.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from queue import SimpleQueue

from isometry.errors import SweepError
from isometry.sweeps.configuration import Point
from isometry.sweeps.engines import Engine
from isometry.sweeps.work import Failure, Outcome, failure_of, run_point

_DIED = "its worker died each time it ran: killed by the system (perhaps for want of memory) or crashed in native code"


def run_all(
    points: Sequence[Point], engine: Engine, take: Callable[[Point, Outcome], None], *, folder: str
) -> None:
    """Run every point and pass its outcome to ``take``, in the order in which points finish.

    Parameters
    ----------
    points : sequence of Point
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
    waiting, suspects = deque(points), deque[Point]()
    # Whether the executor counts several deaths before it reports one (Dask), and whether suspects ran alone already.
    counted, cleared = False, False
    flying: dict[Future[Outcome], Point] = {}
    ended: SimpleQueue[Future[Outcome]] = SimpleQueue()
    try:
        while waiting or suspects or flying:
            alone = not waiting and not flying
            if alone and counted and not cleared and len(suspects) == 1:
                # A point beside the cause is reported no more often than the cause: a single suspect is the cause.
                take(suspects.popleft(), Outcome(failure=Failure("WorkerDied", _DIED)))
                continue
            if alone:
                waiting.append(suspects.popleft())
                cleared = True
            _launch(waiting, flying, ended, engine, folder)
            error, point = _collected(ended, flying, take)
            if error is None:
                continue
            lost = [point]
            # A broken pool ends every point in progress, each with a result or with the same error.
            while flying and isinstance(error, BrokenExecutor):
                another, point = _collected(ended, flying, take)
                lost += [] if another is None else [point]
            engine.restart()
            if alone:
                take(lost[0], Outcome(failure=Failure("WorkerDied", _DIED)))
            else:
                suspects.extend(lost)
                counted = not isinstance(error, BrokenExecutor)
    finally:
        # Stopping cancels what has not started; a user's executor finishes the points it is computing.
        for future in flying:
            future.cancel()


def worker_died(error: BaseException) -> bool:
    """Whether this exception of an executor means that a worker process ended while it ran the point."""
    # Dask's KilledWorker, recognised by its name: distributed is imported by users of Dask only.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _launch(
    waiting: deque[Point],
    flying: dict[Future[Outcome], Point],
    ended: SimpleQueue[Future[Outcome]],
    engine: Engine,
    folder: str,
) -> None:
    """Submit as many points as the engine takes, at least one; each enters the queue ``ended`` when it finishes."""
    while waiting and (engine.window is None or len(flying) < engine.window):
        try:
            future = engine.submit(run_point, waiting[0], folder)
        except BrokenExecutor:
            if flying:
                return  # the points in progress end with the same error, and are handled then
            engine.restart()
            continue
        except RuntimeError as error:
            raise SweepError(
                f"the executor takes no more work ({error}); finished points are kept. Run again to go on"
            ) from error
        flying[future] = waiting.popleft()
        future.add_done_callback(ended.put)


def _collected(
    ended: SimpleQueue[Future[Outcome]],
    flying: dict[Future[Outcome], Point],
    take: Callable[[Point, Outcome], None],
) -> tuple[Exception | None, Point]:
    """Wait for the next point and pass on its outcome; the error and the point where its worker has died."""
    future = ended.get()
    point = flying.pop(future)
    try:
        outcome = future.result()
    except CancelledError as error:
        raise SweepError(
            "the executor gave up its work (it was closed, or its scheduler is gone); finished points are kept. Run "
            "again to go on"
        ) from error
    except Exception as error:
        if worker_died(error):
            return error, point
        # The point or its result could not be pickled.
        outcome = Outcome(failure=failure_of(error))
    take(point, outcome)
    return None, point
