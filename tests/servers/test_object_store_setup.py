"""The job that makes MinIO's buckets and users, on a real MinIO."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from chart_tools import Helm
from data_plane import DataPlane, until

from semr.storage import ObjectStore

BUCKETS = {
    "semr": {"semr-datasets", "semr-checkpoints"},
    "mlflow": {"semr-artifacts"},
    "flyte": {"semr-flyte"},
}
JOB = "Job/semr-minio-setup"


def refused(question: Any) -> str:
    with pytest.raises(ClientError) as error:
        question()
    code: str = error.value.response["Error"]["Code"]
    return code


@pytest.mark.parametrize("consumer", BUCKETS)
def test_a_consumer_uses_its_own_buckets(plane: DataPlane, consumer: str) -> None:
    client = plane.s3_of(consumer)
    for bucket in BUCKETS[consumer]:
        client.put_object(Bucket=bucket, Key="folder/one", Body=b"content")
        # In parts, as large artifacts are sent.
        upload = client.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
        part = client.upload_part(Bucket=bucket, Key="large", UploadId=upload, PartNumber=1, Body=b"part")
        uploads = client.list_multipart_uploads(Bucket=bucket, Prefix="large")["Uploads"]
        assert [each["UploadId"] for each in uploads] == [upload]
        assert len(client.list_parts(Bucket=bucket, Key="large", UploadId=upload)["Parts"]) == 1
        parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
        client.complete_multipart_upload(Bucket=bucket, Key="large", UploadId=upload, MultipartUpload={"Parts": parts})
        given_up = client.create_multipart_upload(Bucket=bucket, Key="given-up")["UploadId"]
        client.abort_multipart_upload(Bucket=bucket, Key="given-up", UploadId=given_up)
        assert {each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]} == {"folder/one", "large"}
        assert client.get_object(Bucket=bucket, Key="folder/one")["Body"].read() == b"content"
        client.head_bucket(Bucket=bucket)
        client.get_bucket_location(Bucket=bucket)
        for key in ("folder/one", "large"):
            client.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("consumer", BUCKETS)
def test_a_consumer_sees_no_other_bucket(plane: DataPlane, consumer: str) -> None:
    client = plane.s3_of(consumer)
    everything = set().union(*BUCKETS.values())
    assert {each["Name"] for each in client.list_buckets()["Buckets"]} == BUCKETS[consumer]
    for bucket in everything - BUCKETS[consumer]:
        plane.s3_of("root").put_object(Bucket=bucket, Key="of-others", Body=b"content")
        assert refused(lambda b=bucket: client.list_objects_v2(Bucket=b)) == "AccessDenied"
        assert refused(lambda b=bucket: client.get_object(Bucket=b, Key="of-others")) == "AccessDenied"
        assert refused(lambda b=bucket: client.put_object(Bucket=b, Key="new", Body=b"")) == "AccessDenied"
        assert refused(lambda b=bucket: client.delete_object(Bucket=b, Key="of-others")) == "AccessDenied"
        plane.s3_of("root").delete_object(Bucket=bucket, Key="of-others")


@pytest.mark.parametrize("consumer", BUCKETS)
def test_a_consumer_changes_no_buckets(plane: DataPlane, consumer: str) -> None:
    client = plane.s3_of(consumer)
    own = min(BUCKETS[consumer])
    assert refused(lambda: client.create_bucket(Bucket="another")) == "AccessDenied"
    assert refused(lambda: client.delete_bucket(Bucket=own)) == "AccessDenied"
    anyone = '{"Version": "2012-10-17", "Statement": []}'
    assert refused(lambda: client.put_bucket_policy(Bucket=own, Policy=anyone)) == "AccessDenied"


def test_nobody_reads_without_a_key(plane: DataPlane) -> None:
    plane.s3_of("root").put_object(Bucket="semr-datasets", Key="secret", Body=b"content")
    answer = httpx.get(f"{plane.node.url(9000)}/semr-datasets/secret", trust_env=False)
    assert answer.status_code == 403
    plane.s3_of("root").delete_object(Bucket="semr-datasets", Key="secret")


def test_datasets_are_kept_with_the_key_of_the_contract(plane: DataPlane) -> None:
    store = ObjectStore.from_settings(plane.settings())
    table = pa.table({"x": np.arange(10_000), "y": np.random.default_rng(1).random(10_000)})
    written = store.write_dataset("numbers", {"train": table}, source="test")
    assert store.read(store.dataset("numbers", written.version), "train").equals(table)


def test_a_second_run_leaves_everything_as_it_is(plane: DataPlane) -> None:
    client = plane.s3_of("flyte")
    client.put_object(Bucket="semr-flyte", Key="kept", Body=b"content")
    said = plane.node.start(plane.pod(JOB)).wait()
    assert "buckets and users are there" in said
    assert client.get_object(Bucket="semr-flyte", Key="kept")["Body"].read() == b"content"
    client.delete_object(Bucket="semr-flyte", Key="kept")


def test_a_changed_secret_key_is_taken(plane: DataPlane) -> None:
    data = plane.node.data("Secret", "semr-object-store")
    access_key, old = data["flyte-access-key"], data["flyte-secret-key"]
    plane.node.start(plane.pod(JOB), environment={"FLYTE_SECRET_KEY": "another-secret-key"}).wait()
    plane.s3(access_key, "another-secret-key").head_bucket(Bucket="semr-flyte")
    assert refused(lambda: plane.s3(access_key, old).list_objects_v2(Bucket="semr-flyte")) == "SignatureDoesNotMatch"
    plane.node.start(plane.pod(JOB)).wait()
    plane.s3(access_key, old).head_bucket(Bucket="semr-flyte")


def test_a_changed_bucket_is_made_and_the_old_one_closed(helm: Helm, plane: DataPlane) -> None:
    """`helm upgrade` with another name: the job runs again, since its name has changed with what it does."""
    storage = "flyte-binary.configuration.storage"
    names = (f"{storage}.metadataContainer", f"{storage}.userDataContainer", "minio.flyteBucket")
    changed = helm.render("SEMR", None, *(f"{name}=of-flyte" for name in names))
    credentials = {**plane.node.data("Secret", "semr-object-store"), **plane.node.data("Secret", "semr-contract")}
    environment = {name.upper().replace("-", "_"): value for name, value in credentials.items()}
    environment |= {f"SEMR_{each}": environment[f"SEMR_OBJECT_STORE_{each}"] for each in ("ACCESS_KEY", "SECRET_KEY")}
    other = DataPlane(dataclasses.replace(plane.node, rendered=changed))
    assert other.pod(JOB).owner != plane.pod(JOB).owner

    other.node.start(other.pod(JOB), environment=environment).wait()
    client = plane.s3_of("flyte")
    client.head_bucket(Bucket="of-flyte")
    assert refused(lambda: client.list_objects_v2(Bucket="semr-flyte")) == "AccessDenied"

    plane.node.start(plane.pod(JOB)).wait()
    client.list_objects_v2(Bucket="semr-flyte")


def test_secrets_are_in_no_output_and_no_command_line(plane: DataPlane) -> None:
    said = plane.node.start(plane.pod(JOB)).wait()
    data = plane.node.data("Secret", "semr-object-store")
    secrets = [data[name] for name in ("root-password", "mlflow-secret-key", "flyte-secret-key")]
    assert not [each for each in secrets if each in said]
    container = plane.pod(JOB).spec["containers"][0]
    assert not [each for each in secrets if each in " ".join(container["command"])]


def test_metrics_are_where_the_service_monitor_looks(plane: DataPlane) -> None:
    monitor = plane.node.rendered.get("ServiceMonitor", "semr-minio")
    (endpoint,) = monitor["spec"]["endpoints"]
    answer = httpx.get(f"{plane.node.url(9000)}{endpoint['path']}", trust_env=False)
    assert answer.status_code == 200
    assert "minio_cluster_health_status" in answer.text


def test_the_console_is_there(plane: DataPlane) -> None:
    answer = httpx.get(f"{plane.node.url(9001)}/", trust_env=False)
    assert answer.status_code == 200
    assert "MinIO Console" in answer.text


def test_objects_and_users_survive_kill_9(plane: DataPlane) -> None:
    client = plane.s3_of("semr")
    content = np.random.default_rng(2).bytes(3_000_000)
    client.upload_fileobj(io.BytesIO(content), "semr-checkpoints", "epoch-1")
    plane.kill("StatefulSet/semr-minio")
    plane.serve("StatefulSet/semr-minio")
    assert (
        until("the object", lambda: client.get_object(Bucket="semr-checkpoints", Key="epoch-1"))["Body"].read()
        == content
    )
    client.delete_object(Bucket="semr-checkpoints", Key="epoch-1")
