"""Azure Blob Storage: `az://ACCOUNT/CONTAINER/PREFIX`.

The account is part of the URL, because a container's name is unique only within its account. Credentials, in order of
precedence: AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a service principal (AZURE_TENANT_ID, AZURE_CLIENT_ID,
AZURE_CLIENT_SECRET), the machine's managed identity. AZURE_STORAGE_ENDPOINT replaces
https://ACCOUNT.blob.core.windows.net, for a sovereign cloud or the emulator that the tests use (Azurite). The real
service was not tried.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore

from checkpoints.errors import AccessDenied, UserError
from checkpoints.storage.lifecycle_rules import OLD_VERSION_DAYS
from checkpoints.storage.list_prices import AZURE_BLOB, StoragePrices
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.obstore_client import RETRY, limits, opening, signing
from checkpoints.storage.presigned import Request

KEY, SAS, ENDPOINT = "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ENDPOINT"
CREDENTIALS = (
    "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
)
PRINCIPAL = {
    "tenant_id": "AZURE_TENANT_ID",
    "client_id": "AZURE_CLIENT_ID",
    "client_secret": "AZURE_CLIENT_SECRET",
}


class AzureBlob:
    """See `checkpoints.storage.backend.Backend`."""

    def open(self, url: str, environment: Mapping[str, str] | None) -> ObjectStore:
        account, container, prefix = parts_of(url)
        there = os.environ if environment is None else environment
        config: dict[str, Any] = {
            "account_name": account,
            "prefix": prefix or None,
            "retry_config": RETRY,
        }
        config |= _credentials(url, there, ours=environment is None or environment is os.environ)
        endpoint = there.get(ENDPOINT, "")
        if endpoint:
            config["endpoint"] = endpoint
        http = {"allow_http": True} if endpoint.startswith("http://") else {}  # the emulator
        with opening(url, CREDENTIALS):
            options: list[Any] = [{**each, **http} for each in limits()]
            small, bulk = (AzureStore(container, client_options=each, **config) for each in options)
        return ObjectStore(
            small,
            url,
            bulk=bulk,
            direct=_direct(small, there),
            again=lambda: self.open(url, environment),
            credentials=CREDENTIALS,
        )

    def prices(self, url: str, environment: Mapping[str, str] | None) -> StoragePrices:
        return AZURE_BLOB

    def settings(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        return {ENDPOINT: environment[ENDPOINT]} if environment and environment.get(ENDPOINT) else {}

    def secret_names(self, clouds: Collection[str]) -> tuple[str, ...]:
        return (KEY, SAS)

    def secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        found = {name: environment[name] for name in (KEY, SAS) if environment.get(name)}
        if not found:
            raise UserError(
                "the machines need a key to open an az:// bucket",
                f"export {SAS} (for this container alone: read, write, list, delete, until well after the deadline) or "
                f"{KEY}",
            )
        return {SAS: found[SAS]} if SAS in found else found  # the narrower permission, if both are set

    def rules(self, prefix: str) -> Any:
        actions = {
            kind: {"delete": {"daysAfterCreationGreaterThan": OLD_VERSION_DAYS}} for kind in ("version", "snapshot")
        }
        filters = {"blobTypes": ["blockBlob"], **({"prefixMatch": [prefix]} if prefix else {})}
        rule = {"enabled": True, "name": "notus-launch", "type": "Lifecycle"}
        return {"rules": [{**rule, "definition": {"filters": filters, "actions": actions}}]}

    def how_to_apply(self, url: str) -> str:
        account, _, _ = parts_of(url)
        return (
            f"(replaces the account's other rules: see them with az storage account management-policy show "
            f"--account-name {account} --resource-group GROUP, and add them to the file)\n"
            f"notus-ckpt lifecycle {shlex.quote(url)} > rules.json && az storage account management-policy create "
            f"--account-name {account} --resource-group GROUP --policy @rules.json"
        )


BACKEND = AzureBlob()


def parts_of(url: str) -> tuple[str, str, str]:
    """Account, container and prefix. Raises `UserError` for a URL that lacks one of the first two."""
    parts = urlsplit(url)
    container, _, prefix = parts.path.strip("/").partition("/")
    if not parts.netloc or not container:
        raise UserError(f"bucket {url!r} names no account and container", "write az://ACCOUNT/CONTAINER/PREFIX")
    return parts.netloc, container, prefix.strip("/")


def _credentials(url: str, environment: Mapping[str, str], *, ours: bool) -> dict[str, Any]:
    """Return the options that give obstore its credentials.

    Known credentials are passed as a provider: obstore would otherwise take this process's key first. For another user
    (not `ours`), only the credentials that a launch sends are used, never this machine's own identity.
    """
    if key := environment.get(KEY):
        return {"credential_provider": lambda: {"access_key": key, "expires_at": None}}
    if sas := environment.get(SAS):
        return {"credential_provider": lambda: {"sas_token": sas.removeprefix("?"), "expires_at": None}}
    if not ours:
        raise AccessDenied(f"no credentials for {url}", CREDENTIALS)
    if all(environment.get(name) for name in PRINCIPAL.values()):
        return {name: environment[variable] for name, variable in PRINCIPAL.items()}
    return {}


def _direct(store: AzureStore, environment: Mapping[str, str]) -> Callable[[str], Request] | None:
    """Signed requests, if there is an account key: only that signs without a request to Azure."""
    return signing(store) if environment.get(KEY) else None
