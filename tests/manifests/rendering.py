"""The manifests as a cluster gets them: by `kubectl kustomize` and by Helm."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/ditserve"

Resources = list[dict]


class Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: 0440 is octal, and no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} more than once", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Resources:
    return [resource for resource in yaml.load_all(text, Loader) if resource]


class Kustomize:
    """A copy of deploy/, with kustomizations of its own where they are asked for."""

    def __init__(self):
        self._scratch = tempfile.TemporaryDirectory()
        self.deploy = Path(self._scratch.name) / "deploy"
        shutil.copytree(DEPLOY, self.deploy, ignore=shutil.ignore_patterns("helm"))

    @functools.cache
    def render(self, folder: str, *components: str) -> Resources:
        """Of a folder of deploy/kubernetes; with components, as an overlay that adds them."""
        place = self.deploy / "kubernetes" / folder
        if components:
            with tempfile.TemporaryDirectory(dir=self.deploy / "kubernetes") as overlay:
                (Path(overlay) / "kustomization.yaml").write_text(yaml.dump({
                    "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [f"../{folder}"],
                    "components": [f"../components/{component}" for component in components]}))
                return self._build(Path(overlay))
        return self._build(place)

    def render_text(self, kustomization: str) -> Resources:
        """Of a kustomization in a folder beside deploy/."""
        with tempfile.TemporaryDirectory(dir=self.deploy.parent) as overlay:
            (Path(overlay) / "kustomization.yaml").write_text(kustomization)
            return self._build(Path(overlay))

    def _build(self, folder: Path) -> Resources:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # Deprecations are told there.
        return parse(done.stdout)


def helm(values: dict, name: str = "ditserve", namespace: str = "default") -> Resources:
    """What the chart makes of a release."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=name, namespace=namespace)
    return [resource for file, text in sorted(rendered.items()) if file.endswith(".yaml") for resource in parse(text)]
