r"""Input that nobody would write: how much of it is tried, and bytes that were damaged.

Everyday a few cases of each kind are tried. All of them, more than ten thousand::

    uv run pytest tests -m "not ray" -k "any or whatever" \
        --hypothesis-profile=full --timeout=3000
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FULL = "full"
TIMES_AS_MANY = 25


def fuzzed(cases: int) -> settings:
    """Settings of a test that tries ``cases`` inputs everyday."""
    is_full = settings.get_current_profile_name() == FULL
    return settings(
        max_examples=cases * TIMES_AS_MANY if is_full else cases,
        deadline=None,
        # Fixtures of a test are files that each case writes anew.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with a few bytes changed, lost, repeated, added or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not found:
            break
        # From either end: there headers and footers are.
        place = draw(st.integers(0, min(len(found) - 1, 400)))
        if draw(st.booleans()):
            place = len(found) - 1 - place
        length = draw(st.integers(1, 8))
        change = draw(st.sampled_from(["flip", "set", "lose", "repeat", "add", "cut"]))
        if change == "flip":
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            value = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f", b"["]))
            found[place : place + length] = value * length
        elif change == "lose":
            del found[place : place + length]
        elif change == "repeat":
            found[place:place] = found[place : place + 16 * length]
        elif change == "add":
            found[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del found[place:]
    return bytes(found)
