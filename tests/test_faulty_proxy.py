"""The proxy that other tests trust to refuse what would write, and nothing else, for as long as it is told to."""

from collections.abc import Callable
from functools import partial
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from cluster.object_store import ObjectStore
from tests.faulty_proxy import Faults, faulty_proxy


def fill(faults: Faults) -> None:
    faults.full = True


def forbid(faults: Faults) -> None:
    faults.forbidden = True


@pytest.mark.s3
@pytest.mark.parametrize(("refuse", "status"), [(fill, 507), (forbid, 403)])
def test_it_refuses_writes_while_it_is_told_to(
    endpoint: ObjectStore, refuse: Callable[[Faults], None], status: int
) -> None:
    endpoint.make_bucket("refusals")
    with faulty_proxy(endpoint.endpoint) as faults:
        once = Config(retries={"max_attempts": 1, "mode": "standard"})
        client: Any = boto3.client("s3", **{**endpoint.client_arguments, "endpoint_url": faults.url}, config=once)
        client.put_object(Bucket="refusals", Key="before", Body=b"kept")

        refuse(faults)
        for write in (
            partial(client.put_object, Bucket="refusals", Key="new", Body=b"lost"),
            partial(client.create_multipart_upload, Bucket="refusals", Key="new"),
        ):
            with pytest.raises(ClientError) as refused:
                write()
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert faults.refused == {status: 2}
        assert client.get_object(Bucket="refusals", Key="before")["Body"].read() == b"kept"
        client.delete_objects(Bucket="refusals", Delete={"Objects": [{"Key": "before"}]})
        assert client.list_objects_v2(Bucket="refusals")["KeyCount"] == 0

        faults.full = faults.forbidden = False
        client.put_object(Bucket="refusals", Key="new", Body=b"there")
        assert client.get_object(Bucket="refusals", Key="new")["Body"].read() == b"there"
        client.delete_object(Bucket="refusals", Key="new")
