"""The fault matrix: every stage meets every fault, and must come out the same, or say why not.

    uv run python tests/chaos/matrix.py                                    # all cells, 3 times
    uv run python tests/chaos/matrix.py --stage seeds --fault sigkill-worker --repeats 1
    uv run python tests/chaos/matrix.py --show                             # what was found so far

A cell is one stage on a store that holds what the stages before have made, hit in the middle of its
work. It is ``survived`` where ``bend`` ends well (after a killed driver: is run again and does) and
what it left equals an undisturbed run's, costs aside; ``refused`` where it ends with one line and
exit code 2, and ends well when it is run again; ``wrong`` where what is left differs; ``lost`` in
all other cases: a traceback, a hang, a rerun that does not end well. A stage that was over before
it could be hit is tried again. Each cell is a line of JSON in WORK/cells.jsonl, and a cell that has
its repeats is not tried again. As root, on Linux, the whole runs in namespaces of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import start_worker
from faults import FAULTS, NOT_APPLICABLE, OWN_CLUSTER, Clock, Fault
from nodes import ENVIRONMENT, MIB, Nodes
from nursery import Nursery
from object_store import BUCKET, ObjectStore, create_bucket, environment_of
from scenes import EVERY_STAGE, Attempt, Reference, Scene, titled

OUTCOMES = ("survived", "refused", "lost", "wrong")
MISSES = 3
"""Times that a stage may be over before it was hit."""
SERVED_SECONDS = 300.0
"""After a fault, until a served bag answers again, or begins to."""
MEMORY_BYTES = psutil.virtual_memory().total * 9 // 10
"""Ray believes in a limit below what the machine has."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Found:
    """What became of a cell.

    Attributes:
        stage: hit.
        fault: by which.
        repeat: from 0.
        outcome: of ``OUTCOMES``; ``missed`` where the stage was over too soon.
        hit: what was.
        said: by ``bend``, last.
        left: files that nobody needs, in the stage's folder after all.
        seconds: of the whole cell.
    """

    stage: str
    fault: str
    repeat: int
    outcome: str
    hit: str
    said: str
    left: list[str]
    seconds: float


