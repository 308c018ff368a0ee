from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bend_ray.process import log
from bend_ray.process.log import LOGGER, ProgressLine, configure, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until a test moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    before = (LOGGER.handlers, LOGGER.level, LOGGER.propagate)
    yield LOGGER
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


def report(progress: ProgressLine, clock: Clock, updates: dict[float, int]) -> None:
    """Say how much is done at each of some seconds after the start."""
    start = clock.now
    for second, done in updates.items():
        clock.now = start + second
        progress.update(done)


def test_a_file_gets_a_line_every_five_seconds_and_the_last_one(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("seeds", 40, "models", stream) as progress:
        report(progress, clock, {0: 0, 1: 4, 4.9: 19, 5: 20, 9.9: 30, 10: 36, 10.1: 40})
    assert stream.getvalue().splitlines() == [
        "seeds 0/40 models",
        "seeds 20/40 models  4.0/s  eta 5.0s",
        "seeds 36/40 models  3.6/s  eta 1.1s",
        "seeds 40/40 models",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(clock: Clock) -> None:
    stream = Terminal()
    with ProgressLine("seeds", 10, stream=stream) as progress:
        report(progress, clock, {0: 0, 0.1: 1, 0.25: 2, 0.3: 10})
    clear = "\r\x1b[2K"
    assert stream.getvalue() == (
        f"{clear}seeds 0/10{clear}seeds 2/10  8.0/s  eta 1.0s{clear}seeds 10/10\n"
    )


def test_the_rate_counts_what_was_done_since_the_first_report(clock: Clock) -> None:
    stream = io.StringIO()
    report(ProgressLine("seeds", 1000, "models", stream), clock, {0: 900, 10: 920})
    assert stream.getvalue().splitlines()[-1] == "seeds 920/1000 models  2.0/s  eta 40.0s"


def test_no_rate_is_said_while_nothing_moves(clock: Clock) -> None:
    stream = io.StringIO()
    report(ProgressLine("seeds", 10, stream=stream), clock, {0: 3, 6: 3, 12: 4})
    assert stream.getvalue().splitlines() == ["seeds 3/10", "seeds 4/10  0.1/s  eta 1m12s"]


def test_work_that_was_done_already_is_one_line(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("seeds", 10, "models", stream) as progress:
        report(progress, clock, {0: 10, 1: 10})
    assert stream.getvalue() == "seeds 10/10 models\n"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_progress_that_never_was_leaves_no_trace(stream: io.StringIO) -> None:
    with ProgressLine("seeds", 10, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_a_failure_leaves_the_terminal_on_a_new_line(clock: Clock) -> None:
    def fail(progress: ProgressLine) -> None:
        with progress:
            progress.update(1)
            raise KeyboardInterrupt

    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        fail(ProgressLine("seeds", 10, stream=stream))
    assert stream.getvalue().endswith("seeds 1/10\n")


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine("seeds", 2).update(1)
    assert capsys.readouterr() == ("", "seeds 1/2\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3599.99, "1h00m"),
        (7260, "2h01m"),
        (100 * 3600, "100h00m"),
    ],
)
def test_durations_change_units_at_the_minute_and_the_hour(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("verbose", "expected"), [(False, "said\n"), (True, "whispered\nsaid\n")])
def test_messages_are_plain_lines_on_stderr(
    verbose: bool, expected: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    configure(verbose)
    logging.getLogger("bend_ray.stages").debug("whispered")
    logger.info("said")
    assert capsys.readouterr() == ("", expected)


def test_blocks_of_two_threads_leave_the_level_as_it_was() -> None:
    before = log.LOGGER.level
    first, second = log.quiet(), log.quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log.LOGGER.level == logging.ERROR
    second.__exit__(None, None, None)
    assert log.LOGGER.level == before
