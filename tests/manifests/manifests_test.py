"""deploy/kubernetes and deploy/helm: what is rendered is valid, keeps our rules, and is read by the real ditserve; the chart
makes what the kustomizations make; the Dockerfile keeps to hadolint's rules. DITSERVE_BIN is the folder of ditserve. `run` runs
this with the tools that it needs."""

import copy
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

import helm_python
import yaml

import policy
import rendering
import schemas
from rendering import DEPLOY, Kustomize, Resources

DOCKERFILE = DEPLOY.parent / "Dockerfile"
OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes/overlays").iterdir())
# Components of deploy/kubernetes, and the values with which the chart makes the same.
COMPONENTS = {
    "monitoring": {"monitoring": {"enabled": True}},
    "hpa": {"autoscaling": {"kind": "hpa"}},
    "keda": {"autoscaling": {"kind": "keda"}},
    "image-volume": {"model": {"image": "qwen-image-model:1"}},
    "gateway": {"gateway": {"enabled": True}},
}
# What only the chart has, or tells people alone.
KEEP = "helm.sh/resource-policy"
OF_HELM = {"checksum/config", "helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/component",
           "app.kubernetes.io/part-of", "app.kubernetes.io/version"}


def values(overlay: str) -> dict:
    return yaml.safe_load((rendering.CHART / f"values/{overlay}.yaml").read_text())


@functools.cache
def renderings() -> tuple[Kustomize, dict[str, Resources], dict[str, Resources]]:
    """What the kustomizations make, and what the chart does, by overlay or component."""
    kustomize = Kustomize()
    render = kustomize.render
    kustomized = {"base": render("base"), "kserve": render("kserve"), "envoy": render("../envoy")}
    kustomized |= {overlay: render(f"overlays/{overlay}") for overlay in OVERLAYS}
    kustomized |= {component: render("base", component) for component in COMPONENTS}
    charted = {"base": rendering.helm({})}
    charted |= {overlay: rendering.helm(values(overlay)) for overlay in OVERLAYS}
    charted |= {component: rendering.helm(values) for component, values in COMPONENTS.items()}
    return kustomize, kustomized, charted


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kustomize, cls.kustomized, cls.charted = renderings()
        cls.rendered = [*((f"kustomize {what}", resources) for what, resources in cls.kustomized.items()),
                        *((f"helm {what}", resources) for what, resources in cls.charted.items())]

    def base(self) -> Resources:
        return copy.deepcopy(self.kustomized["base"])


