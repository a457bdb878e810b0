"""Check what deploys the mesh: k8s/, docker-compose.yml and the Dockerfile.

    python tools/check_deploy.py

* every overlay renders, and every object fits the schema of the oldest and the newest supported Kubernetes, strictly;
* every workload is hardened, bounded, probed and can be drained;
* compose parses and lints, the Dockerfile lints;
* compose, Kubernetes and the settings dataclasses of the services name the same ports and variables.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from twinmesh_runtime.settings import ServiceSettings, SettingsError, load_settings, unknown_variables

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
OVERLAYS = ("demo", "prod")
KUBERNETES = ("1.34.0", "1.37.0")
PORTS = {"ingestion": 7400, "storage": 7401, "statesync": 7402, "training": 7403, "inference": 7404}
METRICS_PORT = 9464
COMPOSE_ONLY = {"TWINMESH_MESH_ADVERTISED_HOST"}  # in a cluster clients resolve the services' own names
WHERE = ("_URL", "_ADVERTISE")  # the ends of variables that name an address, which differs
WORKLOADS = {"Deployment", "StatefulSet"}
Object = Mapping[str, Any]


def main() -> int:
    """Run every check; prints each problem, and the exit status is 0 when there is none."""
    with ThreadPoolExecutor() as pool:
        lints = [pool.submit(lint) for lint in (lint_compose, lint_dockerfile, lint_yaml)]
        rendered = dict(zip(OVERLAYS, pool.map(render, OVERLAYS), strict=True))
        problems = [problem for future in lints for problem in future.result()]
    for overlay, objects in rendered.items():
        problems += [f"k8s/overlays/{overlay}: {problem}" for problem in check_objects(objects)]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    problems += check_topology(compose, rendered["demo"])
    for problem in problems:
        print(problem)
    count = sum(len(objects) for objects in rendered.values())
    print(f"{count} objects, {len(compose['services'])} compose services: {len(problems) or 'no'} problem(s)")
    return 1 if problems else 0


# --- tools of others ---


def run(*command: str) -> tuple[int, str]:
    """Run a tool to its end; its exit status and what it said."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def render(overlay: str) -> list[Object]:
    """Render one overlay as kubectl would apply it; SystemExit with the tool's words when it does not render."""
    status, output = run("kubectl", "kustomize", f"k8s/overlays/{overlay}")
    if status != 0:
        raise SystemExit(f"k8s/overlays/{overlay} does not render:\n{output}")
    return [document for document in yaml.safe_load_all(output) if document]


def lint_compose() -> list[str]:
    """Lint docker-compose.yml; rules left out are in .compose-lint.yml with their reason."""
    status, output = run("compose-lint", "check", "--fail-on", "medium", "docker-compose.yml")
    return [f"docker-compose.yml:\n{output}"] if status != 0 else []


def lint_dockerfile() -> list[str]:
    """Lint the Dockerfile."""
    status, output = run("hadolint", "Dockerfile")
    return [f"Dockerfile:\n{output}"] if status != 0 else []


def lint_yaml() -> list[str]:
    """Lint the form of every deployment file: duplicate keys hide a setting."""
    status, output = run("yamllint", "--strict", "-c", ".yamllint.yml", "k8s", "docker-compose.yml")
    return [output] if status != 0 else []


# --- rules of ours on rendered objects ---


def check_objects(objects: list[Object]) -> Iterator[str]:
    """Yield what is wrong with the objects of one overlay."""
    budgets = {matched(each["spec"]["selector"]) for each in objects if each["kind"] == "PodDisruptionBudget"}
    services = {matched({"matchLabels": each["spec"]["selector"]}) for each in objects if each["kind"] == "Service"}
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        for problem in schema_problems(json.dumps(each, sort_keys=True)):
            yield f"{name}: {problem}"
        if each["kind"] not in WORKLOADS:
            continue
        token = each["metadata"]["name"]
        for problem in workload_problems(each):
            yield f"{name}: {problem}"
        if token in PORTS and matched(each["spec"]["selector"]) not in budgets:
            yield f"{name}: no PodDisruptionBudget selects it"
        if matched(each["spec"]["selector"]) not in services:
            yield f"{name}: no Service selects it"
    for budget in (each for each in objects if each["kind"] == "PodDisruptionBudget"):
        if budget["spec"].get("maxUnavailable") != 1:
            yield f"PodDisruptionBudget {budget['metadata']['name']}: must let one go, or a node can never be drained"


def matched(selector: Object) -> str:
    """Return the name that a selector of ours picks."""
    return str(selector.get("matchLabels", {}).get("app.kubernetes.io/name", ""))


