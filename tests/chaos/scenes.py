"""What a fault befalls: one stage, driven by ``bend`` as its user does, in a folder of its own.

A scene begins with what the stages before have committed, taken from an undisturbed run, and ends
with a verdict: whether what the stage left is what it leaves undisturbed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from nursery import Nursery
from processes import kill_all

import bend_ray
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGES, graph_of
from bend_ray.config.reading import load_config

CONFIG = """
seeds:
  recipe: {epochs: 120, optimizer: {learning_rate: 0.003}}
  protocol: {kind: forks, trunks: 2, forks: 8, trunk_fraction: 0.2}
  cohort_size: 2
  checkpoint_seconds: 0.02
  resources: {workers: 2}
autoencoder:
  model: {latent_size: 8, hidden: 16}
  training: {steps: 600, batch_size: 8, checkpoint_every: 60}
generator:
  denoiser: {hidden: 16, blocks: 1}
  training: {steps: 600, batch_size: 8, checkpoint_every: 60, patience: null}  # so it is probed
samples: {count: 12, shard_size: 2, resources: {workers: 2}}
evaluation:
  rivals: [{kind: originals_bag}, {kind: deep_ensemble, size: 4}, {kind: gaussian}]
"""
SPACE = """
trials: 2
ensemble_counts: [1, 4]
knobs:
  samples.temperature: [0.8, 1.0]
searcher: {kind: grid}
scheduler: {kind: none}
"""
EVERY_STAGE = (*STAGES, "tune", "serve")
PACKAGE = Path(bend_ray.__file__).parent

ATTEMPT_SECONDS = 600.0
"""After which an attempt counts as hung; Ray Train takes minutes on a share of a core."""
STARTING_SECONDS = 60.0
"""For which a server that answers may still be starting."""
MOMENT_SECONDS = 180.0


@dataclass(frozen=True)
class Cast:
    """Who a stage's processes are, by their titles.

    Attributes:
        worker: one that computes a piece.
        actors: others that it needs, killed together; None where there are none.
        controller: that watches over the workers; None where the driver itself does.
        middle: files of the store by which it is seen to be in the middle of its work.
        also: a title by which that is seen, beside the worker's, where there is no such file.
    """

    worker: str
    actors: str | None
    controller: str | None
    middle: str = ""
    also: str = ""


_TRAINING = {
    "worker": "RayTrainWorker",
    "actors": "DatasetManager",
    "controller": "TrainController",
}
CASTS = {
    "seeds": Cast("SeedTrainer", "SeedTrainer", None, "seeds/*/shard-*.parquet"),
    "autoencoder": Cast(**_TRAINING, middle="autoencoder/*/making/training/checkpoint.safetensors"),
    "latents": Cast("MapBatches", "_StatsActor", None),
    "generator": Cast(**_TRAINING, middle="generator/*/making/training/checkpoint.safetensors"),
    "samples": Cast("SampleDrawer", "SampleDrawer", None, "samples/*/shard-*.parquet"),
    "evaluation": Cast("Evaluator", "Evaluator", None, "answers/*/piece-*.parquet"),
    "tune": Cast("StageWorker", "ImplicitFunc", "TrainController"),
    "serve": Cast("ServeReplica", "ProxyActor", "ServeController"),
}


def titled(name: str) -> list[psutil.Process]:
    """Processes of Ray below this one whose title holds ``name``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (title := (process.cmdline() or [""])[0]).startswith("ray::") and name in title:
                found.append(process)
        except psutil.Error:
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Attempt:
    """A ``bend`` that runs, what it says in files.

    Args:
        folder: that it works in.
        log: of these files, without their ending; on another disk, where that of ``folder`` fills.
        arguments: of the command.
        nursery: that forks it.
    """

    def __init__(self, folder: Path, log: Path, arguments: Sequence[str], nursery: Nursery) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = nursery.bend(arguments, folder, out, err)

    @property
    def said(self) -> str:
        """On stderr."""
        return self._err.read_text()

    @property
    def printed(self) -> str:
        """On stdout."""
        return self._out.read_text()

    def ended(self, seconds: float = ATTEMPT_SECONDS) -> int | None:
        """Its exit code when it has ended; None, and it is killed, where it takes too long."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """With all that it has started."""
        family: list[Any] = [self.process]
        with suppress(psutil.NoSuchProcess):
            family += psutil.Process(self.process.pid).children(recursive=True)
        kill_all(family)
        self.process.wait(timeout=30)

    def refused(self) -> bool:
        """Whether it ended as it says it ends on what the user can mend: one line, no traceback."""
        lines = self.said.splitlines()
        honest = bool(lines) and lines[-1].startswith("bend: ") and "Traceback" not in self.said
        return self.process.returncode == 2 and honest

    def last_words(self) -> str:
        """The line that says how it ended."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1][:600] if lines else ""