class Laboratory:
    """Clusters, an object store, a small disk and a clock: what cells share, and faults break.

    Args:
        work: a folder.
    """

    def __init__(self, work: Path) -> None:
        self.work = work.resolve()
        self.reference = Reference(self.work)
        self._python_path = os.environ.get("PYTHONPATH", "")
        self.hog: subprocess.Popen[str] | None = None
        self._stack = ExitStack()
        self._nodes: dict[str, Nodes] = {}
        self._nurseries: dict[str, Nursery] = {}

    def __enter__(self) -> Laboratory:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        os.environ.update(ENVIRONMENT)
        # Else the oldest of them are found only by whoever started them.
        os.environ.pop("RAY_ADDRESS", None)
        self.server = self._stack.enter_context(ObjectStore().serving())
        os.environ.update(environment_of(self.server))
        create_bucket()
        self.disk = self.work / "disk"
        self._clock = Clock(self.work / "clock")
        if _is_apart():
            self._stand_in_for_cgroup()
        self.reference.make(self.nursery("plain"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_clusters()
        self._stack.close()

    def close_clusters(self) -> None:
        """End all of them."""
        if self.hog is not None:
            self.hog.kill()
            self.hog.wait()
            self.hog = None
        for nodes in self._nodes.values():
            nodes.__exit__(None, None, None)
        self._nodes.clear()

    def nodes(self, kind: str) -> Nodes:
        """The cluster of a kind; there is one at a time."""
        if kind not in self._nodes:
            self.close_clusters()
            small = kind == "small"
            made = Nodes(
                count=1 if small else 2,
                store_bytes=(80 if small else 150) * MIB,
                environment=self._environment(kind)
                | {start_worker.SOCKET: str(self.nursery(kind).socket)},
                setup_worker=Path(start_worker.__file__),
            )
            self._nodes[kind] = made.__enter__()
            os.environ["PYTHONPATH"] = self._python_path
        return self._nodes[kind]

    def nursery(self, kind: str) -> Nursery:
        """What forks the processes of a kind of cluster; one for those whose clock can be set."""
        kind = kind if kind == "clock" else "plain"
        if kind not in self._nurseries:
            # Not in the working folder: the path of a socket may have 107 characters.
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bn")))
            made = Nursery(folder, os.environ | self._environment(kind))
            self._nurseries[kind] = self._stack.enter_context(made)
        return self._nurseries[kind]

    def _environment(self, kind: str) -> dict[str, str]:
        """Variables of processes whose clock can be set; of others, none."""
        if kind != "clock":
            return {}
        paths = [str(HERE / "clock"), *filter(None, [self._python_path])]
        return {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_CLOCK": str(self._clock.path)}

    def set_clock(self, offset: float) -> None:
        """Seconds by which those clocks are wrong from now on."""
        self._clock.set(offset)

    def small_disk(self) -> Path:
        """An empty disk of 24 MiB."""
        self.disk.mkdir(exist_ok=True)
        if os.path.ismount(self.disk):
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.disk)]
        subprocess.run(command, check=True)
        return self.disk

    def _stand_in_for_cgroup(self) -> None:
        """Have Ray's memory monitor read files of ours; only in a mount namespace of our own."""
        folder = self.work / "cgroup"
        folder.mkdir(exist_ok=True)
        old = (CGROUP / "memory").is_dir()
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else (
            "memory.max", "memory.current")  # fmt: skip
        (folder / names[0]).write_text(str(MEMORY_BYTES))
        self._usage = folder / names[1]
        keys = "total_inactive_file total_active_file inactive_file active_file anon shmem"
        (folder / "memory.stat").write_text("".join(f"{key} 0\n" for key in keys.split()))
        self.press_memory(False)
        if old:
            subprocess.run(["mount", "--bind", str(folder), str(CGROUP / "memory")], check=True)
        else:
            for name in (*names, "memory.stat"):
                target = str(CGROUP / name)
                subprocess.run(["mount", "--bind", str(folder / name), target], check=True)

    def press_memory(self, short: bool) -> None:
        """Whether memory seems to be short."""
        self._usage.write_text(str(MEMORY_BYTES * (98 if short else 2) // 100))

    def scene(self, stage: str, fault: Fault, name: str) -> Scene:
        """A stage, ready to be hit."""
        folder = self.work / "cells" / name
        shutil.rmtree(folder, ignore_errors=True)
        if fault.store == "disk":
            folder = self.small_disk() / name
        address = None
        if (stage, fault.name) not in OWN_CLUSTER:
            address = self.nodes(fault.cluster).address
        os.environ.update(self._environment(fault.cluster))
        uri = f"s3://{BUCKET}/{name}-{time.time_ns()}" if fault.store == "s3" else None
        without = set()
        if stage == "tune" and fault.name == "sigkill-controller":
            without = {"generator"}
        logs = self.work / "logs" / name
        nursery = self.nursery(fault.cluster)
        scene = Scene(
            stage, folder, self.reference, nursery, address, uri, frozenset(without), logs
        )
        if stage == "evaluation" and fault.name == "sigkill-actor":
            _forget_deep_ensemble(scene, self.reference)
        return scene

    def try_cell(self, stage: str, fault: Fault, repeat: int) -> Found:
        """Hit a stage, and see what becomes of it."""
        started = time.monotonic()
        name = f"{stage}-{fault.name}-{repeat}"
        scene = self.scene(stage, fault, name)
        wait_until_quiet()
        try:
            trial = Trial(self, scene, fault)
            outcome = trial.served() if stage == "serve" else trial.made()
        finally:
            fault.mend(self)
            os.environ.pop("CHAOS_CLOCK", None)
            os.environ["PYTHONPATH"] = self._python_path
        left = scene.left_over() if outcome in ("survived", "refused") else []
        seconds = round(time.monotonic() - started, 1)
        if outcome in ("survived", "refused", "missed"):
            scene.close()
        return Found(stage, fault.name, repeat, outcome, trial.hit, trial.said, left, seconds)


class Trial:
    """A scene that is hit."""

    def __init__(self, laboratory: Laboratory, scene: Scene, fault: Fault) -> None:
        self.laboratory = laboratory
        self.scene = scene
        self.fault = fault
        self.hit = self.said = ""

    def made(self) -> str:
        """The outcome of a stage that leaves an artifact."""
        attempt = self._hit()
        code = attempt.ended()
        self.said = attempt.last_words()
        self.fault.mend(self.laboratory)
        if not self.hit:
            return "missed" if code == 0 or attempt.refused() else "lost"
        if code == 0:
            return self._compared("survived")
        killed = self.fault.name == "sigkill-driver"
        honest = "survived" if killed else "refused" if attempt.refused() else "lost"
        if code is None:
            self.said = f"hung; last: {self.said}"
        again = self.scene.start("again")
        if again.ended() != 0:
            self.said += f" | run again: {again.last_words()}"
            return "lost"
        return self._compared(honest)

    def _hit(self) -> Attempt:
        if self.fault.from_start:
            self.hit = self.fault.strike(self.scene, None, self.laboratory)  # type: ignore[arg-type]
            return self.scene.start("hit")
        attempt = self.scene.start("hit")
        if self.scene.wait_for(lambda: self.scene.in_the_middle(self.fault.middle), attempt):
            self.hit = self.fault.strike(self.scene, attempt, self.laboratory)
        return attempt

    def _compared(self, honest: str) -> str:
        left = json.loads(json.dumps(self.scene.content()))
        expected = self.laboratory.reference.contents[self.scene.stage]
        if self.scene.without:  # Its trials find fewer stages made; what they score is the same.
            left, expected = left["trials"], expected["trials"]
        if left == expected:
            return honest
        (self.laboratory.work / "differs.json").write_text(json.dumps([left, expected]))
        self.said += " | differs from the undisturbed run"
        return "wrong"

    def served(self) -> str:
        """The outcome of a bag that is served."""
        early = self.fault.store != "folder"
        attempt = self._hit_while_exporting() if early else self._hit()
        if self.fault.name == "sigkill-driver" or attempt.process.poll() is not None:
            code = attempt.ended(60)
            self.said = attempt.last_words()
            honest = "refused" if attempt.refused() else "lost"
            honest = "survived" if self.fault.name == "sigkill-driver" else honest
            self.fault.mend(self.laboratory)
            wait_until_quiet()
            attempt = self.scene.start("again")
        else:
            code, honest = 0, "survived"
        del code
        answers = self._answers(attempt)
        self.said = self.said or attempt.last_words()
        if answers != "right":
            self.said += f" | {answers}"
            attempt.kill()
            return "wrong" if "another" in answers else "lost"
        if (ended := self.scene.stop_serving(attempt)) != 0:
            self.said += f" | asked to end, it ended with {ended}"
            return "lost"
        return honest

    def _hit_while_exporting(self) -> Attempt:
        if self.fault.from_start:
            self.hit = self.fault.strike(self.scene, None, self.laboratory)  # type: ignore[arg-type]
        attempt = self.scene.start("hit")
        if not self.fault.from_start:
            time.sleep(1.0)
            self.hit = self.fault.strike(self.scene, attempt, self.laboratory)
        if self.scene.wait_for(lambda: "curl" in attempt.printed, attempt) is None:
            attempt.ended(30)
        return attempt

    def _answers(self, attempt: Attempt) -> str:
        """``right`` when a server answers all images as the undisturbed one did."""
        expected = self.laboratory.reference.contents["serve"]
        deadline = time.monotonic() + SERVED_SECONDS
        told: Any = None
        while time.monotonic() < deadline:
            told = self.scene.content()
            for answer, wanted in zip(told, expected, strict=True):
                if answer is not None and not _alike(answer, wanted):
                    return f"answered another: {answer}, expected {wanted}"
            if all(answer is not None for answer in told):
                return "right"
            if attempt.process.poll() is not None:
                return f"it ended with {attempt.process.returncode}"
            time.sleep(0.5)
        return f"no answer for {SERVED_SECONDS:.0f} s, last {told}"


def _alike(answer: Any, wanted: Any) -> bool:
    # A replica measures which form of the program is fastest; forms differ in the order of sums.
    pairs = zip(answer[1], wanted[1], strict=True)
    return answer[0] == wanted[0] and all(abs(a - b) < 1e-4 for a, b in pairs)


def _forget_deep_ensemble(scene: Scene, reference: Reference) -> None:
    (seeds,) = [a.fingerprint for a in reference.needed("autoencoder")]
    for fingerprint in scene.store.fingerprints("seeds"):
        if fingerprint != seeds:
            scene.store.filesystem.delete_dir(f"{scene.store.path}/seeds/{fingerprint}")


def wait_until_quiet(seconds: float = 30.0) -> None:
    """Until no worker of an earlier cell is left: it would be taken for this one's."""
    names = (
        *("SeedTrainer", "RayTrainWorker", "TrainController", "MapBatches", "SampleDrawer"),
        *("Evaluator", "StageWorker", "ImplicitFunc", "ServeReplica"),
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(titled(name) for name in names):
        time.sleep(0.2)


def _is_apart() -> bool:
    """Whether this process is in namespaces of its own."""
    return os.environ.get("CHAOS_APART") == "1"


def go_apart() -> None:
    """Start again in namespaces of our own, where that is possible: see no others, mount at will.

    Ray's State API also wants to see one cluster only. A shell is the first process there, because
    it buries orphans: workers take the zombie of a killed raylet for alive, and go on without it.
    """
    if _is_apart() or os.geteuid() != 0 or shutil.which("unshare") is None:
        return
    flags = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    environment = os.environ | {"CHAOS_APART": "1"}
    first = ["sh", "-c", '"$@"; exit $?', "sh"]
    os.execvpe("unshare", ["unshare", *flags, *first, sys.executable, *sys.argv], environment)


def recorded(path: Path) -> list[Found]:
    """What was found so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Found(**json.loads(line)) for line in lines]


def table(found: Sequence[Found]) -> str:
    """The matrix as Markdown: how often each cell survived, or what else it came to; the sums."""
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for each in found:
        if each.outcome in OUTCOMES:
            cells[each.stage, each.fault][each.outcome] += 1
    rows = [["", *EVERY_STAGE], ["---"] * (1 + len(EVERY_STAGE))]
    rows += [[fault, *(_told(cells, stage, fault) for stage in EVERY_STAGE)] for fault in FAULTS]
    sums = sum(cells.values(), Counter())
    told = ", ".join(f"{outcome} {sums[outcome]}" for outcome in OUTCOMES)
    tried = sum(bool(counts) for counts in cells.values())
    applicable = len(EVERY_STAGE) * len(FAULTS) - len(NOT_APPLICABLE)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{tried} of {applicable} cells tried, {sums.total()} times: {told}", ""]
    for why in dict.fromkeys(NOT_APPLICABLE.values()):
        where = [f"{s} x {f}" for (s, f), each in NOT_APPLICABLE.items() if each == why]
        lines.append(f"- no {', '.join(where)}: {why}")
    return "\n".join(lines)


def _told(cells: dict[tuple[str, str], Counter[str]], stage: str, fault: str) -> str:
    if (stage, fault) in NOT_APPLICABLE:
        return "-"
    counts = cells[stage, fault]
    survived = [str(counts["survived"])] if counts["survived"] else []
    return ", ".join([*survived, *(f"{counts[o]} {o}" for o in OUTCOMES[1:] if counts[o])])


def wanted(stages: Sequence[str], faults: Sequence[str]) -> list[tuple[str, Fault]]:
    """Cells to try; those of one kind of cluster after another, as starting one takes a while."""
    pairs = [
        (stage, FAULTS[fault])
        for fault in faults
        for stage in stages
        if (stage, fault) not in NOT_APPLICABLE
    ]
    return sorted(pairs, key=lambda pair: (pair[1].cluster, pair[1].store))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", action="append", choices=EVERY_STAGE, help="only this one")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("chaos"), help="folder for everything")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after")
    parser.add_argument("--show", action="store_true", help="print the matrix and try nothing")
    said = parser.parse_args()
    file = said.work / "cells.jsonl"
    if not said.show:
        go_apart()
        with Laboratory(said.work) as laboratory:
            _try_all(laboratory, said, file)
    print(table(recorded(file)))
    if any(each.outcome in ("lost", "wrong") for each in recorded(file)):
        sys.exit(1)


def _try_all(laboratory: Laboratory, said: argparse.Namespace, file: Path) -> None:
    started = time.monotonic()
    for repeat in range(said.repeats):
        for stage, fault in wanted(said.stage or EVERY_STAGE, said.fault or list(FAULTS)):
            done = {(f.stage, f.fault, f.repeat) for f in recorded(file) if f.outcome in OUTCOMES}
            for _ in range(MISSES):
                if (stage, fault.name, repeat) in done:
                    break
                if time.monotonic() - started > said.seconds:
                    return
                found = laboratory.try_cell(stage, fault, repeat)
                with file.open("a") as stream:
                    stream.write(json.dumps(asdict(found)) + "\n")
                what = f"{stage:<12} {fault.name:<20} {found.outcome:<9} {found.seconds:>6}s"
                told = f"{what}  {found.hit[:60]}  {found.said[:200]}"
                print(told, file=sys.stderr, flush=True)
                if found.outcome in OUTCOMES:
                    break


if __name__ == "__main__":
    main()
