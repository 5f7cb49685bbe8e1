"""The state folder of one embedded stack: what lies where, the stack's identity and credentials, the recorded options.

    .semr/
      env             the contract as KEY=value lines (0600); there while the stack is up
      identity.json   stack id and random credentials (0600)
      options.json    options of the last `semr up` (0600: a database URI may hold a password)
      ports.json      port of every server, kept while they are free
      serve.json      applications that Ray Serve had, put back after a restart of Ray (0600)
      status.json     what the supervisor knows
      lock            held by `semr up` and `semr down`
      config/ data/ logs/

What need not outlive the processes (sockets, Ray's session) lies in the runtime folder below the system's temporary folder:
a Unix socket's path must fit into 107 bytes, and a state folder may lie deep.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from semr.settings import ENV_FILE_NAME, STATE_FOLDER_NAME
from semr.stack.errors import StackFolderError

# Ray appends up to 75 characters (session name and socket) to its temporary folder; Linux allows 107, macOS 103.
_LONGEST_RUNTIME_PATH = 24
_SCRAPE_SECONDS = 5.0
_LEAST_SCRAPE_SECONDS = 2.0
# What a start that was killed before it recorded its identity may have left.
_LEFT_BY_A_START = {"config", "data", "logs", "lock"}


@dataclass(frozen=True)
class StateFolder:
    """Paths inside the state folder `root` (absolute)."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> StateFolder:
        """The state folder at `path`, made absolute; nothing is created."""
        return cls(path.resolve())

    @property
    def env_file(self) -> Path:
        """The contract, for `semr.settings`."""
        return self.root / ENV_FILE_NAME

    @property
    def identity_file(self) -> Path:
        """Stack id and credentials."""
        return self.root / "identity.json"

    @property
    def options_file(self) -> Path:
        """Options of the last `up`."""
        return self.root / "options.json"

    @property
    def ports_file(self) -> Path:
        """Recorded ports."""
        return self.root / "ports.json"

    @property
    def serve_file(self) -> Path:
        """Saved Ray Serve applications."""
        return self.root / "serve.json"

    @property
    def status_file(self) -> Path:
        """The supervisor's status."""
        return self.root / "status.json"

    @property
    def lock_file(self) -> Path:
        """Lock of `up` and `down`."""
        return self.root / "lock"

    @property
    def config(self) -> Path:
        """Generated configuration files."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One log file for each service."""
        return self.root / "logs"

    def data(self, service: str) -> Path:
        """Where `service` keeps its data."""
        return self.root / "data" / service

    def log(self, service: str) -> Path:
        """The log file of `service`."""
        return self.logs / f"{service}.log"

    def prepare(self) -> None:
        """Create the folder and its parts.

        Raises:
            StackFolderError: it cannot be created or written, or it is somebody else's.
        """
        try:
            if not self.identity_file.exists() and self._has_strange_files():
                raise StackFolderError(
                    f"{self.root} is neither empty nor a state folder: name another folder with --dir."
                )
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.config, self.logs, self.root / "data"):
                folder.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"probe")
        except OSError as error:
            raise StackFolderError(
                f"The state folder {self.root} cannot be written ({error.strerror or error}): "
                "choose another one with --dir or run semr in a folder of yours."
            ) from error

    def _has_strange_files(self) -> bool:
        if not self.root.is_dir():
            return False
        names = {path.name for path in self.root.iterdir() if not path.name.startswith(".")}
        return bool(names - _LEFT_BY_A_START)