@functools.cache
def schema_problems(text: str) -> tuple[str, ...]:
    """Say where an object does not fit the schema; one without a schema is a problem too."""
    problems = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(json.loads(text), version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            problems.append(f"Kubernetes {version}: {error}")
    return tuple(problems)


def workload_problems(each: Object) -> Iterator[str]:
    """Yield what is missing of hardening, bounds, probes and drain."""
    pod = each["spec"]["template"]["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield "mounts a service account token"
    if pod.get("serviceAccountName") != each["metadata"]["name"]:
        yield "has no service account of its own"
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "pod is not restricted: runAsNonRoot and seccompProfile RuntimeDefault"
    for container in pod.get("initContainers", []) + pod["containers"]:
        yield from container_problems(container)
    token = each["metadata"]["name"]
    if token in PORTS:
        yield from service_problems(token, pod)


def container_problems(container: Object) -> Iterator[str]:
    """Yield what one container is allowed that it does not need, or lacks that it does."""
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("readOnlyRootFilesystem") is not True:
        yield "container may escalate or write its root file system"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "container keeps capabilities"
    resources = container.get("resources", {})
    if any(kind not in resources.get(side, {}) for side in ("requests", "limits") for kind in ("cpu", "memory")):
        yield "container has no bound of CPU or memory"
    _, _, tag = container["image"].rpartition(":")
    if tag in {"", "latest", container["image"]}:
        yield f"image {container['image']} is not pinned"
    if not {"readinessProbe", "livenessProbe"} <= container.keys():
        yield "container is not probed"


def service_problems(token: str, pod: Object) -> Iterator[str]:
    """Yield where one of the five services departs from the common shape."""
    container = pod["containers"][0]
    if pod["securityContext"].get("runAsUser", 0) < 10_000:
        yield "runs under an account number that a node may use itself"
    for probe, name in (("startupProbe", "live"), ("readinessProbe", "ready"), ("livenessProbe", "live")):
        if container.get(probe, {}).get("grpc") != {"port": PORTS[token], "service": name}:
            yield f"{probe} must ask gRPC port {PORTS[token]} for {name!r}"
    found = {port["name"]: port["containerPort"] for port in container["ports"]}
    if found != {"grpc": PORTS[token], "metrics": METRICS_PORT}:
        yield f"ports are {found}"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    defaults = default_values(token)
    drain = float(defaults["drain_propagation_s"]) + float(defaults["drain_grace_s"])
    if pod["terminationGracePeriodSeconds"] < pause + drain + 5:
        yield f"is killed before it has drained: needs {pause + drain + 5:.0f} s"


# --- one topology, told three times ---


def default_values(token: str) -> dict[str, Any]:
    """Return what each setting of a service is when no variable sets it."""
    return {field.name: field.default for field in dataclasses.fields(settings_type(token))}


def settings_type(token: str) -> type[ServiceSettings]:
    """Return the settings dataclass of a service."""
    module = importlib.import_module(f"twinmesh_{token}.settings")
    found: type[ServiceSettings] = getattr(module, f"{token.title()}Settings")
    return found


def check_topology(compose: Object, objects: list[Object]) -> Iterator[str]:
    """Yield where compose, Kubernetes and the settings of the services disagree."""
    for token, port in PORTS.items():
        in_compose = {name: str(value) for name, value in compose["services"][token]["environment"].items()}
        in_kubernetes = kubernetes_environment(token, objects)
        for where, environment in (("compose", in_compose), ("k8s", in_kubernetes)):
            yield from (f"{where} {token}: {problem}" for problem in environment_problems(token, environment))
        for name in sorted((in_compose.keys() ^ in_kubernetes.keys()) - COMPOSE_ONLY):
            yield f"{token}: {name} is set in {'compose' if name in in_compose else 'k8s'} only"
        for name in sorted(in_compose.keys() & in_kubernetes.keys()):
            if not name.endswith(WHERE) and in_compose[name] != in_kubernetes[name]:
                yield f"{token}: {name} is {in_compose[name]} in compose and {in_kubernetes[name]} in k8s"
        if compose["services"][token]["ports"] != [f"127.0.0.1:{port}:{port}"]:
            yield f"compose {token}: must publish {port} on loopback, as on one machine"


def environment_problems(token: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what the service itself would say of its environment."""
    settings = settings_type(token)
    yield from (f"{name} sets nothing" for name in unknown_variables(settings, token, environment))
    try:
        loaded = load_settings(settings, token, environment)
    except SettingsError as error:
        yield from error.problems
        return
    if loaded.port != PORTS[token] or default_values(token)["port"] != PORTS[token]:
        yield f"listens on {loaded.port}, not on {PORTS[token]} as on one machine"
    if loaded.metrics_port != METRICS_PORT:
        yield f"metrics are on {loaded.metrics_port}, not on {METRICS_PORT}"
    for other, port in PORTS.items():
        if not str(getattr(loaded, f"mesh_{other}")).endswith(f"{other}:{port}"):
            yield f"finds {other} at {getattr(loaded, f'mesh_{other}')}"


def kubernetes_environment(token: str, objects: list[Object]) -> dict[str, str]:
    """Resolve the environment of one Deployment: literals, its config maps, and secrets of the same overlay."""
    values: dict[tuple[str, str], Mapping[str, str]] = {
        (each["kind"], each["metadata"]["name"]): {**each.get("data", {}), **each.get("stringData", {})}
        for each in objects
        if each["kind"] in {"ConfigMap", "Secret"}
    }
    deployment = next(each for each in objects if each["kind"] == "Deployment" and each["metadata"]["name"] == token)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found.update(values["ConfigMap", source["configMapRef"]["name"]])
    for variable in container["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif "secretKeyRef" in variable["valueFrom"]:
            reference = variable["valueFrom"]["secretKeyRef"]
            # what is in it does not matter here, that it is there does
            found[variable["name"]] = values["Secret", reference["name"]][reference["key"]]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
