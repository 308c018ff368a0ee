"""A Serve config, deployed: the next bag goes live under load without one failed request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from serve_config import check_deploy_config
from served import export_random

from bend_ray.errors import ConfigError
from bend_ray.serve.deployment import deploy_config, deploy_text
from bend_ray.serve.listening import Listening
from bend_ray.serve.settings import ServeSettings

HERE = Listening("127.0.0.1", 8000)
SUPPORT = Path(__file__).parents[1] / "support"


def test_a_written_config_is_one_that_serve_takes() -> None:
    settings = ServeSettings(max_replicas=3, groups=2)
    config = deploy_config("s3://bags/digits", settings, HERE)
    check_deploy_config(config)
    read = yaml.safe_load(deploy_text(config))
    assert read == config
    (application,) = read["applications"]
    assert application["import_path"] == "bend_ray.serve.deployment:application"
    assert application["args"]["groups"] == 2
    (deployment,) = application["deployments"]
    assert deployment["user_config"] == {"export": "s3://bags/digits"}
    assert deployment["autoscaling_config"]["max_replicas"] == 3


@pytest.mark.parametrize(
    ("place", "key", "told"),
    [
        ((), "aplications", "aplications: no such key"),
        (("http_options",), "prot", r"http_options\.prot: no such key"),
        (("applications", 0), "import", r"applications\.0\.import: no such key"),
        (
            ("applications", 0, "deployments", 0),
            "max_queud",
            r"applications\.0\.deployments\.0\.max_queud: no such key",
        ),
        (("applications", 0, "args"), "max_queud", r"applications\.0\.args\.max_queud"),
        (("applications", 0, "deployments", 0), "num_replicas", "Serve config"),
    ],
)
def test_a_key_that_serve_would_ignore_is_refused(
    place: tuple[str | int, ...], key: str, told: str
) -> None:
    config = deploy_config("/bag", ServeSettings(), HERE)
    holder = config
    for step in place:
        holder = holder[step]  # type: ignore[index]
    holder[key] = -1
    with pytest.raises(ConfigError, match=told):
        check_deploy_config(config)


_UNDER_LOAD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from serving import Load, free_port
from bend_ray.process.environment import prepare_environment
prepare_environment(None)
import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from bend_ray.runtime import cluster
from bend_ray.serve.deployment import deploy_config
from bend_ray.serve.listening import Listening
from bend_ray.serve.settings import ServeSettings

first, second, port = sys.argv[2], sys.argv[3], free_port()
cluster.connect(None)
serve = ServeSubmissionClient("http://" + ray._private.worker.global_worker.node.webui_url)

def deploy(export, **settings):
    config = deploy_config(export, ServeSettings(**settings), Listening("127.0.0.1", port))
    config["proxy_location"] = "HeadOnly"
    serve.deploy_applications(config)

def replicas():
    # While an application is deployed again, Serve lists none of its deployments for a moment.
    bag = serve.get_serve_details()["applications"]["bag"]["deployments"].get("Bag")
    running = (r["pid"] for r in bag["replicas"] if r["state"] == "RUNNING") if bag else ()
    return sorted(pid for pid in running if pid)

def until(condition):
    ending = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < ending, (serve.get_serve_details()["applications"], load.answers)
        time.sleep(0.1)

load = None
deploy(first)
until(lambda: serve.get_serve_details()["applications"].get("bag", {}).get("status") == "RUNNING")
told = {"pids": [replicas()]}
with Load(f"http://127.0.0.1:{port}") as load:
    until(lambda: sum(load.answers.values()) > 20)
    deploy(second)
    until(lambda: load.answers[second.rpartition("/")[2]] > 20)
    told["pids"].append(replicas())
    before = load.answers[first.rpartition("/")[2]]
    deploy(sys.argv[4])  # a damaged copy of the first
    time.sleep(5)
    told["of_the_damaged"] = load.answers[first.rpartition("/")[2]] - before
    deploy(second, groups=2)
    until(lambda: len(replicas()) == 1 and replicas() != told["pids"][1])
    soon = sum(load.answers.values()) + 20
    until(lambda: sum(load.answers.values()) > soon)
    told["pids"].append(replicas())
told |= {"answers": load.answers, "failures": load.failures()}
print(json.dumps(told))
from ray import serve as running
running.shutdown()
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bags_and_settings_change_under_load_without_a_failed_request(
    folder: Path, tmp_path: Path
) -> None:
    second = export_random(tmp_path, "mlp", "seed=1")
    damaged = shutil.copytree(folder, tmp_path / "damaged" / folder.name)
    content = bytearray((damaged / "members.safetensors").read_bytes())
    content[-400:] = os.urandom(400)
    (damaged / "members.safetensors").write_bytes(content)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_LOAD, str(SUPPORT), str(folder), str(second), str(damaged)],
        capture_output=True,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["failures"] == []
    assert told["of_the_damaged"] == 0
    assert set(told["answers"]) == {folder.name, second.name}
    one, swapped, replaced = told["pids"]
    assert one == swapped
    assert replaced != swapped
