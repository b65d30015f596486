"""Azure Blob Storage beyond the contract that all stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from checkpoints.errors import AccessDenied, BucketUnusable, UserError
from checkpoints.storage.azure import AzureBlob, parts_of
from checkpoints.storage.backend import open_store
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.probe import probe
from tests.support.azurite import ACCOUNT, KEY, azurite

URL = f"az://{ACCOUNT}/notus-test/runs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with azurite(tmp_path_factory.mktemp("azurite"), "notus-test") as environment:
        yield environment


def test_a_key_signs_reads_into_memory(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = AzureBlob().open(URL, server)
    store.put("chunk", b"x" * 100_000)
    monkeypatch.setattr(ObjectStore, "get_range", None)  # the slow way
    memory = bytearray(100_000)
    assert store.read_into("chunk", memoryview(memory)) == 100_000
    assert bytes(memory) == b"x" * 100_000


def test_what_is_wrong_with_an_account_is_said(server: dict[str, str]) -> None:
    with pytest.raises(BucketUnusable):
        probe(AzureBlob().open(f"az://{ACCOUNT}/no-such-container", server))
    wrong = {**server, "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    with pytest.raises(AccessDenied) as told:
        probe(AzureBlob().open(URL, wrong))
    assert "AZURE_STORAGE" in told.value.hint
    assert "d3Jvbmc" not in str(told.value)


def test_the_environment_of_the_process_is_not_another_users(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    probe(open_store(URL))
    with pytest.raises((AccessDenied, BucketUnusable)):
        probe(AzureBlob().open(URL, {"AZURE_STORAGE_ENDPOINT": server["AZURE_STORAGE_ENDPOINT"], **WRONG}))


WRONG = {"AZURE_STORAGE_SAS_TOKEN": "sv=2022-11-02&ss=b&srt=co&sp=r&se=2030-01-01&sig=d3Jvbmc%3D"}


@pytest.mark.parametrize("url", ["az://", "az://account", "az://account/"])
def test_a_url_has_account_and_container(url: str) -> None:
    with pytest.raises(UserError, match="names no account and container"):
        parts_of(url)


def test_machines_get_the_lesser_right() -> None:
    both = {"AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_STORAGE_SAS_TOKEN": "sv=1"}
    assert AzureBlob().secrets(both) == {"AZURE_STORAGE_SAS_TOKEN": "sv=1"}
    assert AzureBlob().secrets({"AZURE_STORAGE_ACCOUNT_KEY": KEY}) == {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
    with pytest.raises(UserError, match="need a key to open an az:// bucket"):
        AzureBlob().secrets({})


def test_rules_name_only_what_no_listing_shows() -> None:
    (rule,) = AzureBlob().rules("runs/")["rules"]
    assert set(rule["definition"]["actions"]) == {"version", "snapshot"}
    assert rule["definition"]["filters"]["prefixMatch"] == ["runs/"]
