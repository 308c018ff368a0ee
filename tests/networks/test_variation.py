"""Models that differ by hyper-parameters: what each draws, and what that does to its training."""

import torch

from bend_ray.data.examples import Examples
from bend_ray.networks.architectures import Mlp
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Recipe, Stretch, Variation
from bend_ray.networks.stacking import Stack
from bend_ray.optim import AdamW
from bend_ray.parameters.layout import ParameterLayout

SAME = Variation(rate=1.0, decay=1.0, label_smoothing=0.0, dropout=0.0)
RECIPE = Recipe(epochs=2, batch_size=8, optimizer=AdamW(learning_rate=0.01, weight_decay=0.1))


def trained(variation: Variation | None, models: int = 3, recipe: Recipe = RECIPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
    examples = Examples(inputs, (inputs[:, 0] > 0).long())
    torch.manual_seed(0)
    module = Mlp(hidden=(6,)).build((4,), 2)
    layout = ParameterLayout.of(module)
    start = layout.flatten(dict(module.state_dict())).repeat(models, 1)
    generators = [torch.Generator().manual_seed(model) for model in range(models)]
    stretch = Stretch(start=0.0, epochs=recipe.epochs, variation=variation)
    stack = Stack(module, layout)
    return fit(stack, start, examples, lambda x: x, recipe, stretch, generators)[-1]


def test_without_room_to_vary_models_train_as_ever() -> None:
    torch.testing.assert_close(trained(SAME), trained(None))


def test_a_model_does_not_depend_on_its_cohort() -> None:
    alone, together = trained(Variation(), 1), trained(Variation(), 3)
    torch.testing.assert_close(alone[0], together[0])


def test_each_draws_its_own_between_the_bounds() -> None:
    drawn = Variation(rate=4.0, decay=10.0, label_smoothing=0.2, dropout=0.3).drawn(range(200))
    for values, low, high in (
        (drawn.rate_K1, 0.25, 4.0),
        (drawn.decay_K1, 0.1, 10.0),
        (drawn.smoothing_K1, 0.0, 0.2),
        (drawn.dropout_K, 0.0, 0.3),
    ):
        assert low <= values.min() < values.max() <= high
        assert values.min() < low + 0.1 * (high - low)
        assert len(values.unique()) == 200


def test_a_rate_and_a_decay_are_as_if_the_recipe_had_them() -> None:
    drawn = Variation(rate=4.0, decay=10.0, label_smoothing=0.0, dropout=0.0)
    rate, decay = (each.item() for each in (drawn.drawn([0]).rate_K1, drawn.drawn([0]).decay_K1))
    optimizer = AdamW(learning_rate=0.01 * rate, weight_decay=0.1 * decay)
    own = trained(None, 1, RECIPE.model_copy(update={"optimizer": optimizer}))
    torch.testing.assert_close(trained(drawn, 1), own, rtol=1e-4, atol=1e-5)


def test_smoothing_is_as_if_the_recipe_had_it() -> None:
    drawn = Variation(rate=1.0, decay=1.0, label_smoothing=0.4, dropout=0.0)
    share = drawn.drawn([0]).smoothing_K1.item()
    own = trained(None, 1, RECIPE.model_copy(update={"label_smoothing": share}))
    torch.testing.assert_close(trained(drawn, 1), own, rtol=1e-4, atol=1e-5)


def test_units_are_left_out_and_their_mean_stays() -> None:
    drawn = Variation(dropout=0.5).drawn(range(2))
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    found = drawn.dropped(torch.ones(2, 400, 50), generators)
    zero_K = (found == 0).double().mean(dim=(1, 2))
    torch.testing.assert_close(zero_K, drawn.dropout_K.double(), atol=0.02, rtol=0)
    torch.testing.assert_close(found.mean(dim=(1, 2)), torch.ones(2), atol=0.05, rtol=0)
