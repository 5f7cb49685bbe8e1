"""Builds the programs of a Kubernetes cluster, MinIO and Prometheus from Go modules, once for each set of versions.

They are kept in the user's cache folder.

`python tests/cluster/build_programs.py` builds what is missing and prints the folder. `--idle` leaves the machine to everybody
else; `--check` builds nothing and exits with 3 when something is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "programs"
#: Program to (folder of its module, package). Quick ones first: a build that is cut short has then made something.
PROGRAMS = {
    "mc": ("mc", "github.com/minio/mc"),
    "minio": ("minio", "github.com/minio/minio"),
    "flyte-check": ("flyte", "."),
    "etcd": ("kubernetes", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "kwok": ("kubernetes", "sigs.k8s.io/kwok/cmd/kwok"),
    "kuberay-operator": ("kuberay-operator", "github.com/ray-project/kuberay/ray-operator"),
    "prometheus-operator": ("prometheus-operator", "github.com/prometheus-operator/prometheus-operator/cmd/operator"),
    # Debian's own cannot ask Kubernetes for its targets.
    "prometheus": ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
}
#: Build tags: of all its ways to find targets, Prometheus gets one.
_TAGS = {"prometheus": "remove_all_sd,enable_kubernetes_sd"}
#: What is read from modules besides programs: name of a folder to (folder whose go.mod has the version, module, folder in it).
FILES = {
    "stages/pod": ("kubernetes", "sigs.k8s.io/kwok", "kustomize/stage/pod/fast"),
    "stages/node": ("kubernetes", "sigs.k8s.io/kwok", "kustomize/stage/node/fast"),
    "stages/volume": ("kubernetes", "sigs.k8s.io/kwok", "kustomize/stage/volume/fast"),
    "definitions/kuberay": ("kuberay-operator", "github.com/ray-project/kuberay/ray-operator", "config/crd/bases"),
    "definitions/monitoring": (
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd",
    ),
    # No program is built from it, so its version stands here.
    "definitions/gateway": ("kubernetes", "sigs.k8s.io/gateway-api@v1.4.0", "config/crd/standard"),
}
#: Kubernetes' own go.mod asks for it.
LEAST_GO = (1, 26)
# Two compilers at once: with more, the large packages of Kubernetes need more than 4 GB at the same time.
_AT_ONCE = 2
_FORGET_SECONDS = 30 * 24 * 3600
#: Seconds that tests may spend on building; 0: nothing is built, and tests are skipped where something is missing.
BUILD_VARIABLE = "SEMR_TEST_CLUSTER_BUILD_SECONDS"
MISSING, FAILED = 3, 1


class BuildError(Exception):
    """The programs cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Programs:
    """A folder with programs (`bin/`), definitions of custom resources and stages of the simulated kubelet."""

    folder: Path

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    @property
    def missing(self) -> list[str]:
        programs = [name for name in PROGRAMS if not self.program(name).is_file()]
        return programs + [name for name in FILES if not (self.folder / name).is_dir()]


