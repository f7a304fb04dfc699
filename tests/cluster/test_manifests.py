"""Every file of `cluster/` against the schema of whoever reads it, as far as one can be had without that program."""

import configparser
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import compose_spec
import jsonschema
import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]  # it has none
import pytest
import ray.autoscaler
import yaml

from hmtl_dist import __version__, doctor

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
KUBERNETES = "1.34"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/external", "job")
Tree = dict[str, Any]


def load(path: Path) -> Tree:
    return yaml.safe_load(path.read_text())


def own_images(tree: Any) -> Iterator[str]:
    """The tags of our own image, wherever they stand."""
    yield from re.findall(r"hmtl-dist:([\w.-]+)", json.dumps(tree))


# --- the image


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    """Its instructions, a line each, without comments."""
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def test_every_installation_into_the_image_is_pinned(dockerfile: list[str]) -> None:
    installs = [part for line in dockerfile for part in re.split(r"&&|;", line) if "pip install" in part]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in part for part in installs)
    copied = next(line for line in dockerfile if line.startswith("COPY constraints.txt"))
    assert dockerfile.index(copied) < next(number for number, line in enumerate(dockerfile) if "pip install" in line)


def test_image_has_byte_code_of_all_that_is_installed(dockerfile: list[str]) -> None:
    text = "\n".join(dockerfile)
    for against in ("__pycache__", "--no-compile", "PIP_NO_COMPILE", "PYTHONDONTWRITEBYTECODE"):
        assert against not in text


def test_what_the_image_names_is_in_the_tested_set(dockerfile: list[str]) -> None:
    line = next(line for line in dockerfile if "pip install" in line and "torch" in line)
    names = re.findall(r"(?<=\s)'?([a-z]+)", line.split("--constraint constraints.txt")[1])
    assert set(names) == {"torch", "torchvision", "ray", "deepspeed", "mlflow"}
    assert set(names) <= doctor.tested_versions().keys()


def test_base_images_are_exact_and_of_a_supported_python(dockerfile: list[str]) -> None:
    (version,) = [line.partition("=")[2] for line in dockerfile if line.startswith("ARG PYTHON_VERSION=")]
    assert re.fullmatch(r"3\.1[12]\.\d+", version)
    bases = [line.split()[1] for line in dockerfile if line.startswith("FROM ")]
    assert bases == ["python:${PYTHON_VERSION}-slim-bookworm"] * 2


def test_image_does_not_run_as_root(dockerfile: list[str]) -> None:
    last = max(number for number, line in enumerate(dockerfile) if line.startswith("FROM "))
    (user,) = [line.split()[1] for line in dockerfile[last:] if line.startswith("USER ")]
    assert user == "hmtl"
    assert any("useradd --uid 10001" in line for line in dockerfile[last:])


def test_all_that_the_image_copies_is_let_into_the_build(dockerfile: list[str]) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    copies = [line.split()[1:-1] for line in dockerfile if line.startswith("COPY ") and "--from" not in line]
    sources = [source.removeprefix("./") for words in copies for source in words if not source.startswith("--")]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists()
        assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


# --- compose


