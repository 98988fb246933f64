"""The files of `deploy/`: stop times, unprivileged pods, pinned versions, and the same conf everywhere."""

import functools
import importlib.util
import inspect
import json
import posixpath
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jsq.app import App
from jsq.broker.topology.subjects import Subjects
from jsq.cli.provision import provision as provision_command
from jsq.cli.worker import worker as worker_command
from jsq.model.job import PRIORITIES
from jsq.settings import WorkerSettings
from jsq.transport.connection import FLOOR

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes"
ONE_NODE = DEPLOY / "kubernetes-one-node"
SHOP = DEPLOY / "shop"
PAGE = ROOT / "jsq" / "guide" / "deploy.md"

VERSIONS = ["1.29", kubernetes_validate.latest_version()]
OF_THE_PLACE = {"listen", "http", "store_dir"}
UNITS = {"MB": 2**20, "GB": 2**30, "Mi": 2**20, "Gi": 2**30, "MiB": 2**20}

Document = dict[str, Any]


@functools.cache
def written() -> list[Document]:
    """The documents of the files, unchanged."""
    resources = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [document for name in resources for document in yaml.safe_load_all((BASE / name).read_text())]


def titled(document: Document) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def one(kind: str, name: str) -> Document:
    (found,) = (document for document in written() if titled(document) == f"{kind}-{name}")
    return found


def workloads() -> list[Document]:
    return [one("StatefulSet", "nats"), one("Deployment", "worker")]


def pod(workload: Document) -> Document:
    spec: Document = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Document) -> Document:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def init_container() -> Document:
    (only,) = pod(one("Deployment", "worker"))["initContainers"]
    assert isinstance(only, dict)
    return only


def selected(selector: Document, workload: Document) -> bool:
    """Whether a selector matches the pods of a workload."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


def conf(path: Path) -> dict[str, str]:
    """The settings of a conf that have a line of their own."""
    return dict(re.findall(r"^ *(\w+): (\S+)$", path.read_text(), re.MULTILINE))


def size(text: str) -> int:
    found = re.fullmatch(r"(\d+)(\w+)", text)
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


def seconds(text: str) -> float:
    return float(text.strip('"').removesuffix("s"))


def option(arguments: list[str], name: str, default: object = None) -> str:
    """The value of the option `--name` in the arguments of a command."""
    return arguments[arguments.index(name) + 1] if name in arguments else str(default)


def grace(arguments: list[str]) -> float:
    """The seconds that a worker with these arguments lets its jobs run at a stop."""
    return float(option(arguments, "--grace", WorkerSettings().grace))


def version(image: str) -> tuple[int, ...]:
    found = re.fullmatch(r"nats:(\d+)\.(\d+)\.(\d+)-alpine", image)
    assert found is not None, image
    return tuple(int(number) for number in found.groups())


@functools.cache
def shop_app() -> App:
    """The app of the example, imported from its file."""
    spec = importlib.util.spec_from_file_location("shop_example", SHOP / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = module.app
    assert isinstance(app, App)
    return app


# -- Kubernetes ------------------------------------------------------------------------------------------


def kustomized(folder: Path) -> list[Document]:
    """The documents that kustomize generates for Kubernetes."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders a kustomization, is not on the PATH")
    made = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module")
def rendered() -> list[Document]:
    return kustomized(BASE)


@pytest.fixture(scope="module")
def rendered_one_node() -> list[Document]:
    return kustomized(ONE_NODE)


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("document", written(), ids=titled)
def test_every_manifest_matches_the_schema(document: Document, kubernetes: str) -> None:
    kubernetes_validate.validate(document, kubernetes, strict=True)


@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_the_kustomize_output_matches_the_schema(rendered: list[Document], kubernetes: str) -> None:
    assert len(rendered) == len(written()) + 1

    for document in rendered:
        kubernetes_validate.validate(document, kubernetes, strict=True)


