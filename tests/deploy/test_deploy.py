"""The files under deploy/ against the schemas of those who read them, and what they must not open."""

from __future__ import annotations

import configparser
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The cut of KubeRay's own, which says where it is from."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(found)
    return found


@pytest.fixture
def job() -> dict[str, Any]:
    (found,) = [one for one in documents("kuberay.yaml") if one["kind"] == "RayJob"]
    return found


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_ray_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    plain = documents("aws.yaml")[0]
    folder = Path(str(pytest.importorskip("ray.autoscaler").__file__)).parent
    jsonschema.validate(plain, json.loads((folder / "ray-schema.json").read_text(encoding="utf-8")))
    prepared = prepare_config(copy.deepcopy(plain))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == plain["max_workers"]
    assert [word for one in prepared["head_start_ray_commands"] for word in one.split() if word == "--head"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(worker_port=1),
        lambda config: config["provider"]["security_group"].update(Open=True),
        lambda config: config["available_node_types"]["gpu"].pop("node_config"),
        lambda config: config["auth"].update(password="x"),
    ],
)
def test_ray_would_refuse_what_it_does_not_know(spoil: Callable[[dict[str, Any]], object]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documents("aws.yaml")[0]
    spoil(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def test_the_cluster_file_opens_nothing_but_ssh_and_asks_for_a_token() -> None:
    config = documents("aws.yaml")[0]
    assert config["provider"]["security_group"]["IpPermissions"] == []
    starts = [one for name in ("head", "worker") for one in config[f"{name}_start_ray_commands"] if "ray start" in one]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in one for one in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in one for one in config["setup_commands"])
    kept = [one for one in config["setup_commands"] if "pip install" in one]
    assert kept
    assert all("constraints.txt" in one for one in kept)


def test_kuberay_takes_the_job(schema: dict[str, Any], job: dict[str, Any]) -> None:
    jsonschema.validate(job, schema)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(entryPoint="tunelab"),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="on"),
        lambda job: next(pods(job))["containers"][0].update(volumeMount=[]),
        lambda job: next(pods(job))["containers"][0]["resources"]["limits"].update(memory="8 GB"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ],
)
def test_what_kuberay_does_not_know_is_refused(
    schema: dict[str, Any], job: dict[str, Any], spoil: Callable[[dict[str, Any]], object]
) -> None:
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema)


def test_pods_have_no_more_rights_than_they_need(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods(job):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not pod.get("hostNetwork")
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_the_folder_and_the_network_fit_the_job(job: dict[str, Any]) -> None:
    claim, policy = (
        next(one for one in documents("kuberay.yaml") if one["kind"] == kind)
        for kind in ("PersistentVolumeClaim", "NetworkPolicy")
    )
    claims = {volume["persistentVolumeClaim"]["claimName"] for pod in pods(job) for volume in pod["volumes"][:1]}
    assert claims == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(source for rule in policy["spec"]["ingress"] for source in rule["from"])  # an empty one is everybody
    everybody = [source for rule in policy["spec"]["ingress"] for source in rule["from"] if "podSelector" not in source]
    assert everybody == []


def test_commands_in_the_files_are_tunelabs(job: dict[str, Any]) -> None:
    from tunelab.cli import tunelab

    words = job["spec"]["entrypoint"].replace(";", " ").replace("'", " ").split()
    commands = [words[place + 1] for place, word in enumerate(words) if word == "tunelab"]
    assert commands == ["resume", "search"]
    for name in commands:
        command = tunelab.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--address" in options


def test_images_have_the_versions_that_the_tests_ran_with() -> None:
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f"rayproject/ray:{pinned('ray')}-py" in image
    assert "constraints.txt" in image


def test_machines_and_images_get_the_code_alone() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = [line for line in lines if not line.startswith("#")]
    assert left_out == documents("aws.yaml")[0]["rsync_exclude"]
    assert {"**/.git", "**/runs", "**/.venv"} <= set(left_out)


def test_nothing_of_it_is_installed() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "deploy" not in parser["options"]["packages"] + parser["options"]["package_dir"]
    assert "deploy" not in parser["options.package_data"].get("tunelab", "")
