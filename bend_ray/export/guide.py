"""The README of an exported bag: how to load it with nothing of ours.

Its Python blocks are run by the tests, each in a process that cannot import bend_ray.
"""

from __future__ import annotations

from bend_ray.export.card import Card

_HEAD = """# A bag of {size} classifiers

Version `{version}`, written by bend_ray {bend_ray} on {created}. {size} networks answer together:
{vote}. {scores}

Classes: {classes}.

**Input**: `images`, raw pixels as uint8 of shape (batch, {channels}, {height}, {width}), 0 to
{pixel_max}; programs normalise them themselves. **Outputs**: `probabilities` (batch,
{classes_count}), the bag's answer with vote and temperature ({temperature:g}) inside, and
`member_probabilities` (batch, {size}, {classes_count}), each member's own, in voting order.

`config.json` says what the members are and how they vote, `members.safetensors` holds their tensors
stacked, a leading dimension of {size} each. Nothing here is pickled. Where a file of the same
name with `.data` is beside a program, keep the two together.
"""

_PICTURE = """
## An image file as input

As training and `bend serve` read it, with Pillow and numpy alone: turned as EXIF says, transparency
laid on {background}, converted, the centred part of the right proportions resized.

```python
import io
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps

def pixels_of(path):
    image = Image.open(io.BytesIO(Path(path).read_bytes()))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "{background}"), image)
    image = image.convert("{mode}")
    if image.size != ({width}, {height}):
{method}        image = ImageOps.fit(image, ({width}, {height}), method=method)
    pixels = np.asarray(image).reshape({height}, {width}, {channels}).transpose(2, 0, 1)
    return np.rint(pixels * ({pixel_max} / 255)).astype(np.uint8)
```
"""

_METHODS = {
    "bilinear": "        method = Image.Resampling.BILINEAR\n",
    "box": "        shrinks = image.width >= {width} and image.height >= {height}\n"
    "        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR\n",
}

_ONNX = """
## ONNX

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("bag.onnx")
images = np.zeros((1, {channels}, {height}, {width}), np.uint8)  # your images
probabilities, member_probabilities = session.run(None, {{"images": images}})
```

Needs ONNX Runtime {onnxruntime} or later, or another runtime that knows IR version {ir_version} and
opset {opset}.

`member.onnx` is one member's graph with its tensors as inputs: what `bend serve` builds from.
"""

_SAFETENSORS = """
## safetensors

Of your own network, whose `state_dict` has these names: in bend_ray's words
`{architecture}`.

```python
import json
import torch
from safetensors.torch import load_file
from torch.func import functional_call

card = json.load(open("config.json"))
members = load_file("members.safetensors")

network = build()  # an untrained one, in torch
network.eval()

images = torch.zeros(1, {channels}, {height}, {width}, dtype=torch.uint8)  # your images
mean, std = (torch.tensor(card[name]).reshape(-1, 1, 1) for name in ("pixel_mean", "pixel_std"))
inputs = (images.float() - mean) / std
logits = torch.stack([
    functional_call(network, {{name: tensor[k] for name, tensor in members.items()}}, (inputs,))
    for k in range(len(card["members"]))
]).detach()
ballots = logits.softmax(-1)
if card["vote"]["kind"] == "majority":
    ballots = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
probabilities = torch.einsum("k,kbc->bc", torch.tensor(card["weights"]), ballots)
probabilities = (probabilities.clamp(min=2.0**-126).log() / card["temperature"]).softmax(-1)
```
"""


def guide(card: Card, *, with_onnx: bool) -> str:
    """The README's text.

    Args:
        card: of the bag.
        with_onnx: whether ONNX programs are beside it.
    """
    channels, height, width = card.image_shape
    shape = {"channels": channels, "height": height, "width": width}
    text = _HEAD.format(
        size=len(card.members),
        version=card.model_version,
        bend_ray=card.bend_ray,
        created=card.created,
        vote=card.vote.meaning,
        scores=_scores(card),
        classes=", ".join(card.class_names),
        classes_count=len(card.class_names),
        temperature=card.temperature,
        pixel_max=card.decoding.pixel_max,
        **shape,
    )
    if channels in (1, 3):
        decoding = card.decoding
        text += _PICTURE.format(
            background=decoding.background,
            mode="L" if channels == 1 else "RGB",
            method=_METHODS[decoding.resampling].format(**shape),
            pixel_max=decoding.pixel_max,
            **shape,
        )
    if with_onnx:
        text += _ONNX.format(**shape, **card.onnx.model_dump())
    architecture = card.architecture.model_dump_json()
    return text + _SAFETENSORS.format(architecture=architecture, **shape)


def _scores(card: Card) -> str:
    scores = card.scores
    if scores is None or scores.accuracy is None or scores.nll is None:
        return "It was not evaluated: it is a part of an evaluated bag."
    return f"On the test part: accuracy {scores.accuracy:.2%}, NLL {scores.nll:.4f}."
