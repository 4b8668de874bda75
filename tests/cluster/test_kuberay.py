"""The manifests: KubeRay's schema without a key too many, the rules of its controller beside the schema, and ours.

Nothing here runs Kubernetes. Each rule is seen red on a manifest in which the fault is planted.
"""

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from cluster.local import JOB_STOP_SECONDS, NODE_ENVIRONMENT

MANIFESTS = ("raycluster", "rayjob", "networkpolicy")
Rule = Callable[[dict[str, Any]], Iterator[str]]
Manifests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def manifests(root: Path) -> Manifests:
    texts = {name: (root / f"cluster/kuberay/{name}.yaml").read_text(encoding="utf-8") for name in MANIFESTS}
    return {name: yaml.safe_load(text) for name, text in texts.items()}


def closed(schema: Any) -> Any:
    """The same schema with unknown keys forbidden, wherever it lists the known ones."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        result["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    return result


def faults(schema: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    errors = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@pytest.fixture(scope="module")
def schemas(shared: Path) -> Manifests:
    found = {"raycluster": shared / "schemas/rayclusters.v1.json", "rayjob": shared / "schemas/rayjobs.v1.json"}
    if not all(path.exists() for path in found.values()):
        pytest.skip("needs ../shared/schemas with the schemas of KubeRay's resources, which are not here")
    return {name: closed(json.loads(path.read_text(encoding="utf-8"))) for name, path in found.items()}


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_schema_holds(name: str, manifests: Manifests, schemas: Manifests) -> None:
    assert faults(schemas[name], manifests[name]) == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("raycluster", "spec/rayVersoin", "2.60.0"),
        ("raycluster", "spec/workerGroupSpecs/0/replica", 1),
        ("raycluster", "spec/workerGroupSpecs/0/maxReplicas", "four"),
        ("raycluster", "spec/headGroupSpec/template/spec/containers/0/resources/limit", {}),
        ("raycluster", "spec/headGroupSpec/template/spec/containers/0/securityContext/runAsNotRoot", True),
        ("raycluster", "spec/autoscalerOptions/version", "v3"),
        ("raycluster", "spec/authOptions/mode", "none"),
        ("rayjob", "spec/shutdownAfterJobFinished", True),
        ("rayjob", "spec/rayClusterSpec/authOption", {}),
    ],
)
def test_the_schema_finds_a_planted_fault(
    name: str, path: str, value: Any, manifests: Manifests, schemas: Manifests
) -> None:
    assert faults(schemas[name], planted(manifests[name], path, value))


def planted(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value set, or removed where it is None; `~1` stands for a slash in a key."""
    changed = copy.deepcopy(manifest)
    node: Any = changed
    *parents, last = [int(part) if part.isdecimal() else part.replace("~1", "/") for part in path.split("/")]
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return changed


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def groups_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups_of(manifest)]


def containers_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in pods_of(manifest) for container in pod["containers"]]


