"""What ``bend serve`` says when it is up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bend_ray.export.card import Card, noise, read_card
from bend_ray.serve.listening import Listening, token
from bend_ray.serve.settings import TOKEN_VARIABLE


def _example(card: Card) -> list[Any] | dict[str, Any]:
    """An instance of noise."""
    rounded = {
        name: (np.round(v[0].astype(float), 3) if v.dtype == np.float32 else v[0]).tolist()
        for name, v in noise(card, 1).items()
    }
    if len(rounded) > 1:
        return rounded
    (only,) = rounded.values()
    return only  # type: ignore[no-any-return]


def welcome(where: Listening, listens: str, export: Path, seconds: float) -> str:
    """What to do now: the URL, what listens where, and a command that works."""
    url, card = where.url, read_card(export)
    bearer = f" -H 'Authorization: Bearer '\"${TOKEN_VARIABLE}\"" if token() else ""
    rows = json.dumps({"instances": [_example(card)]}, separators=(",", ":"))
    if len(rows) > 2000 and card.decoding:
        ask = f"curl{bearer} -H 'Content-Type: image/png' --data-binary @IMAGE.png {url}/predict"
    else:
        ask = (
            f"curl{bearer} -H 'Content-Type: application/json' "
            f"-d '{rows if len(rows) <= 2000 else '@FILE.json'}' {url}/predict"
        )
    what = f"{len(card.members)} members, version {card.model_version}"
    return (
        f"{url}    {what}, up in {seconds:.1f}s\n"
        f"  {url}/      {'draw or drop an image' if card.decoding else 'the bag'}\n"
        f"  {url}/docs  the interface\n"
        f"  {listens}\n"
        f"  {ask}"
    )
