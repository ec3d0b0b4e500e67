"""Prefetching: a thread looks up a batch's features, and the next batch is drawn ahead.

Batches are drawn from the global random numbers, and so does the model draw; drawing a batch before
its turn would change the training. So the next batch is drawn speculatively: the random state is
restored, and the batch is used only if the state is still the same at its turn, as it is while the
model draws on the GPU. Otherwise it is drawn again, exactly as without prefetch, and its features
are looked up while the model renders: a :class:`PendingBatch` waits for them when they are read.
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
"""Batches drawn ahead in vain, one after another, before drawing ahead stops."""


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
    """State of the global random numbers of torch on the CPU, Python and NumPy."""

    torch_cpu: Tensor
    python: tuple[object, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def now(cls) -> "RandomState":
        """Returns the current state."""
        state = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state is the subject
        return cls(torch.get_rng_state(), random.getstate(), tuple(state))

    def restore(self) -> None:
        """Makes this the current state."""
        torch.set_rng_state(self.torch_cpu)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - the global state is the subject

    def equals(self, other: "RandomState") -> bool:
        """Returns whether all three are the same."""
        # NumPy's state is (name, keys, position, has_gauss, gauss); the keys are an array.
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
    """Returns batches whose features a thread looks up.

    Attributes:
        hits: Number of batches returned that had been drawn ahead.
    """

    def __init__(self, *, ahead: bool) -> None:
        """Prepares the thread; the first batch starts it.

        Args:
            ahead: Whether to try drawing the next batch ahead. A draw must then depend on nothing
                that changes but the CPU's global random numbers and the ``settings`` of
                :meth:`next`.
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
        """Returns the batch that ``draw`` would return now.

        Args:
            draw: Draws a batch with ``indices`` from the global random numbers.
            look_ups: For each pending entry, the function that computes it from the indices.
            settings: All else that a draw depends on, e.g. the number of rays; a batch drawn ahead
                under other settings is discarded.
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
        """Ends the thread after its current look-up, without waiting."""
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
        """Returns the batch drawn ahead if drawing now would give the same."""
        drawn, self._next = self._next, None
        if drawn is None:
            return None
        if drawn.settings == settings and drawn.before.equals(RandomState.now()):
            self.hits += 1
            self._misses = 0
            return drawn
        drawn.batch.cancel()
        self._misses += 1
        if self._misses == _MISSES:  # one miss is usual: an evaluation in between draws as well
            self._ahead = False
            log.info("Batches are not drawn ahead any more: the model draws on the CPU too.")
        return None
