"""The permutations of networks of every kind of layer, written down beside those that are found."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.networks.architectures import ConvNet, Mlp
from bend_ray.networks.stacking import call
from bend_ray.parameters import proof
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.proof import Symmetries, find_symmetries
from bend_ray.parameters.symmetry import Group, Move, align, permute


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor, **inputs: Tensor) -> Any:
        return self.steps(self, *args, **inputs)


def residual() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        stream = net.embed(x)
        return net.head(stream + net.block(torch.relu(stream)))

    return Net(forward, embed=nn.Linear(4, 5), block=nn.Linear(5, 5), head=nn.Linear(5, 3))


def attention() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        return net.head(x + net.attend(x, x, x, need_weights=False)[0]).mean(1)

    heads = nn.MultiheadAttention(8, 4, batch_first=True)
    return Net(forward, embed=nn.Linear(4, 8), attend=heads, head=nn.Linear(8, 3))


def joined() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cat([net.left(x), net.right(x).tanh(), x], dim=1))

    return Net(forward, left=nn.Linear(4, 5), right=nn.Linear(4, 6), head=nn.Linear(15, 3))


def tokens() -> nn.Module:
    def forward(net: Any, ids: Tensor) -> Tensor:
        return net.head(net.words(ids).mean(1))

    return Net(forward, words=nn.Embedding(11, 6), head=nn.Linear(6, 3))


def named() -> nn.Module:
    def forward(net: Any, image: Tensor, ids: Tensor) -> Any:
        both = net.image(image) * net.words(ids)
        return SimpleNamespace(logits=net.head(both.relu()))

    layers = {"image": nn.Linear(4, 6), "words": nn.Embedding(11, 6), "head": nn.Linear(6, 3)}
    return Net(forward, **layers)


def tied() -> nn.Module:
    shared = nn.Linear(5, 5)
    return nn.Sequential(nn.Linear(4, 5), shared, nn.Tanh(), shared, nn.Linear(5, 3))


def shuffled_channels() -> nn.Module:
    layers = nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(6, 3, 3)
    return nn.Sequential(*layers, nn.Flatten())


def conv(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = IMAGES[:, 0, 0, :4].contiguous()
IDS = torch.tensor([[1, 2, 3], [3, 4, 0], [5, 6, 10], [7, 8, 9]])
BATCH_NORM = "1.weight@0 1.bias@0 1.running_mean@0 1.running_var@0"
CASES = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        ROWS,
        {(1, 5, "0.weight@0 0.bias@0 2.weight@1")},
    ),
    "convolution, batch norm, pooling, flatten": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        ),
        IMAGES,
        {(1, 4, f"0.weight@0 0.bias@0 {BATCH_NORM} 5.weight@1")},
    ),
    "depthwise": (
        conv(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 3, 1)),
        IMAGES,
        {(1, 6, "0.weight@0 0.bias@0 1.weight@0 1.bias@0 2.weight@1")},
    ),
    "grouped": (
        conv(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 3, 1)),
        IMAGES,
        {
            (1, 2, "0.weight@0 0.bias@0 2.weight@0 2.bias@0 3.weight@1"),
            (2, 3, "0.weight@0 0.bias@0 2.weight@01"),
            (2, 4, "2.weight@0 2.bias@0 3.weight@1"),
        },
    ),
    "transposed": (
        conv(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.GELU(), nn.Conv2d(4, 3, 1)),
        IMAGES,
        {(1, 4, "0.weight@1 0.bias@0 2.weight@1")},
    ),
    "group norm of two groups": (
        conv(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 3, 1)),
        IMAGES,
        {
            (1, 2, "0.weight@0 0.bias@0 1.weight@0 1.bias@0 3.weight@1"),
            (2, 3, "0.weight@0 0.bias@0 1.weight@0 1.bias@0 3.weight@1"),
        },
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 3)),
        ROWS,
        {(1, 5, "0.weight@0 0.bias@0 1.weight@0 1.bias@0 3.weight@1")},
    ),
    "residual sum": (
        residual,
        ROWS,
        {
            (
                1,
                5,
                "embed.weight@0 embed.bias@0 block.weight@0 block.weight@1 block.bias@0 "
                "head.weight@1",
            )
        },
    ),
    "concatenation": (
        joined,
        ROWS,
        {
            (1, 5, "left.weight@0 left.bias@0 head.weight@1"),
            (1, 6, "right.weight@0 right.bias@0 head.weight@1"),
        },
    ),
    "embedding": (tokens, IDS, {(1, 6, "words.weight@1 head.weight@1")}),
    "inputs by name, logits inside": (
        named,
        {"image": ROWS, "ids": IDS[:, 0]},
        {(1, 6, "image.weight@0 image.bias@0 words.weight@1 head.weight@1")},
    ),
    "heads": (
        attention,
        IMAGES[:, 0, :, :4],
        {
            (
                *(1, 8),
                "embed.weight@0 embed.bias@0 attend.in_proj_weight@1 attend.out_proj.weight@0 "
                "attend.out_proj.bias@0 head.weight@1",
            ),
            (1, 4, "attend.in_proj_weight@0 attend.in_proj_bias@0 attend.out_proj.weight@1"),
            # Queries and keys; values.
            (4, 2, "attend.in_proj_weight@0 attend.in_proj_bias@0"),
            (4, 2, "attend.in_proj_weight@0 attend.in_proj_bias@0 attend.out_proj.weight@1"),
        },
    ),
    "one layer twice": (
        tied,
        ROWS,
        {(1, 5, "0.weight@0 0.bias@0 1.weight@0 1.weight@1 1.bias@0 4.weight@1")},
    ),
    "shuffled channels": (shuffled_channels, IMAGES, {(1, 6, "0.weight@0 0.bias@0 3.weight@1")}),
    "none hidden": (lambda: nn.Linear(4, 3), ROWS, set()),
}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    module = make().eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            # Fresh norms are full of equal numbers.
            nn.init.uniform_(tensor, 0.5, 2) if "var" in name else nn.init.normal_(tensor)
    return module


def written(found: Symmetries) -> set[tuple[int, int, str]]:
    return {
        (
            *(group.num_copies, group.num_units),
            " ".join(sorted(f"{m.name}@{''.join(map(str, m.axes))}" for m in group.moves)),
        )
        for group in found.groups
    }


@pytest.mark.parametrize("case", CASES)
def test_the_groups_of_each_kind_of_layer_are_found(case: str) -> None:
    make, inputs, expected = CASES[case]
    found = find_symmetries(build(make), inputs, call)
    assert written(found) == {(c, u, " ".join(sorted(names.split()))) for c, u, names in expected}


def shuffled(module: nn.Module, found: Symmetries, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layout = ParameterLayout.of(module)
    state = layout.unflatten(layout.flatten(module.state_dict()).detach())
    orders = [torch.rand(g.num_copies, g.num_units, generator=generator) for g in found.groups]
    return permute(state, found.groups, [order.argsort(1) for order in orders])


@pytest.mark.parametrize("case", CASES)
def test_shuffled_units_answer_the_same_and_are_found_again(case: str) -> None:
    make, inputs, expected = CASES[case]
    module = build(make)
    found = find_symmetries(module, inputs, call)
    layout = ParameterLayout.of(module)
    theta_P = layout.flatten(module.state_dict()).detach()
    states = [shuffled(module, found, seed) for seed in range(3)]
    # First: functional_call leaves a module that stands in two places with its last state.
    before = call(module, inputs)
    for state in states:
        torch.testing.assert_close(call(module, inputs, state), before, rtol=1e-4, atol=1e-4)
    theta_KP = torch.stack([layout.flatten(state) for state in states])
    assert not expected or not torch.equal(theta_KP[0], theta_P)
    order = torch.Generator().manual_seed(0)
    aligned_KP = align(theta_P, theta_KP, layout, found.groups, order)
    assert bool(((aligned_KP - theta_P).norm(dim=1) <= (theta_KP - theta_P).norm(dim=1)).all())
    if case != "grouped":
        # There rows and columns of one tensor move at once, and the descent may stop short.
        assert torch.equal(aligned_KP, theta_P.expand(3, -1))


def weighted() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.hidden(x) * torch.arange(1.0, 6.0, dtype=x.dtype))

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def summed_up() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.hidden(x).cumsum(dim=1))

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def assembled() -> nn.Module:
    """What is written into something else is not followed further."""

    def forward(net: Any, x: Tensor) -> Tensor:
        parts = x.new_zeros(len(x), 5)
        parts[:, :] = net.hidden(x)
        return net.head(parts)

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def read() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.hidden(x) * float(net.hidden(x)[0, 0] > 0))

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def single() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.hidden(x).float())

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(5, 3))


def deaf() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(x) + 0 * net.hidden(x).sum(1, keepdim=True)

    return Net(forward, hidden=nn.Linear(4, 5), head=nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (weighted, "it meets what is no unit, place by place"),
        (summed_up, "has no rule"),
        (assembled, "it meets what is no unit, place by place"),
        (read, "the network reads a number"),
        (single, "RuntimeError"),
        (deaf, "the answers do not depend on its units"),
    ],
    ids=str,
)
def test_a_broken_symmetry_is_left_alone_and_said(make: Callable[[], nn.Module], why: str) -> None:
    found = find_symmetries(build(make), ROWS, call)
    assert found.groups == ()
    assert why in found.left_alone["hidden.weight"]
    assert why in str(found)


def test_what_a_network_does_not_use_is_left_alone() -> None:
    module = build(
        lambda: Net(lambda net, x: net.head(x), head=nn.Linear(4, 3), idle=nn.Linear(4, 5))
    )
    found = find_symmetries(module, ROWS, call)
    assert found.left_alone["idle.bias"] == "the network does not use it"
    assert found.left_alone["head.bias"] == "its order is that of the answers"


def test_a_suggestion_that_is_wrong_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(CASES["dense"][0])
    units = torch.arange(5)[None, :, None]
    half = Group((Move("0.weight", (0,), units), Move("2.weight", (1,), units)))
    monkeypatch.setattr(proof, "_groups_of", lambda trace: ((half,), {}))
    found = find_symmetries(module, ROWS, call)
    assert found.groups == ()
    assert found.left_alone["0.weight"].startswith("permuting its units changes the answers by")


def test_what_is_not_proven_is_not_used_inside_the_units_of_another() -> None:
    # Of one token, queries and keys do not show.
    found = find_symmetries(build(attention), IMAGES[:, 0, :1, :4], call)
    assert [(group.num_copies, group.num_units) for group in found.groups] == [
        (1, 8),
        (1, 4),
        (4, 2),
    ]
    assert found.groups[1].inside == (found.groups[2],)
    assert found.left_alone["attend.in_proj_bias"] == "the answers do not depend on its units"


def test_a_network_is_left_as_it_is() -> None:
    module = build(attention).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    find_symmetries(module, IMAGES[:, 0, :, :4], call)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("spec", "widths"),
    [(Mlp(hidden=()), ()), (Mlp(hidden=(5, 6, 7)), (5, 6, 7))]
    + [(ConvNet(channels=(5, 6), norm=norm), (5, 6)) for norm in ("batch", "group", "none")],
    ids=str,
)
def test_all_of_our_own_networks_but_the_last_bias_is_under_groups(
    spec: Mlp | ConvNet, widths: tuple[int, ...]
) -> None:
    module = spec.build((2, 6, 6), 3)
    found = find_symmetries(module, IMAGES, call)
    assert tuple(group.num_units for group in found.groups) == widths
    last = [entry.name for entry in ParameterLayout.of(module).entries if entry.shape == (3,)]
    assert not widths or list(found.left_alone) == last


class Chain(nn.Module):
    """Any layers after one another, on vectors or on images."""

    def __init__(self, widths: list[int], kinds: list[str], is_image: bool) -> None:
        super().__init__()
        self.kinds = kinds
        make: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if is_image else nn.Linear
        norm: Any = nn.BatchNorm2d if is_image else nn.LayerNorm
        self.first, layers, width = make(2, widths[0]), [], widths[0]
        self.sizes = [width]
        for kind, new in zip(kinds, widths[1:], strict=True):
            if kind == "next":
                layers.append(make(width, new))
                self.sizes.append(new)
                width = new
            elif kind == "norm":
                layers.append(norm(width))
            elif kind == "inside":
                layers.append(nn.Sequential(make(width, new), nn.Tanh(), make(new, width)))
                self.sizes.append(new)
            elif kind == "beside":
                layers.append(make(2, new))
                self.sizes.append(new)
                width += new
        self.layers, self.head = nn.ModuleList(layers), make(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = self.first(x)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "inside":
                values = values + layer(values)
            elif kind == "beside":
                values = torch.cat([values, layer(x)], dim=1)
            else:
                values = layer(values).tanh()
        return self.head(values).flatten(2).mean(2) if x.ndim == 4 else self.head(values)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_every_hidden_layer_of_a_chain_is_a_group(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["next", "norm", "inside", "beside"]), max_size=5))
    widths = data.draw(
        # A norm of two units says 1 and -1 of any input: answers may not depend on the input.
        st.lists(st.integers(3, 7), min_size=len(kinds) + 1, max_size=len(kinds) + 1)
    )
    is_image = data.draw(st.booleans())
    module = build(lambda: Chain(widths, kinds, is_image))
    inputs = IMAGES if is_image else IMAGES[:, :, 0, 0]
    found = find_symmetries(module, inputs, call)
    assert sorted(group.num_units for group in found.groups) == sorted(module.sizes)
    assert list(found.left_alone) == ["head.bias"]
    state = shuffled(module, found, seed=0)
    answers = functional_call(module, state, (inputs,))
    torch.testing.assert_close(answers, module(inputs), rtol=1e-4, atol=1e-4)