@dataclass
class Scene:
    """One stage in a folder of its own, and how it is driven.

    Args:
        stage: of ``EVERY_STAGE``.
        folder: empty, for this scene alone.
        reference: an undisturbed run's folder, see ``Reference``.
        nursery: that ``bend`` comes from.
        address: the cluster to join; None for one that ``bend`` starts itself.
        store_uri: of the scene's store; None: a folder in ``folder``.
        without: stages before that are to be made by this one.
        logs: folder of what ``bend`` says.
    """

    stage: str
    folder: Path
    reference: Reference
    nursery: Nursery
    address: str | None = None
    store_uri: str | None = None
    without: frozenset[str] = frozenset()
    logs: Path | None = None
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(CONFIG)
        (self.folder / "space.yaml").write_text(SPACE)
        self.uri = self.store_uri or str(self.folder / "store")
        self.store = Store(self.uri)
        for artifact in self.reference.needed(self.stage):
            if artifact.stage not in self.without:
                target = f"{self.store.path}/{artifact.stage}/{artifact.fingerprint}"
                if self.store.filesystem.type_name == "local":
                    self.store.filesystem.create_dir(target)
                pyarrow.fs.copy_files(
                    artifact.path,
                    target,
                    source_filesystem=artifact.filesystem,
                    destination_filesystem=self.store.filesystem,
                )

    @property
    def cast(self) -> Cast:
        """Who its processes are."""
        return CASTS[self.stage]

    def start(self, name: str) -> Attempt:
        """``bend`` on this stage."""
        arguments = [self.stage, "config.yaml", "--store", self.uri]
        if self.stage == "tune":
            arguments += ["--space", "space.yaml"]
        if self.stage == "serve":
            arguments += ["--port", str(self.port)]
        elif self.address is not None:
            arguments += ["--address", self.address]
        return Attempt(self.folder, (self.logs or self.folder) / name, arguments, self.nursery)

    def wait_for(self, condition: Callable[[], Any], attempt: Attempt) -> Any:
        """What a condition says as soon as it is true; None where the attempt ends before."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while time.monotonic() < deadline:
            if found := condition():
                return found
            if attempt.process.poll() is not None:
                return None
            time.sleep(0.1)
        return None

    def in_the_middle(self, files: str = "") -> bool:
        """Whether it is at work: some of it is done, its worker is there, or such files are."""
        if files:
            return bool(self._matching(files))
        if self.stage == "serve":
            return self.label(0) is not None
        if self.cast.middle:
            return bool(self._matching(self.cast.middle))
        titles = filter(None, [self.cast.worker, self.cast.also])
        return any(titled(title) for title in titles)

    def _matching(self, pattern: str) -> list[str]:
        if self.store.filesystem.type_name == "local":
            return [str(path) for path in Path(self.store.path).glob(pattern)]
        stage, _, end = pattern.partition("/*/")
        selector = pyarrow.fs.FileSelector(
            f"{self.store.path}/{stage}", recursive=True, allow_not_found=True
        )
        try:
            found = self.store.filesystem.get_file_info(selector)
        except OSError:
            return []
        ending = end.replace("*", "")
        start, _, suffix = end.partition("*")
        return [
            each.path
            for each in found
            if each.base_name.startswith(start.rpartition("/")[2])
            and each.path.endswith(suffix or ending)
        ]

    def label(self, index: int, seconds: float = 5.0) -> Any:
        """What a served bag answers about test image ``index``; None where nobody does."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/predict",
            json.dumps({"pixels": self.reference.images[index]}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                told = json.load(response)
        except (urllib.error.URLError, OSError, ValueError):
            return None
        return [told["label"], list(told["probabilities"].values())]

    def content(self) -> Any:
        """What the stage left, without costs."""
        if self.stage == "serve":
            return [self.label(index) for index in range(len(self.reference.images))]
        if self.stage == "tune":
            return study_content(self.store)
        return content(
            graph_of(load_config(self.folder / "config.yaml", []), self.store)[self.stage]
        )

    def left_over(self) -> list[str]:
        """Files in the stage's folder that no commit knows of."""
        if self.stage == "serve":
            return []
        folder = f"{self.store.path}/{self.stage}"
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        names = [
            each.path for each in self.store.filesystem.get_file_info(selector) if each.is_file
        ]
        ends = (".tmp", "lease.json", "progress.json")
        inside = ("/train/", "/making/")
        return [n for n in names if n.endswith(ends) or any(part in n for part in inside)]

    def stop_serving(self, attempt: Attempt) -> int | None:
        """Ask a server to end once it has said that it is up; its exit code.

        It answers before: asked to end while it still starts, it is interrupted, as any run is.
        """
        deadline = time.monotonic() + STARTING_SECONDS
        while "http://" not in attempt.printed and time.monotonic() < deadline:
            time.sleep(0.2)
        attempt.process.send_signal(signal.SIGINT)
        return attempt.ended(90)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Reference:
    """An undisturbed run of everything, made once.

    Args:
        folder: where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        # What an earlier bend-ray left is no reference for this one.
        code = "".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))
        digest = hashlib.sha256((CONFIG + SPACE + code).encode()).hexdigest()[:8]
        self.folder = folder / f"reference-{digest}"
        self.store = Store(str(self.folder / "store"))
        self.images: list[Any] = [[[float((i * 7 + r * 3 + c) % 17) for c in range(8)]
                                   for r in range(8)] for i in range(6)]  # fmt: skip
        self.contents: dict[str, Any] = {}

    def make(self, nursery: Nursery) -> None:
        """Run what is missing of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = self.folder / "contents.json"
        if said.exists():
            self.contents = json.loads(said.read_text())
            return
        (self.folder / "config.yaml").write_text(CONFIG)
        for name in ("run", "tune", "serve"):
            if name == "run":
                arguments = ["run", "config.yaml", "--store", self.store.path]
                attempt = Attempt(self.folder, self.folder / name, arguments, nursery)
                assert attempt.ended(900) == 0, attempt.said
                continue
            scene = Scene(name, self.folder / name, self, nursery)
            self.contents[name] = undisturbed(scene)
        for artifact in self._graph():
            self.contents[artifact.stage] = json.loads(json.dumps(content(artifact)))
        said.write_text(json.dumps(self.contents))

    def _graph(self) -> Any:
        return graph_of(load_config(self.folder / "config.yaml", []), self.store)

    def needed(self, stage: str) -> list[Artifact]:
        """Artifacts that a stage finds made; the evaluation its deep ensemble too."""
        made = self._graph()
        if stage in STAGES:
            found = [made[before] for before in STAGES[: STAGES.index(stage)]]
        else:
            found = [made[before] for before in (STAGES if stage == "serve" else STAGES[:4])]
        if stage == "evaluation":
            known = {artifact.fingerprint for artifact in found}
            others = [m for m in self.store.manifests("seeds") if m.fingerprint not in known]
            found += [self.store.stored(manifest) for manifest in others]
        return found


def undisturbed(scene: Scene) -> Any:
    """What a scene leaves when nothing befalls it."""
    attempt = scene.start("undisturbed")
    if scene.stage == "serve":
        assert scene.wait_for(lambda: "curl" in attempt.printed, attempt), attempt.said
        left = scene.content()
        assert scene.stop_serving(attempt) == 0, attempt.said
    else:
        assert attempt.ended(600) == 0, attempt.said
        left = scene.content()
    scene.close()
    return json.loads(json.dumps(left))


def content(artifact: Artifact) -> Any:
    """A committed artifact without its costs: what it says, and what its files hold, by name."""
    manifest = artifact.manifest()
    files = {}
    for file in manifest.files:
        if file.name.endswith(".safetensors"):
            files[file.name] = hashlib.sha256(artifact.read_bytes(file.name)).hexdigest()
        elif file.name.endswith(".parquet"):
            files[file.name] = _digest_of_table(artifact, file.name)
        elif file.name.endswith(".json"):
            files[file.name] = without_costs(artifact.read_json(file.name))
    return {
        "fingerprint": manifest.fingerprint,
        "inputs": [given.fingerprint for given in manifest.inputs],
        "metrics": without_costs(manifest.metrics),
        "files": files,
    }


def _digest_of_table(artifact: Artifact, name: str) -> str:
    """Of all columns but what fitting cost, and of the metadata."""
    with artifact.filesystem.open_input_file(artifact.child(name)) as source:
        table = pq.read_table(source)
    kept = [column for column in table.column_names if "seconds" not in column]
    digest = hashlib.sha256(str(sorted((table.schema.metadata or {}).items())).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.select(kept).schema) as writer:
        writer.write_table(table.select(kept).combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def study_content(store: Store) -> Any:
    """Of the one search in a store: each trial's point, how it ended, and what its bags scored."""
    (manifest,) = store.manifests("tune")
    trials = store.stored(manifest).read_json("study.json")["trials"]
    told = [
        {
            "point": trial["point"],
            "status": trial["status"],
            "stages": [[each["stage"], each["fingerprint"]] for each in trial["stages"]],
            "bags": [[bag["size"], bag["nll"], bag["accuracy"]] for bag in trial["bags"]],
        }
        for trial in trials
    ]
    trials = sorted(told, key=lambda trial: json.dumps(trial["point"], sort_keys=True))
    return {"fingerprint": manifest.fingerprint, "trials": trials}


def without_costs(value: Any) -> Any:
    """JSON without what may differ between two runs: costs, times and places."""
    if isinstance(value, dict):
        differs = ("cost", "seconds", "price", "created", "versions", "made", "store")
        kept = {k: v for k, v in value.items() if not any(word in k for word in differs)}
        return {key: without_costs(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [without_costs(each) for each in value]
    return value
