"""What a client did wrong: a status of 4xx, and in one sentence what was expected."""

from __future__ import annotations

RETRY_AFTER = 2
"""Seconds that a client is told to wait where it may ask again."""
_HEADERS = {
    401: {"www-authenticate": "Bearer"},
    415: {"accept-encoding": "gzip, deflate"},
    503: {"retry-after": str(RETRY_AFTER)},
}


class Refusal(Exception):  # noqa: N818 - it is the client's error, not ours
    """An answer that says no.

    Args:
        status: 400 to 499, or 503 where it may be asked again.
        message: what was expected, and what came.
    """

    def __init__(self, status: int, message: str) -> None:
        # What it quotes of a request may have no form in UTF-8.
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return _HEADERS.get(self.status, {})
