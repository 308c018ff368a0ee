from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from bend_ray.errors import ConfigError, DataError
from bend_ray.networks.architectures import TorchvisionModel
from bend_ray.networks.stacking import Stack
from bend_ray.parameters.layout import ParameterLayout

pytestmark = pytest.mark.slow

NAMES = torchvision.models.list_models(module=torchvision.models)
SMALL = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"]


@contextmanager
def without_data() -> Iterator[None]:
    """Modules are built on the meta device.

    As ``torch.device("meta")`` would, but RegNet and others compute widths and rates by tensors.
    """
    put_parameter, put_buffer = nn.Module.register_parameter, nn.Module.register_buffer

    def parameter(self: nn.Module, name: str, value: nn.Parameter | None) -> None:
        put_parameter(self, name, None if value is None else nn.Parameter(value.to("meta")))

    def buffer(
        self: nn.Module, name: str, value: torch.Tensor | None, persistent: bool = True
    ) -> None:
        put_buffer(self, name, None if value is None else value.to("meta"), persistent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", parameter)
        patch.setattr(nn.Module, "register_buffer", buffer)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_of_every_model_holds_all_its_float_tensors(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    with without_data():
        module = TorchvisionModel(name=name).build((3, size, size), 7)
    layout = ParameterLayout.of(module)
    stored = {k: t for k, t in module.state_dict().items() if t.is_floating_point()}
    assert layout.size == sum(tensor.numel() for tensor in stored.values())
    assert layout.num_trainable == sum(p.numel() for p in module.parameters())
    theta_KP = torch.empty(2, layout.size, device="meta")
    state = layout.unflatten(theta_KP)
    assert {k: tuple(t.shape[1:]) for k, t in state.items()} == {
        k: tuple(t.shape) for k, t in stored.items()
    }
    # A view, so where it stands in the row is its place in the vector.
    assert {k: t.storage_offset() for k, t in state.items()} == {
        entry.name: entry.offset for entry in layout.entries
    }
    assert layout.flatten(state).shape == theta_KP.shape
    assert ParameterLayout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("name", SMALL)
def test_a_model_read_back_from_its_vector_is_the_same(name: str) -> None:
    module = TorchvisionModel(name=name).build((3, 64, 64), 7)
    layout = ParameterLayout.of(module)
    theta_P = layout.flatten(module.state_dict())
    state = module.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in layout.unflatten(theta_P).items())
    assert torch.equal(layout.flatten(layout.unflatten(theta_P)), theta_P)
    # In the order in which a stack shows them, so that all sums are the same.
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits_KBC = Stack(module, layout, "loop").eval()(theta_P[None], images)
        assert torch.equal(logits_KBC[0], module.eval()(images))
    assert logits_KBC.shape == (1, 2, 7)


# Where vmap has no rule for a kernel it calls it once a model, and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t"])
def test_models_can_be_stacked(name: str) -> None:
    module = TorchvisionModel(name=name).build((3, 32, 32), 5)
    layout = ParameterLayout.of(module)
    theta_KP = layout.flatten(module.state_dict()).expand(2, -1) * torch.tensor([[1.0], [0.9]])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        stacked, looped = (
            Stack(module, layout, form).eval()(theta_KP, images) for form in ("stacked", "loop")
        )
    assert torch.allclose(stacked, looped, rtol=1e-3, atol=1e-4)


def test_small_images_keep_their_size_at_the_start() -> None:
    module = TorchvisionModel(small_images=True).build((3, 32, 32), 10)
    sizes = []
    module.layer1.register_forward_hook(lambda *seen: sizes.append(tuple(seen[1][0].shape)))
    module.eval()(torch.zeros(2, 3, 32, 32))
    assert sizes == [(2, 64, 32, 32)]
    ordinary = set(TorchvisionModel().build((3, 32, 32), 10).state_dict())
    assert set(module.state_dict()) == ordinary
    # The CIFAR variant everyone counts: 11.17 million parameters.
    assert ParameterLayout.of(module).num_trainable == 11_173_962


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "vit_b_16", "convnext_tiny", "swin_t"])
def test_models_without_a_variant_for_small_images_say_so(name: str) -> None:
    with without_data(), pytest.raises(ConfigError, match=rf"small_images.*stride.*{name}"):
        TorchvisionModel(name=name, small_images=True).build((3, 224, 224), 10)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "regnet_y_400mf", "googlenet"])
