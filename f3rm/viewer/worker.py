"""A thread that does what a render must not wait for: loading, encoding, files."""

import threading
import time
from collections.abc import Callable

Job = Callable[[], None]


class Worker:
    """Runs jobs one after the other, in a thread that exists while there are any.

    A job that is submitted again before it ran replaces the former one and starts its delay anew,
    so that of many keystrokes only the last is worked on.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[float, Job]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, name: str, job: Job, *, delay: float = 0.0) -> None:
        """Asks for a job.

        Args:
            name: Jobs of one name replace each other.
            job: What to do.
            delay: Seconds to wait for one that replaces it.
        """
        with self._changed:
            self._jobs[name] = (time.monotonic() + delay, job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="f3rm-queries", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Drops the jobs that wait, and waits for the one that runs."""
        with self._changed:
            self._jobs.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
        finally:
            with self._changed:
                self._thread = None  # also after a job that failed, so that the next one runs

    def _next(self) -> Job | None:
        with self._changed:
            while self._jobs:
                name, (due, job) = min(self._jobs.items(), key=lambda entry: entry[1][0])
                wait = due - time.monotonic()
                if wait <= 0:
                    del self._jobs[name]
                    return job
                self._changed.wait(wait)
            self._thread = None
            return None