class RulesTest(ManifestsTest):
    def test_resources_of_kubernetes_keep_to_their_schemas(self):
        for what, resources in self.rendered:
            for resource in resources:
                if not schemas.is_custom(resource):
                    with self.subTest(what, resource=policy.name(resource)):
                        self.assertEqual(schemas.complaints(resource), [])

    def test_a_field_that_kubernetes_does_not_know_is_refused(self):
        resources = self.base() + self.kustomized["dra"]
        for kind in ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "ResourceClaimTemplate"):
            broken = copy.deepcopy(policy.of_kind(resources, kind)[0])
            broken["spec"]["colour"] = "blue"
            self.assertIn("colour", str(schemas.complaints(broken)), kind)

    def test_every_rendering_keeps_the_rules(self):
        for what, resources in self.rendered:
            with self.subTest(what):
                self.assertEqual(policy.findings(resources), [])

    def test_no_two_resources_are_one(self):
        for what, resources in self.rendered:
            names = [(resource["apiVersion"], policy.name(resource)) for resource in resources]
            self.assertEqual(len(names), len(set(names)), what)

    def test_overlays_change_the_device_its_memory_and_the_profile_alone(self):
        def rest(overlay: str) -> dict:
            (server,) = policy.servers(self.kustomized[overlay])
            config = yaml.safe_load(policy.config_text(self.kustomized[overlay], *server))
            return {key: value for key, value in config.items() if key not in ("device", "memory", "default_profile")}
        for overlay in OVERLAYS:
            self.assertEqual(rest(overlay), rest("base"), overlay)

    def test_ditserve_reads_every_configuration(self):
        ditserve = Path(os.environ["DITSERVE_BIN"]) / "ditserve"
        texts = {policy.config_text(resources, *server): what
                 for what, resources in self.rendered for server in policy.servers(resources)}
        self.assertGreaterEqual(len(texts), len(OVERLAYS) + 1)
        texts_and_wrong = [*((text, what, 0) for text, what in texts.items()),
                           (min(texts) + "\ncolour: blue\n", "one with a key of no meaning", 2)]
        for text, what, status in texts_and_wrong:
            with self.subTest(what), tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "ditserve.yaml"
                file.write_text(text)
                done = subprocess.run([ditserve, "--check", "--config", file], capture_output=True, text=True)
                self.assertEqual(done.returncode, status, done.stderr)

    def test_the_rules_of_prometheus_are_those_of_the_file(self):
        groups = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"]
        for resources in (self.kustomized["monitoring"], self.charted["monitoring"]):
            (rule,) = policy.of_kind(resources, "PrometheusRule")
            self.assertEqual(rule["spec"]["groups"], groups, "components/monitoring/prometheus-rule.yaml is to have the same")

    def test_autoscalers_ask_for_a_metric_that_the_server_has(self):
        served = (rendering.ROOT / "server/observe/metrics.cc").read_text()
        for component in ("hpa", "keda"):
            asked = set(re.findall(r"ditserve_\w+", str(self.kustomized[component])))
            self.assertEqual(asked, {"ditserve_requests_waiting"})
            for metric in asked:
                self.assertIn(f'"{metric}"', served)

    def test_example_secrets_have_what_is_mounted(self):
        folder = self.kustomize.deploy / "kubernetes/components/example-secrets"
        for file in ("tls.crt", "tls.key", "tokens.yaml"):
            (folder / file).write_text("made for a trial\n")
        resources = self.kustomize.render("base", "example-secrets")
        made = {secret["metadata"]["name"]: set(secret["data"]) for secret in policy.of_kind(resources, "Secret")}
        self.assertEqual(made, {"ditserve-tls": {"tls.crt", "tls.key"}, "ditserve-access": {"tokens.yaml"}})
        (pod,) = policy.pods(resources)
        mounted = {volume["secret"]["secretName"] for volume in pod.spec["volumes"] if "secret" in volume}
        self.assertEqual(mounted, set(made))

    def test_the_overlay_of_the_readme_is_one(self):
        (text,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", (DEPLOY / "kubernetes/README.md").read_text(), re.DOTALL)
        resources = self.kustomize.render_text(text)
        self.assertEqual(policy.findings(resources), [])
        for chosen in policy.of_kind(resources, "ServiceMonitor", "PrometheusRule"):
            self.assertIn("release", chosen["metadata"]["labels"])
        self.assertEqual(len(policy.of_kind(resources, "ServiceMonitor", "PrometheusRule", "ScaledObject")), 3)

    def test_the_readme_has_every_overlay_and_component(self):
        text = (DEPLOY / "kubernetes/README.md").read_text()
        folders = [path.parent for path in (DEPLOY / "kubernetes").glob("*/*/kustomization.yaml")]
        for folder in folders:
            self.assertIn(f"`{folder.name}`", text)
        for named in re.findall(r"(?<![\w/])deploy/[\w./-]+\w", text):
            self.assertTrue((rendering.ROOT / named).exists(), named)


# What each rule is for: how the base is broken, and what is then found.
def container(resources: Resources) -> dict:
    return pod(resources)["containers"][0]


def pod(resources: Resources) -> dict:
    return policy.of_kind(resources, "Deployment")[0]["spec"]["template"]["spec"]


def spec(resources: Resources, kind: str) -> dict:
    return policy.of_kind(resources, kind)[0]["spec"]


def reconfigure(old: str, new: str) -> Callable[[Resources], None]:
    def change(resources: Resources) -> None:
        data = policy.of_kind(resources, "ConfigMap")[0]["data"]
        assert old in data["ditserve.yaml"], old
        data["ditserve.yaml"] = data["ditserve.yaml"].replace(old, new)
    return change


BROKEN: list[tuple[Callable[[Resources], object], str]] = [
    (lambda r: pod(r)["securityContext"].pop("runAsNonRoot"), "may run as root"),
    (lambda r: container(r)["securityContext"].update(runAsUser=0), "may run as root"),
    (lambda r: pod(r)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    (lambda r: container(r)["securityContext"].pop("allowPrivilegeEscalation"), "may gain privileges"),
    (lambda r: container(r)["securityContext"].update(privileged=True), "may gain privileges"),
    (lambda r: container(r)["securityContext"].pop("capabilities"), "keeps capabilities"),
    (lambda r: container(r)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "keeps capabilities"),
    (lambda r: container(r)["securityContext"].update(procMount="Unmasked"), "procMount"),
    (lambda r: container(r)["securityContext"].pop("readOnlyRootFilesystem"), "may write to its root"),
    (lambda r: pod(r).update(initContainers=[{"name": "other", "image": "other"}]), "other: may run as root|other: keeps"),
    (lambda r: container(r)["ports"][0].update(hostPort=1), "takes a port of the node"),
    (lambda r: container(r)["resources"]["limits"].pop("memory") and container(r), "no limit of memory"),
    (lambda r: pod(r).update(hostNetwork=True), "hostNetwork"),
    (lambda r: pod(r).update(hostPID=True), "hostPID"),
    (lambda r: pod(r).update(hostIPC=True), "hostIPC"),
    (lambda r: pod(r)["securityContext"].update(sysctls=[{"name": "a", "value": "b"}]), "sysctls"),
    (lambda r: pod(r)["volumes"].append({"name": "root", "hostPath": {"path": "/"}}), "a volume of kind hostPath"),
    (lambda r: pod(r).pop("automountServiceAccountToken"), "a token of the cluster"),
    (lambda r: policy.of_kind(r, "Service")[0]["metadata"].pop("labels"), "no label"),
    (lambda r: spec(r, "Service")["selector"].update(app="other"), "Service ditserve: selects no pod"),
    (lambda r: spec(r, "Service")["ports"][0].update(targetPort="other"), "has no port other"),
    (lambda r: spec(r, "PodDisruptionBudget").update(selector={}), "PodDisruptionBudget ditserve: selects no pod"),
    (lambda r: spec(r, "NetworkPolicy").update(podSelector={}), "NetworkPolicy ditserve: selects no pod"),
    (lambda r: spec(r, "NetworkPolicy")["ingress"][0].pop("from"), "lets everybody in"),
    (lambda r: spec(r, "NetworkPolicy")["ingress"][0].update(ports=[{"port": "other"}]), "has no port other"),
    (lambda r: pod(r)["topologySpreadConstraints"][0].update(labelSelector={}), "spreads other pods"),
    (lambda r: pod(r)["volumes"][0]["configMap"].update(name="other") and r.append(
        {"kind": "ConfigMap", "metadata": {"name": "other2"}, "data": {}}), "there is no ConfigMap other"),
    (lambda r: container(r)["ports"].append({"name": "other", "containerPort": 1}), "the container's ports are"),
    (reconfigure("address: 0.0.0.0:50051", "address: 0.0.0.0:50059"), "the container's ports are"),
    (reconfigure("tls:\n  certificate: /etc/ditserve/tls/tls.crt\n  private_key: /etc/ditserve/tls/tls.key\n", ""), "neither TLS"),
    (reconfigure("tokens: /etc/ditserve/access/tokens.yaml", 'tokens: ""'), "asks for no token"),
    (reconfigure("log:", "admin: {address: 0.0.0.0:1}\nlog:"), "AdminService is not"),
    (reconfigure("health_address: 0.0.0.0:50053", "health_address: 0.0.0.0:9464"), "Probe asks for"),
    (lambda r: container(r).pop("livenessProbe"), "livenessProbe asks for"),
    (lambda r: container(r)["startupProbe"].pop("failureThreshold"), "less than a quarter"),
    (lambda r: container(r)["volumeMounts"][3].pop("readOnly"), "can be written to"),
    (lambda r: container(r)["volumeMounts"].pop(3), "nothing is mounted at /models"),
    (reconfigure("device_budget: 8GiB", "device_budget: 60%"), "a budget follows the machine"),
    (reconfigure("device_budget: 8GiB", "device_budget: auto"), "a budget follows the machine"),
    (reconfigure("device_budget: 8GiB", "device_budget: 10GiB"), "needs 17.0 GiB, and has 16Gi"),
    (reconfigure("name: cpu", "name: cuda:0"), "has no GPU"),
    (lambda r: container(r)["resources"]["limits"].update({"nvidia.com/gpu": 1}), "has GPU"),
    (lambda r: container(r)["resources"]["requests"].update(memory="1Gi"), "memory is not guaranteed"),
    (reconfigure("name: cpu", "name: cpu\n  threads: 8"), "8 threads on 4 CPUs"),
    (lambda r: container(r)["resources"]["limits"].pop("cpu"), "has no limit of CPUs"),
    (lambda r: pod(r).update(terminationGracePeriodSeconds=600), "is killed before 665 s"),
    (lambda r: container(r).pop("lifecycle"), "stops before others have heard"),
    (lambda r: r.remove(policy.of_kind(r, "NetworkPolicy")[0]), "Deployment ditserve: anybody may come"),
]


class BrokenTest(ManifestsTest):
    def test_each_rule_finds_what_it_is_for(self):
        for number, (break_it, finding) in enumerate(BROKEN):
            with self.subTest(number, finding=finding):
                resources = self.base()
                break_it(resources)
                found = []
                for rule in policy.ALL:
                    try:
                        found += rule(resources)
                    except (KeyError, ValueError):  # What another rule is there to find.
                        continue
                self.assertRegex("\n".join(found), finding)

    def test_what_scales_and_watches_finds_its_other_half(self):
        for component, kind, change, finding in (
                ("hpa", "HorizontalPodAutoscaler", lambda s: s["scaleTargetRef"].update(name="other"), "nothing to scale"),
                ("keda", "ScaledObject", lambda s: s["scaleTargetRef"].update(name="other"), "nothing to scale"),
                ("keda", "Deployment", lambda s: s.update(replicas=2), "sets the replicas back"),
                ("hpa", "HorizontalPodAutoscaler", lambda s: s.update(minReplicas=1), "leaves one pod alone"),
                ("keda", "ScaledObject", lambda s: s.pop("minReplicaCount"), "leaves one pod alone"),
                ("keda", "ScaledObject", lambda s: s["triggers"][0]["metadata"].update(query='sum(a{job="ditserve"})'), "others' queues"),
                ("keda", "ScaledObject", lambda s: s["triggers"][0]["metadata"].pop("ignoreNullValues"), "for an empty queue"),
                ("kserve", "NetworkPolicy", lambda s: s["podSelector"].update(matchLabels={"app": "other"}), "anybody may come"),
                ("kserve", "NetworkPolicy", lambda s: s["ingress"][0].update(ports=[{"port": "grpc"}]), "has no port grpc"),
                ("monitoring", "ServiceMonitor", lambda s: s["endpoints"][0].update(port="grpc"), "not one Service"),
                ("monitoring", "ServiceMonitor", lambda s: s.update(jobLabel="app.kubernetes.io/component"), "job is not called"),
                ("gateway", "GRPCRoute", lambda s: s["rules"][0]["backendRefs"][0].update(name="other"), "no Service other"),
                ("gateway", "BackendTLSPolicy", lambda s: s["targetRefs"][0].update(name="other"), "no Service other")):
            with self.subTest(finding, kind=kind):
                resources = copy.deepcopy(self.kustomized[component])
                change(spec(resources, kind))
                self.assertIn(finding, "\n".join(policy.findings(resources)))


class ChartTest(ManifestsTest):
    """The chart makes what the kustomizations make."""

    def difference(self, kustomized: Resources, charted: Resources) -> list[str]:
        """What is not the same, by its path."""
        def plain(resources: Resources) -> dict[str, dict]:
            (config,) = policy.of_kind(resources, "ConfigMap")
            renamed = json.dumps(resources).replace(config["metadata"]["name"], "ditserve-config")  # One's ends with a hash.
            renamed = renamed.replace(r'namespace=\"default\",', "")  # A component can't know its namespace.
            return {policy.name(resource): comparable(resource) for resource in json.loads(renamed)}

        def comparable(value):
            """Without what only the chart has; lists of what has names by these; YAML in texts as what it says."""
            if isinstance(value, dict):
                return {key: comparable(yaml.safe_load(part) if key == "ditserve.yaml" else part)
                        for key, part in value.items() if key not in OF_HELM and part not in ({}, {KEEP: "keep"})}
            if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
                return {item["name"]: comparable(item) for item in value}
            return [comparable(item) for item in value] if isinstance(value, list) else value

        def compare(path: str, left, right) -> list[str]:
            if isinstance(left, dict) and isinstance(right, dict):
                return [found for key in sorted(set(left) | set(right))
                        for found in compare(f"{path}.{key}", left.get(key), right.get(key))]
            return [] if left == right else [f"{path}: {left} and {right}"]

        return compare("", plain(kustomized), plain(charted))

    def test_it_makes_the_base_and_every_overlay_and_component(self):
        for what, charted in self.charted.items():
            with self.subTest(what):
                self.assertEqual(self.difference(self.kustomized[what], charted), [])

    def test_a_difference_is_seen(self):
        for changed, places in (({"replicas": 3}, 1), ({"config": {"requests": {"drain_timeout_seconds": 601}}}, 2), ({"schedulerName": "other"}, 1),
                                ({"networkPolicy": {"enabled": False}}, 1), ({"resources": {"limits": {"cpu": "5"}}}, 1)):
            self.assertEqual(len(self.difference(self.kustomized["base"], rendering.helm(changed))), places, changed)

    def test_a_pod_may_drain_for_as_long_as_it_is_told_to(self):
        def grace(drain: int, given: int) -> int:
            resources = rendering.helm({"config": {"requests": {"drain_timeout_seconds": drain}}, "terminationGracePeriodSeconds": given})
            self.assertEqual(policy.findings(resources), [])
            return pod(resources)["terminationGracePeriodSeconds"]
        self.assertEqual([grace(600, 0), grace(3600, 0), grace(3600, 670), grace(600, 900), grace(0, 0)], [670, 3670, 3670, 900, 70])

    def test_a_release_scales_by_its_own_queue(self):
        for name, namespace, service in (("ditserve", "default", "ditserve"), ("ditserve", "images", "ditserve"), ("dev", "images", "dev-ditserve")):
            resources = rendering.helm({"autoscaling": {"kind": "keda"}}, name, namespace)
            self.assertEqual(policy.findings(resources), [])
            (trigger,) = spec(resources, "ScaledObject")["triggers"]
            self.assertEqual(trigger["metadata"]["query"], 'sum(ditserve_requests_waiting{job="ditserve",'
                             f'namespace="{namespace}",service="{service}-headless"}})')
        (trigger,) = spec(rendering.helm({"autoscaling": {"kind": "keda", "query": 'sum(a{b="c"})'}}), "ScaledObject")["triggers"]
        self.assertEqual(trigger["metadata"]["query"], 'sum(a{b="c"})')

    def test_a_claim_asks_for_memory_by_the_name_of_the_driver(self):
        for claim in ({"class": "gpu.nvidia.com"}, {"class": "mig.nvidia.com"}, {"class": "ours", "driver": "gpu.example.com"}):
            (request,) = spec(rendering.helm({"deviceClaim": {"memory": "22Gi", **claim}}), "ResourceClaimTemplate")["spec"]["devices"]["requests"]
            self.assertEqual(request["exactly"], {"deviceClassName": claim["class"], "selectors": [{"cel": {
                "expression": f"device.capacity['{claim.get('driver', 'gpu.nvidia.com')}'].memory.compareTo(quantity('22Gi')) >= 0"}}]})

    def test_what_the_operator_chooses_by_is_on_both(self):
        plain = self.charted["monitoring"]
        labelled = rendering.helm({"monitoring": {"enabled": True, "labels": {"release": "stack"}}})
        for kind in ("ServiceMonitor", "PrometheusRule"):
            (before,), (after,) = policy.of_kind(plain, kind), policy.of_kind(labelled, kind)
            self.assertEqual(after["metadata"]["labels"], before["metadata"]["labels"] | {"release": "stack"})

    def test_two_releases_stand_side_by_side(self):
        with helm_python.Chart.load(rendering.CHART) as chart:
            one, other = (chart.render({}, name=name, namespace="default") for name in ("ditserve", "other"))
        names = [{policy.name(resource) for text in rendered.values() for resource in rendering.parse(text)}
                 for rendered in (one, other)]
        self.assertFalse(names[0] & names[1])

    def test_helm_lint_finds_nothing(self):
        report = helm_python.lint(rendering.CHART, strict=True)
        self.assertEqual(report["errors"], [])
        self.assertEqual([message for message in report["messages"] if message["severity"] > 1], [])

    def test_values_that_mean_nothing_are_refused(self):
        for wrong in ({"replica": 2}, {"replicas": "two"}, {"image": {"tags": "1"}}, {"config": {"memory": {"host_budget": "25%"}}},
                      {"config": {"models": []}}, {"autoscaling": {"kind": "vpa"}}, {"networkPolicy": {"clients": []}},
                      {"resources": {"limits": {"memory": "much"}}}, {"config": {"listen": {"health_address": "none"}}},
                      {"config": {"requests": {"drain_timeout_seconds": None}}}, {"config": {"requests": {"drain_timeout_seconds": "ten"}}},
                      {"deviceClaim": {"driver": ""}}, {"monitoring": {"labels": {"release": 1}}}):
            with self.subTest(wrong), self.assertRaises(helm_python.HelmError):
                rendering.helm(wrong)


class CustomResourcesTest(ManifestsTest):
    """Against the definitions in the folder CRD_SCHEMAS."""

    def setUp(self):
        if not schemas.folder():
            self.skipTest("CRD_SCHEMAS names no folder of custom resource definitions: ServiceMonitor, PrometheusRule, ScaledObject, "
                          "GRPCRoute, BackendTLSPolicy, ClusterServingRuntime and InferenceService are NOT CHECKED against theirs")

    def custom(self) -> list[tuple[str, dict]]:
        return [(what, resource) for what, resources in self.rendered for resource in resources if schemas.is_custom(resource)]

    def test_they_keep_to_them(self):
        self.assertEqual({resource["kind"] for _, resource in self.custom()}, {
            "ServiceMonitor", "PrometheusRule", "ScaledObject", "GRPCRoute", "BackendTLSPolicy", "ClusterServingRuntime",
            "InferenceService"})
        for what, resource in self.custom():
            with self.subTest(what, resource=policy.name(resource)):
                self.assertEqual(schemas.complaints(resource), [])

    def test_unknown_fields_and_wrong_types_are_refused(self):
        for what, resource in self.custom():
            for change in (lambda s: s.update(colour="blue"), lambda s: s.update({next(iter(s)): 7})):
                with self.subTest(what, resource=policy.name(resource)):
                    broken = copy.deepcopy(resource)
                    change(broken["spec"])
                    self.assertTrue(schemas.complaints(broken))


class DockerfileTest(unittest.TestCase):
    """By hadolint."""

    def complaints(self, dockerfile: str) -> list[str]:
        done = subprocess.run(["hadolint", "--no-color", "-"], input=dockerfile, capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.returncode, 1 if done.stdout else 0)
        return done.stdout.splitlines()

    def test_nothing_is_found_in_it(self):
        self.assertEqual(self.complaints(DOCKERFILE.read_text()), [])

    def test_what_it_excuses_is_found_without(self):
        lines = [line for line in DOCKERFILE.read_text().splitlines(keepends=True) if "hadolint ignore=" not in line]
        complaints = self.complaints("".join(lines))
        self.assertTrue(complaints)
        for complaint in complaints:
            self.assertIn("DL3008", complaint)


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    for _, reason in result.skipped:
        print(reason, file=sys.stderr)
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
