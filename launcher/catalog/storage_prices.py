"""What object storage adds to a run: keeping checkpoints, requests, and the way out of a cloud when a machine restores.

List prices of 2026-11, US regions, first tier, without free allowances: Amazon S3 (standard), Google Cloud Storage
(standard, one region), Cloudflare R2. Traffic into a bucket costs nothing in any of them, and neither does traffic to
machines of the same cloud and region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from checkpoints.storage.s3_location import s3_location

Floats = NDArray[np.float64]
HOURS_A_MONTH = 730.0
CHUNK_BYTES = 64 * 2**20
"""Of an upload (checkpoints/save/shard_upload.py): one PUT each, one GET each in a restore."""
RUN_REQUESTS_AN_HOUR = 1500.0
"""Heartbeats every 5 s, metrics and events; counted as writes."""


class Bucket(NamedTuple):
    """What a store charges."""

    label: str
    cloud: str | None
    """Machines there read for nothing."""
    usd_per_gb_month: float
    egress_usd_per_gb: float
    usd_per_1000_writes: float
    usd_per_1000_reads: float


GCS = Bucket("Google Cloud Storage", "gcp", 0.020, 0.12, 0.005, 0.0004)
S3 = Bucket("Amazon S3", "aws", 0.023, 0.09, 0.005, 0.0004)
R2 = Bucket("a bucket without egress fees (Cloudflare R2)", None, 0.015, 0.0, 0.0045, 0.00036)

AWS = "https://s3.amazonaws.com"
ENDPOINTS = {"amazonaws.com": S3, "amazonaws.com.cn": S3, "storage.googleapis.com": GCS}
"""How the names of S3 endpoints end that are not of a store without egress fees."""


class Fees(NamedTuple):
    """Of runs, dollars; arrays with one entry for each run."""

    storage_usd: Floats
    """Keeping and requests."""
    egress_usd: Floats


def bucket_for(url: str | None, environment: Mapping[str, str] | None = None) -> Bucket:
    """The price list for a bucket's URL; without one, that of a bucket without egress fees.

    Where an S3 bucket is, this machine's profile tells too, unless an `environment` is given.
    """
    if url and url.startswith("gs://"):
        return GCS
    if not url or not url.startswith("s3://"):
        return R2
    elsewhere = s3_location(environment, profiles=environment is None).endpoint
    host = urlsplit(elsewhere or AWS).hostname or ""
    return next((bucket for end, bucket in ENDPOINTS.items() if host.endswith(end)), R2)


def restore_usd(bucket: Bucket, cloud: str | None, state_bytes: float) -> float:
    """For a checkpoint's way to a machine of that cloud."""
    return 0.0 if cloud == bucket.cloud else state_bytes / 1e9 * bucket.egress_usd_per_gb


def keep_usd_per_h(bucket: Bucket, state_bytes: float, kept: int) -> float:
    """For keeping so many checkpoints: all that a run costs in a pause."""
    return kept * state_bytes / 1e9 * bucket.usd_per_gb_month / HOURS_A_MONTH


def fees(
    bucket: Bucket,
    *,
    hours: Floats,
    restores: Mapping[str, Floats],
    state_bytes: float,
    kept: int,
    saves: Floats,
) -> Fees:
    """What the store asks for runs.

    Args:
        bucket: its price list.
        hours: from the launch to the end.
        restores: restored checkpoints, by cloud of the machine.
        state_bytes: of one checkpoint.
        kept: checkpoints that are kept at once.
        saves: of the whole run.
    """
    gb, nothing = state_bytes / 1e9, np.zeros_like(hours)
    keeping = keep_usd_per_h(bucket, state_bytes, kept) * hours
    chunks = max(1.0, state_bytes / CHUNK_BYTES)
    writes = saves * (chunks + 3) + hours * RUN_REQUESTS_AN_HOUR
    reads = sum(restores.values(), nothing) * (chunks + 3)
    requests = writes / 1000 * bucket.usd_per_1000_writes + reads / 1000 * bucket.usd_per_1000_reads
    abroad = sum((count for cloud, count in restores.items() if cloud != bucket.cloud), nothing)
    return Fees(keeping + requests, abroad * gb * bucket.egress_usd_per_gb)
