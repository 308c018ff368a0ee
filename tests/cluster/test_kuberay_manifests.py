"""``cluster/kuberay``: what kustomize makes, against KubeRay's own schemas."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from serve_config import check_deploy_config

from bend_ray.config.reading import load_config

KUBERAY = Path(__file__).parents[2] / "cluster" / "kuberay"
OVERLAYS = [*sorted((KUBERAY / "overlays").iterdir()), KUBERAY / "rayservice"]
CRDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}

Document = dict[str, Any]


def build(folder: Path) -> list[Document]:
    """What ``kubectl apply -k`` would apply."""
    commands = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
    found = [command for name, command in commands.items() if shutil.which(name)]
    if not found:
        pytest.skip("needs kubectl or kustomize")
    done = subprocess.run([*found[0], str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def validator(kind: str) -> jsonschema.Draft7Validator:
    """Of KubeRay's resources of a kind, refusing unknown fields as the API server does."""
    folder = os.environ.get("BEND_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("needs KubeRay's schemas: set BEND_KUBERAY_CRDS to their folder")
    text = Path(folder, f"ray.io_{CRDS[kind]}.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    return jsonschema.Draft7Validator(strict(schema))


def strict(schema: Any) -> Any:
    """A Kubernetes structural schema as JSON Schema."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: strict(value) for key, value in schema.items() if not key.startswith("x-")}
    if "properties" in schema and "additionalProperties" not in schema:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        said["additionalProperties"] = open_ended
    return said


def ray_resource(documents: list[Document]) -> Document:
    (found,) = [each for each in documents if each["kind"] in CRDS]
    return found


def pod_specs(document: Any) -> Iterator[Document]:
    """Every pod template's spec, at any depth."""
    if isinstance(document, list):
        for item in document:
            yield from pod_specs(item)
    elif isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pod_specs(value)


def cluster_spec(resource: Document) -> Document:
    spec: Document = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.slow
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_kuberay_takes_what_kustomize_makes(folder: Path) -> None:
    resource = ray_resource(build(folder))
    problems = [e.message for e in validator(resource["kind"]).iter_errors(resource)]
    assert problems == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(rayVersoin="2.60.0"),
        lambda spec: spec["workerGroupSpecs"][0].update(replicas="1"),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(envv=[]),
    ],
    ids=["unknown key", "wrong type", "missing key", "unknown key of a container"],
)
def test_the_schemas_would_find_a_mistake(spoil: Callable[[Document], Any]) -> None:
    resource = yaml.safe_load((KUBERAY / "raycluster" / "raycluster.yaml").read_text())
    assert list(validator("RayCluster").iter_errors(resource)) == []
    spoil(resource["spec"])
    assert list(validator("RayCluster").iter_errors(resource)) != []


