"""Machines with nothing shared but a network and an object store: what a run on several meets.

    uv run python tests/cluster/machines.py                      # every scene, as root, on Linux
    uv run python tests/cluster/machines.py --scene partition    # one; --keep leaves its logs

A machine is a network, process, mount and host name namespace with a home, a /tmp, a /dev/shm and
a copy of bend_ray of its own, on a bridge; S3 is moto's, on the bridge's own address. A scene is a
small run on three of them, hit in the middle: its figures are those of an undisturbed run in a
folder to the bit, or it ends with exit code 2 and one line that names what must be mended.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support")]

import pytest
from bend_process import figures
from object_store import BUCKET, ObjectStore, create_bucket, environment_of

import bend_ray

APART = "MACHINES_APART"
NETWORK = "10.77.0"
STORE = f"s3://{BUCKET}/runs"
PYTHON = sys.executable
RAY = str(Path(sys.executable).with_name("ray"))
PACKAGE = Path(bend_ray.__file__).parent
TOKEN = "0" * 64
RUN_SECONDS = 1800.0

CONFIG = """
seeds:
  recipe: {epochs: 30, optimizer: {learning_rate: 0.003}}
  protocol: {kind: forks, trunks: 2, forks: 24, trunk_fraction: 0.2}
  cohort_size: 2
autoencoder:
  model: {latent_size: 8, hidden: 16}
  training: {steps: 300, batch_size: 8, checkpoint_every: 60}
generator:
  denoiser: {hidden: 16, blocks: 1}
  training: {steps: 300, batch_size: 8, checkpoint_every: 60}
samples: {count: 12, shard_size: 2}
evaluation:
  rivals: [{kind: originals_bag}, {kind: gaussian}]
