"""Calling a network: with one tensor or with several by name, for its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.data.examples import Inputs


def call(module: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits ``(B, C)``, computed with the tensors of ``state`` in the place of the module's own.

    Several inputs are given by the names of its parameters.
    """
    arguments, named = ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
    if state is None:
        return logits_of(module(*arguments, **named))
    return logits_of(functional_call(module, dict(state), arguments, dict(named)))


def logits_of(output: Any) -> Tensor:
    """A network's answer itself, or its ``logits`` where it gives several things."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    return output  # type: ignore[no-any-return]