@pytest.mark.slow
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_every_pod_is_confined_probed_and_limited(folder: Path) -> None:
    specs = list(pod_specs(build(folder)))
    assert len(specs) >= 3
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(limits)
            # Ray graphs with the limit: what is not also requested may not be there.
            assert container["resources"]["requests"] == limits
            assert ":" in container["image"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_clusters_want_a_token_and_are_closed(folder: Path) -> None:
    documents = build(folder)
    spec = cluster_spec(ray_resource(documents))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = next(d for d in documents if d["kind"] == "NetworkPolicy")
    covered = policy["spec"]["podSelector"]["matchLabels"]
    templates = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in templates:
        assert covered.items() <= group["template"]["metadata"]["labels"].items()
    workers = [group["template"]["spec"] for group in spec["workerGroupSpecs"]]
    assert not any(worker["automountServiceAccountToken"] for worker in workers)


def test_overlays_choose_gpu_market_and_size() -> None:
    resource = ray_resource(build(KUBERAY / "overlays" / "job-a100-spot"))
    spot, training, _ = resource["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (spot["labels"], training["labels"]) == ({"market": "spot"}, {"market": "on-demand"})
    assert spot["maxReplicas"] == 64
    chosen = [group["template"]["spec"]["nodeSelector"] for group in (spot, training)]
    types = [each["node.kubernetes.io/instance-type"] for each in chosen]
    assert types == ["p4d.24xlarge"] * 2
    assert ["eks.amazonaws.com/capacityType" in each for each in chosen] == [True, False]


def gigabytes(amount: str) -> float:
    return float(amount.removesuffix("Gi")) * 2**30 / 1e9


@pytest.mark.parametrize("kind", ["raycluster", "rayservice"])
def test_pods_fit_machines_and_their_object_store_fits_their_shared_memory(kind: str) -> None:
    resource = yaml.safe_load((KUBERAY / kind / f"{kind}.yaml").read_text())
    for spec in pod_specs(resource):
        (container,) = spec["containers"]
        limits = container["resources"]["limits"]
        volumes = {each["name"]: each["emptyDir"]["sizeLimit"] for each in spec["volumes"]}
        # As Ray decides: three tenths of the memory, on disk where shared memory has no room.
        store = min(0.3 * gigabytes(limits["memory"]), 200.0)
        assert store <= 0.95 * gigabytes(volumes["shared-memory"])
        assert gigabytes(volumes["scratch"]) < gigabytes(limits["ephemeral-storage"])
        # Machines of 8 CPUs and 32 GiB, or 64, have less than that for pods, and daemons.
        assert int(limits["cpu"]) <= 7
        assert gigabytes(limits["memory"]) <= 0.9 * gigabytes(
            "64Gi" if limits["memory"] > "3" else "32Gi"
        )
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[name]["exec"]["command"][-1]
            patience = [int(word) for word in re.findall(r"wget -T (\d+)", asked)]
            assert container[name]["timeoutSeconds"] > sum(patience)


def test_a_cluster_outlives_the_pauses_of_a_run_and_lets_metrics_out() -> None:
    documents = build(KUBERAY / "overlays" / "cluster-l4")
    assert ray_resource(documents)["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] >= 600
    policy = next(d for d in documents if d["kind"] == "NetworkPolicy")
    doors = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", ())}
    assert 8080 in doors


@pytest.mark.parametrize("folder", sorted((KUBERAY / "gpu").iterdir()), ids=lambda path: path.name)
def test_nodes_are_chosen_by_labels_that_platforms_set_themselves(folder: Path) -> None:
    text = (folder / "kustomization.yaml").read_text()
    labels = set(re.findall(r"nodeSelector/(\S+)", text))
    known = {
        "gke": "cloud.google.com~1gke-accelerator",
        "eks": "node.kubernetes.io~1instance-type",
        "aks": "node.kubernetes.io~1instance-type",
    }
    assert labels == {known[folder.name[:3]]}


def with_component(tmp_path: Path, overlay: str, before: str, *names: str) -> list[Document]:
    """What is made of an overlay that lists components more, after the one that is named."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    folder = tmp_path / "kuberay" / "overlays" / overlay
    file = folder / "kustomization.yaml"
    listed = "".join(f"  - ../../{name}\n" for name in (before, *names))
    file.write_text(file.read_text().replace(f"  - ../../{before}\n", listed))
    return build(folder)


@pytest.mark.parametrize(("overlay", "kind"), [("cluster-l4", "RayCluster"), ("job-l4", "RayJob")])
def test_a_head_may_come_back_and_speak_tls(tmp_path: Path, overlay: str, kind: str) -> None:
    documents = with_component(tmp_path, overlay, "gpu/gke-l4", "redis", "tls")
    resource = ray_resource(documents)
    spec = cluster_spec(resource)
    kept = spec["gcsFaultToleranceOptions"]
    (service,) = [
        d for d in documents if d["kind"] == "Service" and d["metadata"]["name"] == "bend-ray-redis"
    ]
    assert kept["redisAddress"] == f"bend-ray-redis:{service['spec']['ports'][0]['port']}"
    assert spec["tlsOptions"] == {"enabled": True}
    assert list(validator(kind).iter_errors(resource)) == []


def test_kueue_admits_a_run_of_a_fixed_size(tmp_path: Path) -> None:
    resource = ray_resource(with_component(tmp_path, "job-l4", "rayjob", "kueue"))
    assert resource["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "bend-ray"}
    assert resource["spec"]["suspend"] is True
    cluster = resource["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert [group["replicas"] for group in cluster["workerGroupSpecs"]] == [4, 1, 0]
    assert list(validator("RayJob").iter_errors(resource)) == []


def test_the_services_volume_goes_with_it() -> None:
    documents = yaml.safe_load_all((KUBERAY / "redis" / "redis.yaml").read_text())
    (kept,) = [d for d in documents if d["kind"] == "StatefulSet"]
    assert kept["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"


def test_a_job_reads_the_config_that_is_mounted_and_ends_its_cluster() -> None:
    documents = build(KUBERAY / "overlays" / "job-l4")
    resource = ray_resource(documents)
    (config,) = [d for d in documents if d["kind"] == "ConfigMap"]
    head = resource["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounted = {m["name"]: m["mountPath"] for m in head["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in head["volumes"]}
    (name,) = [n for n, v in volumes.items() if v.get("configMap") == config["metadata"]]
    file = resource["spec"]["entrypoint"].split()[2]
    assert file == f"{mounted[name]}/{next(iter(config['data']))}"
    assert resource["spec"]["shutdownAfterJobFinishes"] is True
    section = load_config(KUBERAY / "rayjob" / "run.yaml").seeds.resources
    groups = resource["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert any(section.labels.items() <= group["labels"].items() for group in groups)


def test_the_service_survives_its_head_and_serves_what_serve_takes() -> None:
    resource = yaml.safe_load((KUBERAY / "rayservice" / "rayservice.yaml").read_text())
    spec = resource["spec"]
    assert spec["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
    serve_config = yaml.safe_load(spec["serveConfigV2"])
    check_deploy_config(serve_config)
    args = serve_config["applications"][0]["args"]
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert args["require_token"] is True
    assert args["min_replicas"] >= 2
    assert workers["minReplicas"] >= args["min_replicas"]