def test_the_servers_mount_the_conf_that_kustomize_generates(rendered: list[Document]) -> None:
    (wrapped,) = (document for document in rendered if document["kind"] == "ConfigMap")
    (servers,) = (document for document in rendered if document["kind"] == "StatefulSet")

    assert wrapped["data"] == {"nats.conf": (BASE / "nats.conf").read_text()}
    assert {"name": "conf", "configMap": {"name": wrapped["metadata"]["name"]}} in pod(servers)["volumes"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container(servers)["volumeMounts"]}
    assert option(container(servers)["args"], "--config") == f"{mounted['conf']}/nats.conf"


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_a_pod_has_no_unneeded_privileges(workload: Document) -> None:
    of_pod, own = pod(workload)["securityContext"], container(workload)["securityContext"]

    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod(workload)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(workload))


@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_the_one_node_overlay_matches_the_schema(rendered_one_node: list[Document], kubernetes: str) -> None:
    for document in rendered_one_node:
        kubernetes_validate.validate(document, kubernetes, strict=True)


def test_the_one_node_overlay_has_one_server_without_a_cluster(rendered_one_node: list[Document]) -> None:
    found = {titled(document): document for document in rendered_one_node}
    servers, (conf_map,) = (
        found["StatefulSet-nats"],
        [document for document in rendered_one_node if document["kind"] == "ConfigMap"],
    )

    assert servers["spec"]["replicas"] == 1
    assert container(servers)["resources"]["requests"]["cpu"] == "100m"
    assert "cluster" not in re.sub("#.*", "", conf_map["data"]["nats.conf"])
    (provision,) = pod(found["Deployment-worker"])["initContainers"]
    assert "--replicas" not in provision["args"]


def test_the_one_node_conf_is_the_base_conf_without_the_cluster() -> None:
    def settings(path: Path) -> list[str]:
        text = re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE)
        return text.partition("cluster {")[0].split()

    assert settings(ONE_NODE / "nats.conf") == settings(BASE / "nats.conf")


def test_an_image_of_an_app_need_not_be_in_a_registry() -> None:
    """With the tag `latest` each node would pull the image, even if it was loaded onto the nodes."""
    for each in (container(one("Deployment", "worker")), init_container()):
        assert each["image"] == "jsq-app:1"
        assert each["imagePullPolicy"] == "IfNotPresent"


def test_an_init_container_creates_three_replicas_before_a_worker_starts() -> None:
    provision, worker = init_container(), one("Deployment", "worker")
    servers = one("StatefulSet", "nats")["spec"]["replicas"]

    assert provision["args"][:2] == ["provision", container(worker)["args"][1]]
    assert option(provision["args"], "--replicas") == str(servers)
    assert option(provision["args"], "--wait") == "1h"
    assert {one.removeprefix("--") for one in provision["args"] if one.startswith("--")} <= set(
        inspect.signature(provision_command).parameters
    )
    for field in ("env", "image", "securityContext", "volumeMounts"):
        assert provision[field] == container(worker)[field]


def selectors(value: object) -> Iterator[dict[str, str]]:
    """The labels of each selector of a document that selects the pods of an app."""
    if isinstance(value, list):
        for each in value:
            yield from selectors(each)
    if isinstance(value, dict):
        if "app.kubernetes.io/name" in value:
            yield value
        for each in value.values():
            yield from selectors(each)


@pytest.mark.parametrize("document", written(), ids=titled)
def test_no_selector_picks_the_pods_of_another_chart(document: Document) -> None:
    found = list(selectors(document))

    assert found
    assert all(one["app.kubernetes.io/part-of"] == "jsq" for one in found)


