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


def save_weights(
    artifact: Directory,
    name: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes tensors, from any device and sharing memory or not, as one file.

    Args:
        artifact: the artifact being made.
        name: the file's name inside it, ``weights.safetensors`` for instance.
        tensors: name -> tensor, as of ``Module.state_dict()``.
        metadata: strings to store in the file's header.

    Returns:
        ``name``.

    Raises:
        StoreError: it cannot be written.
    """
    # safetensors refuses tied weights and views that are not contiguous: each gets its own copy.
    copies = {
        key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()
    }
    content = safetensors.torch.save(copies, dict(metadata or {}))
    write = partial(write_bytes, artifact.filesystem, artifact.child(name), content)
    patiently(artifact.filesystem, write)
    return name


def load_weights(artifact: Directory, name: str) -> dict[str, Tensor]:
    """Reads what ``save_weights`` wrote, on the CPU.

    Raises:
        StoreError: there is no such file.
        CorruptArtifact: it is not a whole safetensors file.
    """
    content = artifact.read_bytes(name)
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        problem = f"expected a safetensors file, got: {cause(error)}"
        raise artifact.corrupt(name, problem) from error
