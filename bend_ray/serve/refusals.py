"""What a client did wrong: a status of 4xx, and in one sentence what was expected."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - it is the client's error, not ours
    """An answer that says no.

    Args:
        status: 400 to 499, or 503 before the bag is loaded.
        message: what was expected, and what came.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