def interpolated(text: str) -> str:
    """What Compose makes of `${NAME:-default}` without the variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def read_compose(text: str) -> Tree:
    """Read and check a compose file; merge keys are YAML's business, not the specification's."""
    tree = yaml.safe_load(interpolated(text))
    compose_spec.PyCompose.from_json(json.dumps(tree)).validate()
    return tree


@pytest.fixture(scope="module")
def compose() -> Tree:
    return read_compose((CLUSTER / "compose.yaml").read_text())


def test_compose_file_is_of_the_specification(compose: Tree) -> None:
    assert set(compose["services"]) == {"head", "worker", "s3", "postgres", "mlflow", "setup"}


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("shm_size: 2gb", "shm_sise: 2gb", "shm_sise"),
        ("interval: 10s", "interval: ten", "ten"),
        ("service_healthy", "service_heathy", "service_heathy"),
    ],
)
def test_specification_finds_mistakes(right: str, wrong: str, said: str) -> None:
    text = (CLUSTER / "compose.yaml").read_text()
    assert right in text
    with pytest.raises(ValueError, match=said):
        read_compose(text.replace(right, wrong))


def test_compose_publishes_ports_on_loopback_alone(compose: Tree) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_names_what_is_there(compose: Tree) -> None:
    for name, service in compose["services"].items():
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in compose["secrets"], name
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"], name
        for other, how in service.get("depends_on", {}).items():
            assert other in compose["services"]
            assert how["condition"] != "service_healthy" or "healthcheck" in compose["services"][other]
    assert set(own_images(compose)) == {__version__}


def test_no_secret_is_in_the_environment_of_a_container(compose: Tree) -> None:
    for service in compose["services"].values():
        environment: Tree = service.get("environment", {})
        for name, value in environment.items():
            assert not re.search(r"PASSWORD$|SECRET_ACCESS_KEY|TOKEN$", name), name
            assert "@" not in str(value)


# --- secrets


def test_secrets_are_what_compose_mounts_and_are_never_replaced(compose: Tree, tmp_path: Path) -> None:
    make = [sys.executable, str(CLUSTER / "make_secrets.py"), str(tmp_path / "secrets")]
    first = subprocess.run(make, capture_output=True, text=True, check=True)
    written = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    again = subprocess.run(make, capture_output=True, text=True, check=False)

    assert {Path(secret["file"]).name for secret in compose["secrets"].values()} == set(written)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == written
    keys = configparser.ConfigParser()
    keys.read_string(written["aws_nodes"])
    for secret in (written["ray_token"], keys["default"]["aws_secret_access_key"]):
        assert secret not in first.stdout


# --- Kubernetes


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Tree]]:
    """The objects of each overlay, as kustomize makes them."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed: overlays cannot be rendered")
    objects: dict[str, list[Tree]] = {}
    for name in OVERLAYS:
        command = [program, "kustomize", str(CLUSTER / "kuberay" / name)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        objects[name] = list(yaml.safe_load_all(text))
    return objects


@pytest.fixture(scope="module")
def fields() -> Tree:
    return json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())


def core(manifest: Tree) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def check(value: Any, known: Any, fields: Tree, where: str) -> None:
    """Check a value of a KubeRay kind against the compact list of its fields."""
    if known == "pod":
        core({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": value})
    elif isinstance(known, str) and known in fields:
        check(value, fields[known], fields, where)
    elif isinstance(known, list):
        assert isinstance(value, list), where
        for number, inner in enumerate(cast("list[Any]", value)):
            check(inner, known[0], fields, f"{where}[{number}]")
    elif isinstance(known, dict) and "one of" in known:
        assert value in known["one of"], f"{where}: {value}"
    elif isinstance(known, dict):
        assert isinstance(value, dict), where
        inside = cast("Tree", known)
        for key, inner in cast("Tree", value).items():
            assert key in inside or "any" in inside, f"{where}.{key} is no field of it"
            check(inner, inside.get(key, inside.get("any")), fields, f"{where}.{key}")
    else:
        types: dict[Any, Any] = {"string": str, "integer": int, "boolean": bool, "number": (int, float)}
        assert isinstance(value, types.get(known, object)), f"{where}: {value!r} is not {known}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_objects_are_of_their_schemas(rendered: dict[str, list[Tree]], fields: Tree, name: str) -> None:
    kinds = [manifest["kind"] for manifest in rendered[name]]
    assert ("RayJob" if name == "job" else "RayCluster") in kinds
    for manifest in rendered[name]:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "hmtl"
        if manifest["apiVersion"] == "ray.io/v1":
            check(manifest["spec"], manifest["kind"], fields, manifest["kind"])
        else:
            core(manifest)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["authOptions", "mode"], "tokn", "authOptions.mode"),
        (["enableInTreeAutoscaling"], "yes", "enableInTreeAutoscaling"),
        (["headGroupSpec", "rayStartParam"], {}, "rayStartParam is no field"),
    ],
)
def test_list_of_fields_finds_mistakes(
    rendered: dict[str, list[Tree]], fields: Tree, path: list[str], value: Any, said: str
) -> None:
    spec = json.loads(json.dumps(one(rendered["overlays/cpu"], "RayCluster")["spec"]))
    node: Any = spec
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(AssertionError, match=re.escape(said)):
        check(spec, "RayCluster", fields, "RayCluster")


def one(objects: list[Tree], kind: str) -> Tree:
    return next(manifest for manifest in objects if manifest["kind"] == kind)


