"""Checkpoints that another program wrote: read exactly, or refused in a line; and a run over them.

They are written by a plain loop, as anybody has one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import bend_ray as bend
from bend_ray import pipeline
from bend_ray.artifacts.shards import read_population
from bend_ray.config.reading import with_knobs
from bend_ray.errors import BendError, DataError
from bend_ray.networks.checkpoints import listed_trunks, read_state
from bend_ray.networks.protocols import Checkpoints
from bend_ray.populations.members import LAYOUT
from bend_ray.report.results import table

State = dict[str, Tensor]
STEPS = (8, 16, 24, 32)
LABELS_N = np.arange(120) % 3
INPUTS_NF = np.random.default_rng(0).normal(size=(120, 4)) + 2 * np.eye(4)[LABELS_N]
INPUTS_NF = INPUTS_NF.astype(np.float32)


def make_net(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def states(trunk: int) -> Iterator[tuple[int, State]]:
    """What a plain loop passes through."""
    torch.manual_seed(trunk)
    net = make_net()
    inputs, labels = torch.tensor(INPUTS_NF), torch.tensor(LABELS_N)
    for step in range(1, STEPS[-1] + 1):
        loss = nn.functional.cross_entropy(net(inputs), labels)
        gradients = torch.autograd.grad(loss, [*net.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        if step in STEPS:
            yield step, {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def trained() -> list[list[tuple[int, State]]]:
    return [list(states(trunk)) for trunk in range(2)]


STATE = {name: torch.randn_like(t.float()) for name, t in make_net().state_dict().items()}
SHAPES = {name: tuple(t.shape) for name, t in STATE.items() if "num_batches" not in name}


def read(path: Path, prefix: str | None = None) -> State:
    spec = Checkpoints(files=str(path.with_name("*")), prefix=prefix)
    for number in (1, 2):  # as many as a trunk must have
        path.with_name(f"z{number}{path.suffix}").write_bytes(path.read_bytes())
    files, (checkpoints,) = listed_trunks(spec)
    return read_state(files, checkpoints[0], SHAPES, prefix)


def prefixed(before: str) -> State:
    return {before + name: tensor for name, tensor in STATE.items()}


MOMENTS = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
AS_THEY_ARE: dict[str, tuple[Any, str | None]] = {
    "alone": (STATE, None),
    "beside an optimizer": ({"model": STATE, "optimizer": MOMENTS, "epoch": 3}, None),
    "by another key": ({"net_state": STATE, "optim": MOMENTS, "loss": 0.5}, None),
    "DDP": (prefixed("module."), None),
    "compiled": ({"model": prefixed("module._orig_mod.")}, None),
    "Lightning": ({"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1}}, None),
    "an average beside": ({"ema": prefixed(""), "model": STATE}, "model."),
    "a teacher beside": ({"state_dict": prefixed("t.") | prefixed("net.s.")}, "net.s."),
    "a name cut short": (prefixed("net_"), "net_"),
    "with more": (STATE | {"extra": torch.ones(2), "head.0.weight": torch.ones(2)}, None),
    "parameters": ({name: nn.Parameter(tensor) for name, tensor in STATE.items()}, None),
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_state_is_found_wherever_loops_put_it(tmp_path: Path, name: str) -> None:
    content, prefix = AS_THEY_ARE[name]
    torch.save(content, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", prefix)
    assert found.keys() == SHAPES.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in found)
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_other_floats_are_read_as_they_are(tmp_path: Path, kind: str, ending: str) -> None:
    short = {name: tensor.to(getattr(torch, kind)) for name, tensor in STATE.items()}
    (torch.save if ending == ".pt" else save_file)(short, tmp_path / f"a{ending}")
    found = read(tmp_path / f"a{ending}")
    assert all(torch.equal(found[name], short[name]) for name in found)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def cyclic() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    return loop


def instead(name: str, tensor: Tensor) -> State:
    return STATE | {name: tensor}


REFUSED: dict[str, tuple[Any, str]] = {
    "another width": (make_net(7).state_dict(), r"0.weight .*\(6, 4\), got \(7, 4\)"),
    "a key missing": ({k: v for k, v in STATE.items() if k != "3.bias"}, "got none for 3.bias"),
    "a key too many": ({"a": STATE, "b": STATE}, "got several, behind a., b.; name one in"),
    "more dimensions": ({k: v[None] for k, v in STATE.items()}, r"got \(1, 6, 4\)"),
    "integers": (instead("3.bias", torch.ones(3, dtype=torch.int64)), "3.bias .* of torch.int64"),
    "complex": (instead("3.bias", torch.ones(3) + 1j), "3.bias .* of torch.complex64"),
    "sparse": (instead("3.weight", torch.eye(6)[:3].to_sparse()), "3.weight to be dense"),
    "no memory": (instead("3.bias", torch.ones(3, device="meta")), "3.bias to be dense"),
    "nothing": ({}, "the file has no tensors"),
    "a list": ([*STATE.values()], "the file has no tensors"),
    "names that are none": ({1: torch.ones(3)}, "the file has 1,"),
    "in a circle": (cyclic(), "RecursionError"),
    "numpy's": ({k: v.numpy() for k, v in STATE.items()}, "nothing that runs code"),
    "a whole module": (make_net(), "nothing that runs code"),
    "what runs code": (STATE | {"more": Runs()}, "nothing that runs code"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_of_the_network_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "a.pt")
    assert str(caught.value).isprintable()
    assert not Path("ran").exists()


def test_a_prefix_that_nothing_has_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"got none for 0\.weight \(8 are missing\)"):
        read(tmp_path / "a.pt", "model.")


def written(path: Path, save: Callable[[Any, Path], None]) -> bytes:
    save(STATE, path)
    return path.read_bytes()


@given(data=st.data(), ending=st.sampled_from([".pt", ".safetensors", ".pickle.pt"]))
@fuzzed(40)
def test_any_file_is_read_or_refused_in_a_line(
    tmp_path: Path, data: st.DataObject, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".pickle.pt":
        whole = pickle.dumps(STATE)
    else:
        whole = written(path, torch.save if ending == ".pt" else save_file)
    path.write_bytes(data.draw(damaged(whole) | st.binary(min_size=1, max_size=30)))
    try:
        found = read(path)
    except DataError as error:
        told = str(error)
    else:
        told = ""
        assert {name: tuple(t.shape) for name, t in found.items()} == SHAPES
    assert told.isprintable()


NAMES = ("run-0/step-9.pt", "run-0/step-10.pt", "run-0/step-11.pt", "run-10/step-9.pt")
NAMES = (*NAMES, "run-10/step-10.pt", "run-2/a/step-9.pt", "run-2/b/step-10.pt", "run-0/notes.txt")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("run-{trunk}/step-*.pt", [["0/10", "0/11"], ["10/9", "10/10"]]),
        ("run-{trunk}/step-1?.pt", None),
        ("run-{trunk}/step-[19]*.pt", [["0/10", "0/11"], ["10/9", "10/10"]]),
        ("run-{trunk}/**/step-*.pt", [["0/10", "0/11"], ["2/9", "2/10"], ["10/9", "10/10"]]),
        ("run-[!2]/step-{trunk}.pt", None),
        ("run-0", [["0/9", "0/10", "0/11"]]),
        ("run-{trunk}", [["0/10", "0/11"], ["10/9", "10/10"]]),
        ("run-0/step-*.pt", [["0/9", "0/10", "0/11"]]),
        ("{trunk}-0/step-*.pt", [["0/9", "0/10", "0/11"]]),
    ],
)
def test_trunks_are_told_apart_by_the_pattern(
    tmp_path: Path, pattern: str, expected: list[list[str]] | None
) -> None:
    for name in NAMES:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    spec = Checkpoints(files=f"{tmp_path}/{pattern}")
    if expected is None:
        with pytest.raises(DataError, match="expected 2 checkpoints of each trunk at least"):
            spec.identified()
        return
    known = spec.identified()
    assert known.found == (len(expected), len(expected[0]))
    _, trunks = listed_trunks(spec)
    told = [[file.path for file in trunk] for trunk in trunks]
    short = [
        [f"{p.split('run-')[1].split('/')[0]}/{p[:-3].split('-')[-1]}" for p in t] for t in told
    ]
    assert short == expected


@pytest.mark.parametrize("pattern", ["nothing-{trunk}/*.pt", "run-{t}/step-*.pt"])
def test_a_pattern_that_means_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"^seeds\.protocol\.files=.*got none"):
        Checkpoints(files=f"{tmp_path}/{pattern}").identified()


SETTINGS: dict[str, Any] = {
    "seeds.protocol.kind": "checkpoints",
    "autoencoder.model.latent_size": 2,
    "autoencoder.training.steps": 20,
    "generator.training.steps": 20,
    "samples.count": 4,
    "evaluation.rivals": [{"kind": "originals_bag"}, {"kind": "weight_average"}],
}


def save_all(folder: Path, trained: list[list[tuple[int, State]]]) -> str:
    for trunk, its in enumerate(trained):
        for step, state in its:
            place = folder / f"run-{trunk}/checkpoint-{step}"
            place.mkdir(parents=True)
            save_file(state, place / "model.safetensors")
            # As Hugging Face's trainer leaves a folder.
            torch.save(MOMENTS, place / "optimizer.pt")
            (place / "training_args.bin").write_bytes(b"pickled")
    return f"{folder}/run-{{trunk}}/checkpoint-*"


def fit(store: Path, files: str, **settings: Any) -> bend.Run:
    given_ = SETTINGS | {"seeds.protocol.files": files} | settings
    return bend.fit(make_net, (INPUTS_NF, LABELS_N), store=store, settings=given_)


@pytest.mark.slow
def test_a_run_over_somebody_elses_checkpoints(
    tmp_path: Path, trained: list[list[tuple[int, State]]]
) -> None:
    run = fit(tmp_path / "store", save_all(tmp_path, trained), **{"seeds.protocol.align": False})
    assert all(artifact.exists() for artifact in run.graph)
    seeds = run.population("seeds")
    assert seeds.trunk.tolist() == [0] * len(STEPS) + [1] * len(STEPS)
    names = [name for name, *_ in run.graph.seeds.read_json(LAYOUT)]
    states_K = [state for its in trained for _, state in its]
    expected_KP = np.stack([np.concatenate([s[n].flatten() for n in names]) for s in states_K])
    np.testing.assert_array_equal(seeds.theta_KP, expected_KP)
    # Validated here, by statistics of the training part.
    dataset = run.config.dataset.load()
    net = make_net()
    for row, state in enumerate(states_K):
        net.load_state_dict(state)
        with torch.no_grad():
            logits = net.eval()(dataset.normalise(dataset.validation.inputs))
        nll = nn.functional.cross_entropy(logits, dataset.validation.labels_N)
        assert seeds.val_nll[row] == pytest.approx(nll.item(), rel=1e-4)
    # What they cost is unknown, and so is what all that builds on them does.
    assert not run.graph.seeds.manifest().metrics["priced"]
    assert "unknown" in table(run.result)
    assert Path(run.report()).exists()
    assert all(r.cost_seconds is None for r in run.evaluation.rivals.values())
    priced = with_knobs(run.config, {"seeds.protocol.seconds": 3})
    graph = pipeline.run(priced, str(tmp_path / "store"), until="seeds", local=True)
    assert graph.seeds.manifest().metrics["priced"]
    assert graph.seeds.manifest().cost.cpu_seconds >= 3 * len(states_K)


@pytest.mark.parametrize("ruin", ["key", "network", "cut", "nan", "nothing"])
def test_of_checkpoints_that_do_not_fit_nothing_is_committed(
    tmp_path: Path, trained: list[list[tuple[int, State]]], ruin: str
) -> None:
    ruined: dict[str, Callable[[State], State]] = {
        "key": lambda state: {name: t for name, t in state.items() if name != "3.bias"},
        "network": lambda state: make_net(7).state_dict(),
        "nan": lambda state: {name: t * float("nan") for name, t in state.items()},
    }
    change = ruined.get(ruin, lambda state: state)
    files = save_all(tmp_path, [[(step, change(s)) for step, s in its] for its in trained])
    if ruin == "cut":
        (path,) = tmp_path.glob("run-1/checkpoint-16/*.safetensors")
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BendError) as caught:
        fit(tmp_path / "store", files if ruin != "nothing" else f"{tmp_path}/none-*")
    assert str(caught.value).isprintable()
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_too_few_for_the_latent_size_is_a_line(
    tmp_path: Path, trained: list[list[tuple[int, State]]]
) -> None:
    files = save_all(tmp_path, trained)
    with pytest.raises(BendError, match=r"^autoencoder\.model\.latent_size: expected fewer"):
        fit(tmp_path / "store", files, **{"autoencoder.model.latent_size": 40})


def test_one_that_diverged_is_dropped(
    tmp_path: Path, trained: list[list[tuple[int, State]]]
) -> None:
    (first, *others, (step, last)), other = trained
    lost = {name: tensor * float("nan") for name, tensor in last.items()}
    files = save_all(tmp_path, [[first, *others, (step, lost)], other])
    run = fit(tmp_path / "store", files)
    assert len(read_population(run.graph.seeds)) == 2 * len(STEPS) - 1
