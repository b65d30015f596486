"""GCS objects are read straight into memory, by a signed URL or with the machine's token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from checkpoints.errors import ObjectMissing
from checkpoints.storage.gcs import GoogleCloudStorage
from checkpoints.storage.object_store import ObjectStore
from tests.support.gcs_fake import FakeGcs
from tests.support.loopback import serving

DATA = bytes(range(256))
KEY = "data/a b+c/c0"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGcs]:
    """A GCS that wants to know who reads, and a machine without any key or login."""
    for name in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(FakeGcs(("bucket",))) as made:
        made.token = "secret"
        made.objects["bucket"][f"run/{KEY}"] = (DATA, 1)
        monkeypatch.setenv("GOOGLE_BASE_URL", made.url)
        monkeypatch.setenv("GCE_METADATA_HOST", made.url.removeprefix("http://"))
        yield made


def account(url: str) -> str:
    """The key file of a service account that exists nowhere."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    known = {"type": "service_account", "client_email": "a@b", "private_key_id": "1", "gcs_base_url": url}
    return json.dumps({**known, "private_key": key.decode()})


def read(store: ObjectStore) -> bytes:
    memory = bytearray(len(DATA))
    assert store.read_into(KEY, memoryview(memory)) == len(DATA)
    return bytes(memory)


@pytest.mark.parametrize("by", ["machine", "key", "key file"])
def test_objects_are_read_without_obstore(
    server: FakeGcs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": account(server.url)} if by == "key" else None
    if by == "key file":
        path = tmp_path / "key.json"
        path.write_text(account(server.url))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))

    def slow(*args: object) -> memoryview:
        raise AssertionError("read the slow way")

    monkeypatch.setattr(ObjectStore, "get_range", slow)
    store = GoogleCloudStorage().open("gs://bucket/run", environment)
    assert read(store) == DATA
    with pytest.raises(ObjectMissing):
        store.read_into("no/such", memoryview(bytearray(1)))


def test_without_a_token_obstore_reads(server: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_range(self: ObjectStore, key: str, start: int, length: int) -> memoryview:
        asked.append(key)
        return memoryview(DATA)

    monkeypatch.setattr(ObjectStore, "get_range", get_range)
    store = GoogleCloudStorage().open("gs://bucket/run")
    server.token = ""  # the metadata server answers 404: a machine without an identity
    assert read(store) == DATA
    server.token = "late"
    assert read(store) == DATA
    assert asked == [KEY, KEY], "an identity that is not there is asked for once"


def test_a_login_of_a_person_is_read_for_by_obstore(
    server: FakeGcs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
    )
    monkeypatch.setattr(ObjectStore, "get_range", lambda *args: memoryview(DATA))
    assert read(GoogleCloudStorage().open("gs://bucket/run")) == DATA
    assert server.asked == []