"""


class Machine:
    """One machine; ``start`` puts Ray on it.

    Args:
        number: from 1; the last part of its address.
        folder: of all machines.
        environment: variables of its processes.
        tmp_mib: size of its /tmp.
    """

    def __init__(
        self, number: int, folder: Path, environment: dict[str, str], tmp_mib: int = 1024
    ) -> None:
        self.name, self.address = f"n{number}", f"{NETWORK}.{number + 1}"
        self._link = f"veth{number}"
        self.home = folder / self.name
        site = self.home / "site"
        shutil.copytree(PACKAGE, site / "bend_ray", ignore=shutil.ignore_patterns("__pycache__"))
        (self.home / ".ray").mkdir()
        (self.home / ".ray" / "auth_token").write_text(TOKEN)
        self.package = site / "bend_ray"
        self.clock = self.home / "clock"
        self.clock.write_bytes(struct.pack("d", 0.0))
        paths = [str(site), str(HERE.parent / "chaos" / "clock")]
        self.environment = {
            "PATH": os.pathsep.join([str(Path(PYTHON).parent), "/usr/bin", "/bin", "/usr/sbin"]),
            "HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(paths),
            "CHAOS_CLOCK": str(self.clock),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_USE_DATASOURCE_V2": "0",
            "RAY_worker_niceness": "0",
            # A node that is gone is known to be in seconds; a busy one may take its time.
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "4",
            **environment,
        }
        self._tmp_mib = tmp_mib
        self._boot()

    def _boot(self) -> None:
        flags = ["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        # A shell is the first process: it buries orphans.
        mounts = (
            "mount -t proc proc /proc && mount -t tmpfs -o size=300m tmpfs /dev/shm && "
            f"mount -t tmpfs -o size={self._tmp_mib}m tmpfs /tmp && hostname {self.name} && "
            # Of the folder of all machines it sees its own.
            f"mount --bind {self.home} /mnt && mount -t tmpfs tmpfs {self.home.parent} && "
            f"mkdir {self.home} && mount --move /mnt {self.home} && "
            "ip link set lo up && echo up && while :; do sleep 1 & wait; done"
        )
        self._init = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", mounts], stdout=subprocess.PIPE, text=True
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "up\n"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        self._pid = int(children.read_text().split()[0])
        _ip(f"link add {self._link} type veth peer name eth0 netns {self._pid}")
        _ip(f"link set {self._link} master bridge up")
        for command in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {NETWORK}.1",
        ):
            self.run("ip", *command.split())

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs on it."""
        inside = ["nsenter", "--target", str(self._pid), "--net", "--mount", "--pid", "--uts"]
        return [*inside, f"--wd={self.home}", *arguments]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on it to its end."""
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True,
            check=check, timeout=180,
        )  # fmt: skip

    def start(self, head: Machine | None = None, cpus: int = 2, **labels: str) -> None:
        """Start Ray, as the head of a cluster or on one."""
        where = [f"--address={head.address}:6379"] if head else ["--head", "--port=6379"]
        said = [f"--labels={','.join(f'{k}={v}' for k, v in labels.items())}"] if labels else []
        if head is None:
            said.append("--dashboard-host=0.0.0.0")
        command = [RAY, "start", *where, f"--node-ip-address={self.address}", *said]
        command += [f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={120 * 2**20}"]
        done = self.run(*command, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def stop_ray(self) -> None:
        """End Ray's processes on it."""
        self.run(RAY, "stop", "--force", check=False)

    def bend(self, arguments: list[str], log: Path) -> Bend:
        """``bend`` on it."""
        return Bend(self.command(PYTHON, "-m", "bend_ray", *arguments), self.environment, log)

    def set_clock(self, seconds: float) -> None:
        """By how much the clock of its Python processes is wrong."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def cut(self) -> None:
        """Cut its power."""
        os.kill(self._pid, signal.SIGKILL)
        self._init.wait(timeout=30)

    def plug(self, connected: bool) -> None:
        """Its network cable."""
        _ip(f"link set {self._link} {'up' if connected else 'down'}")

    def fill_tmp(self) -> None:
        """Until no byte fits."""
        self.run("sh", "-c", "cat /dev/zero > /tmp/ballast", check=False)


@dataclass
class Bend:
    """A ``bend`` that runs."""

    command: list[str]
    environment: dict[str, str]
    log: Path

    def __post_init__(self) -> None:
        self._out = self.log.with_suffix(".out").open("w")
        self._err = self.log.with_suffix(".err").open("w")
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=self._out, stderr=self._err
        )

    @property
    def said(self) -> str:
        """On stderr."""
        return self.log.with_suffix(".err").read_text()

    @property
    def printed(self) -> str:
        """On stdout."""
        return self.log.with_suffix(".out").read_text()

    def ended(self, seconds: float = RUN_SECONDS) -> int:
        """Its exit code."""
        return self.process.wait(timeout=seconds)


@dataclass
class Site:
    """The bridge, the store and the machines of a scene."""

    folder: Path
    server: ObjectStore
    undisturbed: Any
    machines: list[Machine] = field(default_factory=list)

    def machine(self, **options: Any) -> Machine:
        """One more."""
        variables = environment_of(self.server)
        variables["AWS_ENDPOINT_URL"] = f"http://{NETWORK}.1:{self.server.port}"
        made = Machine(len(self.machines) + 1, self.folder, variables, **options)
        self.machines.append(made)
        (made.home / "run.yaml").write_text(CONFIG)
        return made

    def cluster(self, count: int = 3, **last: Any) -> list[Machine]:
        """Machines with Ray on them, the first its head; ``last`` are options of the last."""
        made = [self.machine(**(last if n == count - 1 else {})) for n in range(count)]
        made[0].start(cpus=2)
        for each in made[1:]:
            each.start(made[0])
        return made

    def run(self, head: Machine, name: str = "run", *more: str) -> Bend:
        """A whole run, driven on the head."""
        arguments = ["run", "run.yaml", "--store", STORE, "--address", f"{head.address}:6379"]
        return head.bend([*arguments, "--json", "-", *more], self.folder / name)

    def shards(self, stage: str = "seeds") -> int:
        """Written so far."""
        return sum(f"/runs/{stage}/" in n and n.endswith(".parquet") for n in self.server.names())

    def wait(self, condition: Callable[[], Any], bend: Bend, seconds: float = 300.0) -> None:
        """Until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert bend.process.poll() is None, bend.said
            assert time.monotonic() < deadline, bend.said
            time.sleep(0.2)

    def same(self, bend: Bend) -> None:
        """That a run ended well, with the figures of the undisturbed one to the bit."""
        assert bend.ended() == 0, bend.said
        assert figures(bend.printed) == self.undisturbed, "other figures"

    def close(self) -> None:
        """Cut the power of all."""
        for each in self.machines:
            if each._init.poll() is None:
                each.cut()


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def go_apart() -> None:
    """Start again in a network, mount and process namespace of our own."""
    if os.environ.get(APART):
        return
    flags = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    os.environ[APART] = "1"
    first = ["sh", "-c", '"$@"; exit $?', "sh"]
    os.execvp("unshare", ["unshare", *flags, *first, sys.executable, *sys.argv])


