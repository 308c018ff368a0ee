"""Checkpoints that another program wrote: which are of one training, and the tensors in one."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError

from bend_ray.data.files import File, Files, find_files
from bend_ray.errors import DataError
from bend_ray.process.lazy import torch
from bend_ray.storage.filesystems import open_file, store_errors
from bend_ray.storage.masking import cause, printable

if TYPE_CHECKING:
    from torch import Tensor

    from bend_ray.networks.protocols import Checkpoints

KEY = "seeds.protocol.files"
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
TRUNK = "{trunk}"
_INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which training loops put a network's tensors beside other things."""


def listed_trunks(spec: Checkpoints) -> tuple[Files, list[list[File]]]:
    """The files, and those of each trunk in the order of their steps.

    Of each trunk as many of the last as the shortest has.

    Raises:
        DataError: there are none, others than were meant, or only early ones.
    """
    patterns = [spec.files] if isinstance(spec.files, str) else spec.files
    files = find_files([p.replace(TRUNK, "*") for p in patterns], None, ENDINGS, KEY)
    if spec.content is not None and (found := files.digest()) != spec.content:
        raise DataError(
            f"{KEY}: expected files of digest {spec.content}, got {found}: they have changed "
            "since they were first read; run again to begin anew with them"
        )
    by_trunk: dict[str, list[File]] = {}
    for file in files:
        by_trunk.setdefault(_trunk(file, patterns), []).append(file)
    trunks = [sorted(by_trunk[name], key=_step) for name in sorted(by_trunk, key=_numbers)]
    shortest = min(map(len, trunks))
    if shortest < spec.early + 2:
        raise DataError(
            f"{KEY}: expected {spec.early + 2} checkpoints of each trunk at least, two of them "
            f"members, got {shortest} of one of {len(trunks)} trunks"
        )
    return files, [trunk[-shortest:] for trunk in trunks]


def read_state(
    files: Files, file: File, names: Sequence[str], prefix: str | None
) -> dict[str, Any]:
    """The tensors of a checkpoint that have these names, by them.

    Args:
        files: of the population.
        file: one of them.
        names: of the network's tensors.
        prefix: what stands before them; None to find it.

    Raises:
        DataError: it is no checkpoint, runs code, or lacks some.
    """
    where = printable(file.name)
    with store_errors("read", file.path), open_file(files.filesystem, file.path) as source:
        content = source.read()
    try:
        if file.name.endswith(".safetensors"):
            state: Mapping[str, Any] = safetensors.torch.load(content)
        else:
            state = _unwrapped(
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            )
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where}: expected tensors by name, got: {cause(error)}") from None
    except Exception as error:  # what torch raises of a file that is none
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{where}: expected tensors by name, and nothing that runs code, got: {reason}; save "
            "model.state_dict() alone"
        ) from None
    before = _prefix(state, names) if prefix is None else prefix
    missing = [name for name in names if before + name not in state]
    if missing:
        some = ", ".join(map(printable, list(state)[:3]))
        raise DataError(
            f"{where}: expected the network's {len(names)} tensors, got none for {missing[0]} "
            f"({len(missing)} are missing); the file has {some}, ...; name what stands before them "
            "in seeds.protocol.prefix, or take the network that was trained"
        )
    return {name: state[before + name] for name in names}


def _unwrapped(loaded: Any) -> Mapping[str, Tensor]:
    for key in _INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(map(torch.is_tensor, loaded.values())):
        raise ValueError("no state dict")
    return loaded


def _prefix(state: Mapping[str, Any], names: Sequence[str]) -> str:
    """What stands before the first of the names, as before all others; empty if nothing does."""
    ends = [key.removesuffix(names[0]) for key in state if key.endswith(names[0])]
    found = [end for end in ends if all(end + name in state for name in names)]
    return min(found, key=len, default="")


def _trunk(file: File, patterns: Sequence[str]) -> str:
    """What a file's path has in the place of ``{trunk}``."""
    for pattern in patterns:
        # What is before the first of them is the same for all files.
        parts = pattern[max(0, pattern.find(TRUNK)) :].split(TRUNK) if TRUNK in pattern else []
        ends = [re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for part in parts]
        if not ends:
            continue
        start = re.escape(pattern.partition(TRUNK)[0].rpartition("/")[2]).replace(r"\*", "[^/]*")
        same = "(?P=trunk)".join(ends[1:])
        if found := re.search(f"(?:^|/){start}(?P<trunk>[^/]+?){same}$", file.path):
            return found.group("trunk")
    return ""


def _step(file: File) -> list[tuple[bool, int, str]]:
    return _numbers(file.name)


def _numbers(text: str) -> list[tuple[bool, int, str]]:
    """Sorts names by the numbers in them.

    >>> sorted(["step-10", "step-9"], key=_numbers)
    ['step-9', 'step-10']
    """
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
