"""Output that cannot be written: told in a line if it is a result, lost if it is a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bend_ray.config.reading import load_config
from bend_ray.process.streams import NOBODY_READS

pytestmark = pytest.mark.slow


def bend(command: str, tmp_path: Path) -> tuple[int, str]:
    """The exit code of a shell's line of ``bend``, and what it says on the stderr that is left."""
    script = command.replace("bend", f"{sys.executable} -m bend_ray")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full disk for tests")
@pytest.mark.parametrize("command", ["bend config", "bend --help", "bend status"])
def test_a_full_stdout_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    code, said = bend(f"{command} > /dev/full", tmp_path)
    assert (code, said) == (2, "bend: cannot write to stdout: No space left on device\n")


def test_without_a_reader_it_ends_as_other_tools_do(tmp_path: Path) -> None:
    # The reader closes its end before bend has been imported.
    assert bend("bend status | exec 0<&-", tmp_path) == (NOBODY_READS, "")


def test_a_closed_stdout_is_told_before_the_work(tmp_path: Path) -> None:
    code, said = bend("bend status >&-", tmp_path)
    assert code == 2
    assert said.startswith("bend: expected a stdout for results, got a closed one")


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&- <&-"])
def test_words_that_nobody_takes_stop_nothing(stderr: str, tmp_path: Path) -> None:
    assert bend(f"bend config {stderr} > resolved.json", tmp_path) == (0, "")
    assert (tmp_path / "resolved.json").read_text().endswith("}\n")
    assert bend(f"bend config --set x=1 {stderr}", tmp_path) == (2, "")


def test_a_name_that_is_not_utf_8_is_printed_all_the_same(tmp_path: Path) -> None:
    code, said = bend("bend config $'caf\\xe9.yaml'", tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("bend: caf\\udce9.yaml: expected a config file")


def test_a_config_is_printed_in_any_encoding(tmp_path: Path) -> None:
    dataset = "dataset={kind: image_folder, root: ü/😀}"
    command = f"PYTHONIOENCODING=ascii bend config --set '{dataset}' > resolved.json"
    assert bend(command, tmp_path)[0] == 0
    assert load_config(tmp_path / "resolved.json") == load_config(None, [dataset])


FOLLOWED = """
import sys, types
from bend_ray.cli.submit import _followed
from bend_ray.process import streams

write = streams._Results.write
def interrupted(self, content):
    write(self, content)
    streams._Results.write = write
    raise KeyboardInterrupt  # the content has gone out, and the buffer does not know it

streams.prepare()
streams._Results.write = interrupted
follow = lambda job, show: show("a line of the job\\n")
sys.exit(_followed(types.SimpleNamespace(follow=follow, address="http://cluster:8265"), "it"))
"""


def test_what_a_job_said_is_not_said_twice_by_an_interrupt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "a line of the job\n")
    assert "the job goes on" in done.stderr