@contextmanager
def bridge() -> Iterator[None]:
    """The network of all machines."""
    for command in (
        "link set lo up",
        "link add bridge type bridge",
        f"addr add {NETWORK}.1/24 dev bridge",
        "link set bridge up",
    ):
        _ip(command)
    yield
    _ip("link del bridge")


def undisturbed(folder: Path) -> Any:
    """Figures of the run in a folder, on this machine alone."""
    folder.mkdir()
    (folder / "run.yaml").write_text(CONFIG)
    arguments = ["run", "run.yaml", "--store", str(folder / "store"), "--json", "-"]
    done = subprocess.run(
        [PYTHON, "-m", "bend_ray", *arguments], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return figures(done.stdout)


# Scenes: something happens in the middle of a run on three machines.


def cut_and_join(site: Site) -> str:
    """Two power cuts, and a machine that joins in between."""
    head, second, third = site.cluster()
    bend = site.run(head)
    site.wait(lambda: site.shards() >= 3, bend)
    second.cut()
    fourth = site.machine()
    fourth.start(head)
    site.wait(lambda: site.shards() >= 12, bend)
    third.cut()
    site.same(bend)
    assert f"node {second.address} is lost" in bend.said
    assert f"node {fourth.address} has joined" in bend.said
    return "figures to the bit; who was lost and who joined is told"


def partition(site: Site) -> str:
    """A machine without its network for a minute."""
    head, _, third = site.cluster()
    bend = site.run(head)
    site.wait(lambda: site.shards() >= 3, bend)
    third.plug(False)
    time.sleep(60.0)
    third.plug(True)
    site.same(bend)
    assert f"node {third.address} is lost" in bend.said
    return "figures to the bit; the machine is told to be lost"


def all_at_once(site: Site) -> str:
    """A power cut, a machine that joins, a minute's partition, a killed trainer, another cut."""
    head, second, third = site.cluster()
    bend = site.run(head)
    site.wait(lambda: site.shards() >= 3, bend)
    second.cut()
    fourth = site.machine()
    fourth.start(head)
    site.wait(lambda: site.shards() >= 8, bend)
    third.plug(False)
    time.sleep(60.0)
    third.plug(True)
    site.wait(trainers, bend, 600.0)
    killed = trainers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    site.wait(lambda: re.search("generator .* is being made", bend.said), bend, 600.0)
    fourth.cut()
    site.same(bend)
    for lost in (second, third, fourth):
        assert f"node {lost.address} is lost" in bend.said
    assert f"node {fourth.address} has joined" in bend.said
    assert killed
    return "figures to the bit; three lost and one joined are told"


def trainers() -> list[int]:
    """Ray Train's workers on any machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::RayTrainWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def full_disk(site: Site) -> str:
    """A machine on whose full disk no process starts."""
    head, _, third = site.cluster(tmp_mib=120)
    third.fill_tmp()
    bend = site.run(head)
    site.same(bend)
    assert f"node {third.address} is left out" in bend.said
    return "figures to the bit; the machine is left out and named"


def other_version(site: Site) -> str:
    """A machine with another bend_ray."""
    head, _, third = site.cluster()
    file = third.package / "optim.py"
    file.write_text(file.read_text() + "\n")
    bend = site.run(head)
    assert bend.ended() == 2
    (line,) = [each for each in bend.said.splitlines() if each.startswith("bend: ")]
    assert third.address in line, line
    assert site.shards() == 0
    return line


def skewed_clock(site: Site) -> str:
    """A machine whose clock is an hour slow; two runs that want the same."""
    head, second, _ = site.cluster()
    second.set_clock(-3600.0)
    first = site.run(head, "first")
    site.wait(lambda: site.shards() >= 1, first)
    other = second.bend(
        ["run", "run.yaml", "--store", STORE, "--address", f"{head.address}:6379", "--json", "-"],
        site.folder / "other",
    )
    site.same(first)
    site.same(other)
    assert "being made" in other.said
    return "figures to the bit from both; one waited for the other"


def head_lost(site: Site) -> str:
    """The head's power cut, and the same run on another cluster."""
    head, *_ = site.cluster()
    bend = site.run(head)
    site.wait(lambda: site.shards() >= 6, bend)
    head.cut()
    again, *_ = site.cluster(2)
    kept = site.shards()
    site.same(site.run(again, "again"))
    assert kept >= 6
    return f"figures to the bit; {kept} shards were kept"


def own_code(site: Site) -> str:
    """A user's own network in a folder that only the head has, run there and handed in."""
    head, *_ = site.cluster()
    package = head.home / "shop"
    package.mkdir()
    (package / "layers.py").write_text("from torch import nn\nHead = nn.Linear\n")
    (package / "nets.py").write_text(
        "from torch import nn\nfrom shop.layers import Head\n\n\n"
        "def make_net(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), Head(width, 10))\n"
    )
    own = (
        "seeds.architecture={kind: imported, target: 'shop.nets:make_net', arguments: {width: 64}}"
    )
    driven = site.run(head, "driven", "--set", own)
    assert driven.ended() == 0, driven.said
    where = ["submit", "--address", f"http://{head.address}:8265", "--follow", "--"]
    command = ["run", "run.yaml", "--store", f"{STORE}-job", "--json", "-", "--set", own]
    job = head.bend([*where, *command], site.folder / "job")
    assert job.ended() == 0, job.said
    start = job.printed.index("\n{")
    end = job.printed.rindex("\n}") + 2
    assert figures(job.printed[start:end]) == figures(driven.printed)
    return "workers and a job import it; figures of both are the same to the bit"


def doctor(site: Site) -> str:
    """What is wrong with two of three machines, told before a run."""
    head, second, third = site.cluster(tmp_mib=120)
    second.set_clock(-3600.0)
    third.fill_tmp()
    bend = head.bend(
        ["doctor", "--address", f"{head.address}:6379", "--store", STORE], site.folder / "doctor"
    )
    assert bend.ended() == 2, bend.printed
    assert f"node {head.address}  ok" in bend.printed, bend.printed
    assert "its clock is -3" in bend.printed
    assert f"node {third.address}  mend" in bend.printed
    return bend.printed


SCENES = {
    scene.__name__: scene
    for scene in (
        *(cut_and_join, partition, all_at_once, full_disk, other_version),
        *(skewed_clock, head_lost, own_code, doctor),
    )
}


def main() -> None:
    """Play scenes, and say of each what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scene", choices=SCENES, action="append")
    parser.add_argument("--keep", action="store_true", help="leave logs, and say where")
    given = parser.parse_args()
    go_apart()
    # Not below /tmp, which each machine has of its own.
    folder = Path(tempfile.mkdtemp(prefix="bm", dir="/var/tmp"))
    failed = []
    with bridge():
        expected = undisturbed(folder / "alone")
        for name in given.scene or SCENES:
            (folder / name).mkdir()
            began = time.monotonic()
            with ObjectStore("0.0.0.0").serving() as server:
                with pytest.MonkeyPatch.context() as patched:
                    for key, value in environment_of(server).items():
                        patched.setenv(key, value)
                    create_bucket()
                site = Site(folder / name, server, expected)
                try:
                    seen = SCENES[name](site)
                except (AssertionError, subprocess.SubprocessError) as error:
                    failed.append(name)
                    seen = f"FAILED: {error}"
                finally:
                    site.close()
            print(f"{name} ({time.monotonic() - began:.0f} s): {seen}", flush=True)
    if given.keep:
        print(f"logs are in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
