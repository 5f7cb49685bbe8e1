"""Make the contract's buckets in the stack's object store."""

from __future__ import annotations

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from semr.settings import Settings
from semr.stack.errors import StackError

_CONNECT_TIMEOUT_S = 3
_READ_TIMEOUT_S = 10
_ALREADY_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def make_buckets(settings: Settings) -> None:
    """Create the buckets for datasets, checkpoints and artifacts that are not there yet.

    Raises:
        StackError: the object store does not answer or refuses.
    """
    client = boto3.client(
        "s3",
        endpoint_url=settings.need("object_store_endpoint"),
        region_name=settings.object_store_region,
        aws_access_key_id=settings.need("object_store_access_key"),
        aws_secret_access_key=settings.need("object_store_secret_key"),
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            proxies={},
        ),
    )
    wanted = {settings.datasets_bucket, settings.checkpoints_bucket, settings.artifacts_bucket}
    try:
        present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in sorted(wanted - present):
            try:
                client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in _ALREADY_THERE:
                    raise
    except (BotoCoreError, ClientError) as error:
        raise StackError(f"The buckets {', '.join(sorted(wanted))} cannot be made: {error}") from error
    finally:
        client.close()
