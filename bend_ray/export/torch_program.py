"""The whole bag as one ``torch.export`` program, without pickle.

Shape letters: K members, B images, C classes.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bend_ray.data.parts import Images
from bend_ray.ensemble.rule import SMALLEST_PROBABILITY
from bend_ray.ensemble.votes import fit_temperature
from bend_ray.export.card import Card

_BATCH = 256


class BagProgram(nn.Module):
    """Pixels ``(B, channels, H, W)`` uint8 to the bag's and its members' probabilities.

    Args:
        card: how pixels are normalised and answers combined.
        state_K: the members' tensors, stacked.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    vote_shares: Tensor

    def __init__(self, card: Card, state_K: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.card = card
        module = card.architecture.build(card.image_shape, len(card.class_names)).eval()
        # Hidden from nn.Module: only the structure is used, not the fresh parameters.
        self._structure = (module.requires_grad_(False),)
        self._names = {name: f"member_{name.replace('.', '_')}" for name in state_K}
        for name, tensor in state_K.items():
            # A copy: tensors that share memory are written with a warning.
            self.register_buffer(
                self._names[name], tensor.clone(memory_format=torch.contiguous_format)
            )
        channels = (len(card.pixel_mean), 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(card.pixel_mean).reshape(channels))
        self.register_buffer("pixel_std", torch.tensor(card.pixel_std).reshape(channels))
        self.register_buffer("vote_shares", torch.tensor(card.weights))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``probabilities`` (B, C) and ``member_probabilities`` (B, K, C)."""
        inputs = (images.float() - self.pixel_mean) / self.pixel_std
        state_K = {name: getattr(self, hidden) for name, hidden in self._names.items()}
        logits_BKC = self._logits(state_K, inputs).transpose(0, 1)
        probs_BKC = logits_BKC.softmax(dim=-1)
        ballots_BKC = probs_BKC
        if self.card.rule.counts_votes:
            choice_BK = logits_BKC.argmax(dim=-1)
            ballots_BKC = nn.functional.one_hot(choice_BK, logits_BKC.shape[-1]).to(probs_BKC.dtype)
        mean_BC = torch.einsum("k,bkc->bc", self.vote_shares, ballots_BKC)
        if self.card.temperature != 1.0:
            log_BC = mean_BC.clamp(min=SMALLEST_PROBABILITY).log()
            mean_BC = torch.softmax(log_BC / self.card.temperature, dim=-1)
        return mean_BC, probs_BKC

    def _logits(self, state_K: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        (module,) = self._structure

        def one(state: dict[str, Tensor]) -> Tensor:
            logits_BC: Tensor = functional_call(module, state, (inputs,))
            return logits_BC

        if self.card.architecture.stacks_on_cpu:
            return vmap(one)(dict(state_K))
        names, members = list(state_K), len(self.card.members)
        rows = [one({name: state_K[name][k] for name in names}) for k in range(members)]
        return torch.stack(rows)


@torch.no_grad()
def fitted_temperature(card: Card, state_K: Mapping[str, Tensor], images: Images) -> float:
    """The temperature at which a bag's NLL on images is least.

    Args:
        card: of the bag; its own temperature does not matter.
        state_K: the members' tensors, stacked.
        images: those of the validation part.
    """
    program = BagProgram(card.model_copy(update={"temperature": 1.0}), state_K)
    parts = [program(part)[0] for part in torch.split(images.pixels_NCHW, _BATCH)]
    return fit_temperature(torch.cat(parts), images.labels_N)


def write_program(program: BagProgram, path: Path) -> None:
    """Write the program as a ``.pt2`` archive: JSON, raw tensors, and nothing that is pickled."""
    # Two images, as torch takes a dimension of one for a constant.
    example = torch.zeros(2, *program.card.image_shape, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(program.eval(), (example,), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        torch.export.save(exported, whole)
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                # The example is the one thing torch pickles. Empty, it reads as none.
                pickled = "/data/sample_inputs/" in entry.filename
                target.writestr(entry.filename, b"" if pickled else source.read(entry))
