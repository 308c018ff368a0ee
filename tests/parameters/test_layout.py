from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.errors import ConfigError, DataError
from bend_ray.parameters.layout import Entry, ParameterLayout


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Scalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.tensor([0.5]))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("momentum", torch.tensor(0.9))
        self.register_buffer("cache", torch.ones(5), persistent=False)
        self.register_buffer("steps", torch.tensor(3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def convnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


MODULES = [mlp, convnet, transformer, Tied, Scalars]


@pytest.mark.parametrize("build", MODULES)
def test_a_module_comes_back_bit_for_bit(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, other = build(), build()
    layout = ParameterLayout.of(module)
    other.load_state_dict(layout.unflatten(layout.flatten(module.state_dict())), strict=False)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_tied_parameter_is_stored_once_and_reaches_both_places() -> None:
    module, other = Tied(), Tied()
    layout = ParameterLayout.of(module)
    assert [entry.name for entry in layout.entries] == ["embed.weight"]
    state = layout.unflatten(layout.flatten(module.state_dict()))
    tokens = torch.arange(7)
    assert torch.equal(functional_call(other, state, (tokens,)), module(tokens))


def test_parameters_come_first_and_integer_and_passing_buffers_are_left_out() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    layout = ParameterLayout.of(module)
    assert layout.entries == (
        Entry("0.weight", (2,), 0, True),
        Entry("0.bias", (2,), 2, True),
        Entry("1.weight", (3, 2), 4, True),
        Entry("1.bias", (3,), 10, True),
        Entry("0.running_mean", (2,), 13, False),
        Entry("0.running_var", (2,), 15, False),
    )
    assert (layout.size, layout.num_trainable) == (17, 13)
    names = [entry.name for entry in ParameterLayout.of(Scalars()).entries]
    assert names == ["temperature", "bias", "empty", "momentum"]


def test_frozen_parameters_stand_after_those_that_are_trained() -> None:
    module = mlp()
    first, *others = [name for name, _ in module.named_parameters()]
    module.get_parameter(first).requires_grad_(False)
    layout = ParameterLayout.of(module)
    assert [entry.name for entry in layout.parts[0].entries] == others
    assert layout.parts[1].entries[0].name == first


def test_a_meta_module_has_the_same_layout() -> None:
    with torch.device("meta"):
        module = convnet()
    assert ParameterLayout.of(module) == ParameterLayout.of(convnet())


def test_a_stack_of_models_is_flattened_row_by_row() -> None:
    modules = [mlp() for _ in range(6)]
    layout = ParameterLayout.of(modules[0])
    rows = [layout.flatten(module.state_dict()) for module in modules]
    theta_EKP = torch.stack(rows).reshape(2, 3, layout.size)
    stacked = layout.unflatten(theta_EKP)
    assert stacked["0.weight"].shape == (2, 3, 4, 5)
    assert torch.equal(stacked["0.weight"][1, 2], modules[5].state_dict()["0.weight"])
    assert torch.equal(layout.flatten(stacked), theta_EKP)


def test_half_precision_is_widened() -> None:
    module = nn.Linear(2, 2).to(torch.bfloat16)
    theta_P = ParameterLayout.of(module).flatten(module.state_dict())
    assert theta_P.dtype == torch.float32


def test_gradients_flow_both_ways() -> None:
    layout = ParameterLayout.of(mlp())
    theta_P = torch.randn(layout.size, requires_grad=True)
    state = layout.unflatten(theta_P)
    assert "Split" in type(state["0.bias"].grad_fn.next_functions[0][0]).__name__
    weights_P = torch.randn(layout.size)
    (layout.flatten(state) * weights_P).sum().backward()
    assert torch.equal(theta_P.grad, weights_P)


def test_include_takes_what_any_pattern_names_in_the_modules_order() -> None:
    layout = ParameterLayout.of(mlp(), include=("3.*", "1.running_*"))
    names = [entry.name for entry in layout.entries]
    assert names == ["3.weight", "3.bias", "1.running_mean", "1.running_var"]
    assert [entry.offset for entry in layout.entries] == [0, 12, 15, 19]


def test_a_pattern_without_a_match_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'3\.wieght'.*closest: 3\.weight"):
        ParameterLayout.of(mlp(), include=("0.*", "3.wieght"))
    with pytest.raises(ConfigError, match="num_batches_tracked"):
        ParameterLayout.of(mlp(), include=("*.num_batches_tracked",))
    with pytest.raises(ConfigError, match="at least one pattern"):
        ParameterLayout.of(mlp(), include=())
    with pytest.raises(ConfigError, match="the module has none"):
        ParameterLayout.of(nn.ReLU())


def test_a_vector_of_another_length_is_refused_with_both_numbers() -> None:
    layout = ParameterLayout.of(nn.Linear(2, 3))
    expected = rf"expected a vector of 9 parameters \(layout {layout.digest}\), got \(4, 8\)"
    with pytest.raises(DataError, match=expected):
        layout.unflatten(torch.zeros(4, 8))
    with pytest.raises(DataError, match=r"got \(\)"):
        layout.unflatten(torch.tensor(1.0))


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    layout = ParameterLayout.of(nn.Linear(2, 3))
    with pytest.raises(DataError, match="got none for bias"):
        layout.flatten({"weight": torch.zeros(3, 2)})
    with pytest.raises(DataError, match=r"weight to end in shape \(3, 2\).*got \(2, 3\)"):
        layout.flatten({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)})


def test_the_digest_changes_with_names_shapes_and_kind_only() -> None:
    digest = ParameterLayout.of(nn.Linear(2, 3)).digest
    assert digest == "2f38c90a"
    assert digest == ParameterLayout.of(nn.Linear(2, 3)).digest
    weight = Entry("weight", (3, 2), 0, True)
    assert ParameterLayout((weight, Entry("bias", (3,), 6, True))).digest == digest
    for other in (
        Entry("bias", (4,), 6, True),
        Entry("bias", (3,), 6, False),
        Entry("shift", (3,), 6, True),
    ):
        assert ParameterLayout((weight, other)).digest != digest


names = st.text(alphabet="abc.", min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
lead = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, st.tuples(shapes, st.booleans()), min_size=1, max_size=5), lead)
def test_any_layout_round_trips(
    tensors: dict[str, tuple[tuple[int, ...], bool]], lead: tuple[int, ...]
) -> None:
    rows = [[name, list(shape), trainable] for name, (shape, trainable) in tensors.items()]
    layout = ParameterLayout.from_json(rows)
    assert json.loads(json.dumps(layout.to_json())) == rows
    assert ParameterLayout.from_json(layout.to_json()).digest == layout.digest
    theta = torch.randn(*lead, layout.size)
    state = layout.unflatten(theta)
    assert all(state[n].shape == (*lead, *s) for n, (s, _) in tensors.items())
    assert torch.equal(layout.flatten(state), theta)
