"""What the manifests have to keep: rules that no schema knows. Each returns what it finds, a line a finding."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

Resources = list[dict]

GIB = 1 << 30
UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": GIB, "Ti": 1 << 40, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB}
MESSAGE_MEMORY = "1GiB"  # listen.message_memory's default. It is held twice where gRPC is parsing.
ANSWER_MEMORY = "512MiB"  # listen.answer_memory's default.
# Beside budgets and messages: programs and LibTorch; with CUDA its context and libraries, too.
PROGRAMS_BYTES = {"cpu": GIB // 2, "cuda": 2 * GIB}
# What the restricted profile of the Pod Security Standards allows, and volumes of images, which are read-only.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
FROM_ELSEWHERE = {"ditserve-ca"}  # ConfigMaps that nobody here makes.
END_SECONDS = 60  # That a server has to end in once it has drained: clients have 45 of them for their answers.


def to_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", text).groups()
    return int(float(number) * UNITS[unit])


def cpus(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


@dataclass
class Pod:
    """A pod that a resource makes."""

    owner: str
    labels: dict
    spec: dict

    @property
    def containers(self) -> list[dict]:
        return [container for kind in ("initContainers", "containers", "ephemeralContainers")
                for container in self.spec.get(kind, [])]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for container in self.containers for port in container.get("ports", [])}


def of_kind(resources: Resources, *kinds: str) -> Resources:
    return [resource for resource in resources if resource["kind"] in kinds]


def name(resource: dict) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def pods(resources: Resources) -> Iterator[Pod]:
    for resource in resources:
        template = resource.get("spec", {}).get("template") if isinstance(resource.get("spec"), dict) else None
        if template:
            yield Pod(name(resource), template["metadata"].get("labels", {}), template["spec"])
        elif resource["kind"] == "ClusterServingRuntime":
            (service,) = of_kind(resources, "InferenceService")
            of_kserve = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
            yield Pod(name(resource), service["metadata"]["labels"] | of_kserve, {**service["spec"]["predictor"], **resource["spec"]})


def restricted(resources: Resources) -> Iterator[str]:
    """The restricted profile, for every pod and container, and what it does not ask for: a root that can't be written to, no
    token of the cluster, and a limit of memory."""
    for pod in pods(resources):
        spec, of_pod = pod.spec, pod.spec.get("securityContext", {})
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(forbidden):
                yield f"{pod.owner}: {forbidden}"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: a token of the cluster is mounted"
        if of_pod.get("sysctls"):
            yield f"{pod.owner}: sysctls"
        for volume in spec.get("volumes", []):
            for kind in set(volume) - {"name"} - VOLUMES:
                yield f"{pod.owner}: a volume of kind {kind}"
        for container in pod.containers:
            yield from (f"{pod.owner}: {container['name']}: {finding}" for finding in _restricted(of_pod, container))


def _restricted(of_pod: dict, container: dict) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**of_pod, **own}
    if both.get("runAsNonRoot") is not True or not both.get("runAsUser"):
        yield "may run as root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "keeps capabilities"
    if own.get("procMount", "Default") != "Default" or both.get("seLinuxOptions"):
        yield "changes procMount or SELinux"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "takes a port of the node"
    resources = container.get("resources", {})
    if not resources.get("limits", {}).get("memory") or not resources.get("requests", {}).get("memory"):
        yield "no limit of memory"


def labels(resources: Resources) -> Iterator[str]:
    for resource in resources:
        if not resource["metadata"].get("labels", {}).get("app.kubernetes.io/name") and resource["kind"] not in ("ConfigMap", "Secret"):
            yield f"{name(resource)}: no label app.kubernetes.io/name"


def _matches(selector: dict | None, of: dict) -> bool:
    """An empty selector chooses everything: none of ours is to."""
    return bool(selector) and all(of.get(key) == value for key, value in selector.items())


def references(resources: Resources) -> Iterator[str]:
    """Whatever names or selects something finds it."""
    made = list(pods(resources))

    def selected(resource: dict, selector: dict | None) -> list[Pod]:
        return [pod for pod in made if _matches(selector, pod.labels)]

    def check(resource: dict, selector: dict | None, ports: list) -> Iterator[str]:
        chosen = selected(resource, selector)
        if not chosen:
            yield f"{name(resource)}: selects no pod"
        for pod in chosen:
            for port in ports:
                if port not in (pod.ports if isinstance(port, str) else pod.ports.values()):
                    yield f"{name(resource)}: {pod.owner} has no port {port}"

    for resource in resources:
        spec, kind = resource.get("spec", {}), resource["kind"]
        if kind == "Service":
            yield from check(resource, spec.get("selector"), [port["targetPort"] for port in spec["ports"]])
        elif kind in ("PodDisruptionBudget", "Deployment"):
            yield from check(resource, spec["selector"].get("matchLabels"), [])
        elif kind == "NetworkPolicy":
            yield from check(resource, spec["podSelector"].get("matchLabels"),
                             [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])])
            if any(not rule.get("from") or not rule.get("ports") for rule in spec.get("ingress", [])):
                yield f"{name(resource)}: lets everybody in"
        elif kind == "ServiceMonitor":
            ports = [{port["name"] for port in service["spec"]["ports"]} for service in of_kind(resources, "Service")
                     if _matches(spec["selector"].get("matchLabels"), service["metadata"].get("labels", {}))]
            for endpoint in spec["endpoints"]:
                if sum(endpoint["port"] in of_service for of_service in ports) != 1:
                    yield f"{name(resource)}: not one Service has the port {endpoint['port']}"
            if not any(service["metadata"]["labels"].get(spec["jobLabel"]) == "ditserve" for service in of_kind(resources, "Service")):
                yield f"{name(resource)}: the job is not called ditserve"
        elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = [deployment for deployment in of_kind(resources, "Deployment")
                      if deployment["metadata"]["name"] == spec["scaleTargetRef"]["name"]]
            if not target:
                yield f"{name(resource)}: nothing to scale"
            elif "replicas" in target[0]["spec"]:
                yield f"{name(resource)}: an apply sets the replicas back"
            if spec.get("minReplicas", spec.get("minReplicaCount", 0)) < 2:
                yield f"{name(resource)}: leaves one pod alone"
            yield from (f"{name(resource)}: {finding}" for trigger in spec.get("triggers", [])
                        for finding in _asked(resources, trigger["metadata"]))
        elif kind in ("GRPCRoute", "BackendTLSPolicy"):
            named = spec.get("targetRefs") or [backend for rule in spec["rules"] for backend in rule["backendRefs"]]
            for service in named:
                if service["name"] not in [other["metadata"]["name"] for other in of_kind(resources, "Service")]:
                    yield f"{name(resource)}: there is no Service {service['name']}"
    for pod in made:
        for volume in pod.spec.get("volumes", []):
            config = volume.get("configMap", {}).get("name")
            if config and config not in FROM_ELSEWHERE | {map_["metadata"]["name"] for map_ in of_kind(resources, "ConfigMap")}:
                yield f"{pod.owner}: there is no ConfigMap {config}"
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not _matches(spread["labelSelector"].get("matchLabels"), pod.labels):
                yield f"{pod.owner}: spreads other pods"


def _asked(resources: Resources, trigger: dict) -> Iterator[str]:
    """What KEDA asks of Prometheus."""
    services = [service["metadata"]["name"] for service in of_kind(resources, "Service")
                if any(port["name"] == "metrics" for port in service["spec"]["ports"])]
    if re.findall(r'service="([^"]*)"', trigger["query"]) != services:
        yield f"asks for others' queues, and not {services}"
    if trigger.get("ignoreNullValues") != "false":
        yield "takes no answer for an empty queue"


def doors(resources: Resources) -> Iterator[str]:
    """Nobody comes to a server but by a NetworkPolicy."""
    policies = [policy["spec"]["podSelector"].get("matchLabels") for policy in of_kind(resources, "NetworkPolicy")]
    for pod, _, _ in servers(resources):
        if not any(_matches(chosen, pod.labels) for chosen in policies):
            yield f"{pod.owner}: anybody may come"


def servers(resources: Resources) -> Iterator[tuple[Pod, dict, str]]:
    """Pods that run ditserve: the pod, the container, and the file that it is told to read."""
    for pod in pods(resources):
        for container in pod.containers:
            if container["image"].split(":")[0].endswith("ditserve"):
                yield pod, container, container["args"][container["args"].index("--config") + 1]


def config_text(resources: Resources, pod: Pod, container: dict, path: str) -> str:
    """The text of the file at that path in the container, out of a ConfigMap; KeyError where there is none."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    file = PurePosixPath(path)
    wanted = volumes[mounts[str(file.parent)]]["configMap"]["name"]
    (found,) = [map_ for map_ in of_kind(resources, "ConfigMap") if map_["metadata"]["name"] == wanted]
    return found["data"][file.name]


