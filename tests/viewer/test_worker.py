"""A worker's thread ends when it is told to."""

import threading

from f3rm.viewer.worker import Worker


def test_a_closed_worker_finishes_what_runs_and_drops_what_waits():
    worker, begun, may_end, done = Worker(), threading.Event(), threading.Event(), []

    def first():
        begun.set()
        may_end.wait(60)
        done.append("first")

    worker.submit("first", first)
    assert begun.wait(60)
    worker.submit("second", lambda: done.append("second"))
    worker.submit("later", lambda: done.append("later"), delay=3600.0)
    threading.Timer(0.2, may_end.set).start()
    worker.close()
    assert done == ["first"]
    worker.close()  # there is nothing to end
    worker.submit("third", lambda: done.append("third"))
    worker.submit("sleeping", lambda: done.append("sleeping"), delay=3600.0)
    worker.close()
    assert "second" not in done
    assert "sleeping" not in done
    assert not [each for each in threading.enumerate() if each.name == "f3rm-queries"]
