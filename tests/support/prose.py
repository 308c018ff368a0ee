"""Sentences of our pages, and how long they are.

    python tests/support/prose.py       # of each page lines, words, and how long sentences are
    python tests/support/prose.py 25    # and every sentence of more words

Code blocks, tables, headings, pictures and the targets of links are no prose; code in a line counts
as one word. An item of a list begins a sentence, so that a colon before a list ends one.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^ *(```|~~~)")
_ITEM = re.compile(r"^ *(?:[-*+]|\d+\.) +")
_NO_PROSE = re.compile(r"^ *(?:\||#|!\[|<!--|\[[^\]]+\]: )")
_ABBREVIATIONS = ("e.g.", "i.e.", "et al.", "vs.", "cf.", "approx.", "Fig.", "No.")
_END = re.compile(r"""(?<=[.!?])(?P<closing>["')\]*]*)\s+(?=[A-Z0-9"'(*`+-]|…)""")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, and its text."""

    language: str
    text: str


def pages() -> list[Path]:
    """Every Markdown page of ours."""
    below = (ROOT / folder for folder in ("bend_ray", "configs", "cluster", "tests"))
    found = [*ROOT.glob("*.md"), *(page for folder in below for page in folder.rglob("*.md"))]
    return sorted(page for page in found if not page.name.startswith("."))


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a page."""
    found, language, inside = [], None, []
    for line in markdown.splitlines():
        if _FENCE.match(line):
            if language is None:
                language, inside = line.strip(" `~"), []
            else:
                found.append(Block(language, "\n".join(inside)))
                language = None
        elif language is not None:
            inside.append(line)
    return found


def unfenced(markdown: str) -> str:
    """A page without its fenced blocks; each leaves an empty line."""
    kept, is_code = [], False
    for line in markdown.splitlines():
        if _FENCE.match(line):
            is_code = not is_code
            kept.append("")
        elif not is_code:
            kept.append(line)
    return "\n".join(kept)


def paragraphs(markdown: str) -> Iterator[str]:
    """Running text: paragraphs and items of lists, each on one line."""
    lines: list[str] = []
    for line in [*unfenced(markdown).splitlines(), ""]:
        ends = not line.strip() or _NO_PROSE.match(line)
        if lines and (ends or _ITEM.match(line)):
            yield _plain(" ".join(lines))
            lines = []
        if not ends:
            lines.append(_ITEM.sub("", line).strip())


def _plain(text: str) -> str:
    """Text without code, without links' targets and without what makes it bold."""
    text = re.sub(r"`[^`]+`", "Code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*\*|__", "", text)


def sentences(markdown: str) -> list[str]:
    """The sentences of a page."""
    return [each for paragraph in paragraphs(markdown) for each in split(paragraph)]


def split(paragraph: str) -> list[str]:
    """The sentences of a paragraph.

    >>> split("It costs 0.5 s (two cores). Guo et al. (2017) say why. Does it?")
    ['It costs 0.5 s (two cores).', 'Guo et al. (2017) say why.', 'Does it?']
    """
    found, start = [], 0
    for match in _END.finditer(paragraph):
        before = paragraph[start : match.start()]
        if not before.endswith(_ABBREVIATIONS):
            found.append(paragraph[start : match.end("closing")])
            start = match.end()
    rest = paragraph[start:]
    return [*found, rest] if rest.strip() else found


def words(sentence: str) -> int:
    """How many words it has: whatever stands apart and has a letter or a digit in it.

    >>> words("It loses by -0.0081 ± 0.0032 nats.")
    6
    """
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def main() -> None:
    """Print a line a page, and what is longer than asked."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else None
    sys.stdout.write(f"{'page':<32} lines  words  median  p90  max\n")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        found = sentences(text)
        lengths = sorted(map(words, found)) or [0]
        middle, p90 = statistics.median(lengths), lengths[int(0.9 * (len(lengths) - 1))]
        name = str(page.relative_to(ROOT))
        sys.stdout.write(
            f"{name:<32} {len(text.splitlines()):>5} {sum(lengths):>6} {middle:>7.1f} {p90:>4} "
            f"{lengths[-1]:>4}\n"
        )
        for sentence in found:
            if most is not None and words(sentence) > most:
                sys.stdout.write(f"    {words(sentence)}: {sentence}\n")


if __name__ == "__main__":
    main()
