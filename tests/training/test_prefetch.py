import gc
import random
import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.training.prefetch import PendingBatch, Prefetcher, RandomState

TABLE = torch.arange(1000.0)[:, None] * torch.tensor([1.0, -1.0])
LOOK_UPS = {"feature": lambda indices: TABLE[indices]}


def draw():
    """Draws from all three kinds of global random numbers."""
    indices = torch.randint(0, 998, (5,)) + random.randint(0, 1) + np.random.randint(2)  # noqa: NPY002
    return indices * 2, {"indices": indices, "image": torch.rand(5)}


def seed_all():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


def plain(steps):
    """Batches and later random numbers without prefetch; ``steps`` says what else draws."""
    seed_all()
    found = []
    for other in steps:
        bundle, batch = draw()
        found.append((bundle, {**batch, "feature": LOOK_UPS["feature"](batch["indices"])}))
        other()
    return found, (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002


def with_prefetch(steps, *, ahead=True):
    seed_all()
    prefetcher, found = Prefetcher(ahead=ahead), []
    for other in steps:
        bundle, batch = prefetcher.next(draw, LOOK_UPS)
        found.append((bundle, dict(batch)))
        other()
    prefetcher.close()
    return found, (torch.rand(1), random.random(), np.random.rand()), prefetcher.hits  # noqa: NPY002


def assert_equal(first, second):
    for (bundle, batch), (other_bundle, other_batch) in zip(first, second, strict=True):
        assert torch.equal(bundle, other_bundle)
        assert batch.keys() == other_batch.keys()
        assert all(torch.equal(batch[key], other_batch[key]) for key in batch)


OTHERS = {
    "nothing": lambda: None,
    "torch": lambda: torch.rand(3),
    "python": random.random,
    "numpy": np.random.rand,
    "gauss": np.random.randn,
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(OTHERS)), min_size=1, max_size=12), st.booleans())
def test_batches_and_random_numbers_are_those_without_prefetch(names, ahead):
    """Whoever else draws in between, and whether or not batches are drawn ahead."""
    steps = [OTHERS[name] for name in names]
    expected, numbers = plain(steps)
    found, later, hits = with_prefetch(steps, ahead=ahead)
    assert_equal(found, expected)
    assert later == numbers
    if not ahead:
        assert hits == 0


def test_every_batch_but_the_first_is_ready_if_nobody_else_draws():
    *_, hits = with_prefetch([OTHERS["nothing"]] * 6)
    assert hits == 5


def test_drawing_ahead_stops_where_it_never_helps():
    draws = []

    def counted():
        draws.append(1)
        return draw()

    prefetcher = Prefetcher(ahead=True)
    for _ in range(20):
        prefetcher.next(counted, LOOK_UPS)
        torch.rand(1)
    prefetcher.close()
    assert len(draws) == 20 + 4


def test_one_evaluation_in_between_does_not_stop_it():
    steps = ([OTHERS["nothing"]] * 3 + [OTHERS["torch"]]) * 6
    *_, hits = with_prefetch(steps)
    assert hits == 24 - 6


def test_other_settings_are_drawn_anew():
    prefetcher = Prefetcher(ahead=True)
    for number in (1, 1, 2, 2):
        prefetcher.next(draw, LOOK_UPS, settings=number)
    prefetcher.close()
    assert prefetcher.hits == 2


def test_a_batch_comes_at_once_and_its_rows_when_asked_for():
    release = threading.Event()

    def slow(indices):
        assert release.wait(10)
        return TABLE[indices]

    prefetcher = Prefetcher(ahead=False)
    _, batch = prefetcher.next(draw, {"feature": slow})
    assert "feature" in batch
    assert batch["image"].shape == (5,)
    release.set()
    assert torch.equal(batch["feature"], TABLE[batch["indices"]])
    prefetcher.close()


def test_the_next_rows_are_ready_before_they_are_asked_for():
    done = []

    def look_up(indices):
        done.append(indices)
        return TABLE[indices]

    prefetcher = Prefetcher(ahead=True)
    prefetcher.next(draw, {"feature": look_up})
    deadline = time.monotonic() + 10
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    _, batch = prefetcher.next(draw, {"feature": look_up})
    assert torch.equal(batch["indices"], done[1])
    prefetcher.close()


def test_errors_of_the_thread_reach_whoever_asks():
    def fail(_):
        raise OSError("the disk is gone")

    prefetcher = Prefetcher(ahead=False)
    _, batch = prefetcher.next(draw, {"feature": fail})
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            batch["feature"]
    with pytest.raises(OSError, match="the disk is gone"):
        dict(batch)
    prefetcher.close()


def test_the_thread_ends_with_its_owner():
    class Owner:
        def __init__(self):
            self.prefetcher = Prefetcher(ahead=True)
            weakref.finalize(self, self.prefetcher.close)

    def who(_):
        return torch.tensor(threading.get_ident())

    owner = Owner()
    ident = int(owner.prefetcher.next(draw, {"thread": who})[1]["thread"])
    thread = next(thread for thread in threading.enumerate() if thread.ident == ident)
    assert thread.is_alive()
    del owner
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_pending_batch_is_a_dict():
    def make():
        futures = {"x": Future(), "y": Future()}
        for number, future in enumerate(futures.values()):
            future.set_result(torch.tensor(float(number)))
        return PendingBatch({"a": 1}, futures)

    batch = make()
    assert batch.get("x") == 0
    assert batch.get("z", 5) == 5
    assert "z" not in batch
    with pytest.raises(KeyError):
        batch["z"]
    plain = {"a": 1, "x": torch.tensor(0.0), "y": torch.tensor(1.0)}
    assert dict(make()) == plain == {**make()} == make().complete()
    assert list(make()) == list(make().keys()) == ["a", "x", "y"]
    assert len(make()) == len(make().values()) == 3
    assert dict(make().items()) == plain
    changed = make()
    changed["x"] = 7
    assert changed.complete()["x"] == 7


def test_random_states_compare_and_come_back():
    seed_all()
    before = RandomState.now()
    numbers = draw()[0]
    for other in ("torch", "python", "numpy", "gauss"):
        seed_all()
        OTHERS[other]()
        assert not before.equals(RandomState.now())
    before.restore()
    assert before.equals(RandomState.now())
    assert torch.equal(draw()[0], numbers)
