"""A small GCS on loopback: the XML API as far as a store needs it, with `x-goog-if-generation-match`.

The emulators of the package registries ignore the precondition on most paths, and the fence is nothing without it.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from tests.support.loopback import LoopbackServer, QuietHandler, serving


class FakeGcs(LoopbackServer):
    """Objects of any number of buckets, in memory. A request to a bucket that was not created answers 404."""

    def __init__(self, buckets: tuple[str, ...]) -> None:
        super().__init__(_Handler)
        self.lock = threading.Lock()
        self.objects: dict[str, dict[str, tuple[bytes, int]]] = {bucket: {} for bucket in buckets}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.generation = 1000
        self.token = ""  # where set, reading needs it, or a URL with a signature (that isn't checked)
        self.asked: list[str] = []


@contextlib.contextmanager
def fake_gcs(folder: Path, *buckets: str) -> Iterator[dict[str, str]]:
    """Run it; yields the environment with which a GCS client finds it."""
    with serving(FakeGcs(buckets)) as server:
        key = folder / "service-account.json"
        account = {
            "gcs_base_url": server.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        key.write_text(json.dumps(account))
        yield {"GOOGLE_SERVICE_ACCOUNT": str(key)}


class _Handler(QuietHandler):
    server: FakeGcs

    def do_PUT(self) -> None:
        bucket, key, query = self._target()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            if bucket not in self.server.objects:
                return self._error(404, "NoSuchBucket")
            if "partNumber" in query:
                self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
                return self._answer(200, headers={"ETag": f'"{query["partNumber"]}"'})
            return self._store(bucket, key, body)

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            if "uploads" in query:
                name = f"u{len(self.server.uploads)}"
                self.server.uploads[name] = {}
                return self._xml(
                    f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
                )
            if "delete" in query:  # S3's way, which GCS's S3 interface has too
                keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for name in keys:
                    self.server.objects[bucket].pop(unescape(name), None)
                deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in keys)
                return self._xml(f"<DeleteResult>{deleted}</DeleteResult>")
            parts = self.server.uploads.pop(query["uploadId"])
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
            self._write(bucket, key, b"".join(parts[number] for number in numbers))
            return self._xml('<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')

    def do_GET(self) -> None:
        bucket, key, query = self._target()
        self.server.asked.append(self.path)
        if bucket == "computeMetadata":
            if not self.server.token or self.headers.get("Metadata-Flavor") != "Google":
                return self._error(404, "NotFound")
            return self._answer(200, json.dumps({"access_token": self.server.token, "expires_in": 3600}).encode())
        if self.server.token and not self._may_read(query):
            return self._error(401, "AuthenticationRequired")
        with self.server.lock:
            if bucket not in self.server.objects:
                return self._error(404, "NoSuchBucket")
            if not key:
                return self._list(bucket, query)
            found = self.server.objects[bucket].get(key)
        if found is None:
            return self._error(404, "NoSuchKey")
        data, generation = found
        headers = {**_identity(generation), "Last-Modified": formatdate(usegmt=True)}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            if start >= len(data):
                return self._error(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._answer(206, data[start : end + 1], headers)
        return self._answer(200, data, headers)

    do_HEAD = do_GET

    def _may_read(self, query: dict[str, str]) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}" or "X-Goog-Signature" in query

    def do_DELETE(self) -> None:
        bucket, key, _ = self._target()
        with self.server.lock:
            gone = self.server.objects.get(bucket, {}).pop(key, None)
        return self._answer(204) if gone is not None else self._error(404, "NoSuchKey")

    def _store(self, bucket: str, key: str, body: bytes) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        found = self.server.objects[bucket].get(key)
        if wanted is not None and int(wanted) != (found[1] if found else 0):
            return self._error(412, "PreconditionFailed")
        return self._answer(200, headers=_identity(self._write(bucket, key, body)))

    def _write(self, bucket: str, key: str, body: bytes) -> int:
        self.server.generation += 1
        self.server.objects[bucket][key] = (body, self.server.generation)
        return self.server.generation

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        contents, prefixes = [], set()
        for key, (data, generation) in sorted(self.server.objects[bucket].items()):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{generation}"</ETag><Size>{len(data)}</Size></Contents>'
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(prefixes)
        )
        self._xml(f"<ListBucketResult>{''.join(contents)}{common}</ListBucketResult>")

    def _target(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(bucket), unquote(key), query

    def _xml(self, text: str) -> None:
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode())

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _identity(generation: int) -> dict[str, str]:
    return {"ETag": f'"{generation}"', "x-goog-generation": str(generation)}