def test_grey_images_are_taken(name: str) -> None:
    with without_data():
        module = TorchvisionModel(name=name).build((1, 96, 96), 4)
    assert next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels == 1


@pytest.mark.parametrize(("name", "size"), [("alexnet", 32), ("inception_v3", 32)])
def test_images_that_do_not_survive_are_refused(name: str, size: int) -> None:
    with without_data(), pytest.raises(DataError, match=rf"{name} can take, got {size}x{size}"):
        TorchvisionModel(name=name).build((3, size, size), 10)


@pytest.mark.parametrize("size", [(33, 33), (32, 64)])
def test_a_vision_transformer_refuses_what_is_no_square_of_patches(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="square images for vit_b_16, of a multiple of 16"):
        TorchvisionModel(name="vit_b_16").build((3, *size), 10)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"resnet19.*nearest: resnet"):
        TorchvisionModel(name="resnet19")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A colour model of seven classes and its state dict in a file."""
    module = TorchvisionModel(name="shufflenet_v2_x0_5").build((3, 32, 32), 7)
    path = tmp_path / "weights.safetensors"
    save_file(module.state_dict(), path)
    return module, path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_model_starts_from_a_file(trained: tuple[nn.Module, Path], suffix: str) -> None:
    module, path = trained
    if suffix == ".pt":
        path = path.with_suffix(suffix)
        torch.save(module.state_dict(), path)
    spec = TorchvisionModel(name="shufflenet_v2_x0_5", weights=str(path))
    state = spec.build((3, 32, 32), 7).state_dict()
    assert all(torch.equal(state[k], tensor) for k, tensor in module.state_dict().items())


def test_another_number_of_classes_gets_a_fresh_head(trained: tuple[nn.Module, Path]) -> None:
    module, path = trained
    spec = TorchvisionModel(name="shufflenet_v2_x0_5", weights=str(path))
    state, old = spec.build((3, 32, 32), 3).state_dict(), module.state_dict()
    assert state["fc.weight"].shape == (3, 1024)
    assert all(torch.equal(state[k], old[k]) for k in old if not k.startswith("fc."))


def test_a_grey_image_gets_the_answer_of_its_colour_copy(trained: tuple[nn.Module, Path]) -> None:
    module, path = trained
    spec = TorchvisionModel(name="shufflenet_v2_x0_5", weights=str(path))
    grey, images = spec.build((1, 32, 32), 7).eval(), torch.randn(2, 1, 32, 32)
    expected = module.eval()(images.expand(-1, 3, -1, -1))
    assert torch.allclose(grey(images), expected, atol=1e-5)


def test_a_small_image_stem_is_fresh_where_the_weights_have_a_large_one(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    ordinary = TorchvisionModel().build((3, 32, 32), 4)
    save_file(ordinary.state_dict(), path)
    small = TorchvisionModel(small_images=True, weights=str(path)).build((3, 32, 32), 4)
    assert small.conv1.weight.shape == (64, 3, 3, 3)
    assert torch.equal(small.layer4[1].conv2.weight, ordinary.layer4[1].conv2.weight)


def test_weights_of_another_model_are_refused(trained: tuple[nn.Module, Path]) -> None:
    _, path = trained
    with pytest.raises(DataError, match=r"expected its .* tensors, got"):
        TorchvisionModel(name="squeezenet1_1", weights=str(path)).build((3, 32, 32), 7)


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of IMAGENET1K_V1, DEFAULT, or the path"):
        TorchvisionModel(weights="IMAGENET").build((3, 32, 32), 7)


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 3",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no weights at all")
    with pytest.raises(DataError, match="expected tensors by name"):
        TorchvisionModel(weights=str(path)).build((3, 32, 32), 7)


def test_a_file_that_holds_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"conv1.weight": RunsCode()}, path)
    with pytest.raises(DataError, match="nothing that runs code"):
        TorchvisionModel(weights=str(path)).build((3, 32, 32), 7)


def test_a_download_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(DataError, match=r"could not download https://.*no route to host.*path of"):
        TorchvisionModel(weights="IMAGENET1K_V1").build((3, 32, 32), 7)
