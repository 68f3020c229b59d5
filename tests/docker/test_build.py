"""The image for real, by buildah on a plain Debian made by debootstrap: built, and run as another user."""

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_UID = 1234

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for debootstrap and a chroot"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("buildah", "debootstrap"))), reason="needs Debian's buildah and debootstrap"
    ),
]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    """Run buildah in a storage of its own."""
    store = tmp_path_factory.mktemp("storage")
    options = ["--storage-driver=vfs", f"--root={store}/images", f"--runroot={store}/run"]

    def run(*arguments, check=True):
        command = ["buildah", *options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    yield run
    run("rm", "--all", check=False)
    shutil.rmtree(store, ignore_errors=True)


@pytest.fixture(scope="module")
def plain(buildah, tmp_path_factory):
    """An image of a plain Debian."""
    root = tmp_path_factory.mktemp("debian") / "root"
    release = next(line for line in Path("/etc/os-release").read_text().splitlines() if "CODENAME" in line)
    suite = release.partition("=")[2]
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(root)], check=True, capture_output=True)
    container = buildah("from", "scratch").stdout.strip()
    buildah("copy", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", container, "localhost/plain")
    buildah("rm", container)
    shutil.rmtree(root)
    return "localhost/plain"


@pytest.fixture(scope="module")
def image(buildah, plain, tmp_path_factory):
    """Built from a checkout whose files only their owner can read, as a clone has them under umask 077."""
    checkout = tmp_path_factory.mktemp("checkout") / "kfac"
    unneeded = {".git", ".venv", ".venv-harness", "data", "experiments", "site"}
    shutil.copytree(ROOT, checkout, ignore=lambda folder, _: unneeded if Path(folder) == ROOT else ())
    for path in checkout.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    name = f"localhost/kfac-{uuid.uuid4().hex[:8]}"
    arguments = {"BASE": plain, "COMMIT": "0123abc", "VERSION": "1.2.3", "UID": _UID, "GID": _UID}
    options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    buildah("build", "--isolation=chroot", *options, *_certificates(tmp_path_factory), f"--tag={name}", str(checkout))
    return name


def _certificates(tmp_path_factory):
    """This machine's certificates for pip, where it reaches its index through a proxy of its own."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not bundle:
        return []
    folder = tmp_path_factory.mktemp("certificates")
    shutil.copy(bundle, folder / "ca.crt")
    (folder / "pip.conf").write_text("[global]\ncert = /tmp/build-ca.crt\n")
    return [f"--volume={folder}/ca.crt:/tmp/build-ca.crt:ro", f"--volume={folder}/pip.conf:/etc/pip.conf:ro"]


@pytest.fixture
def run(buildah, image, tmp_path):
    """Run the image with `arguments` as its own user or another, on mounted volumes; (function, volumes' folder)."""
    for name in ("data", "experiments"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        container = buildah("from", "--pull-never", image).stdout.strip()
        stack.callback(buildah, "rm", container)
        volumes = [f"--volume={tmp_path / name}:/{name}" for name in ("data", "experiments")]
        entry = json.loads(buildah("inspect", "--type=image", image).stdout)["OCIv1"]["config"]["Entrypoint"]

        def run(*arguments, user=_UID):
            for name in ("data", "experiments"):
                os.chown(tmp_path / name, user, user)
            options = ["--isolation=chroot", f"--user={user}:{user}", *volumes]
            return buildah("run", *options, container, "--", *entry, *arguments, check=False)

        yield run, tmp_path


def test_image_says_what_it_is(buildah, image):
    config = json.loads(buildah("inspect", "--type=image", image).stdout)["OCIv1"]["config"]
    assert config["User"] == f"{_UID}:{_UID}"
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    assert config["Labels"]["org.opencontainers.image.version"] == "1.2.3"


def test_a_trial_reaches_its_target_as_the_image_s_user_on_mounted_volumes(run):
    run, folder = run
    done = run("--workload=b3db", "--submission_path=submissions/kfac_reduce")
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = folder / "experiments" / "experiment" / "b3db_jax" / "trial_1" / "outcome.json"
    assert outcome.stat().st_uid == _UID
    found = json.loads(outcome.read_text())
    assert found["reason"] is None and found["steps_to_target"] == found["global_step"]
    assert found["environment"]["git_commit"] == "0123abc"


def test_the_verbs_run_as_a_user_whom_the_image_does_not_know(run):
    """As by `docker run --user "$(id -u):$(id -g)"`; the defaults are in the volumes."""
    run, folder = run
    point = ["--workload=b3db", "--submission_path=submissions/nadamw", "--num_tuning_trials=1", "--max_global_steps=2"]
    for verb in (["sweep", *point, "--workers=1"], ["report", "/experiments/experiment"]):
        done = run(*verb, user=4321)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert (folder / "experiments" / "report" / "index.html").stat().st_uid == 4321
    done = run("test", "tests/submissions/kfac/test_roots.py", user=4321)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-1000:]
    assert run("prepare", "--dataset=none", user=4321).returncode == 2


def test_bad_flags_end_with_2(run):
    run, _ = run
    done = run("--workload=none", "--submission_path=submissions/kfac_reduce")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr


def test_an_unknown_accelerator_is_refused(buildah, plain):
    done = buildah(
        "build",
        "--isolation=chroot",
        f"--build-arg=BASE={plain}",
        "--build-arg=ACCELERATOR=tpu",
        str(ROOT),
        check=False,
    )
    assert done.returncode != 0
    assert "ACCELERATOR is tpu; it takes cpu or cuda" in done.stdout + done.stderr