def test_the_commented_out_rules_admit_other_namespaces_and_monitoring() -> None:
    text = re.sub(r"^( *)#~ ", r"\1", (BASE / "nats.yaml").read_text(), flags=re.MULTILINE)
    (policy,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "NetworkPolicy")

    for kubernetes in VERSIONS:
        kubernetes_validate.validate(policy, kubernetes, strict=True)
    clients, monitor = policy["spec"]["ingress"][2:]
    assert clients["ports"] == [{"port": "client"}]
    assert clients["from"][0].keys() == {"namespaceSelector", "podSelector"}
    assert monitor["ports"] == [{"port": "monitor"}]
    assert len(monitor["from"]) == 3


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_a_pod_can_write_to_tmp(workload: Document) -> None:
    assert {"name": "tmp", "mountPath": "/tmp"} in container(workload)["volumeMounts"]
    assert "emptyDir" in {volume["name"]: volume for volume in pod(workload)["volumes"]}["tmp"]


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_pods_get_no_service_environment_variables(workload: Document) -> None:
    assert pod(workload)["enableServiceLinks"] is False


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_no_lifecycle_hook_delays_the_stop_signal(workload: Document) -> None:
    assert "lifecycle" not in container(workload)


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_a_container_has_resource_requests_and_a_memory_limit(workload: Document) -> None:
    resources = container(workload)["resources"]

    assert resources["requests"].keys() >= {"cpu", "memory"}
    assert size(resources["limits"]["memory"]) >= size(resources["requests"]["memory"])


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_pods_are_spread_over_the_nodes(workload: Document) -> None:
    rules = {rule["topologyKey"]: rule for rule in pod(workload)["topologySpreadConstraints"]}

    assert selected(rules["kubernetes.io/hostname"]["labelSelector"], workload)


@pytest.mark.parametrize("workload", workloads(), ids=titled)
def test_a_drain_takes_one_pod_at_a_time(workload: Document) -> None:
    budget = one("PodDisruptionBudget", workload["metadata"]["name"])["spec"]

    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == workload["spec"]["selector"]
    assert selected(budget["selector"], workload)
    assert workload["spec"]["replicas"] > 1


def test_a_worker_has_longer_to_stop_than_its_jobs_have_to_end() -> None:
    worker = one("Deployment", "worker")

    assert pod(worker)["terminationGracePeriodSeconds"] >= grace(container(worker)["args"]) + 5


def test_the_probes_use_the_port_that_the_worker_listens_on() -> None:
    worker = container(one("Deployment", "worker"))

    assert option(worker["args"], "--http") == f"0.0.0.0:{worker['ports'][0]['containerPort']}"
    assert probes(worker) == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}


def test_the_metrics_port_of_a_worker_is_annotated_for_prometheus() -> None:
    worker = one("Deployment", "worker")

    assert worker["spec"]["template"]["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(container(worker)["ports"][0]["containerPort"]),
        "prometheus.io/path": "/metrics",
    }


def test_an_update_stops_no_worker_before_a_new_one_is_ready() -> None:
    assert one("Deployment", "worker")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_server_is_probed_for_itself_not_for_each_of_its_streams() -> None:
    assert probes(container(one("StatefulSet", "nats"))) == {
        "startup": "/healthz?js-server-only=true",
        "readiness": "/healthz?js-meta-only=true",
        "liveness": "/healthz?js-enabled-only=true",
    }


def probes(container: Document) -> dict[str, str]:
    """The paths of the probes; each uses a port that the container names."""
    ports = {port["name"] for port in container["ports"]}
    found = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in found.values()} <= ports
    return {name: probe["path"] for name, probe in found.items()}


def test_a_server_has_longer_to_stop_than_a_lame_duck_takes() -> None:
    lame = seconds(conf(BASE / "nats.conf")["lame_duck_duration"])

    assert pod(one("StatefulSet", "nats"))["terminationGracePeriodSeconds"] > lame


