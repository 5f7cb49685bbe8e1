"""Build SEMR's images with buildah from a local base, and run them with podman: no registry and no daemon are needed.

The base is a minimal Debian of debootstrap, whose Python is that of the images. What the package index of this machine needs
goes into the build as secrets: a CA bundle, and pip's and uv's variables.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = "localhost/semr-test/base:bookworm"
HELM = "localhost/semr-test/helm:latest"
#: Folder below docker_build to the name of the image.
IMAGES = {
    "model_deployment": "semr-model-deployment",
    "flyte_task": "semr-flyte-task",
    "evolution": "semr-evolution",
    "ray_image": "semr-ray",
}
#: Set it to take the images of an earlier run without a look at what has changed since; for work on the tests themselves.
AS_THEY_ARE = bool(os.environ.get("SEMR_TEST_IMAGES_AS_THEY_ARE"))
_PROGRAMS = ("buildah", "podman", "runc", "debootstrap", "tar")
_DEBIAN = "bookworm"
_BUILD_SECONDS = 1500
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
# How a machine reaches its package index; an image that is published is built without any of them.
_INDEX_VARIABLES = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_HTTP_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


def require_tools() -> None:
    """Skip, saying why, where images cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("images are built here by root only")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {' '.join(missing)}")
    if platform.machine() != "x86_64":
        pytest.skip(f"images are tested on amd64, and this is {platform.machine()}")


def sh(*command: str, timeout: float = 600.0, stdin: int | None = None) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, stdin=stdin)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def make_base() -> None:
    """A minimal Debian with Python as the image `BASE`, and helm as the image `HELM`, made once on a machine."""
    if not _exists(BASE):
        with tempfile.TemporaryDirectory(prefix="semr-base-") as name:
            packages = "--include=python3,python3-venv,ca-certificates"
            sh("debootstrap", "--variant=minbase", packages, _DEBIAN, name, timeout=_BUILD_SECONDS)
            _import(Path(name), BASE, "--exclude=./var/cache/apt/archives/*.deb")
    if not _exists(HELM):
        helm = sh(str(ROOT / "helper_scripts" / "find-helm.sh"), timeout=_BUILD_SECONDS)
        with tempfile.TemporaryDirectory(prefix="semr-helm-") as name:
            (Path(name) / "usr" / "bin").mkdir(parents=True)
            shutil.copy(helm, Path(name) / "usr" / "bin" / "helm")
            _import(Path(name), HELM)


def build(folder: str) -> str:
    """Build the image of `docker_build/FOLDER`; returns its name. Layers of an earlier build are used again."""
    image = f"localhost/semr-test/{IMAGES[folder]}:latest"
    if AS_THEY_ARE and _exists(image):
        return image
    with tempfile.TemporaryDirectory(prefix="semr-build-") as name:
        secrets: list[str] = []
        bundle = next((os.environ[each] for each in _CA_VARIABLES if os.environ.get(each)), None)
        if bundle:
            secrets.append(f"--secret=id=ca-bundle,src={bundle}")
        index = Path(name) / "index-env"
        pairs = {each: os.environ[each] for each in _INDEX_VARIABLES if os.environ.get(each)}
        index.write_text("".join(f"{key}='{value}'\n" for key, value in pairs.items()), encoding="utf-8")
        secrets.append(f"--secret=id=index-env,src={index}")
        sh(
            *("buildah", "build", "--isolation=chroot", "--format=docker", "--layers", *secrets),
            *(f"--build-arg=BASE_IMAGE={BASE}", f"--build-arg=HELM_IMAGE={HELM}"),
            *(f"--file={ROOT}/docker_build/{folder}/Dockerfile", f"--tag={image}", str(ROOT)),
            timeout=_BUILD_SECONDS,
        )
    return image


def size_mb(image: str) -> int:
    """Size of an image, unpacked, in megabytes."""
    return round(int(sh("podman", "image", "inspect", "--format={{.Size}}", image)) / 1e6)


@dataclass
class Container:
    """A container that runs."""

    name: str
    ended: bool = field(default=False)

    def run(self, *command: str, timeout: float = 300.0) -> str:
        """Standard output of a command in the container."""
        return sh("podman", "exec", self.name, *command, timeout=timeout)

    def logs(self) -> str:
        """What it has written so far."""
        done = subprocess.run(
            ["podman", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.stdout

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return sh("podman", "inspect", "--format={{.State.Running}}", self.name) == "true"

    def stop(self, seconds: int = 60) -> tuple[int, float]:
        """Send SIGTERM and wait; returns the exit code and the seconds that it took."""
        started = time.monotonic()
        sh("podman", "stop", f"--time={seconds}", self.name, timeout=seconds + 60)
        took = time.monotonic() - started
        return int(sh("podman", "inspect", "--format={{.State.ExitCode}}", self.name)), took


@contextmanager
def container(image: str, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[Container]:
    """Run an image as the charts do: read-only, without capabilities, /tmp in memory; removed in the end."""
    name = f"semr-test-{os.getpid()}-{time.monotonic_ns()}"
    sh("podman", "run", "--detach", f"--name={name}", *run_options(), *options, image, *arguments)
    running = Container(name)
    try:
        yield running
    except BaseException:
        print(running.logs()[-6000:])
        raise
    finally:
        sh("podman", "rm", "--force", "--volumes", "--time=5", name)


def run_once(image: str, *arguments: str, options: tuple[str, ...] = (), timeout: float = 300.0) -> str:
    """Run an image to its end, as `container` does; returns its standard output."""
    return sh("podman", "run", "--rm", *run_options(), *options, image, *arguments, timeout=timeout)


def run_options() -> tuple[str, ...]:
    """Of every container: the host's network, where the stack is, and limits that a machine without privileges can set."""
    files = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    # Podman takes some of it away before runc sets it.
    processes = min(16384, resource.getrlimit(resource.RLIMIT_NPROC)[1])
    return (
        f"--runtime={shutil.which('runc')}",
        "--network=host",
        f"--ulimit=nofile={files}:{files}",
        f"--ulimit=nproc={processes}:{processes}",
        "--read-only",
        "--read-only-tmpfs=false",
        "--tmpfs=/tmp:rw,mode=1777",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--no-healthcheck",
    )


def healthcheck(image: str) -> list[str]:
    """The command of the image's HEALTHCHECK."""
    import json

    (found,) = json.loads(sh("podman", "image", "inspect", image))
    return list(found["Healthcheck"]["Test"][1:])


def _exists(image: str) -> bool:
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def _import(folder: Path, image: str, *options: str) -> None:
    archive = subprocess.Popen(["tar", f"--directory={folder}", "--create", *options, "."], stdout=subprocess.PIPE)
    assert archive.stdout is not None
    sh("podman", "import", "-", image, stdin=archive.stdout.fileno())
    assert archive.wait() == 0