def configuration(resources: Resources) -> Iterator[str]:
    """The configuration is that of the pod that it is for."""
    for pod, container, path in servers(resources):
        config = yaml.safe_load(config_text(resources, pod, container, path))
        yield from (f"{pod.owner}: {finding}" for check in (_addresses, _probes, _files, _memory, _stopping)
                    for finding in check(config, pod, container))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _addresses(config: dict, pod: Pod, container: dict) -> Iterator[str]:
    served = {_port(config["listen"]["address"]), _port(config["listen"]["health_address"]), _port(config["metrics"]["address"])}
    if not {_port(config["listen"]["address"])} <= set(pod.ports.values()) <= served:
        yield f"serves {sorted(served)}, and the container's ports are {sorted(pod.ports.values())}"
    if not config.get("tls") and not config["listen"].get("plaintext_from_other_machines"):
        yield "neither TLS nor plain text"
    if not config["access"]["tokens"]:
        yield "asks for no token"
    if "admin" in config:
        yield "AdminService is not this machine's alone"


def _probes(config: dict, pod: Pod, container: dict) -> Iterator[str]:
    for kind, service in (("startupProbe", "readiness"), ("readinessProbe", "readiness"), ("livenessProbe", "liveness")):
        grpc = container.get(kind, {}).get("grpc", {})
        if grpc != {"port": _port(config["listen"]["health_address"]), "service": service}:
            yield f"{kind} asks for {grpc}"
    startup = container.get("startupProbe", {})
    if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) < 15 * 60:
        yield "startupProbe gives less than a quarter of an hour"


