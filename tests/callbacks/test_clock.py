"""The stopwatch."""

import time

from bagpiper.callbacks.clock import Clock


def test_pauses_do_not_count():
    clock = Clock()
    clock.lap()
    with clock.paused():
        time.sleep(0.2)
    assert clock.lap() < 0.1
    time.sleep(0.05)
    assert clock.lap() >= 0.05
