"""The README of an exported bag: how to load it with nothing of ours.

Its Python blocks are run by the tests, each in a process that cannot import bend_ray.
"""

from __future__ import annotations

from collections.abc import Sequence

from bend_ray.export.card import Card
from bend_ray.networks.architectures import Architecture, ConvNet, Mlp

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

_TORCH = """
## torch.export

```python
import torch

bag = torch.export.load("bag.pt2").module()
images = torch.zeros(1, {channels}, {height}, {width}, dtype=torch.uint8)  # your images
probabilities, member_probabilities = bag(images)
```
"""

_SAFETENSORS = """
## safetensors

```python
import json
import torch
from safetensors.torch import load_file
from torch.func import functional_call

card = json.load(open("config.json"))
members = load_file("members.safetensors")

{build}
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

_MLP = """layers, widths = [torch.nn.Flatten()], {widths}
for index, (width, next_width) in enumerate(zip(widths, widths[1:])):
    layers += [torch.nn.ReLU()] if index else []
    layers += [torch.nn.Linear(width, next_width)]
network = torch.nn.Sequential(*layers)"""

_CONVNET = """from collections import OrderedDict
from torch import nn

channels, layers = {channels}, OrderedDict()
for index, (before, after) in enumerate(zip(channels, channels[1:])):
    block = OrderedDict(conv=nn.Conv2d(before, after, 3, padding=1, bias={bias}))
    {norm}
    block |= OrderedDict(relu=nn.ReLU(), pool=nn.MaxPool2d(2))
    layers[f"block{{index}}"] = nn.Sequential(block)
layers |= OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
layers["head"] = nn.Linear(channels[-1], {classes})
network = nn.Sequential(layers)"""

_NORMS = {
    "batch": 'block["norm"] = nn.BatchNorm2d(after)',
    "group": 'block["norm"] = nn.GroupNorm(1, after)',
    "none": "# without a norm",
}

_OTHER = """# The module that bend_ray's {kind} builds, with as many inputs and logits:
network = build(card["architecture"])  # {architecture}"""


def guide(card: Card, programs: Sequence[str]) -> str:
    """The README's text.

    Args:
        card: of the bag.
        programs: names of the program files beside it.
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
    if "bag.onnx" in programs:
        text += _ONNX.format(**shape, **card.onnx.model_dump())
    if "bag.pt2" in programs:
        text += _TORCH.format(**shape)
    return text + _SAFETENSORS.format(build=_build(card), **shape)


def _scores(card: Card) -> str:
    scores = card.scores
    if scores is None or scores.accuracy is None or scores.nll is None:
        return "It was not evaluated: it is a part of an evaluated bag."
    return f"On the test part: accuracy {scores.accuracy:.2%}, NLL {scores.nll:.4f}."


def _build(card: Card) -> str:
    architecture: Architecture = card.architecture
    channels, height, width = card.image_shape
    classes = len(card.class_names)
    if isinstance(architecture, Mlp):
        widths = [channels * height * width, *architecture.hidden, classes]
        return _MLP.format(widths=widths)
    if isinstance(architecture, ConvNet):
        return _CONVNET.format(
            channels=[channels, *architecture.channels],
            bias=architecture.norm == "none",
            norm=_NORMS[architecture.norm],
            classes=classes,
        )
    return _OTHER.format(kind=architecture.kind, architecture=architecture.model_dump_json())