def kubernetes_version() -> str:
    """The pinned version, as it stands in go.mod, such as v1.37.2."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (MODULES / "kubernetes" / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def prometheus_version() -> str:
    """The pinned version, such as v3.13.1: as a Go module it is v0.313.1."""
    text = (MODULES / "prometheus" / "go.mod").read_text()
    found = re.search(r"^\s*github\.com/prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)", text, re.MULTILINE)
    assert found is not None
    return f"v{found[1]}.{int(found[2])}.{found[3]}"


def cached() -> Programs:
    """Where the programs of these versions are, or will be."""
    digest = hashlib.sha256(json.dumps([PROGRAMS, FILES, platform.system(), platform.machine()]).encode())
    for path in sorted(path for path in MODULES.rglob("*") if path.suffix in (".go", ".mod", ".sum")):
        digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Programs(base / "semr" / "cluster" / f"{kubernetes_version()}-{digest.hexdigest()[:12]}")


def find_go() -> str:
    """The go command.

    Raises:
        BuildError: there is none, or it is too old.
    """
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise BuildError("there is no go on PATH, with which Kubernetes is built: see https://go.dev/doc/install")
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.match(r"go(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < LEAST_GO:
        raise BuildError(f"go {LEAST_GO[0]}.{LEAST_GO[1]} or newer is needed, this is {version or 'unknown'}")
    return go


def build(timeout_seconds: float, *, only: str = "") -> Programs:
    """Build what is missing, or `only` one of it; a second process that wants the same waits for the first one.

    Raises:
        BuildError: go is missing, a build fails, or the time is up; what was built until then is kept.
    """
    programs = cached()
    if not programs.missing:
        return programs
    go = find_go()
    deadline = time.monotonic() + timeout_seconds
    programs.folder.mkdir(parents=True, exist_ok=True)
    with _alone(programs.folder / "lock", deadline):
        for name in programs.missing:
            if only not in ("", name):
                continue
            began = time.monotonic()
            _say(f"making {name}")
            if name in FILES:
                _copy_files(go, name, programs.folder / name)
            else:
                _build_program(go, name, programs.program(name), deadline)
            _say(f"made {name} in {time.monotonic() - began:.0f} s")
        _remove_forgotten(programs.folder)
    return programs


def for_tests(*names: str) -> Programs:
    """The programs with all of them there, or with those of `names`; built if `BUILD_VARIABLE` lets them.

    Raises:
        BuildError: some are missing, and cannot or must not be built.
    """
    programs = cached()
    missing = [name for name in programs.missing if not names or name in names]
    if missing:
        find_go()
        seconds = float(os.environ.get(BUILD_VARIABLE, "2400"))
        if seconds <= 0:
            raise BuildError(f"{', '.join(missing)} not built yet: `make test-cluster` builds them")
        for name in names or ("",):
            build(seconds, only=name)
    return programs


def _remove_forgotten(current: Path) -> None:
    """Remove sets of versions that were built long ago: each has almost a gigabyte, and can be built again."""
    for folder in current.parent.iterdir():
        if folder != current and time.time() - folder.stat().st_mtime > _FORGET_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(path: Path, deadline: float) -> Iterator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError("another process is still building them") from None
                time.sleep(1)
        yield


def _build_program(go: str, name: str, to: Path, deadline: float) -> None:
    folder, package = PROGRAMS[name]
    to.parent.mkdir(exist_ok=True)
    unfinished = to.with_suffix(f".{os.getpid()}")
    version = kubernetes_version()
    _, minor, _ = version.split(".")
    # A build from a repository takes them from git; without them the API server does not know its version.
    settings = {
        "k8s.io/component-base/version.gitVersion": version,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/component-base/version.gitTreeState": "clean",
        "k8s.io/client-go/pkg/version.gitVersion": version,
    }
    flags = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in settings.items())])
    how = ["-mod=readonly", f"-p={_AT_ONCE}", f"-tags={_TAGS.get(name, '')}", "-trimpath", f"-ldflags={flags}"]
    command = [go, "build", *how, "-o", str(unfinished)]

    process = subprocess.Popen(
        [*command, package],
        cwd=MODULES / folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own, so that compilers end with it.
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        if process.returncode != 0:
            raise BuildError(f"{name} does not build: {errors.strip()[-2000:]}")
        unfinished.replace(to)
    except subprocess.TimeoutExpired:
        # The compiler keeps finished packages, so that the next try goes on from here.
        raise BuildError(f"the time was up while {name} was built") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        unfinished.unlink(missing_ok=True)


def _copy_files(go: str, name: str, to: Path) -> None:
    where, module, folder = FILES[name]
    command = [go, "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=MODULES / where, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(done.stdout or "{}")
    if done.returncode != 0 or "Dir" not in found:
        raise BuildError(f"{module} cannot be fetched: {found.get('Error') or done.stderr.strip()}")
    unfinished = to.with_name(f"{to.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for path in sorted((Path(found["Dir"]) / folder).glob("*.yaml")):
        if path.name != "kustomization.yaml":
            (unfinished / path.name).write_bytes(path.read_bytes())
    unfinished.replace(to)


def _say(text: str) -> None:
    print(f"build_programs: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", action="store_true", help="use only CPU time that nobody else wants")
    parser.add_argument(
        "--check", action="store_true", help=f"build nothing; exit code {MISSING} when something is missing"
    )
    parser.add_argument(
        "--timeout", type=float, default=2400.0, metavar="SECONDS", help="give up after that (default 2400)"
    )
    parser.add_argument("--only", default="", choices=[*PROGRAMS, *FILES], metavar="NAME", help="build just this one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.idle:
        os.nice(19)
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if arguments.check:
        missing = cached().missing
        if missing:
            _say(f"not built yet: {', '.join(missing)}")
            return MISSING
    else:
        try:
            build(arguments.timeout, only=arguments.only)
        except BuildError as error:
            _say(str(error))
            return FAILED
    print(cached().folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
