"""What a terminal is told: by ``bend serve`` when it is up, and by ``bend ask``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bend_ray.data.decoding import MAX_PIXELS
from bend_ray.errors import DataError
from bend_ray.export.card import IMAGES, Card, noise, read_card
from bend_ray.serve.bag import Bag
from bend_ray.serve.listening import Listening, token
from bend_ray.serve.pictures import notes_on, pixels_of
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import TOKEN_VARIABLE
from bend_ray.serve.voting import Stop


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


def lines(export: Path, pictures: Sequence[Path]) -> Iterator[str]:
    """What an exported bag says about picture files, a line each; DataError for none."""
    bag = Bag.load(export, groups=1, batch=1)
    for path in pictures:
        try:
            pixels = pixels_of(path.read_bytes(), bag.card, MAX_PIXELS)
        except OSError as error:
            raise DataError(f"{path}: cannot read it: {error.strerror}") from None
        except Refusal as refusal:
            raise DataError(f"{path}: {refusal.message}") from None
        assert pixels is not None
        said = {n: v[0] for n, v in bag.answer({IMAGES: pixels[None]}, [Stop()]).items()}
        notes = "".join(f"; {note}" for note in notes_on({IMAGES: pixels}, bag.card))
        yield (
            f"{path}: {bag.card.task.line(said, bag.card.class_names)}, entropy "
            f"{said['entropy']:.3f}, disagreement {said['mutual_information']:.3f} nats{notes}"
        )
