"""How to GET a GCS object without obstore: by a signed URL if there is a key, by the machine's token on GCP."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from checkpoints.storage.presigned import Request

METADATA_HOST = "metadata.google.internal"
STORAGE_URL = "https://storage.googleapis.com"
CONNECT_S = 2.0
EARLY_S = 225.0
"""How long before its expiry a token is renewed, as in google-auth: the metadata server has a new one by then."""
_KEY_FILES = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
_GCLOUD = ".config/gcloud/application_default_credentials.json"


def credentials(environment: Mapping[str, str]) -> dict[str, object] | None:
    """The key or login that obstore will use, in its order of precedence; {} = one that we can't read.

    None: there is neither, so obstore will use the identity of this machine.
    """
    try:
        text = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY")
        if not text:
            named = (Path(environment[name]) for name in _KEY_FILES if environment.get(name))
            text = next(named, Path(environment.get("HOME", "/")) / _GCLOUD).read_text()
        found = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class MachineAccess:
    """Requests with the token of this machine's identity on GCP."""

    def __init__(self, bucket: str, prefix: str, environment: Mapping[str, str]) -> None:
        base = environment.get("GOOGLE_BASE_URL") or STORAGE_URL
        self._folder = "/".join(quote(part) for part in (bucket, prefix) if part)
        self._base = base.rstrip("/")
        self._metadata = environment.get("GCE_METADATA_HOST") or METADATA_HOST
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0
        self._absent = False

    def request(self, key: str) -> Request:
        """The request for an object; raises `OSError` if there is no token: another cloud, or no service account."""
        return Request(f"{self._base}/{self._folder}/{quote(key)}", {"Authorization": f"Bearer {self._current()}"})

    def _current(self) -> str:
        with self._lock:
            if self._absent:
                raise OSError("this machine has no identity on GCP")
            if time.monotonic() >= self._until:
                try:
                    self._token, lives_s = self._fetch_token()
                except OSError:
                    self._absent = not self._token  # never there: don't try again for every chunk
                    raise
                self._until = time.monotonic() + lives_s - EARLY_S
            return self._token

    def _fetch_token(self) -> tuple[str, float]:
        url = f"http://{self._metadata}/computeMetadata/v1/instance/service-accounts/default/token"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=CONNECT_S) as answer:
                content = json.load(answer)
            return str(content["access_token"]), float(content["expires_in"])
        except (http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise OSError(f"{url} returned no token") from error
