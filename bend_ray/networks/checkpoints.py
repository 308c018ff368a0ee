"""Checkpoints that another program wrote: which are of one training, and the tensors in one."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import safetensors.torch

from bend_ray.data.files import File, Files, find_files
from bend_ray.errors import DataError
from bend_ray.process.lazy import Tensor, torch
from bend_ray.storage.filesystems import open_file, resolve, store_errors
from bend_ray.storage.masking import cause, printable

if TYPE_CHECKING:
    from bend_ray.networks.protocols import Checkpoints

KEY = "seeds.protocol.files"
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
TRUNK = "{trunk}"
_MARK = "[*]"
"""Of it in a pattern that goes through as a path."""
BESIDE = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
"""How files begin that Hugging Face's trainers put beside a network's."""


def listed_trunks(spec: Checkpoints) -> tuple[Files, list[list[File]]]:
    """The files, and those of each trunk in the order of their steps.

    Of each trunk as many of the last as the shortest has. DataError where there are none, others
    than were meant, or only early ones.
    """
    patterns = [spec.files] if isinstance(spec.files, str) else spec.files
    files = find_files([p.replace(TRUNK, "*") for p in patterns], None, ENDINGS, KEY)
    own = tuple(f for f in files if not f.name.rpartition("/")[2].startswith(BESIDE))
    files = replace(files, files=own)
    files.expect(spec.content, KEY)
    expressions = [_expression(pattern) for pattern in patterns if TRUNK in pattern]
    by_trunk: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda file: _numbers(file.name)):
        matches = (re.fullmatch(expression, file.path) for expression in expressions)
        trunk = next((match.group("trunk") for match in matches if match), "")
        by_trunk.setdefault(trunk, []).append(file)
    trunks = [by_trunk[name] for name in sorted(by_trunk, key=_numbers)]
    shortest = min(map(len, trunks), default=0)
    if shortest < spec.early + 2:
        raise DataError(
            f"{KEY}: expected {spec.early + 2} checkpoints of each trunk at least, two of them "
            f"members, got {shortest} of one of {len(trunks)} trunks"
        )
    return files, [trunk[-shortest:] for trunk in trunks]


def read_state(
    files: Files, file: File, shapes: Mapping[str, tuple[int, ...]], prefix: str | None
) -> dict[str, Tensor]:
    """The network's tensors in a checkpoint, by name.

    ``prefix`` is what stands before names in the file, keys of mappings among it; None to find it.
    DataError where it is no checkpoint, runs code, or is of another network.
    """
    where = printable(file.name)
    with store_errors("read", file.path), open_file(files.filesystem, file.path) as source:
        content = source.read()
    state = tensors_by_name(content, where)
    before = _prefix(state, list(shapes), prefix, where)
    found = {name: state[before + name].detach() for name in shapes}
    for name, shape in shapes.items():
        kind = (tuple(found[name].shape), found[name].is_floating_point(), found[name].layout)
        if kind != (shape, True, torch.strided) or found[name].is_meta:
            raise DataError(
                f"{where}: expected {before + name} to be dense floats of shape {shape}, got "
                f"{kind[0]} of {found[name].dtype}; take the network that was trained"
            )
    return found


def tensors_by_name(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors in a file of safetensors or of torch.save, as its name ends.

    DataError where it is neither, or runs code.
    """
    try:
        return dict(_tensors(_loaded(content, where)))
    except Exception as error:  # what torch raises of a file that is none
        reason = cause(error).partition(". ")[0]
        raise DataError(
            f"{where}: expected tensors by name and nothing that runs code, got "
            f"{type(error).__name__}: {reason}; save model.state_dict() alone"
        ) from None


def _loaded(content: bytes, name: str) -> Any:
    if name.endswith(".safetensors"):
        return safetensors.torch.load(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in mappings, as of a training loop's state, by the keys on the way."""
    if torch.is_tensor(value):
        yield name, value
    elif isinstance(value, Mapping):
        for key, its in value.items():
            yield from _tensors(its, f"{name}.{key}" if name else str(key))


def _prefix(
    state: Mapping[str, Tensor], names: Sequence[str], prefix: str | None, where: str
) -> str:
    """What stands before all names of a network, such as ``module.`` or ``state_dict.model.``.

    DataError where nothing does, or the file holds several such networks.
    """
    ends = {key.removesuffix(names[0]) for key in state if f".{key}".endswith(f".{names[0]}")}
    told = prefix or ""
    meant = [end for end in {told, *ends} if not told or f".{end}".endswith(f".{told}")]
    found = sorted(end for end in meant if all(end + name in state for name in names))
    if len(found) == 1 or "" in found:
        return found[0]
    if found:
        raise DataError(
            f"{where}: expected one network of such names, got several, behind "
            f"{', '.join(map(printable, found))}; name one in seeds.protocol.prefix"
        )
    some = ", ".join(map(printable, list(state)[:3])) or "no tensors"
    missing = [name for name in names if told + name not in state]
    raise DataError(
        f"{where}: expected the network's {len(names)} tensors, got none for {missing[0]} "
        f"({len(missing)} are missing); the file has {some}, ...; take the network that was "
        "trained, or mend seeds.protocol.prefix"
    )


def _expression(pattern: str) -> str:
    """A regular expression of the paths that a pattern means, with a group called trunk."""
    _, path = resolve(pattern.replace(TRUNK, _MARK))
    words = {_MARK: _MARK, "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*|\?|\[[^/]+?\])", path)
    literal = [p.replace("[!", "[^") if p.startswith("[") else re.escape(p) for p in pieces]
    before, *after = "".join(map(words.get, pieces, literal)).split(_MARK)
    # Folders may be meant, whose files are taken.
    return f"{before}(?P<trunk>[^/]+?){'(?P=trunk)'.join(after)}(?:/[^/]+)?"


def _numbers(text: str) -> list[tuple[bool, int, str]]:
    """Sorts names by the numbers in them.

    >>> sorted(["step-10", "step-9"], key=_numbers)
    ['step-9', 'step-10']
    """
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
