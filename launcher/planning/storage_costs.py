"""Object storage costs of a run: keeping checkpoints, requests, and egress when a machine in another cloud restores.

The prices are in `checkpoints/storage/list_prices.py`. Traffic into a bucket is free in all of them, and so is traffic
to machines in the same cloud and region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from checkpoints.storage.backend import backend_of
from checkpoints.storage.list_prices import CLOUDFLARE_R2, StoragePrices

Floats = NDArray[np.float64]
HOURS_A_MONTH = 730.0
CHUNK_BYTES = 64 * 2**20
"""Chunk of an upload (checkpoints/save/shard_upload.py): one PUT each, one GET each in a restore."""
RUN_REQUESTS_AN_HOUR = 1500.0
"""Heartbeats every 5 s, metrics and events; counted as writes."""


class Fees(NamedTuple):
    """Fees of simulated runs in dollars; arrays with one entry per run."""

    storage_usd: Floats
    """Storage and requests."""
    egress_usd: Floats


def bucket_for(url: str | None, environment: Mapping[str, str] | None = None) -> StoragePrices:
    """The price list for a bucket's URL; without one, that of a bucket without egress fees.

    The location of an S3 bucket may also come from this machine's profile, unless an `environment` is given.
    """
    backend = backend_of(url) if url else None
    return CLOUDFLARE_R2 if backend is None or url is None else backend.prices(url, environment)


def restore_usd(bucket: StoragePrices, cloud: str | None, state_bytes: float) -> float:
    """Cost of moving a checkpoint to a machine of that cloud."""
    return 0.0 if cloud == bucket.cloud else state_bytes / 1e9 * bucket.egress_usd_per_gb


def keep_usd_per_h(bucket: StoragePrices, state_bytes: float, kept: int) -> float:
    """Cost of keeping `kept` checkpoints, the only cost of a run without a machine."""
    return kept * state_bytes / 1e9 * bucket.usd_per_gb_month / HOURS_A_MONTH


def fees(
    bucket: StoragePrices,
    *,
    hours: Floats,
    restores: Mapping[str, Floats],
    state_bytes: float,
    kept: int,
    saves: Floats,
) -> Fees:
    """Storage and egress fees of runs.

    Args:
        bucket: its price list.
        hours: from the launch to the end.
        restores: number of restores, by cloud of the machine.
        state_bytes: size of one checkpoint.
        kept: number of checkpoints kept at once.
        saves: number of saves in the whole run.
    """
    gb, nothing = state_bytes / 1e9, np.zeros_like(hours)
    keeping = keep_usd_per_h(bucket, state_bytes, kept) * hours
    chunks = max(1.0, state_bytes / CHUNK_BYTES)
    writes = saves * (chunks + 3) + hours * RUN_REQUESTS_AN_HOUR
    reads = sum(restores.values(), nothing) * (chunks + 3)
    requests = writes / 1000 * bucket.usd_per_1000_writes + reads / 1000 * bucket.usd_per_1000_reads
    abroad = sum((count for cloud, count in restores.items() if cloud != bucket.cloud), nothing)
    return Fees(keeping + requests, abroad * gb * bucket.egress_usd_per_gb)
