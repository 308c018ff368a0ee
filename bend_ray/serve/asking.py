"""A few pictures, in this process: ``bend ask``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bend_ray.data.decoding import MAX_PIXELS
from bend_ray.errors import DataError
from bend_ray.export.card import IMAGES
from bend_ray.serve.bag import Bag
from bend_ray.serve.pictures import notes_on, pixels_of
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.voting import Stop


def lines(export: Path, pictures: Sequence[Path]) -> Iterator[str]:
    """What an exported bag says about picture files, a line each.

    Raises:
        DataError: a picture cannot be read, or the bag cannot.
    """
    bag = Bag.load(export, groups=1, batch=1)
    for path in pictures:
        try:
            pixels = pixels_of(path.read_bytes(), bag.card, MAX_PIXELS)
        except OSError as error:
            raise DataError(f"{path}: cannot read it: {error.strerror}") from None
        except Refusal as refusal:
            raise DataError(f"{path}: {refusal.message}") from None
        assert pixels is not None
        said = bag.answer({IMAGES: pixels[None]}, [Stop()])
        label, members = int(said.labels_B[0]), len(bag.card.members)
        notes = "".join(f"; {note}" for note in notes_on({IMAGES: pixels}, bag.card))
        yield (
            f"{path}: {bag.card.class_names[label]}  {said.probs_BC[0, label]:.1%}, "
            f"{said.votes[0, label]} of {members} members agree, entropy "
            f"{said.entropy_B[0]:.3f}, disagreement {said.information_B[0]:.3f} nats{notes}"
        )
