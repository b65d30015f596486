"""A real S3 server on loopback: SeaweedFS, started in a fresh folder on free ports."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from trainer.runtime.process_tree import die_with_parent

ACCESS_KEY, SECRET_KEY = "notus-test", "notus-test-secret"
START_S = 60.0


class S3Server(NamedTuple):
    endpoint: str

    def environment(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )


@contextlib.contextmanager
def seaweed(folder: Path, address: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run SeaweedFS on an address of this machine, with its data and its log in `folder`."""
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    ports = _free_ports(4)
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    grpc = _free_ports(4)
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={data}",
        f"-ip={address}",
        f"-ip.bind={address}",
        "-filer",
        "-s3",
        f"-s3.config={config}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=50",
        "-master.volumeSizeLimitMB=256",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        *(f"-{name}.grpc={port}" for name, port in zip(names, grpc, strict=True)),
    ]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=lambda: die_with_parent(signal.SIGKILL))
    try:
        server = S3Server(f"http://{address}:{ports[-1]}")
        _wait_until_up(server, process, folder / "weed.log")
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_until_up(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    client = server.client()
    while True:
        try:
            if not any(bucket["Name"] == "probe" for bucket in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket="probe")
            client.put_object(Bucket="probe", Key="up", Body=b"1")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
