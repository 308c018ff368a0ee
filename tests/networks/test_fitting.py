from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.data.augmentation import RandomViews
from bend_ray.data.datasets import Digits
from bend_ray.data.examples import Examples
from bend_ray.errors import ClusterError
from bend_ray.networks.architectures import ConvNet, Mlp
from bend_ray.networks.batches import Feed
from bend_ray.networks.fitting import (
    CLASSIFICATION,
    Training,
    fit,
    initial_parameters,
    stretch_marks,
)
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Form, Stack, predict_logits
from bend_ray.optim import AdamW, Constant, Cosine, Sgd
from bend_ray.parameters.layout import ParameterLayout

NUM_IMAGES, NUM_CLASSES = 23, 3
WHOLE = Stretch(start=0.0, epochs=4.0)
ADAMW = Recipe(epochs=4, batch_size=5, optimizer=AdamW(learning_rate=0.02, weight_decay=0.1))
SMOOTH = ADAMW.model_copy(update={"label_smoothing": 0.1})
SGD = Recipe(epochs=4, batch_size=5, optimizer=Sgd(learning_rate=0.1, weight_decay=0.01))
PLAIN = [ADAMW, SGD, SMOOTH] + [
    recipe.model_copy(update=update)
    for recipe in (ADAMW, SGD)
    for update in (
        {"gradient_clip": 0.2},
        {"decay_norms_and_biases": False},
        {"ema_decay": 0.9},
        {"class_weights": (0.5, 1.0, 3.0), "label_smoothing": 0.1},
        {"class_weights": "balanced", "epochs": 3.4},
    )
]
"""Recipes that everyone's plain loop knows, in ``train_alone``."""
MIXED = [
    ADAMW.model_copy(update=update)
    for update in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0})
]
VARIED = [
    ADAMW.model_copy(update={"augmentation": RandomViews(**views)})
    for views in (
        {"policy": "rand_augment"},
        {"policy": "trivial_augment", "crop_padding": 1},
        {"erasing": 0.5},
    )
]


def name_of(recipe: Recipe) -> str:
    return ",".join(
        f"{name}={getattr(value, 'kind', value)}"
        for name, value in recipe
        if value != getattr(Recipe(), name) and name not in ("epochs", "batch_size")
    )


# Without momentum and with all images in each batch a step depends on nothing but the last one.
DESCENT = Recipe(
    epochs=8,
    batch_size=NUM_IMAGES,
    optimizer=Sgd(learning_rate=0.3, momentum=0.0),
    schedule=Cosine(warmup=0.25, final=0.1),
)


def build() -> nn.Module:
    return Mlp(hidden=(6,)).build((1, 3, 3), NUM_CLASSES)


LAYOUT = ParameterLayout.of(build())


def pictures() -> Examples:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return Examples(pixels, torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator))


