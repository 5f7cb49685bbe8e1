"""MLflow's S3 artifact repository for a server behind which clients do not reach the object store.

Newer servers with artifacts in S3 announce signed addresses, and clients and the web page then fetch and send artifacts there,
by the name under which the server knows the object store. Network policies keep model servers from it, and outside the cluster
nobody knows that name; the server has no setting against it. What it announces depends on what the repository can do, so this
one can do all but that, and everything goes through the server, as `--serve-artifacts` has it.

It is a plug-in of MLflow (https://mlflow.org/docs/latest/ml/plugins), found by the entry point next to it.
"""

from __future__ import annotations

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3ArtifactRepository(ArtifactRepository):  # type: ignore[misc]
    """As `S3ArtifactRepository`, without signed addresses.

    Args:
        artifact_uri: `s3://BUCKET/PATH`.
        options: as MLflow gives them to every repository.
    """

    def __init__(self, artifact_uri: str, **options: str | None) -> None:
        super().__init__(artifact_uri, **options)
        self._s3 = S3ArtifactRepository(artifact_uri, **options)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Send a file."""
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Send what is in a folder."""
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Files and folders directly below `path`."""
        found: list[FileInfo] = self._s3.list_artifacts(path)
        return found

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Remove a file, or all below a folder."""
        self._s3.delete_artifacts(artifact_path)

    def upload_archived_trace_data_bytes(self, data: bytes) -> None:
        """Send a trace."""
        self._s3.upload_archived_trace_data_bytes(data)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)
