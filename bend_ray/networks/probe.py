"""What is asked of a network before any is trained: that a population of it can be made and asked.

Everything is tried on real training examples, and the network is left as it was. Each refusal is a
line that says what to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bend_ray.data.examples import Examples, Inputs, Parts, count, each, rows
from bend_ray.errors import DataError
from bend_ray.networks.batches import Feed, mixed
from bend_ray.networks.recipe import Recipe
from bend_ray.networks.stacking import call
from bend_ray.process.code import blamed

EXAMPLES = 4
"""Shown together and one by one."""
TOLERANCE = 1e-4
"""By which answers may differ that should be the same, as a share of the largest logit."""


def check_network(
    build: Callable[[], nn.Module], inputs: Inputs, num_classes: int, name: str
) -> None:
    """Try what training, voting and storing will do on a few normalised training examples.

    Global randomness stays as it is. DataError where it gives no network of this kind.
    """
    with torch.random.fork_rng(devices=[]):
        module, other = build(), build()
        found = chain(
            _no_module(module),
            _shared(module, other),
            _problems(module, other, inputs, num_classes),
        )
        if problem := next(found, None):
            raise DataError(f"{name}: {problem}")


@torch.no_grad()
def check_batches(build: Callable[[], nn.Module], inputs: Inputs, smallest: int) -> None:
    """Show a fresh network the smallest batch that one will be trained on.

    Normalised inputs of fewer examples are repeated; global randomness stays as it is. DataError
    where its norms have but one value a channel there, and nothing to divide by.
    """
    index = torch.arange(smallest) % count(inputs)
    try:
        with torch.random.fork_rng(devices=[]):
            call(build().train(), rows(inputs, index))
    except ValueError as error:
        raise DataError(
            f"expected batches that the network's norms can be trained on, got one of {smallest} "
            f"({str(error).splitlines()[0]}); raise "
            "seeds.recipe.batch_size or samples.recalibration_images, take more or larger "
            "examples, or a network without BatchNorm"
        ) from None


def check_recipe(recipe: Recipe, dataset: Parts) -> None:
    """Vary and mix a few training examples as a training would, and see that it takes a step.

    DataError where the recipe does not fit the data.
    """
    train = dataset.train
    if recipe.num_steps(recipe.epochs, len(train)) == 0:
        raise DataError(
            "seeds.recipe.epochs: expected a step at least, of the "
            f"{len(recipe.batch_sizes(len(train)))} of a pass, got {recipe.epochs:g} passes; "
            "raise it"
        )
    if recipe.class_weights is not None:
        outputs = torch.empty(0, dataset.num_outputs)
        dataset.task.weights(train.labels_N, recipe.class_weights, outputs)
    few = Examples(train.take(slice(EXAMPLES)), train.labels_N[:EXAMPLES])
    feed = Feed(few, dataset.normalise, recipe, dataset.task, torch.device("cpu"))
    for window, index_KB in feed.batches([torch.Generator()], 1):
        mixed(window.views(index_KB, [torch.Generator()]), recipe, [0])


def _shared(module: nn.Module, other: nn.Module) -> Iterator[str]:
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    if trained & {id(p) for p in other.parameters()}:
        yield (
            "expected a new network at every call, got one with the same parameters twice; make "
            "it inside of the function"
        )


def _no_module(module: Any) -> Iterator[str]:
    if not isinstance(module, nn.Module):
        got = type(module).__qualname__
        yield f"expected a function that returns a torch.nn.Module, got a {got}"
        return
    parameters = dict(module.named_parameters())
    if not parameters:
        yield "expected a network with parameters, got none to train"
    if any(is_lazy(tensor) for tensor in parameters.values()):
        yield (
            "expected parameters of known shapes, got lazy ones; give layers their sizes, or show "
            "the network an example before you return it"
        )
    strange = {name: p.dtype for name, p in parameters.items() if p.dtype != torch.float32}
    for path, dtype in strange.items():
        yield f"expected parameters of float32, got {dtype} for {path}; call .float() on it"
    if not any(parameter.requires_grad for parameter in parameters.values()):
        yield "expected parameters to train, got frozen ones only; requires_grad_(True) on some"


@torch.no_grad()
def _problems(
    module: nn.Module, other: nn.Module, inputs: Inputs, num_classes: int
) -> Iterator[str]:
    """What is wrong, the first thing first."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = rows(inputs, slice(EXAMPLES))
    module.eval(), other.eval()
    try:
        together, again = call(module, inputs), call(module, inputs)
        alone = [call(module, rows(inputs, slice(i, i + 1))) for i in range(count(inputs))]
    except Exception as error:  # a user's forward may fail in any way
        whole = "; whole numbers are tokens: give floats of what are quantities"
        hint = whole if "int64" in _told(inputs) else ""
        yield f"expected a forward that takes {_told(inputs)}, got {blamed(error)}{hint}"
        return
    yield from _answers(together, again, num_classes, count(inputs))
    if not _close(together, torch.cat(alone)):
        yield (
            "expected an answer that depends on its example alone, got another one in other "
            "company; use no statistics of the batch in evaluation mode"
        )
    after = module.state_dict()
    if changed := [k for k, tensor in before.items() if not torch.equal(tensor, after[k])]:
        yield f"expected evaluation to change nothing, got another {changed[0]}"
    other.load_state_dict(before)
    if not _close(together, call(other, inputs)):
        yield (
            "expected a state dict that holds all that answers depend on, got another answer "
            "from a second network with the same state; register tensors as buffers"
        )
    yield from _gradients(module.train(), inputs)


def _answers(together: Any, again: Any, num_classes: int, num_examples: int) -> Iterator[str]:
    if not isinstance(together, Tensor):
        yield (
            f"expected logits, or an output with .logits, got a {type(together).__qualname__}; "
            "return the logits"
        )
    elif together.shape != (num_examples, num_classes):
        yield (
            f"expected logits of shape (batch, {num_classes}), one a class, got "
            f"{tuple(together.shape)} for {num_examples} examples; give the last layer "
            f"{num_classes} outputs (a parameter called num_classes is filled in)"
        )
    elif not together.is_floating_point() or not together.isfinite().all():
        yield f"expected finite logits of a fresh network, got {together.dtype} or nan"
    elif num_classes > 1 and (together >= 0).all() and _close(together.sum(1), torch.ones(1)):
        yield "expected logits, got probabilities; leave the last softmax out"
    elif not torch.equal(together, again):
        yield (
            "expected the same answer twice in evaluation mode, got two; draw random numbers in "
            "training only"
        )


@torch.enable_grad()
def _gradients(module: nn.Module, inputs: Inputs) -> Iterator[str]:
    try:
        call(module, inputs).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a user's forward may fail in any way
        yield f"expected a forward that can be trained, got {blamed(error)}"
        return
    if all(parameter.grad is None for parameter in module.parameters()):
        yield "expected gradients of its parameters, got none; compute logits without no_grad"


def _close(a: Tensor, b: Tensor) -> bool:
    scale = max(a.abs().max().item(), 1e-6)
    return math.isfinite(scale) and (a - b).abs().max().item() <= TOLERANCE * scale


def _told(inputs: Inputs) -> str:
    """The inputs in words: shape and type, by name where there are several."""
    words = each(lambda v: f"{tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}", inputs)
    if isinstance(words, dict):
        return "by name " + ", ".join(f"{name} {word}" for name, word in words.items())
    return f"one tensor {words}"
