"""State dicts as safetensors files: no pickle, readable by any tool."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bend_ray.artifacts.directory import Directory
from bend_ray.filesystems import patiently, write_bytes
from bend_ray.masking import cause

ROOTS = "roots.safetensors"
"""The seeds' file of whole models, ``theta (R, W)``: what runs start from, and members share."""
EARLY = "early-"
"""What the names of the seeds' files of early means begin with."""


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


def early_name(index: int) -> str:
    """The seeds' file of the means of early checkpoints, ``theta (R, P)`` and ``trunk (R,)``.

    Those of the runs of one shard.

    >>> early_name(3)
    'early-00003.safetensors'
    """
    return f"{EARLY}{index:05d}.safetensors"


def load_roots(seeds: Directory) -> Tensor:
    """The whole vectors of a population's roots ``(R, W)``.

    Raises:
        StoreError: it has none.
        CorruptArtifact: see ``load_weights``.
    """
    return load_weights(seeds, ROOTS)["theta"]
