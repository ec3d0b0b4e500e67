"""Rows of a training batch looked up in a thread, and the next batch drawn while nobody waits.

A batch is drawn from the global random numbers, which the model draws from as well; drawing one
ahead of its turn would change the training. So the next batch is drawn ahead on trial: the random
state is put back, and the batch counts only if the state is still the same when its turn comes,
as it is while the model draws on the GPU. Otherwise it is drawn again, exactly as without prefetch,
and its rows arrive while the model renders: a :class:`PendingBatch` waits for them only when they
are asked for.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Bundle = TypeVar("Bundle")
Batch = dict[str, Any]
LookUp = Callable[[Tensor], Tensor]

log = logging.getLogger(__name__)

_MISSES = 4


class PendingBatch(Batch):
    """A batch that holds futures for entries that are being looked up; asking for one waits."""

    def __init__(self, ready: Batch, pending: Mapping[str, Future[Tensor]]) -> None:
        super().__init__({**ready, **pending})

    def __getitem__(self, key: str) -> Any:
        """Returns an entry, waiting for it if need be; an error of its look-up is raised here."""
        value = super().__getitem__(key)
        if isinstance(value, Future):
            self[key] = value = value.result()
        return value

    def __iter__(self) -> Iterator[str]:
        # Overridden only so that dict(batch) and {**batch} call __getitem__: CPython copies the
        # stored values, here futures, of any dict that has dict's own __iter__.
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns an entry, or ``default`` if there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def values(self) -> Any:
        """Waits for every entry and returns them."""
        return self.complete().values()

    def items(self) -> Any:
        """Waits for every entry and returns keys and entries."""
        return self.complete().items()

    def complete(self) -> Batch:
        """Waits for every entry and returns a plain dict."""
        return {key: self[key] for key in self}

    def cancel(self) -> None:
        """Cancels the look-ups that have not started."""
        for value in super().values():
            if isinstance(value, Future):
                value.cancel()


@dataclass(frozen=True)
class RandomState:
    """The global random numbers of torch on the CPU, Python and NumPy."""

    torch_cpu: Tensor
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def now(cls) -> "RandomState":
        """Returns the present state."""
        state = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state is the subject
        return cls(torch.get_rng_state(), random.getstate(), tuple(state))

    def restore(self) -> None:
        """Makes this the present state."""
        torch.set_rng_state(self.torch_cpu)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - the global state is the subject

    def equals(self, other: "RandomState") -> bool:
        """Compares all three."""
        return (
            torch.equal(self.torch_cpu, other.torch_cpu)
            and self.python == other.python
            and self.numpy[2:] == other.numpy[2:]
            and np.array_equal(self.numpy[1], other.numpy[1])
        )


@dataclass(frozen=True)
class _Drawn(Generic[Bundle]):
    bundle: Bundle
    batch: PendingBatch
    before: RandomState
    after: RandomState
    settings: object


class Prefetcher(Generic[Bundle]):
    """Serves batches whose rows a thread looks up.

    Attributes:
        hits: Batches that had been drawn ahead when they were asked for.
    """

    def __init__(self, *, ahead: bool) -> None:
        """Starts no thread yet; the first batch does.

        Args:
            ahead: Whether to try drawing the next batch ahead: sensible if a draw depends on the
                global random numbers of the CPU and on nothing else that changes.
        """
        self.hits = 0
        self._ahead = ahead
        self._misses = 0
        self._next: _Drawn[Bundle] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="f3rm-prefetch")

    def next(
        self,
        draw: Callable[[], tuple[Bundle, Batch]],
        look_ups: Mapping[str, LookUp],
        *,
        settings: object = None,
    ) -> tuple[Bundle, PendingBatch]:
        """Returns a batch, the same that ``draw`` would return now.

        Args:
            draw: Draws a batch with ``indices`` from the global random numbers.
            look_ups: What makes each pending entry from the indices.
            settings: What else a draw depends on, e.g. the number of rays; what was drawn ahead
                under other settings does not count.
        """
        ready = self._take_ahead(settings)
        if ready is None:
            bundle, batch = self._draw(draw, look_ups)
        else:
            ready.after.restore()
            bundle, batch = ready.bundle, ready.batch
        if self._ahead:
            before = RandomState.now()
            following = self._draw(draw, look_ups)
            self._next = _Drawn(*following, before, RandomState.now(), settings)
            before.restore()
        return bundle, batch

    def close(self) -> None:
        """Ends the thread when its present look-up is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(
        self, draw: Callable[[], tuple[Bundle, Batch]], look_ups: Mapping[str, LookUp]
    ) -> tuple[Bundle, PendingBatch]:
        bundle, batch = draw()
        pending = {
            key: self._thread.submit(look_up, batch["indices"]) for key, look_up in look_ups.items()
        }
        return bundle, PendingBatch(batch, pending)

    def _take_ahead(self, settings: object) -> _Drawn[Bundle] | None:
        """Returns the batch drawn ahead if a draw would give the same now."""
        drawn, self._next = self._next, None
        if drawn is None:
            return None
        if drawn.settings == settings and drawn.before.equals(RandomState.now()):
            self.hits += 1
            self._misses = 0
            return drawn
        drawn.batch.cancel()
        self._misses += 1
        if self._misses == _MISSES:
            self._ahead = False
            log.info("The model draws on the CPU too: rows are looked up while it renders.")
        return None
