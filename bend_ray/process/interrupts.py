"""Ctrl-C that cannot get lost.

An interrupt is an exception raised wherever the main thread happens to be. In a destructor or a
callback of a library it is printed and ignored there, and the run goes on as if nobody had asked:
our own tests met it. So it is raised again until it has come through.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN_SECONDS = 3.0


@contextmanager
def persistent_interrupts(again_seconds: float = AGAIN_SECONDS) -> Iterator[None]:
    """Within, one SIGINT raises KeyboardInterrupt every few seconds until one leaves the block.

    So long it may clean up before it is interrupted again. Only the main thread may enter it.
    """
    main = threading.get_ident()
    timers: list[threading.Timer] = []

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        timer = threading.Timer(again_seconds, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timers.append(timer)
        timer.start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, previous)
