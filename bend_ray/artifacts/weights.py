"""State dicts as safetensors files: no pickle, readable by any tool."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bend_ray.artifacts.directory import Directory
from bend_ray.storage.filesystems import patiently, write_bytes
from bend_ray.storage.masking import cause


def save_weights(artifact: Directory, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, from any device and sharing memory or not, as one file."""
    # safetensors refuses tied weights and views that are not contiguous: each gets its own copy.
    copies = {
        key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()
    }
    content = safetensors.torch.save(copies)
    write = partial(write_bytes, artifact.filesystem, artifact.child(name), content)
    patiently(artifact.filesystem, write)


def load_weights(artifact: Directory, name: str) -> dict[str, Tensor]:
    """Reads what ``save_weights`` wrote, on the CPU."""
    content = artifact.read_bytes(name)
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        problem = f"expected a safetensors file, got: {cause(error)}"
        raise artifact.corrupt(name, problem) from error