def _files(config: dict, pod: Pod, container: dict) -> Iterator[str]:
    mounts = [PurePosixPath(mount["mountPath"]) for mount in container["volumeMounts"]]
    if not all(mount.get("readOnly") for mount in container["volumeMounts"]):
        yield "a mount can be written to"
    paths = [*config.get("tls", {}).values(), config["access"]["tokens"], *(model["path"] for model in config["models"])]
    for path in paths:
        # (KServe mounts the model there by itself.)
        if path != "/mnt/models" and not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
            yield f"nothing is mounted at {path}"


def _memory(config: dict, pod: Pod, container: dict) -> Iterator[str]:
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    device, budgets = config["device"], config["memory"]
    if any(str(budget).endswith("%") or budget == "auto" for budget in budgets.values()):
        yield "a budget follows the machine"
        return
    on_gpu = device["name"] != "cpu"
    wants_gpu = (any(key.startswith("nvidia.com/") for key in limits) or container["resources"].get("claims")
                 or "gpu-memory" in pod.spec.get("annotations", {}) or pod.spec.get("schedulerName") == "kai-scheduler")
    if on_gpu != bool(wants_gpu):
        yield f"computes on {device['name']}, and {'has' if wants_gpu else 'has no'} GPU"
    held = to_bytes(budgets["host_budget"]) + 2 * to_bytes(config["listen"].get("message_memory", MESSAGE_MEMORY))
    held += to_bytes(config["listen"].get("answer_memory", ANSWER_MEMORY))
    held += PROGRAMS_BYTES["cuda"] if on_gpu else PROGRAMS_BYTES["cpu"] + to_bytes(budgets["device_budget"])
    if held > to_bytes(limits["memory"]):
        yield f"needs {held / GIB:.1f} GiB, and has {limits['memory']}"
    if limits["memory"] != requests["memory"]:
        yield "memory is not guaranteed"
    # By itself the server takes as many as its limit allows; without one the node's.
    if "cpu" not in limits:
        yield "has no limit of CPUs"
    elif device.get("threads", 0) not in (0, cpus(limits["cpu"])):
        yield f"{device['threads']} threads on {limits['cpu']} CPUs"


def _stopping(config: dict, pod: Pod, container: dict) -> Iterator[str]:
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if before < 5:
        yield "stops before others have heard of it"
    needed = before + config["requests"]["drain_timeout_seconds"] + END_SECONDS
    if pod.spec.get("terminationGracePeriodSeconds", 30) < needed:
        yield f"is killed before {needed} s"


ALL = (restricted, labels, references, doors, configuration)


def findings(resources: Resources) -> list[str]:
    return [finding for rule in ALL for finding in rule(resources)]
