"""What object storage adds to a run: keeping checkpoints, requests, and the way out of a cloud when a machine restores.

The prices are in `checkpoints/storage/list_prices.py`. Traffic into a bucket costs nothing in any of them, and neither
does traffic to machines of the same cloud and region.
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
"""Of an upload (checkpoints/save/shard_upload.py): one PUT each, one GET each in a restore."""
RUN_REQUESTS_AN_HOUR = 1500.0
"""Heartbeats every 5 s, metrics and events; counted as writes."""


class Fees(NamedTuple):
    """Of runs, dollars; arrays with one entry for each run."""

    storage_usd: Floats
    """Keeping and requests."""
    egress_usd: Floats


def bucket_for(url: str | None, environment: Mapping[str, str] | None = None) -> StoragePrices:
    """The price list for a bucket's URL; without one, that of a bucket without egress fees.

    Where an S3 bucket is, this machine's profile tells too, unless an `environment` is given.
    """
    backend = backend_of(url) if url else None
    return CLOUDFLARE_R2 if backend is None or url is None else backend.prices(url, environment)


def restore_usd(bucket: StoragePrices, cloud: str | None, state_bytes: float) -> float:
    """For a checkpoint's way to a machine of that cloud."""
    return 0.0 if cloud == bucket.cloud else state_bytes / 1e9 * bucket.egress_usd_per_gb


def keep_usd_per_h(bucket: StoragePrices, state_bytes: float, kept: int) -> float:
    """For keeping so many checkpoints: all that a run costs in a pause."""
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