def the_controller_takes_it(manifest: dict[str, Any]) -> Iterator[str]:
    """What KubeRay 1.7 refuses although the schema lets it pass."""
    spec, cluster = manifest["spec"], cluster_of(manifest)
    name = manifest["metadata"]["name"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 47:
        yield f"name {name}"
    if cluster.get("authOptions", {}).get("mode") == "token" and not cluster.get("rayVersion"):
        yield "authOptions needs rayVersion"
    head_names = {one["name"] for one in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    if cluster.get("autoscalerOptions", {}).get("version") and "RAY_enable_autoscaler_v2" in head_names:
        yield "the version of the autoscaler is said twice"
    for pod in pods_of(manifest):
        if cluster.get("autoscalerOptions", {}).get("version") == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2 needs restartPolicy Never"
    for group in groups_of(manifest):
        if "labels" in group["rayStartParams"]:
            yield "labels belong beside rayStartParams"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys():
            yield "resources are said twice"
        if [key for key in group.get("labels", {}) if key.startswith("ray.io/")]:
            yield "labels with ray.io/ are refused by ray start"
    for group in cluster["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            yield "minReplicas ≤ replicas ≤ maxReplicas"
    if "networkPolicy" in cluster or "tlsOptions" in cluster:
        yield "networkPolicy and tlsOptions need feature gates that are off by default"
    if manifest["kind"] == "RayJob":
        yield from _the_job_is_taken(spec)


def _the_job_is_taken(spec: dict[str, Any]) -> Iterator[str]:
    shuts = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shuts:
        yield "suspend needs shutdownAfterJobFinishes"
    if bool(spec.get("clusterSelector")) == bool(spec.get("rayClusterSpec")):
        yield "either clusterSelector or rayClusterSpec"
    if spec.get("clusterSelector") and spec.get("backoffLimit"):
        yield "backoffLimit makes new clusters, clusterSelector takes one that is there"
    if spec.get("submissionMode") in ("InteractiveMode",) and spec.get("backoffLimit"):
        yield "nothing is retried in InteractiveMode"
    if spec.get("submissionMode") == "SidecarMode" and (
        spec.get("submitterPodTemplate") or spec.get("submitterConfig")
    ):
        yield "SidecarMode has no submitter"
    strategy = spec.get("deletionStrategy", {})
    if strategy and bool(strategy.get("deletionRules")) == ("onSuccess" in strategy and "onFailure" in strategy):
        yield "deletionStrategy is either deletionRules or both onSuccess and onFailure"
    if strategy.get("deletionRules") and shuts:
        yield "deletionRules instead of shutdownAfterJobFinishes"
    for manager in (spec, spec.get("rayClusterSpec", {})):
        if manager.get("managedBy", "ray.io/kuberay-operator") not in (
            "ray.io/kuberay-operator",
            "kueue.x-k8s.io/multikueue",
        ):
            yield "managedBy"


def it_is_locked(manifest: dict[str, Any]) -> Iterator[str]:
    """Token, no root, nothing of the host, no secret in the text."""
    if cluster_of(manifest).get("authOptions", {}).get("mode") != "token":
        yield "no token"
    if cluster_of(manifest)["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        yield "the head is reached from outside"
    for pod in pods_of(manifest):
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser") or not context.get("fsGroup"):
            yield "a pod as root"
        if pod.get("hostNetwork") or pod.get("hostPID") or [one for one in pod["volumes"] if "hostPath" in one]:
            yield "something of the host"
    for container in containers_of(manifest):
        context = container.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        if context != wanted:
            yield f"securityContext of {container['name']}"
        tag = re.fullmatch(r".+(@sha256:[0-9a-f]{64}|:[^:/@]+)", container["image"])
        if not tag or tag[1] == ":latest":
            yield f"image {container['image']} is not pinned"
        for variable in container["env"]:
            if re.search(r"KEY|SECRET|TOKEN|PASSW", variable["name"]) and "value" in variable:
                yield f"{variable['name']} stands in the text"
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and not reference.get("optional"):
                yield f"{variable['name']} has to be a Secret, also for pods with an identity of their own"
        if "envFrom" in container:
            yield "envFrom takes whatever is in there"
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        if group["template"]["spec"].get("automountServiceAccountToken") is not False:
            yield "workers hold a token of Kubernetes"


def it_trains(manifest: dict[str, Any]) -> Iterator[str]:
    """What a run needs of the pods."""
    head, *workers = groups_of(manifest)
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "workers on the head"
    terms = head["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    if not [one for one in terms["nodeSelectorTerms"][0]["matchExpressions"] if one["operator"] == "NotIn"]:
        yield "the head on nodes that are taken away"
    for group in groups_of(manifest):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        values = {one["name"]: one.get("value") for one in container["env"]}
        if not values.items() >= NODE_ENVIRONMENT.items():
            yield "another environment than the one that cluster.local rehearses"
        if pod.get("terminationGracePeriodSeconds", 30) < JOB_STOP_SECONDS + 30:
            yield "no time to save"
        if int(values.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S") or 60) < 600:
            yield "no time for a new node to come up"
        places = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        if places.keys() != {"/mnt/runs", "/dev/shm", "/tmp", "/tmp/ray", values.get("HOME")}:
            yield "places that must be written to"
        if volumes.keys() != set(places.values()):
            yield "volumes and mounts differ"
        if volumes.get(places.get("/dev/shm", ""), {}).get("emptyDir", {}).get("medium") != "Memory":
            yield "shared memory that is none"
        if places.get("/tmp/ray") != "ray-logs":
            yield "the autoscaler looks for the volume ray-logs"
        if "memory" not in container["resources"]["limits"]:
            yield "no limit of memory, which shared memory counts against"
    for group in workers:
        pod = group["template"]["spec"]
        if "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]:
            yield "workers without a GPU"
        if "nvidia.com/gpu" not in {one.get("key") for one in pod.get("tolerations", [])}:
            yield "no toleration for nodes with GPUs"
        if not pod.get("affinity", {}).get("podAntiAffinity"):
            yield "two pods on one node"
        if "market-type" not in group.get("labels", {}):
            yield "nobody knows which nodes are spot"
    if manifest["kind"] == "RayJob":
        words = shlex.split(manifest["spec"]["entrypoint"])
        if words[:4] != ["exec", "python", "-m", "pipelines.pretrain"]:
            yield "signals do not reach the command"
        given = dict(word.split("=", 1) for word in words[4:])
        if not given.keys() >= {"name", "storage"} or given.get("ray.address") != "auto":
            yield "a retry would not continue the run"
        if not given.get("storage", "").startswith("/mnt/runs") or not manifest["spec"].get("backoffLimit"):
            yield "a lost head ends the run"


OPERATORS_NAMESPACE = "ray-system"
HEAD, WORKERS = "spec/headGroupSpec", "spec/workerGroupSpecs/0"
CONTAINER = f"{HEAD}/template/spec/containers/0"
PLANTED: list[tuple[Rule, str, str, Any]] = [
    (the_controller_takes_it, "raycluster", "metadata/name", "Ssl_pipelines"),
    (the_controller_takes_it, "raycluster", "spec/rayVersion", ""),
    (the_controller_takes_it, "raycluster", f"{HEAD}/template/spec/restartPolicy", "Always"),
    (the_controller_takes_it, "raycluster", f"{WORKERS}/labels", {"ray.io/market-type": "spot"}),
    (the_controller_takes_it, "raycluster", f"{WORKERS}/minReplicas", 9),
    (the_controller_takes_it, "raycluster", "spec/networkPolicy", {"mode": "DenyAll"}),
    (the_controller_takes_it, "raycluster", f"{HEAD}/resources", {"CPU": "0"}),
    (the_controller_takes_it, "rayjob", "spec/shutdownAfterJobFinishes", False),
    (the_controller_takes_it, "rayjob", "spec/clusterSelector", {"ray.io/cluster": "a"}),
    (the_controller_takes_it, "rayjob", "spec/submissionMode", "InteractiveMode"),
    (the_controller_takes_it, "rayjob", "spec/deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}),
    (the_controller_takes_it, "rayjob", "spec/managedBy", "me"),
    (it_is_locked, "raycluster", "spec/authOptions", None),
    (it_is_locked, "raycluster", "spec/authOptions/mode", "disabled"),
    (it_is_locked, "raycluster", f"{HEAD}/serviceType", "LoadBalancer"),
    (it_is_locked, "raycluster", f"{HEAD}/template/spec/securityContext/runAsUser", 0),
    (it_is_locked, "raycluster", f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False),
    (it_is_locked, "raycluster", f"{CONTAINER}/image", "registry.example/ssl-pipelines"),
    (it_is_locked, "raycluster", f"{CONTAINER}/image", "registry.example:5000/ssl-pipelines:latest"),
    (it_is_locked, "raycluster", f"{CONTAINER}/env/0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    (it_is_locked, "raycluster", f"{CONTAINER}/env/13/valueFrom/secretKeyRef/optional", None),
    (it_is_locked, "raycluster", f"{WORKERS}/template/spec/automountServiceAccountToken", None),
    (it_is_locked, "raycluster", f"{WORKERS}/template/spec/hostNetwork", True),
    (it_trains, "raycluster", f"{HEAD}/rayStartParams/num-cpus", "4"),
    (it_trains, "raycluster", f"{HEAD}/template/spec/terminationGracePeriodSeconds", None),
    (it_trains, "raycluster", f"{CONTAINER}/env/1/value", "3"),
    (it_trains, "raycluster", f"{CONTAINER}/env/2/value", "60"),
    (it_trains, "raycluster", f"{CONTAINER}/volumeMounts/4/mountPath", "/home/other"),
    (it_trains, "raycluster", f"{WORKERS}/template/spec/volumes/1/emptyDir/medium", None),
    (it_trains, "raycluster", f"{WORKERS}/template/spec/tolerations", []),
    (it_trains, "raycluster", f"{WORKERS}/template/spec/affinity", None),
    (it_trains, "raycluster", f"{WORKERS}/template/spec/containers/0/resources/limits/nvidia.com~1gpu", None),
    (it_trains, "rayjob", "spec/entrypoint", "python -m pipelines.pretrain storage=/mnt/runs"),
    (it_trains, "rayjob", "spec/backoffLimit", 0),
]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
@pytest.mark.parametrize("rule", [the_controller_takes_it, it_is_locked, it_trains])
def test_a_rule_holds(rule: Rule, name: str, manifests: Manifests) -> None:
    assert list(rule(manifests[name])) == []


@pytest.mark.parametrize(("rule", "name", "path", "value"), PLANTED)
def test_a_rule_finds_a_planted_fault(rule: Rule, name: str, path: str, value: Any, manifests: Manifests) -> None:
    assert list(rule(planted(manifests[name], path, value)))


def test_both_describe_the_same_cluster(manifests: Manifests) -> None:
    assert manifests["rayjob"]["spec"]["rayClusterSpec"] == manifests["raycluster"]["spec"]


def test_ray_is_the_one_of_the_image(manifests: Manifests, root: Path) -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==(.+)$", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert manifests["raycluster"]["spec"]["rayVersion"] == pins["ray"]


def test_pods_are_reached_by_each_other_and_the_operator(manifests: Manifests) -> None:
    policy = manifests["networkpolicy"]["spec"]
    own = {"matchLabels": {"app.kubernetes.io/name": "ssl-pipelines"}}
    assert policy["podSelector"] == own
    assert policy["policyTypes"] == ["Ingress"]
    for group in groups_of(manifests["raycluster"]):
        assert group["template"]["metadata"]["labels"].items() >= own["matchLabels"].items()
    first, second = policy["ingress"]
    assert first == {"from": [{"podSelector": own}]}
    (operator,) = second["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": OPERATORS_NAMESPACE}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert {port["port"] for port in second["ports"]} == {8265, 52365}


def test_the_operator_is_installed_where_the_policy_lets_it_in(root: Path) -> None:
    guide = (root / "docs/cluster.md").read_text(encoding="utf-8")
    (namespace,) = re.findall(r"helm install kuberay-operator .*--namespace (\S+)", guide)
    assert namespace == OPERATORS_NAMESPACE