def test_the_routes_name_the_three_servers() -> None:
    servers = one("StatefulSet", "nats")
    name, spec = servers["metadata"]["name"], servers["spec"]

    assert spec["replicas"] == 3
    assert re.findall(r"nats://(\S+):6222", (BASE / "nats.conf").read_text()) == [
        f"{name}-{number}.{spec['serviceName']}" for number in range(spec["replicas"])
    ]
    headless = one("Service", spec["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True


def test_a_server_has_the_name_of_its_pod() -> None:
    variables = {variable["name"]: variable for variable in container(one("StatefulSet", "nats"))["env"]}

    assert conf(BASE / "nats.conf")["server_name"] == "$POD_NAME"
    assert variables["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_the_services_target_ports_of_the_servers() -> None:
    servers = one("StatefulSet", "nats")
    ports = {port["name"]: port["containerPort"] for port in container(servers)["ports"]}

    for service in (one("Service", "nats"), one("Service", "nats-headless")):
        assert selected({"matchLabels": service["spec"]["selector"]}, servers)
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_the_stream_limits_fit_the_volume_and_the_memory() -> None:
    limits, servers = conf(BASE / "nats.conf"), one("StatefulSet", "nats")
    (volume,) = servers["spec"]["volumeClaimTemplates"]
    variables = {variable["name"]: variable.get("value", "") for variable in container(servers)["env"]}

    assert size(limits["max_file"]) < size(volume["spec"]["resources"]["requests"]["storage"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container(servers)["volumeMounts"]}
    assert mounted[volume["metadata"]["name"]] == json.loads(limits["store_dir"])
    memory = size(container(servers)["resources"]["limits"]["memory"])
    assert 2 * size(limits["max_mem"]) < size(variables["GOMEMLIMIT"]) < memory


def test_workers_have_the_label_that_the_network_policy_admits() -> None:
    clients, cluster = one("NetworkPolicy", "nats")["spec"]["ingress"]

    assert clients["ports"] == [{"port": "client"}]
    assert selected(clients["from"][0]["podSelector"], one("Deployment", "worker"))
    assert cluster["ports"] == [{"port": "cluster"}]
    assert selected(cluster["from"][0]["podSelector"], one("StatefulSet", "nats"))


def test_workers_connect_to_the_service_of_the_servers() -> None:
    service = one("Service", "nats")
    (variable,) = container(one("Deployment", "worker"))["env"]

    address = f"nats://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert variable == {"name": "JSQ_URL", "value": address}


# -- the conf --------------------------------------------------------------------------------------------


def test_the_kubernetes_conf_has_the_settings_of_the_shipped_conf() -> None:
    shipped, kubernetes = conf(ROOT / "nats-server.conf"), conf(BASE / "nats.conf")

    common = shipped.keys() - OF_THE_PLACE
    assert {"sync_interval", "max_file", "max_mem"} <= common
    assert {name: kubernetes.get(name) for name in common} == {name: shipped[name] for name in common}
    assert shipped["sync_interval"] == "always"


def test_the_shipped_conf_listens_on_loopback_only() -> None:
    shipped = conf(ROOT / "nats-server.conf")

    assert shipped["listen"] == "127.0.0.1:4222"
    assert shipped["http"] == "127.0.0.1:8222"


# -- compose ---------------------------------------------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Document]:
    found: dict[str, Document] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


WORKERS = ("mail", "reports")


def test_compose_starts_a_server_and_then_workers_of_different_queues(services: dict[str, Document]) -> None:
    assert services.keys() == {"nats", *WORKERS}
    for name in WORKERS:
        assert services[name]["depends_on"] == {"nats": {"condition": "service_healthy"}}
        assert services[name]["environment"] == {"JSQ_URL": "nats://nats:4222"}
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in services.values())
    queues = [option(services[name]["command"], "--queues").split(",") for name in WORKERS]
    assert sorted(queue for served in queues for queue in served) == sorted(shop_app().queues)


def test_compose_runs_an_app_in_an_image_of_its_own(services: dict[str, Document]) -> None:
    for name in WORKERS:
        assert services[name]["image"] == container(one("Deployment", "worker"))["image"]
        assert services[name]["build"] == "${APP:-./shop}"
    made = dict(instructions(SHOP / "Dockerfile"))
    assert made["FROM"] == "jsq"
    assert made["RUN"] == "pip install --no-cache-dir -r /tmp/requirements.txt"
    assert made["USER"] == "10001:10001", "the last USER is that of the running worker"
    assert {path.name for path in SHOP.iterdir()} >= {"app.py", "requirements.txt"}


def test_no_file_of_deploy_holds_a_secret() -> None:
    for path in (path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        for value in re.findall(r"(?i)(?:_|\b)(?:password|token|secret)[:=] *([^\s}]+)", path.read_text()):
            assert value.startswith(("$", "{", "{{")), (path.name, value)


def test_compose_mounts_the_shipped_conf_where_the_server_reads_it(services: dict[str, Document]) -> None:
    nats = services["nats"]
    source, target, mode = nats["volumes"][0].split(":")

    assert (DEPLOY / source).resolve() == ROOT / "nats-server.conf"
    assert option(nats["command"], "-c") == target
    assert mode == "ro"
    # The conf listens on the loopback of the container, which the worker cannot reach.
    assert option(nats["command"], "-a") == "0.0.0.0"


def test_compose_keeps_the_jobs_in_a_volume(services: dict[str, Document]) -> None:
    volume, target = services["nats"]["volumes"][1].split(":")
    store = json.loads(conf(ROOT / "nats-server.conf")["store_dir"])

    assert target == posixpath.normpath(posixpath.join(services["nats"]["working_dir"], store))
    assert volume in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]


def test_compose_opens_no_port_to_other_machines(services: dict[str, Document]) -> None:
    opened = [port for service in services.values() for port in service["ports"]]

    assert opened == ["127.0.0.1:4222:4222", "127.0.0.1:9464:9464", "127.0.0.1:9465:9464"]


def test_compose_gives_a_worker_longer_than_its_jobs_have_to_end(services: dict[str, Document]) -> None:
    for name in WORKERS:
        worker = services[name]
        assert seconds(worker["stop_grace_period"]) >= grace(worker["command"]) + 5


@pytest.mark.parametrize("name", ["nats", *WORKERS])
def test_compose_drops_privileges_that_a_container_does_not_need(
    services: dict[str, Document], name: str
) -> None:
    assert services[name]["read_only"] is True
    assert services[name]["cap_drop"] == ["ALL"]
    assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_the_server_is_the_same_everywhere_and_not_too_old_for_jsq(services: dict[str, Document]) -> None:
    image = services["nats"]["image"]

    assert container(one("StatefulSet", "nats"))["image"] == image
    assert version(image) >= FLOOR


def test_workers_are_started_with_options_that_exist(
    services: dict[str, Document], last_stage: dict[str, str]
) -> None:
    known = inspect.signature(worker_command).parameters
    for command in (
        container(one("Deployment", "worker"))["args"],
        *(services[name]["command"] for name in WORKERS),
        json.loads(last_stage["CMD"]),
    ):
        assert command[:2] == ["worker", "app:app"]
        given = [word.removeprefix("--").replace("-", "_") for word in command if word.startswith("--")]
        assert given
        assert set(given) <= known.keys()


# -- the image -------------------------------------------------------------------------------------------


def instructions(dockerfile: Path = DEPLOY / "Dockerfile") -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, in order: the word and the text that follows it."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


@pytest.fixture
def last_stage() -> dict[str, str]:
    stages: list[dict[str, str]] = []
    for word, rest in instructions():
        if word == "FROM":
            stages.append({})
        if stages:
            stages[-1][word] = rest
    assert len(stages) > 1, "the build tools should stay out of the image"
    return stages[-1]


def test_the_image_copies_only_the_build_result(last_stage: dict[str, str]) -> None:
    assert last_stage["COPY"].startswith("--from=build ")
    assert "RUN" not in last_stage


def test_the_image_runs_as_a_numeric_user_that_is_not_root(last_stage: dict[str, str]) -> None:
    user, _, group = last_stage["USER"].partition(":")

    assert int(user) > 0
    assert int(group) > 0
    assert int(user) == pod(one("Deployment", "worker"))["securityContext"]["runAsUser"]


def test_no_shell_runs_between_a_signal_and_the_worker(last_stage: dict[str, str]) -> None:
    assert json.loads(last_stage["ENTRYPOINT"]) == ["jsq"]
    assert json.loads(last_stage["CMD"])[0] == "worker"
    assert json.loads(last_stage["HEALTHCHECK"].partition(" CMD ")[2])[0] == "python"


def test_the_image_writes_no_bytecode_and_does_not_buffer_output(last_stage: dict[str, str]) -> None:
    assert {"PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"} <= set(last_stage["ENV"].split())


def test_the_image_pins_exactly_the_dependencies_of_jsq() -> None:
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    pinned = {one.name: one.specifier for one in map(Requirement, lines[1:])}
    assert all(len(pin) == 1 and next(iter(pin)).operator == "==" for pin in pinned.values())

    wanted: set[str] = set()
    left = [Requirement("jsq[nkeys,fast]")]
    while left:
        found = left.pop()
        for other in map(Requirement, requires(found.name) or ()):
            extras = found.extras or {""}
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
                name = canonicalize_name(other.name)
                [version] = (pin.version for pin in pinned[name])
                assert other.specifier.contains(version), f"{found.name} wants {other}"
                left += [other] if name not in wanted else []
                wanted.add(name)
    assert pinned.keys() == wanted


def test_dependencies_are_installed_before_the_code_and_setuptools_is_removed() -> None:
    steps = [f"{word} {rest}" for word, rest in instructions()]
    dependencies = next(at for at, step in enumerate(steps) if "-r requirements.txt" in step)

    assert steps.index("COPY jsq jsq") > dependencies
    assert steps.index("COPY deploy/requirements.txt ./") < dependencies
    assert "/opt/jsq/bin/pip uninstall --yes setuptools" in steps[dependencies]


def test_the_build_context_holds_exactly_the_files_that_are_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:] if line.startswith("!")} == copied
    assert "**/__pycache__" in ignored


def test_the_dockerfile_states_the_stop_timeout_of_a_single_container() -> None:
    stated = re.search(r"--stop-timeout (\d+)", (DEPLOY / "Dockerfile").read_text())

    assert stated is not None
    assert float(stated[1]) >= WorkerSettings().grace + 5


# -- the app ---------------------------------------------------------------------------------------------


def test_the_app_declares_tasks_of_each_queue_and_a_schedule() -> None:
    shop_app().check()
    assert sorted(shop_app().queues) == ["default", "mail", "reports"]
    assert [schedule.name for schedule in shop_app().schedules.values()] == ["nightly"]


# -- the page of the guide -------------------------------------------------------------------------------


@functools.cache
def page_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_names_files_that_exist() -> None:
    named = re.findall(r"^\| `(deploy/[\w./-]+)`", PAGE.read_text(), re.MULTILINE)

    assert len(named) == 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_shows_the_dockerfile_of_the_example_and_the_command_of_the_init_container() -> None:
    shown = next(block for block in page_blocks("text") if block.startswith("FROM jsq"))

    assert shown.split() == re.sub(r"^#.*\n", "", (SHOP / "Dockerfile").read_text(), flags=re.M).split()
    assert f"`jsq {' '.join(init_container()['args'])}`" in PAGE.read_text()
    assert "--stop-timeout 35" in PAGE.read_text()


def test_the_scaler_of_the_page_reads_the_consumers_of_a_queue_by_the_headless_service() -> None:
    (scaled,) = (
        found for found in map(yaml.safe_load, page_blocks("yaml")) if found.get("kind") == "ScaledObject"
    )
    worker, triggers = one("Deployment", "worker"), scaled["spec"]["triggers"]
    headless = one("Service", "nats-headless")
    [port] = [port["port"] for port in headless["spec"]["ports"] if port["name"] == "monitor"]

    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert scaled["spec"]["advanced"]["scalingModifiers"]["formula"] == " + ".join(PRIORITIES)
    assert [trigger["metadata"]["consumer"] for trigger in triggers] == list(PRIORITIES)
    for trigger in triggers:
        assert trigger["name"] == trigger["metadata"]["consumer"]
        assert trigger["metadata"]["stream"] == Subjects().streams.ready("mail")
        assert trigger["metadata"]["lagThreshold"] == option(container(worker)["args"], "--concurrency")
        address = trigger["metadata"]["natsServerMonitoringEndpoint"]
        assert address.startswith(f"{headless['metadata']['name']}.")
        assert address.endswith(f":{port}")