def scaled(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda pixels: pixels.to(dtype) / 128 - 1


def starts(seeds: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """In double precision, where only a mistake makes two ways of training differ."""
    return torch.stack([initial_parameters(build, LAYOUT.flatten, s) for s in seeds]).to(dtype)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def batch_order(
    recipe: Recipe, count: int, num_steps: int, bootstrap: bool, generator: torch.Generator
) -> list[Tensor]:
    """Examples of each step of one model, of a part that is one window."""
    part = Examples(torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64))
    feed = Feed(part, lambda inputs: inputs, recipe, CLASSIFICATION, torch.device("cpu"))
    batches = feed.batches([generator], num_steps, bootstrap=bootstrap)
    return [index_KB[0] for _, index_KB in batches]


def cohort(
    recipe: Recipe,
    stretch: Stretch,
    seeds: Sequence[int],
    dtype: torch.dtype = torch.float64,
    form: Form = "stacked",
) -> Tensor:
    """Snapshots ``(S, K, P)`` of the models of these seeds, trained together."""
    return fit(
        Stack(build(), LAYOUT, form),
        starts(seeds, dtype),
        pictures(),
        scaled(dtype),
        recipe,
        stretch,
        generators(seeds),
    )


def torch_optimizer(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    spec = recipe.optimizer
    spared = [p for p in module.parameters() if p.ndim < 2 and not recipe.decay_norms_and_biases]
    others = [p for p in module.parameters() if all(p is not s for s in spared)]
    groups = [{"params": others, "weight_decay": spec.weight_decay}]
    groups += [{"params": spared, "weight_decay": 0.0}] if spared else []
    if isinstance(spec, AdamW):
        return torch.optim.AdamW(groups, betas=spec.betas)
    return torch.optim.SGD(groups, momentum=spec.momentum, nesterov=spec.nesterov)


def plain_loop(recipe: Recipe, stretch: Stretch, seed: int, dtype: torch.dtype) -> Tensor:
    """One model trained as everyone trains one, from start to end; parameters ``(P,)``."""
    module = build().to(dtype)
    module.load_state_dict(LAYOUT.unflatten(starts([seed], dtype)[0]))
    train_alone(module, pictures(), recipe, stretch, seed, dtype)
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def train_alone(
    module: nn.Module,
    images: Examples,
    recipe: Recipe,
    stretch: Stretch,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Train a module in place through the whole recipe."""
    inputs = scaled(dtype)(images.inputs)
    total = recipe.num_steps(recipe.epochs, NUM_IMAGES)
    batches = batch_order(recipe, NUM_IMAGES, total, stretch.bootstrap, generators([seed])[0])
    optimizer = torch_optimizer(recipe, module)
    weights = recipe.class_weights and torch.tensor(
        [23 / (3 * int((images.labels_N == c).sum())) for c in range(NUM_CLASSES)]
        if recipe.class_weights == "balanced"
        else recipe.class_weights,
        dtype=dtype,
    )
    loss_of = nn.CrossEntropyLoss(weights, reduction="none", label_smoothing=recipe.label_smoothing)
    averaged = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.learning_rate * recipe.schedule.factor(step / total)
        optimizer.zero_grad()
        loss = loss_of(module(inputs[batch]), images.labels_N[batch]).mean()
        torch.autograd.backward(loss)
        if recipe.gradient_clip is not None:
            norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.gradient_clip)
            assert norm > recipe.gradient_clip or step
        optimizer.step()
        decay = min(recipe.ema_decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            averaged[name] = decay * averaged[name] + (1 - decay) * tensor
    if recipe.ema_decay:
        module.load_state_dict(averaged)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.trains
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("recipe", PLAIN, ids=name_of)
@pytest.mark.parametrize("bootstrap", [False, True], ids=["all", "bootstrap"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str
)
def test_a_model_of_a_cohort_is_the_model_trained_alone(
    recipe: Recipe, bootstrap: bool, dtype: torch.dtype, tolerance: float
) -> None:
    stretch = Stretch(start=0.0, epochs=recipe.epochs, bootstrap=bootstrap)
    seeds = (3, 1, 4)
    theta_KP = cohort(recipe, stretch, seeds, dtype)[-1]
    alone_KP = torch.stack([plain_loop(recipe, stretch, seed, dtype) for seed in seeds])
    assert_close(theta_KP, alone_KP, tolerance)
    assert float((theta_KP - starts(seeds, dtype)).abs().max()) > 0.1


def build_convnet() -> nn.Module:
    return ConvNet(channels=(4, 5)).build((1, 4, 4), NUM_CLASSES)


def wide_pictures() -> Examples:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Examples(pixels, torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator))


@pytest.mark.trains
@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("form", ["stacked", "loop"])
@pytest.mark.parametrize("recipe", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_batchnorm_models_of_a_cohort_are_those_trained_alone(recipe: Recipe, form: Form) -> None:
    layout, images, seeds = ParameterLayout.of(build_convnet()), wide_pictures(), (3, 1, 4)
    start_KP = torch.stack([initial_parameters(build_convnet, layout.flatten, s) for s in seeds])
    start_KP = start_KP.double()
    stretch = Stretch(start=0.0, epochs=4.0, snapshots=2)
    snapshots_SKP = fit(
        Stack(build_convnet(), layout, form),
        start_KP,
        images,
        scaled(torch.float64),
        recipe,
        stretch,
        generators(seeds),
    )
    for k, seed in enumerate(seeds):
        module = build_convnet().double()
        module.load_state_dict(layout.unflatten(start_KP[k]), strict=False)
        train_alone(module, images, recipe, stretch, seed)
        state = module.state_dict()
        for name, tensor in layout.unflatten(snapshots_SKP[-1, k]).items():
            assert_close(tensor, state[name])
        assert int(state["block0.norm.num_batches_tracked"]) == 20
    statistics_SKQ = snapshots_SKP[..., layout.num_trainable :]
    assert float((statistics_SKQ[0] - statistics_SKQ[1]).abs().max()) > 1e-3


@pytest.mark.trains
def test_dropout_of_a_model_does_not_depend_on_its_cohort() -> None:
    def with_dropout() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(9, NUM_CLASSES))

    def train(seeds: Sequence[int]) -> Tensor:
        layout = ParameterLayout.of(with_dropout())
        theta_KP = torch.zeros(len(seeds), layout.size)
        arguments = (pictures(), scaled(torch.float32), ADAMW, WHOLE, generators(seeds))
        return fit(Stack(with_dropout(), layout, "loop"), theta_KP, *arguments)[-1]

    together = train((0, 1, 2))
    assert_close(train((2,)), together[[2]], 1e-6)
    assert_close(train((1, 0)), together[[1, 0]], 1e-6)


@pytest.mark.parametrize("recipe", [*PLAIN, *MIXED, *VARIED], ids=name_of)
def test_a_model_does_not_depend_on_its_cohort(recipe: Recipe) -> None:
    together = cohort(recipe, WHOLE, (0, 1, 2, 3))[-1]
    assert_close(cohort(recipe, WHOLE, (3, 1, 0, 2), form="loop")[-1], together[[3, 1, 0, 2]])
    assert_close(cohort(recipe, WHOLE, (2,))[-1], together[[2]])
    if recipe != ADAMW:
        assert float((together - cohort(ADAMW, WHOLE, (0, 1, 2, 3))[-1]).abs().max()) > 1e-3


@pytest.mark.trains
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a processor without bf16"
)
@pytest.mark.parametrize("form", ["stacked", "loop"])
def test_bf16_rounds_products_alone(form: Form) -> None:
    recipe = ADAMW.model_copy(update={"precision": "bf16", "epochs": 2})
    stretch = Stretch(start=0.0, epochs=2.0)
    whole = cohort(ADAMW, stretch, (0, 1), torch.float32)
    rounded = cohort(recipe, stretch, (0, 1), torch.float32, form)
    assert rounded.dtype == torch.float32
    apart = float((rounded - whole).abs().max())
    assert 1e-5 < apart < 0.1
    assert_close(cohort(recipe, stretch, (1,), torch.float32, form)[:, 0], rounded[:, 1], 1e-2)


def test_bf16_is_refused_where_a_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ClusterError, match=r"expected a processor that computes in bf16.*float32"):
        cohort(ADAMW.model_copy(update={"precision": "bf16"}), WHOLE, (0,))


@pytest.mark.parametrize("recipe", [*PLAIN, *MIXED, *VARIED], ids=name_of)
@pytest.mark.parametrize("form", ["stacked", "loop"])
def test_a_training_goes_on_from_its_state_to_the_same_bits(recipe: Recipe, form: Form) -> None:
    stretch = Stretch(start=0.0, epochs=3.0, bootstrap=True, snapshots=4)
    cpu, train = torch.device("cpu"), pictures()
    feed = Feed(train, scaled(torch.float32), recipe, CLASSIFICATION, cpu)

    def training() -> Training:
        stack, start_KP = Stack(build(), LAYOUT, form), starts((0, 1), torch.float32)
        return Training(stack, start_KP, feed, stretch, generators((5, 6)))

    expected = snapshots_of(training())
    steps = stretch_marks(recipe, stretch, NUM_IMAGES)
    for left in (1, 2, 3):
        first, second = training(), training()
        coming, before = first.steps(), list[Tensor]()
        while len(before) < left:
            before += next(coming)
        assert first.step == steps[left - 1]
        second.load({name: each.clone() for name, each in first.state().items()}, first.step)
        after = snapshots_of(second)
        assert len(before) + len(after) == len(expected) == 4
        assert all(torch.equal(a, b) for a, b in zip([*before, *after], expected, strict=True))


def snapshots_of(training: Training) -> list[Tensor]:
    return [snapshot for left in training.steps() for snapshot in left]


def test_models_of_a_loop_are_trained_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = Stack.forward

    def spy(stack: Stack, theta_KP: Tensor, images: Tensor, **options: object) -> Tensor:
        sizes.append(len(theta_KP))
        return forward(stack, theta_KP, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stack, "forward", spy)
    stretch = Stretch(start=0.0, epochs=1.0)
    looped = cohort(ADAMW, stretch, (3, 1, 4), form="loop")
    assert set(sizes) == {1}
    assert_close(looped, cohort(ADAMW, stretch, (3, 1, 4)))


def test_snapshots_are_the_ends_of_shorter_stretches() -> None:
    snapshots_SKP = cohort(ADAMW, Stretch(start=0.0, epochs=4.0, snapshots=4), (0, 1))
    assert snapshots_SKP.shape == (4, 2, LAYOUT.size)
    for snapshot, theta_KP in enumerate(snapshots_SKP):
        shorter = Stretch(start=0.0, epochs=snapshot + 1.0)
        assert torch.equal(cohort(ADAMW, shorter, (0, 1))[-1], theta_KP)
    assert all(not torch.equal(a, b) for a, b in pairwise(snapshots_SKP))


def marks(num_steps: int, snapshots: int) -> list[int]:
    """Of a stretch of so many steps: one image is a step."""
    stretch = Stretch(start=0.0, epochs=num_steps, snapshots=snapshots)
    return stretch_marks(Recipe(), stretch, num_images=1)


def test_more_snapshots_than_steps_repeat_what_there_is() -> None:
    snapshots_SKP = cohort(DESCENT, Stretch(start=0.0, epochs=2.0, snapshots=6), (0,))
    steps = marks(2, 6)
    assert steps == [0, 1, 1, 1, 2, 2]
    ends = [cohort(DESCENT, Stretch(start=0.0, epochs=float(e)), (0,))[-1] for e in range(3)]
    assert torch.equal(ends[0], starts([0]))
    assert all(torch.equal(snapshots_SKP[s], ends[step]) for s, step in enumerate(steps))


@given(num_steps=st.integers(0, 500), snapshots=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_snapshots_are_equally_spaced_and_the_last_is_the_end(
    num_steps: int, snapshots: int
) -> None:
    steps = marks(num_steps, snapshots)
    assert len(steps) == snapshots
    assert steps[-1] == num_steps
    gaps = [after - before for before, after in pairwise([0, *steps])]
    assert all(abs(gap - num_steps / snapshots) <= 1 for gap in gaps)


@pytest.mark.parametrize("cut", [1.0, 3.0, 7.0])
def test_two_stretches_are_the_whole_training(cut: float) -> None:
    # The warm-up ends at step 2: the rate differs at every step.
    whole = cohort(DESCENT, Stretch(start=0.0, epochs=8.0), (0, 1))[-1]
    first = cohort(DESCENT, Stretch(start=0.0, epochs=cut), (0, 1))[-1]
    rest = Stretch(start=cut, epochs=8.0 - cut)
    arguments = (pictures(), scaled(torch.float64), DESCENT, rest, generators((5, 6)))
    assert_close(fit(Stack(build(), LAYOUT), first, *arguments)[-1], whole)
    assert float((first - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("recipe", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("start", [0.0, 4.0])
def test_a_constant_rate_replaces_the_schedule(recipe: Recipe, start: float) -> None:
    stretch = Stretch(start=start, epochs=2.0, constant_rate=0.05)
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": 0.05})
    constant = recipe.model_copy(update={"optimizer": optimizer, "schedule": Constant()})
    expected = cohort(constant, Stretch(start=0.0, epochs=2.0), (0, 1))[-1]
    assert_close(cohort(recipe, stretch, (0, 1))[-1], expected)


def test_a_cycle_is_a_whole_cosine_and_ends_at_its_snapshot() -> None:
    # Full batches without momentum: a cycle depends on nothing but where the last one ended.
    stretch = Stretch(start=6.0, epochs=8.0, cyclic_rate=0.1, snapshots=2)
    cycles = cohort(DESCENT, stretch, (0, 1))
    optimizer = Sgd(learning_rate=0.1, momentum=0.0)
    update = {"optimizer": optimizer, "schedule": Cosine(), "epochs": 4}
    alone = DESCENT.model_copy(update=update)
    first = cohort(alone, WHOLE, (0, 1))[-1]
    arguments = (pictures(), scaled(torch.float64), alone, WHOLE, generators((5, 6)))
    assert_close(cycles[0], first)
    assert_close(cycles[1], fit(Stack(build(), LAYOUT), first, *arguments)[-1])


def test_a_burn_in_leaves_the_training_as_it_was_and_no_snapshot() -> None:
    stretch = Stretch(start=0.0, epochs=4.0, constant_rate=0.05, snapshots=4)
    late = replace(stretch, snapshots=2, burn_in=2.0)
    assert torch.equal(cohort(ADAMW, late, (0, 1)), cohort(ADAMW, stretch, (0, 1))[2:])


def test_the_start_is_left_as_it_was() -> None:
    start_KP = starts((0, 1))
    kept = start_KP.clone()
    arguments = (pictures(), scaled(torch.float64), ADAMW, WHOLE, generators((0, 1)))
    snapshots_SKP = fit(Stack(build(), LAYOUT), start_KP, *arguments)
    assert torch.equal(start_KP, kept)
    assert not snapshots_SKP.requires_grad


@pytest.mark.trains
def test_a_default_recipe_learns_digits() -> None:
    digits = Digits().load()
    architecture = Mlp()
    module = architecture.build(digits.input_shape, 10)
    layout = ParameterLayout.of(module)
    stack = Stack(module, layout)
    start_P = initial_parameters(
        lambda: architecture.build(digits.input_shape, 10), layout.flatten, 0
    )
    stretch = Stretch(start=0.0, epochs=6.0)
    theta_KP = fit(
        stack, start_P[None], digits.train, digits.normalise, Recipe(), stretch, generators([0])
    )[-1]
    inputs = digits.normalise(digits.validation.inputs)
    right_KN = predict_logits(stack, theta_KP, inputs).argmax(-1) == digits.validation.labels_N
    assert float(right_KN.float().mean()) > 0.9


@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    num_steps=st.integers(0, 30),
    bootstrap=st.booleans(),
    seed=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_the_whole_sample_once(
    num_images: int, batch_size: int, num_steps: int, bootstrap: bool, seed: int
) -> None:
    recipe = Recipe(batch_size=batch_size)
    sizes = recipe.batch_sizes(num_images)
    per_epoch = len(sizes)
    assert sum(sizes) == num_images
    assert min(sizes) > 1 or batch_size == 1 or num_images == 1
    steps = batch_order(recipe, num_images, num_steps + per_epoch, bootstrap, generators([seed])[0])
    assert len(steps) == num_steps + per_epoch
    epochs = [torch.cat(steps[i : i + per_epoch]) for i in range(0, len(steps), per_epoch)]
    sample = sorted(epochs[0].tolist())
    assert bootstrap or sample == list(range(num_images))
    assert len(sample) == num_images
    assert set(sample) <= set(range(num_images))
    whole = [epoch for epoch in epochs if len(epoch) == num_images]
    assert all(sorted(epoch.tolist()) == sample for epoch in whole)


def test_a_bootstrap_draws_with_replacement_and_epochs_are_shuffled() -> None:
    steps = batch_order(Recipe(batch_size=1000), 1000, 3, True, torch.Generator().manual_seed(0))
    # A resample holds 1 - 1/e of the images, give or take.
    assert len(set(steps[0].tolist())) == pytest.approx(632, abs=40)
    assert not torch.equal(steps[0], steps[1])
    other = batch_order(Recipe(batch_size=1000), 1000, 1, True, torch.Generator().manual_seed(1))
    assert set(other[0].tolist()) != set(steps[0].tolist())


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_longer_training_begins_with_the_shorter_ones_batches(bootstrap: bool) -> None:
    short = batch_order(Recipe(batch_size=5), 23, 7, bootstrap, torch.Generator().manual_seed(0))
    long = batch_order(Recipe(batch_size=5), 23, 20, bootstrap, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(short, long[:7], strict=True))
    assert [len(batch) for batch in long[:6]] == [5, 5, 5, 5, 3, 5]


def test_initial_parameters_are_those_torch_draws_under_the_seed() -> None:
    before = torch.random.get_rng_state()
    drawn = [initial_parameters(build, LAYOUT.flatten, seed) for seed in (7, 7, 8)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = nn.utils.parameters_to_vector(build().parameters()).detach()
    assert torch.equal(drawn[0], expected)


def test_initial_parameters_leave_the_generators_of_gpus_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    initial_parameters(build, LAYOUT.flatten, 0)
    assert seeded == []


def test_a_failing_build_gives_the_random_state_back() -> None:
    def fail() -> nn.Module:
        torch.rand(3)
        raise RuntimeError("no such network")

    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="no such network"):
        initial_parameters(fail, LAYOUT.flatten, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


TRAINS = """
import sys
import torch
from bend_ray.networks.architectures import Mlp
from bend_ray.data.augmentation import RandomViews
from bend_ray.data.datasets import Digits
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.protocols import Recipe, Stretch
from bend_ray.networks.stacking import Stack, call
from bend_ray.optim import AdamW, Sgd
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.proof import find_symmetries

digits = Digits().load()
build = lambda: Mlp().build(digits.input_shape, 10)
layout = ParameterLayout.of(build())
start = initial_parameters(build, layout.flatten, 0)[None]
for optimizer in (AdamW(), Sgd()):
    fit(Stack(build(), layout), start, digits.train, digits.normalise,
        Recipe(optimizer=optimizer), Stretch(0.0, 0.05), [torch.Generator()])
assert find_symmetries(build(), digits.shown(2), call).groups
print(*{name.partition(".")[0] for name in sys.modules} & {"sklearn", "pandas", "sympy"},
      *{"torch._dynamo"} & set(sys.modules))
"""


@pytest.mark.slow
def test_training_imports_neither_the_compiler_nor_sympy_nor_scikit_learn() -> None:
    # They cost every process that trains 4, 0.4 and 3 s: more than the default population takes.
    done = subprocess.run(
        [sys.executable, "-c", TRAINS], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