def test_ray_asks_for_a_token_and_is_of_the_tested_version(rendered: dict[str, list[Tree]]) -> None:
    for name in OVERLAYS[:3]:
        spec = one(rendered[name], "RayCluster")["spec"]
        assert spec["authOptions"] == {"mode": "token", "secretName": "hmtl-ray-token"}
        assert spec["rayVersion"] == doctor.tested_versions()["ray"]


def test_image_is_the_same_in_all_objects_of_an_overlay(rendered: dict[str, list[Tree]]) -> None:
    assert set(own_images(rendered["overlays/cpu"])) == {__version__}
    for name in ("overlays/gpu", "overlays/external"):
        assert set(own_images(rendered[name])) == {f"{__version__}-cuda"}


def test_gpu_overlay_has_spot_workers_that_tolerate_being_so(rendered: dict[str, list[Tree]]) -> None:
    groups = one(rendered["overlays/gpu"], "RayCluster")["spec"]["workerGroupSpecs"]
    by_name = {group["groupName"]: group["template"]["spec"] for group in groups}
    assert set(by_name) == {"cpu", "gpu", "gpu-spot"}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= {
        rule["key"] for rule in by_name["gpu-spot"]["tolerations"]
    }
    assert by_name["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def containers(objects: list[Tree]) -> Iterator[tuple[Tree, Tree]]:
    """Each pod's specification with each of its containers, wherever they stand."""
    found: list[Any] = [objects]
    while found:
        node = found.pop()
        if isinstance(node, list):
            found += cast("list[Any]", node)
        elif isinstance(node, dict):
            pod = cast("Tree", node)
            yield from ((pod, container) for container in pod.get("containers", ()))
            found += pod.values()


def test_no_container_is_root_or_may_become_it(rendered: dict[str, list[Tree]]) -> None:
    seen = [pair for name in OVERLAYS[:3] for pair in containers(rendered[name])]
    assert len(seen) > 10
    for pod, container in seen:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["requests"]


def test_disruption_budgets_and_policies_name_pods_that_exist(rendered: dict[str, list[Tree]]) -> None:
    objects = rendered["overlays/cpu"]
    named = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in templates(objects)}
    policies = [manifest for manifest in objects if manifest["kind"] == "NetworkPolicy"]
    budgets = [manifest for manifest in objects if manifest["kind"] == "PodDisruptionBudget"]
    assert {"s3", "postgres", "mlflow", "setup"} == named
    assert {policy["metadata"]["name"] for policy in policies} == {"ray", "s3", "postgres", "mlflow"}
    for manifest in policies:
        labels = manifest["spec"]["podSelector"]["matchLabels"]
        assert labels.get("ray.io/cluster") == "hmtl" or labels["app.kubernetes.io/name"] in named
    assert {budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] for budget in budgets} == {"head", "worker"}


def templates(objects: list[Tree]) -> list[Tree]:
    kinds = ("Deployment", "StatefulSet", "Job")
    return [manifest["spec"]["template"] for manifest in objects if manifest["kind"] in kinds]


def test_secrets_that_pods_mount_are_those_the_page_makes(rendered: dict[str, list[Tree]]) -> None:
    page = (CLUSTER / "kuberay" / "README.md").read_text()
    made = set(re.findall(r"create secret generic ([\w-]+)", page))
    wanted = {
        name for overlay in rendered.values() for name in re.findall(r'"secretName": "([\w-]+)"', json.dumps(overlay))
    }
    assert wanted == made


# --- ray up, Slurm, jobs


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_files_are_of_rays_own_schema(cloud: str) -> None:
    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    config = load(CLUSTER / "ray-up" / f"{cloud}.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    assert config["provider"]["type"] == cloud
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in " ".join(commands)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"idle_timeout_minute": 1}, schema)


@pytest.mark.parametrize("script", ["slurm/train.sbatch", "services/mlflow.sh"])
def test_script_can_be_parsed(script: str) -> None:
    shell = (CLUSTER / script).read_text().splitlines()[0].removeprefix("#!").split()
    subprocess.run([*shell, "-n", str(CLUSTER / script)], check=True)


def test_batch_script_without_a_command_says_so() -> None:
    script = ["bash", str(CLUSTER / "slurm" / "train.sbatch")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_runtime_environment_holds_nothing_but_what_it_should() -> None:
    environment = load(CLUSTER / "runtime_env.yaml")
    assert set(environment) == {"excludes", "env_vars"}
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600"}
