"""Code of a user's own: where it is, and what tells it from other code, without running it.

A function or class of a module goes by that module's source: of a package of his own by all its
files, as one may import another; of an installed one by its version and the module's file. What was
typed into a notebook or a script goes by its source and by what it reads from around it. Of what is
not there, or cannot be told from other code, all raise ConfigError.
"""

from __future__ import annotations

import dis
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bend_ray.errors import ConfigError

DIGITS = 12
MOST_FILES, MOST_BYTES = 2000, 32 * 2**20
"""Of a package that is read whole; of a larger one the module's own file counts."""

_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")
)

_OURS = Path(__file__).resolve().parents[1]


def find_source(module: str) -> tuple[Path, list[Path]]:
    """The folder that must be importable for ``module``, and the files that decide what it is.

    No file for a module that is installed, as every machine has it.
    """
    top, _, below = module.partition(".")
    # Modules of the working folder are found too, after all others: a command does not look there.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    found = importlib.util.find_spec(top)
    if found is None or (found.origin is None and not found.submodule_search_locations):
        raise ConfigError(
            f"{module}: expected a module that can be imported from here, got none; start in the "
            "folder that holds it, or set PYTHONPATH"
        )
    if found.origin in ("built-in", "frozen"):
        return _INSTALLED[-1], []
    folders = list(found.submodule_search_locations or [])
    own: Path | None = Path(found.origin or folders[0])
    if below:
        base = Path(folders[0] if folders else os.devnull).joinpath(*below.split("."))
        candidates = (base.with_suffix(".py"), base / "__init__.py", base)
        own = next((each for each in candidates if each.exists()), None)
    if own is None:
        raise ConfigError(f"{module}: expected a module inside {top}, got none of that name")
    place = Path(folders[0] if folders else own).resolve()
    if any(place.is_relative_to(installed) for installed in _INSTALLED):
        return place.parent, []
    files = [file for file in place.rglob("*.py") if file.is_file()] if place.is_dir() else []
    is_small = len(files) <= MOST_FILES and sum(file.stat().st_size for file in files) <= MOST_BYTES
    return place.parent, (files if is_small else []) or [own]


def module_digest(module: str) -> str:
    """Hexadecimal digits that change with the source of a module."""
    root, files = find_source(module)
    digest = hashlib.sha256(module.encode())
    if not files:
        names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
        versions = (f"{name}=={importlib.metadata.version(name)}" for name in sorted(names))
        digest.update(" ".join(versions).encode())
    for file in sorted(files):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{module}: cannot read {file.name}: {error.strerror}") from None
        digest.update(str(file.resolve().relative_to(root)).encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:DIGITS]


def object_digest(value: Any) -> str:
    """Hexadecimal digits that change with the source of a function or class, wherever it is."""
    described = b"".join(part + b"\0" for part in _described(value, set()))
    return hashlib.sha256(described).hexdigest()[:DIGITS]


def is_importable(value: Any) -> bool:
    """Whether any process can import a function or class by its module and name."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__" or not getattr(module, "__file__", None):
        return False
    found: Any = module
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def blamed(error: BaseException) -> str:
    """What a user's code raised, in a line, and where: the last place that is not installed."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if not any(path.is_relative_to(installed) for installed in (*_INSTALLED, _OURS)):
            return f"{said} ({path.name}, line {frame.lineno})"
    return said


def _described(value: Any, seen: set[int]) -> Iterator[bytes]:
    """Bytes that say what a value is."""
    if id(value) in seen:
        return
    if isinstance(value, types.ModuleType):
        yield f"module {value.__name__}".encode()
    elif isinstance(value, type | types.FunctionType | types.MethodType):
        seen.add(id(value))
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if is_importable(value):
            yield module_digest(value.__module__).encode()
        else:
            yield from _members(value, seen) if isinstance(value, type) else _code(value, seen)
    elif callable(value) and not hasattr(value, "__dict__"):  # built in
        yield getattr(value, "__qualname__", type(value).__qualname__).encode()
    else:
        yield _content(value)


def _members(cls: type, seen: set[int]) -> Iterator[bytes]:
    for base in cls.__bases__:
        yield from _described(base, seen)
    for name, member in sorted(vars(cls).items()):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            yield name.encode()
            yield from _code(function, seen)
        elif not name.startswith("__"):
            yield name.encode()
            yield from _described(member, seen)


def _code(function: Callable[..., Any], seen: set[int]) -> Iterator[bytes]:
    """Source, defaults, and what is read from around the function."""
    code = function.__code__
    try:
        yield inspect.getsource(function).encode()
    except (OSError, TypeError):  # typed into an interpreter that keeps nothing
        for each in _nested(code):
            constants = [value for value in each.co_consts if not isinstance(value, types.CodeType)]
            yield each.co_code + repr((constants, each.co_names)).encode()
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield from _described(default, seen)
    for name, value in sorted(_around(function).items()):
        yield name.encode()
        yield from _described(value, seen)


def _around(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function, and those inside of it, read from around it, by name.

    ``inspect.getclosurevars`` takes every attribute for a global of its name, and overlooks what
    functions inside read.
    """
    read = {
        instruction.argval
        for code in _nested(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    held = function.__globals__
    found = {name: held[name] for name in read if name in held}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not yet assigned
            found[name] = cell.cell_contents
    return found


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions inside of it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _nested(value)


def _content(value: Any) -> bytes:
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())
    try:
        return json.dumps(value, sort_keys=True).encode()
    except (TypeError, ValueError):
        raise ConfigError(
            f"expected functions that read numbers, texts, arrays, functions and classes from "
            f"around them, got one that reads a {type(value).__qualname__}, whose content cannot "
            "be told; make it inside of the function, or move the function to a file"
        ) from None
