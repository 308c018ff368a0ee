"""Heavy libraries, imported at first use.

A config is read by every command, and most of them (``bend config``, ``bend status``, a second
``bend run``) never compute: files that hold specs, and those they use, take libraries from here, so
that reading a config costs a tenth of a second instead of three.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageOps
    import pyarrow as pa
    import torch
    from torch import Tensor
    from torchvision.transforms import v2
else:

    class LazyModule:
        """Stands for a module and imports it, or one inside it, when an attribute is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            module = importlib.import_module(self._name)
            if not hasattr(module, attribute):
                with suppress(ImportError):
                    importlib.import_module(f"{self._name}.{attribute}")
            value = getattr(module, attribute)
            # Kept: looking a module up costs as much as a small tensor's sum.
            setattr(self, attribute, value)
            return value

        def __reduce__(self) -> tuple[Any, ...]:
            # Unpickled attribute by attribute it would look up `_name` before it has one.
            return importlib.import_module, (self._name,)

    # For annotations alone.
    Tensor = Any
    torch = LazyModule("torch")
    pa = LazyModule("pyarrow")
    PIL = LazyModule("PIL")
    v2 = LazyModule("torchvision.transforms.v2")

__all__ = ["PIL", "Tensor", "pa", "torch", "v2"]
