"""What a user brings: a function or class of his own, by name, on any axis that takes one.

The code reaches other processes as files that they can import, where such can be sent, else with
the config, as Ray sends functions. Nothing of it is pickled into a store.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from bend_ray.errors import BendError, ConfigError
from bend_ray.process.code import blamed, find_source, is_importable, module_digest, object_digest
from bend_ray.spec import Spec, first_problem

_HELD: dict[tuple[str, str | None], Callable[..., Any]] = {}
"""Functions that others cannot import, such as a notebook's, by target and digest of the source."""
_FOUND: dict[str, tuple[str, Callable[..., Any]]] = {}
"""Digest and function of targets that were imported."""


def _is_target(text: str) -> str:
    module, separator, name = text.partition(":")
    parts = [*module.split("."), *name.replace("<locals>", "locals").split(".")]
    readable = [part.replace("<lambda>", "l") for part in parts]
    if not separator or not all(part.isidentifier() for part in readable):
        raise ValueError(f"expected module:function as in shop.nets:make_net, got {text!r}")
    return text


class Imported(Spec):
    """A function or class of one's own, called with arguments."""

    kind: Literal["imported"] = "imported"
    target: Annotated[str, AfterValidator(_is_target)]
    """Module and name, as in shop.nets:make_net; looked for in the working folder too."""
    arguments: dict[str, JsonValue] = Field(default={})
    """What it is called with, by name."""
    version: str | None = None
    """Another one makes everything anew, where the source alone does not show that it must."""
    source: str | None = None
    """Digest of the code, noted when it is first read; where it is given, other code is refused."""

    @classmethod
    def of(cls, target: Callable[..., Any] | str, **arguments: Any) -> Self:
        """The spec of a function or class, or of its name.

        ConfigError where it is neither, or reads what cannot be told apart.
        """
        if isinstance(target, str):
            try:
                return cls(target=target, arguments=arguments)
            except ValidationError as error:
                raise ConfigError(first_problem(error)) from None
        if not callable(target) or not hasattr(target, "__qualname__"):
            raise ConfigError(
                f"expected a function or class, or its name as in shop.nets:make_net, got a "
                f"{type(target).__qualname__}; wrap it: def make(): return ..."
            )
        spec = cls(target=f"{target.__module__}:{target.__qualname__}", arguments=arguments)
        if is_importable(target):
            return spec
        spec = spec.model_copy(update={"source": object_digest(target)})
        _HELD[spec._key] = target
        return spec

    def identified(self) -> Self:
        """The same, with the digest of its code; ConfigError where there is no such module."""
        if self.source is not None:
            return self
        return self.model_copy(update={"source": module_digest(self._module)})

    def resolve(self) -> Callable[..., Any]:
        """The function or class; ConfigError where it cannot be had, or is not as it was meant."""
        if self._key in _HELD:
            return _HELD[self._key]
        digest, found = _FOUND.get(self.target, (None, None))
        if found is not None and digest == self.source:
            return found
        if self._module == "__main__" or "<" in self.target:
            raise ConfigError(
                f"{self.target}: expected the notebook or script that defines it to run this, got "
                "another process; move it to a file, and name that"
            )
        if self.source is not None and (now := module_digest(self._module)) != self.source:
            raise ConfigError(
                f"{self.target}: expected source of digest {self.source}, got {now}: it has "
                "changed since that run; put it back, or run again to begin anew with it"
            )
        value = self._imported()
        if self.source is not None:
            if value is found:
                raise ConfigError(
                    f"{self.target}: expected the code of its file, got that of before it changed; "
                    "importlib.reload the module, or start this process anew"
                )
            _FOUND[self.target] = self.source, value
        return value

    def make(self, **offered: Any) -> Any:
        """What it returns; ConfigError where it needs other arguments.

        What is ``offered`` is given where ``arguments`` leave a parameter of that name open.
        """
        try:
            signature = inspect.signature(self.resolve())
        except ValueError:  # none to be had, as of what is built in
            return self.call(**self.arguments)
        wanted = signature.parameters
        given = {k: v for k, v in offered.items() if k in wanted} | self.arguments
        try:
            signature.bind(**given)
        except TypeError as error:
            raise ConfigError(
                f"{self.target}: expected `arguments` that it takes, got {sorted(given)}: {error}"
            ) from None
        return self.call(**given)

    def call(self, *given: Any, **named: Any) -> Any:
        """What it returns of these; ConfigError where it fails."""
        function = self.resolve()
        try:
            return function(*given, **named)
        except BendError:
            raise
        except Exception as error:  # a user's code may fail in any way
            raise ConfigError(f"{self.target}: {blamed(error)}") from error

    def files(self) -> dict[str, Path]:
        """Files that must be there to import it, by their path below a folder that is searched.

        None of what every machine has installed, or what only this process can import. ConfigError
        where there is no such module.
        """
        if self._key in _HELD or self._module == "__main__":
            return {}
        root, files = find_source(self._module)
        return {str(file.resolve().relative_to(root)): file for file in files}

    def hold(self) -> None:
        """Have it travel as Ray sends functions; ConfigError as of ``resolve``."""
        known = self.identified()
        assert known.source is not None
        _HELD[known._key] = known.resolve()

    @property
    def _key(self) -> tuple[str, str | None]:
        return self.target, self.source

    @property
    def _module(self) -> str:
        return self.target.partition(":")[0]

    def _imported(self) -> Callable[..., Any]:
        try:
            value: Any = importlib.import_module(self._module)
            for part in self.target.partition(":")[2].split("."):
                value = getattr(value, part)
        except AttributeError:
            raise ConfigError(
                f"{self.target}: expected a function or class of that name, got a module without"
            ) from None
        except Exception as error:  # the user's module may fail in any way
            raise ConfigError(f"{self.target}: cannot be imported: {blamed(error)}") from error
        if not callable(value):
            raise ConfigError(f"{self.target}: expected a function or class, got {value!r:.80}")
        return value  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "held": _HELD.get(self._key)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        held = state.pop("held", None)
        super().__setstate__(state)
        if held is not None:
            _HELD[self._key] = held


def imported_in(spec: Spec) -> Iterator[Imported]:
    """All that a spec names of a user's own, at any depth."""
    if isinstance(spec, Imported):
        yield spec
    for _, value in spec:
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Spec):
                yield from imported_in(each)


def code_of(config: Spec) -> dict[str, Path]:
    """Files of the code that a config names, as ``Imported.files`` gives them."""
    return {name: file for each in imported_in(config) for name, file in each.files().items()}
