"""torchvision's classification models, made to fit a data set.

The first convolution takes as many channels as the images have, the head gives as many logits as
there are classes, and a state dict is read into whatever the two leave of the model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from bend_ray.errors import ConfigError, DataError
from bend_ray.networks.checkpoints import tensors_by_name
from bend_ray.storage.filesystems import store_errors

RGB = 3
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of GoogLeNet and Inception that only their own training uses."""


def check_name(name: str) -> None:
    """Refuse a name that torchvision does not know, with ValueError for pydantic."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise ValueError(
            f"expected a classification model of torchvision {torchvision.__version__}, "
            f"got {name!r}; nearest: {', '.join(near)}"
        )


def build(
    name: str, input_shape: tuple[int, int, int], num_classes: int, *, small_images: bool
) -> nn.Module:
    """A fresh model; its parameters come from torch's global generator.

    ``small_images`` are halved less often at the start; ConfigError for them where the model's
    first convolution is not of stride 2.
    """
    num_channels, *size = input_shape
    options = _size_options(name, size)
    module: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options
    )
    if small_images:
        _keep_small_images(module, name)
    if num_channels != RGB:
        _replace_stem(module, in_channels=num_channels)
    return module


def _size_options(name: str, size: list[int]) -> dict[str, object]:
    """What some models must be told beyond their classes."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        # Position embeddings are learnt for one size; other models take any.
        if size[0] != size[1] or size[0] % int(name.split("_")[-1]):
            raise DataError(
                f"expected square images for {name}, of a multiple of {name.split('_')[-1]} "
                f"pixels, got {size[0]}x{size[1]}"
            )
        return {"image_size": size[0]}
    if name == "maxvit_t":
        return {"input_size": tuple(size)}
    return {}


def _stem(module: nn.Module) -> tuple[str, nn.Conv2d]:
    """The convolution that sees the images; in every model of torchvision, the first."""
    return next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))


def _replace_stem(module: nn.Module, **changes: Any) -> None:
    """Put a fresh first convolution in place; what is not given is as before."""
    name, old = _stem(module)
    kept = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    given = {key: getattr(old, key) for key in kept} | changes
    module.set_submodule(name, nn.Conv2d(**given, bias=old.bias is not None))


def _keep_small_images(module: nn.Module, name: str) -> None:
    """The usual CIFAR variant: 3x3 at stride 1 first, and no max-pooling before the blocks.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
    """
    _, stem = _stem(module)
    if stem.stride != (2, 2):
        raise ConfigError(
            "seeds.architecture.small_images: expected a model whose first convolution has "
            f"stride 2, such as resnet18; that of {name} is {stem.kernel_size[0]}x"
            f"{stem.kernel_size[1]} with stride {stem.stride[0]}; set it to false"
        )
    _replace_stem(module, kernel_size=3, stride=1, padding=1)
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MaxPool2d):
            # In its place, not cut out: the names of later layers stay torchvision's.
            module.set_submodule(path, nn.Identity())
            break


def check_image_shape(module: nn.Module, name: str, input_shape: tuple[int, int, int]) -> None:
    """Show the model one image; DataError where it does not survive strides and poolings."""
    device = next(module.parameters()).device
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DataError(
            f"expected images that {name} can take, got {input_shape[1]}x{input_shape[2]} pixels "
            f"({str(error).splitlines()[0]}); use larger images, a smaller model, or, where it "
            "has a variant for them, seeds.architecture.small_images"
        ) from error
    finally:
        module.train()


def load_weights(module: nn.Module, name: str, weights: str) -> None:
    """Read a state dict into a model; a stem or head of another shape stays fresh.

    A first convolution trained on colour images is summed over its channels for grey ones, which is
    how it answers to grey images shown as colours. Images are normalised by the statistics of the
    data set, whatever they were trained with. ``weights`` is torchvision's name of them, or the
    path of a safetensors or ``torch.save`` file: ConfigError where there are none of that name,
    DataError where they cannot be read or downloaded, or are of another model.
    """
    loaded = dict(_read(name, weights))
    own = module.state_dict()
    stem, _ = _stem(module)
    stem_weight = loaded.get(f"{stem}.weight")
    if stem_weight is not None and own[f"{stem}.weight"].shape[1] == 1:
        loaded[f"{stem}.weight"] = stem_weight.sum(dim=1, keepdim=True)
    head = list(own)[-1].rpartition(".")[0]
    fresh = {
        key
        for key, tensor in own.items()
        if key.rpartition(".")[0] in (stem, head)
        and key in loaded
        and loaded[key].shape != tensor.shape
    }
    kept = {
        key: tensor
        for key, tensor in loaded.items()
        if not key.startswith(AUXILIARY) and (key not in own or tensor.shape == own[key].shape)
    }
    told = module.load_state_dict(kept, strict=False)
    # Older checkpoints do not count batches, which no one asks for.
    missing = {k for k in told.missing_keys if not k.endswith("num_batches_tracked")} - fresh
    if wrong := sorted(missing) + told.unexpected_keys:
        raise DataError(
            f"weights {weights} for {name}: expected its {len(own)} tensors, got {len(kept)}; "
            f"{len(wrong)} are missing, of another shape or unknown ({', '.join(wrong[:3])})"
        )


def _read(name: str, weights: str) -> Mapping[str, Tensor]:
    known = torchvision.models.get_model_weights(name)
    if weights in known.__members__:
        try:
            # Tensors alone, and those that the name has: torchvision asks for neither.
            downloaded: Mapping[str, Tensor] = known[weights].get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
        except (URLError, OSError, RuntimeError) as error:
            raise DataError(
                f"weights {weights} of {name}: could not download {known[weights].url} ({error}); "
                "connect this machine, or give the path of a state dict in "
                "seeds.architecture.weights"
            ) from error
        return downloaded
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(known.__members__)
        raise ConfigError(
            f"seeds.architecture.weights: expected one of {names}, or the path of a file every "
            f"machine sees, got {weights!r}"
        )
    with store_errors("read", weights):
        return tensors_by_name(path.read_bytes(), f"weights {path}")
