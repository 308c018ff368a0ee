"""A network called with one tensor or several by name, and many of one architecture as one program.

Shape letters: K models, P numbers of a model of which T are trained and Q are buffers, B images,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from bend_ray.data.examples import Inputs, batches, count, each, numbers, rows
from bend_ray.networks.dense import is_dense, is_flat, run_dense
from bend_ray.networks.residual import Periodic

_FLAT_LAYERS = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d, Periodic)

Form = Literal["stacked", "loop"]
"""All models in one call of every kernel, or one model after another."""


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


class Flattening(Protocol):
    """What is needed of a ``ParameterLayout``: a row's T trained numbers, then its Q buffers."""

    @property
    def num_trainable(self) -> int:
        """T."""

    @property
    def parts(self) -> tuple[Flattening, Flattening]:
        """The flattenings of the trained numbers and of the buffers."""

    def unflatten(self, theta: Tensor, /) -> dict[str, Tensor]:
        """``(*lead, P)`` to ``{name: (*lead, *shape)}``, views of ``theta``."""


class Stack(nn.Module):
    """K models as one function of their flattened parameters.

    Both forms compute the same, up to the rounding of floats.

    Args:
        module: one model of the architecture; only its structure is used.
        layout: how a row becomes the module's tensors, or those of them that are a model's own.
        form: how the models are run.
        base: the other tensors, by name, which all models share. A norm whose statistics are
            among them is as in evaluation, also while the models train.

    Attributes:
        norms: the BatchNorms whose running statistics are a model's own.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Flattening,
        form: Form = "stacked",
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._module = module.requires_grad_(False)
        self._layout = layout
        self.form = form
        self._base = dict(base or {})
        self._is_dense = is_dense(module) and not self._base
        shapes = [tensor.shape for tensor in module.parameters() if tensor.ndim == 2]
        self.widest = max(shape[0] for shape in shapes) if self._is_dense else 1
        norms = {
            path: layer
            for path, layer in module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        }
        shared = {path for path in norms if f"{path}.running_mean" in self._base}
        self.norms = [norm for path, norm in norms.items() if path not in shared]
        self._shared_norms = [norms[path] for path in shared]

    def train(self, mode: bool = True) -> Stack:
        """As of any module, but norms with shared statistics stay in evaluation mode."""
        super().train(mode)
        for norm in self._shared_norms:
            norm.eval()
        return self

    @property
    def one_by_one(self) -> bool:
        """Whether the models answer one after another, rather than at once."""
        # vmap computes once what neither a model's own tensors nor its own images have entered.
        return self.form == "loop" and not self._base

    @property
    def num_trainable(self) -> int:
        """T: a row's first numbers are trained, the rest are buffers."""
        return self._layout.num_trainable

    @property
    def matrices(self) -> Tensor:
        """Which trained numbers ``(T,)`` are of tensors of more than one dimension: 1 or 0."""
        trained = self._layout.parts[0].unflatten(torch.ones(self.num_trainable))
        return torch.cat([t.flatten() * (t.ndim > 1) for t in trained.values()])

    def forward(
        self,
        theta_KP: Tensor,
        inputs: Inputs,
        *,
        buffers_KQ: Tensor | None = None,
        shared: bool = True,
        seeds_K: Sequence[int] | None = None,
        drop: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits ``(K, B, C)`` of every model.

        Args:
            theta_KP: one row of parameters a model; ``(K, T)`` if ``buffers_KQ`` is given.
            inputs: ``(B, ...)`` shown to all models if ``shared``, else ``(K, B, ...)``.
            buffers_KQ: the models' buffers; norms in training mode update them in place, for
                which they must be given apart.
            shared: whether all models see the same examples.
            seeds_K: of each model's dropout, in the form ``loop``; None draws from torch's
                global generator.
            drop: is done to hidden units of chains of dense layers, and of no others.
        """
        if self.form == "loop" and (self.one_by_one or self.training or not shared):
            return self._loop(theta_KP, inputs, buffers_KQ, shared, seeds_K)
        state, running = self._state(theta_KP, buffers_KQ)
        if self._is_dense and is_flat(inputs, self._module, shared=shared):
            return run_dense(self._module, state, inputs, shared=shared, drop=drop)
        # vmap flattens models and channels into one dimension; where that must copy, the update
        # of a norm would go to the copy and be lost.
        state |= {name: buffer.contiguous() for name, buffer in running.items()}
        stacked = vmap(self._one, in_dims=(0, None if shared else 0), randomness="different")
        logits_KBC: Tensor = stacked(state, each(by_pixel, inputs) if self._base else inputs)
        for name, buffer in running.items():
            buffer.copy_(state[name])
        return logits_KBC

    def _loop(
        self,
        theta_KP: Tensor,
        inputs: Inputs,
        buffers_KQ: Tensor | None,
        shared: bool,
        seeds_K: Sequence[int] | None,
    ) -> Tensor:
        logits_KBC = []
        # Rows by unbind: its backward is one stack, while an index would pad each to K rows.
        for k, theta_P in enumerate(theta_KP.unbind()):
            state, running = self._state(theta_P, None if buffers_KQ is None else buffers_KQ[k])
            state |= running
            batch = each(by_pixel, inputs if shared else rows(inputs, k))
            with nullcontext() if seeds_K is None else _seeded(seeds_K[k], theta_KP.device):
                logits_KBC.append(self._one(state, batch))
        return torch.stack(logits_KBC)

    def _one(self, state: dict[str, Tensor], batch: Inputs) -> Tensor:
        return call(self._module, batch, self._base | state)

    def _state(
        self, theta: Tensor, buffers: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The module's tensors, and those of them that norms may update in place."""
        if buffers is None:
            return self._layout.unflatten(theta), {}
        trained, running = self._layout.parts
        return trained.unflatten(theta), running.unflatten(buffers)


def by_pixel(batch: Tensor) -> Tensor:
    """The same images with the channels of a pixel side by side.

    Measured: a CPU convolves and pools them 1.3 to 2 times faster in this order, which the layers
    after the first keep.
    """
    if batch.ndim != 4 or batch.device.type != "cpu":
        return batch
    _, channels, height, width = batch.shape
    ordered = batch.contiguous(memory_format=torch.channels_last)
    if channels > 1:
        return ordered
    # Of one channel both orders are the same memory, and only the strides can tell which is meant.
    return ordered.as_strided(batch.shape, (height * width, 1, width, 1))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The device's global generator, seeded; its state is given back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if on_gpu:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


def form_for(module: nn.Module, device: str, example: Inputs | None = None) -> Form:
    """How models of this structure are run: by a rule, so that a result depends on no timing.

    A GPU is kept busy by all models in one kernel; a CPU convolves one model after another faster.
    Models with dropout train one after another everywhere, as only so can each draw from a
    generator of its own, whoever is in its cohort. Inputs of an example tell whether models can be
    stacked; None for networks of which that is known.
    """
    if is_random(module):
        return "loop"
    if torch.device(device).type == "cpu" and not _is_flat(module):
        return "loop"
    return "stacked" if is_dense(module) or example is None or _maps(module, example) else "loop"


def _is_flat(module: nn.Module) -> bool:
    """Whether a CPU gains from all models at once: dense layers alone have parameters."""
    own = [layer for layer in module.modules() if list(layer.parameters(recurse=False))]
    return is_dense(module) or all(isinstance(layer, _FLAT_LAYERS) for layer in own)


@torch.no_grad()
def _maps(module: nn.Module, example: Inputs) -> bool:
    """Whether ``vmap`` follows the module: its code may ask what no stacked tensor can tell."""
    state = {name: torch.stack([t, t]) for name, t in module.state_dict().items()}
    training = module.training
    try:
        one = partial(call, module.eval(), example)
        return vmap(one, randomness="different")(state).shape[0] == 2
    except Exception:  # a user's forward may fail in any way
        return False
    finally:
        module.train(training)


def is_random(module: nn.Module) -> bool:
    """Whether the module draws random numbers in training: dropout or stochastic depth."""
    return any(
        "drop" in type(layer).__name__.lower() or type(layer).__name__ == "StochasticDepth"
        for layer in module.modules()
        if getattr(layer, "p", 0)
    )


@torch.no_grad()
def predict_logits(
    stack: Stack, theta_KP: Tensor, inputs: Inputs, *, max_elements: int | None = None
) -> Tensor:
    """Logits ``(K, N, C)`` of every model on every normalised example, in evaluation mode.

    In pieces that bound models x numbers of the widest dense layer in flight, by default to as many
    as the device computes fastest: what a CPU's caches do not hold costs a small CNN 1.3 to 2.5
    times as long.
    """
    if max_elements is None:
        on_cpu = theta_KP.device.type == "cpu"
        # Convolutions make many numbers of each that comes in.
        max_elements = (2**17 if stack.one_by_one else 2**20) if on_cpu else 2**24
    most = max(1, max_elements // max(1, numbers(inputs), stack.widest))
    models = 1 if stack.one_by_one else max(1, min(len(theta_KP), most))
    parts = batches(inputs, max(1, most // models)) if count(inputs) else [inputs]
    stack.eval()
    logits_KNC = theta_KP.new_empty(0)
    for k in range(0, max(1, len(theta_KP)), models):
        done = 0
        for part in parts:
            found = stack(theta_KP[k : k + models], part)
            if not k + done:
                # Written in place: pieces that stay would part the memory that the next ones need.
                logits_KNC = found.new_empty(len(theta_KP), count(inputs), *found.shape[2:])
            logits_KNC[k : k + models, done : done + count(part)] = found
            done += count(part)
    return logits_KNC
