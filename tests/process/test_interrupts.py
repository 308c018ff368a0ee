"""An interrupt that something swallows is raised again."""

import os
import signal
import time

import pytest

from bend_ray.process.streams import persistent_interrupts


def interrupt_and_sleep() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def test_an_interrupt_that_was_swallowed_comes_again() -> None:
    swallowed = []

    def work() -> None:
        for act in (interrupt_and_sleep, lambda: time.sleep(5)):
            try:
                act()
            except KeyboardInterrupt:
                swallowed.append("as a destructor would")
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), persistent_interrupts(again_seconds=0.05):
        work()
    assert len(swallowed) == 2


def test_once_it_came_through_nothing_is_interrupted_any_more() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), persistent_interrupts(again_seconds=0.05):
        interrupt_and_sleep()
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) == before