def default_folder() -> Path:
    """The nearest state folder at or above the working directory, else `.semr` in it."""
    here = Path.cwd()
    for parent in (here, *here.parents):
        if (parent / STATE_FOLDER_NAME / "identity.json").is_file():
            return parent / STATE_FOLDER_NAME
    return here / STATE_FOLDER_NAME


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` at once, readable by its owner only; a reader sees the old text or the new."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp creates with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Identity:
    """Who the stack is: the id that marks its processes, its credentials, and where it was made."""

    stack_id: str
    access_key: str
    secret_key: str
    ray_token: str
    folder: str
    runtime: str
    evolution_token: str = ""  # folders of SEMR before the evolution service have none until their next `up`


def _runtime_path(stack_id: str) -> str:
    name = f"semr-{stack_id}"
    preferred = Path(tempfile.gettempdir()) / name
    if len(str(preferred)) <= _LONGEST_RUNTIME_PATH:
        return str(preferred)
    return str(Path("/tmp") / name)  # noqa: S108 the only short folder that every Unix has; ours inside it is 0700


def read_identity(folder: StateFolder) -> Identity | None:
    """The recorded identity; None when there is none."""
    recorded = read_json(folder.identity_file)
    if recorded is None:
        return None
    values = {field.name: recorded.get(field.name, field.default) for field in fields(Identity)}
    return Identity(**values) if all(isinstance(value, str) for value in values.values()) else None


def load_or_create_identity(folder: StateFolder) -> Identity:
    """The recorded identity, else a new one with random credentials.

    A folder that was copied gets a new id, so that two stacks never take each other's processes for their own.
    """
    recorded = read_identity(folder)
    if recorded is not None and not recorded.evolution_token:
        recorded = replace(recorded, evolution_token=secrets.token_hex(32))
        write_private(folder.identity_file, json.dumps(asdict(recorded), indent=2))
    if recorded is not None and recorded.folder == str(folder.root):
        return recorded
    stack_id = secrets.token_hex(4)
    if recorded is None:
        identity = Identity(
            stack_id=stack_id,
            access_key=secrets.token_hex(10),
            secret_key=secrets.token_hex(20),
            ray_token=secrets.token_hex(32),
            evolution_token=secrets.token_hex(32),
            folder=str(folder.root),
            runtime=_runtime_path(stack_id),
        )
    else:
        identity = Identity(
            **{
                **asdict(recorded),
                "stack_id": stack_id,
                "folder": str(folder.root),
                "runtime": _runtime_path(stack_id),
            }
        )
    write_private(folder.identity_file, json.dumps(asdict(identity), indent=2))
    return identity


@dataclass(frozen=True)
class StackOptions:
    """What `semr up` may be told; None keeps what the last `up` recorded, else the default.

    Args:
        mlflow_backend_uri: SQLAlchemy URL of MLflow's database; default: SQLite in the state folder.
        ray_object_store_mb: megabytes of shared memory for Ray's objects.
        ray_cpus: logical CPUs of the Ray node. More than the machine has is meant: jobs, Serve replicas and the tasks that
            feed them wait for each other most of the time, and all must find a place.
        policy: policy file of the evolution service; default: that of the MNIST example.
        time_compression: factor by which every duration in the alert rules is divided; default: 1.
    """

    mlflow_backend_uri: str | None = None
    ray_object_store_mb: int | None = None
    ray_cpus: int | None = None
    policy: str | None = None
    time_compression: float | None = None

    @property
    def scrape_seconds(self) -> float:
        """Time between two scrapes of a server; the least is set by Ray's agent, which is busy for a third of a second."""
        return max(_LEAST_SCRAPE_SECONDS, _SCRAPE_SECONDS / (self.time_compression or 1.0))

    def over(self, recorded: StackOptions) -> StackOptions:
        """These options, with `recorded` where they are None."""
        mine, theirs = asdict(self), asdict(recorded)
        return StackOptions(**{name: theirs[name] if value is None else value for name, value in mine.items()})


def read_options(folder: StateFolder) -> StackOptions:
    """The recorded options; all None when there are none."""
    recorded = read_json(folder.options_file) or {}
    names = {field.name for field in fields(StackOptions)}
    return StackOptions(**{name: value for name, value in recorded.items() if name in names})


def write_options(folder: StateFolder, options: StackOptions) -> None:
    """Record `options` for the supervisor and for the next `up`."""
    write_private(folder.options_file, json.dumps(asdict(options), indent=2))
