"""Resources against their schemas: Kubernetes' own in kubernetes-validate, custom ones from their definitions in the folder that
the environment's CRD_SCHEMAS names. Unknown fields are refused. Rules in CEL are not looked at."""

import functools
import json
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.37"


def group(resource: dict) -> str:
    return resource["apiVersion"].rpartition("/")[0]


def is_custom(resource: dict) -> bool:
    """Groups of Kubernetes itself have no dot, or end with .k8s.io; so does the Gateway API's, which comes apart from it."""
    name = group(resource)
    return "." in name and (not name.endswith(".k8s.io") or name == "gateway.networking.k8s.io")


def complaints(resource: dict) -> list[str]:
    """What is wrong with it; LookupError where there is no schema."""
    if is_custom(resource):
        errors = _custom(group(resource), resource["apiVersion"].rpartition("/")[2], resource["kind"]).iter_errors(resource)
        return [f"{error.json_path}: {error.message}" for error in errors]
    return _builtin(json.dumps(resource, sort_keys=True))


@functools.cache
def _builtin(text: str) -> list[str]:
    """Most renderings have the same resources, and a schema of Kubernetes takes long to load."""
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        raise LookupError(error.message) from error
    return []


def folder() -> Path | None:
    named = os.environ.get("CRD_SCHEMAS")
    return Path(named) if named else None


@functools.cache
def _custom(name: str, version: str, kind: str) -> jsonschema.Draft202012Validator:
    for file in sorted(folder().glob(f"{name}_*.yaml")):
        definition = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for offered in definition["versions"]:
            if definition["names"]["kind"] == kind and offered["name"] == version and offered["served"]:
                schema = _closed(offered["schema"]["openAPIV3Schema"])
                schema["properties"].update(apiVersion={}, kind={}, metadata={"type": "object"})
                return jsonschema.Draft202012Validator(schema)
    raise LookupError(f"CRD_SCHEMAS={folder()} has no {kind} of {name}/{version}")


def _closed(schema: dict) -> dict:
    """The same as a JSON schema that refuses fields it doesn't name. (What is in allOf, anyOf, oneOf and not only narrows.)"""
    closed = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("x-kubernetes-embedded-resource"):
            closed.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if closed.pop("nullable", False):
        return {"anyOf": [{"type": "null"}, closed]}
    return closed
