"""Hand out points, take in results; a worker that dies is no loss, and a point that kills its worker fails alone.

When a worker dies it is not known which of the points under way did it. All of them become suspects: they are put
aside until everything else is done, and then run one at a time. A suspect that is alone when a worker dies again has
done it, and fails; the others were bystanders, and get their results. Dask tries a point several times by itself before
it suspects it.
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
    """Run every point and ``take`` its outcome, in the order in which they end.

    Parameters
    ----------
    points : sequence of Point
    engine : Engine
    take : callable
        Called in this thread with a point and what it gave. What it raises ends the work.
    folder : str
        Where relative paths begin.

    Raises
    ------
    SweepError
        When the engine is lost.
    """
    waiting, suspects = deque(points), deque[Point]()
    # Whether suspicion means several deaths, as Dask counts them, and whether suspects were run alone already.
    counted, cleared = False, False
    flying: dict[Future[Outcome], Point] = {}
    ended: SimpleQueue[Future[Outcome]] = SimpleQueue()
    try:
        while waiting or suspects or flying:
            alone = not waiting and not flying
            if alone and counted and not cleared and len(suspects) == 1:
                # Whoever stood beside a killer is suspected no more often than the killer: the only one has done it.
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
            # A pool that breaks ends all that is under way, each with a result or with the same error.
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
        # Nothing goes on behind the back of whoever stopped it; what a lent executor has begun, it ends.
        for future in flying:
            future.cancel()


def worker_died(error: BaseException) -> bool:
    """Whether an executor says by this exception that a worker process ended while it had the point."""
    # Dask's KilledWorker, told by its name: distributed is not imported for those who do not use it.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _launch(
    waiting: deque[Point],
    flying: dict[Future[Outcome], Point],
    ended: SimpleQueue[Future[Outcome]],
    engine: Engine,
    folder: str,
) -> None:
    """Begin as many points as the engine takes, at least one; each says through the queue when it has ended."""
    while waiting and (engine.window is None or len(flying) < engine.window):
        try:
            future = engine.submit(run_point, waiting[0], folder)
        except BrokenExecutor:
            if flying:
                return  # what is under way ends with the same error, and is looked after then
            engine.restart()
            continue
        except RuntimeError as error:
            raise SweepError(
                f"the executor takes no more work ({error}); what was finished is kept. Run again to go on"
            ) from error
        flying[future] = waiting.popleft()
        future.add_done_callback(ended.put)


def _collected(
    ended: SimpleQueue[Future[Outcome]],
    flying: dict[Future[Outcome], Point],
    take: Callable[[Point, Outcome], None],
) -> tuple[Exception | None, Point]:
    """Wait for the next point to end and take its outcome; with the error instead, where its worker has died."""
    future = ended.get()
    point = flying.pop(future)
    try:
        outcome = future.result()
    except CancelledError as error:
        raise SweepError(
            "the executor gave up its work (it was closed, or its scheduler is gone); what was finished is kept. Run "
            "again to go on"
        ) from error
    except Exception as error:
        if worker_died(error):
            return error, point
        # It could not be sent, or its result not be brought back.
        outcome = Outcome(failure=failure_of(error))
    take(point, outcome)
    return None, point
