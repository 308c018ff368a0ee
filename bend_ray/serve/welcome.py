"""What ``bend serve`` says when it is up."""

from __future__ import annotations

from pathlib import Path

from bend_ray.export.card import Card, read_card
from bend_ray.serve.listening import Listening, token
from bend_ray.serve.settings import TOKEN_VARIABLE


def _stroke(card: Card) -> list[list[list[int]]]:
    """Pixels of an upright stroke, as of a one: bright in the middle quarter of the columns."""
    _, height, width = card.image_shape
    middle = range(3 * width // 8, width - 3 * width // 8)
    images = []
    for mean, std in zip(card.pixel_mean, card.pixel_std, strict=True):
        bright = min(255, round(mean + 1.5 * std))
        images.append([[bright if x in middle else 0 for x in range(width)]] * height)
    return images


def welcome(where: Listening, listens: str, export: Path, seconds: float) -> str:
    """What to do now: the URL, what listens where, and a command that works."""
    url, card = where.url, read_card(export)
    bearer = f" -H 'Authorization: Bearer '\"${TOKEN_VARIABLE}\"" if token() else ""
    rows = str(_stroke(card)).replace(" ", "")
    if len(rows) > 600:
        ask = f"curl{bearer} -H 'Content-Type: image/png' --data-binary @IMAGE.png {url}/predict"
    else:
        ask = (
            f"curl{bearer} -H 'Content-Type: application/json' "
            f"-d '{{\"pixels\":{rows}}}' {url}/predict"
        )
    what = f"{len(card.members)} members, version {card.model_version}"
    return (
        f"{url}    {what}, up in {seconds:.1f}s\n"
        f"  {url}/      draw or drop an image\n"
        f"  {url}/docs  the interface\n"
        f"  {listens}\n"
        f"  {ask}"
    )
