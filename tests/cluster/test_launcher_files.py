"""``cluster/*.yaml``: what Ray's launcher takes, and what it would start on AWS."""

import copy
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp", "azure")


def launcher_file(cloud: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())
    return config


@pytest.mark.parametrize("cloud", CLOUDS)
def test_rays_own_validation_takes_it(cloud: str) -> None:
    config = launcher_file(cloud)
    validate_config(prepare_config(copy.deepcopy(config)))
    config["idle_timeout_minuts"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_gpu_workers_come_from_nothing_and_only_seeds_are_on_spot(cloud: str) -> None:
    types = launcher_file(cloud)["available_node_types"]
    assert "GPU" not in types["head"]["resources"]
    for name, market in {"spot_gpu": "spot", "training_gpu": "on-demand"}.items():
        assert types[name]["resources"]["GPU"] > 0
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["labels"] == {"market": market}
        assert ("spot" in yaml.safe_dump(types[name]["node_config"]).lower()) == (market == "spot")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_machines_wait_for_their_driver_log_in_and_leave_shared_memory_to_ray(cloud: str) -> None:
    config = launcher_file(cloud)
    waits, *_, login = config["initialization_commands"][-3 if cloud == "azure" else 0 :]
    assert "until nvidia-smi" in waits
    registry = config["docker"]["image"].partition("/")[0]
    assert registry.removesuffix(".azurecr.io") in login
    assert not any("--shm-size" in each for each in config["docker"]["run_options"])
    assert config["idle_timeout_minutes"] >= 10
    memory = config["available_node_types"]["memory"]
    assert (memory["min_workers"], memory["max_workers"]) == (0, 1)


@pytest.mark.parametrize(
    ("driver", "gpus", "waits"),
    [("exit 0", "", False), ("exit 0", "NVIDIA", False), ("exit 9", "NVIDIA", True)],
)
def test_a_machine_without_a_gpu_does_not_wait(
    tmp_path: Path, driver: str, gpus: str, waits: bool
) -> None:
    for name, script in {"lspci": f"echo 'GPU {gpus}'", "nvidia-smi": driver}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command = launcher_file("aws")["initialization_commands"][0].replace("600", "1")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], env={"PATH": path})
    assert done.returncode == (124 if waits else 0)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_node_wants_the_token(cloud: str) -> None:
    config = launcher_file(cloud)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "security_group" not in config["provider"]


@pytest.mark.slow
def test_on_aws_spot_machines_start_with_the_least_of_rights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # it writes a key there
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with moto.mock_aws():
        iam, ec2 = boto3.client("iam"), boto3.client("ec2")
        for who in ("head", "worker"):
            iam.create_instance_profile(InstanceProfileName=f"bend-ray-{who}")
        config = launcher_file("aws")
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        for node_type in config["available_node_types"].values():
            node_type["node_config"]["ImageId"] = image  # moto does not resolve parameters
        config = bootstrap_aws(prepare_config(config))
        spot = config["available_node_types"]["spot_gpu"]
        tags = {"ray-node-kind": "worker", "ray-launch-config": "", "ray-node-name": "spot"}
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        provider.create_node(spot["node_config"], tags, 1)

        (reservation,) = ec2.describe_instances()["Reservations"]
        (instance,) = reservation["Instances"]
        assert instance["InstanceLifecycle"] == "spot"
        assert instance["IamInstanceProfile"]["Arn"].endswith("/bend-ray-worker")
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        # Ray made no role of its own, which would have all rights on machines and buckets.
        assert iam.list_roles()["Roles"] == []
        (group,) = ec2.describe_security_groups(GroupNames=["ray-autoscaler-bend-ray"])[
            "SecurityGroups"
        ]
        open_to_the_world = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
        assert [rule["FromPort"] for rule in open_to_the_world] == [22]


@pytest.mark.parametrize("who", ["head", "worker"])
def test_policies_allow_no_more_than_named_actions(who: str) -> None:
    policy = yaml.safe_load((CLUSTER / "permissions" / f"aws-{who}.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            assert who == "head" or action.startswith(("s3:", "ecr:"))
        is_broad = statement["Resource"] == "*"
        harmless = actions == "ecr:GetAuthorizationToken" or all("Describe" in a for a in actions)
        assert not is_broad or "Condition" in statement or harmless
