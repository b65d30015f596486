"""What each store charges for storage, reads, writes and egress."""

from __future__ import annotations

from typing import NamedTuple


class StoragePrices(NamedTuple):
    """List prices of a store, in US dollars. Ingress is free in all of them."""

    label: str
    cloud: str | None
    """The cloud whose machines read for free."""
    usd_per_gb_month: float
    egress_usd_per_gb: float
    usd_per_1000_writes: float
    usd_per_1000_reads: float


AMAZON_S3 = StoragePrices("Amazon S3", "aws", 0.023, 0.09, 0.005, 0.0004)
GOOGLE_CLOUD_STORAGE = StoragePrices("Google Cloud Storage", "gcp", 0.020, 0.12, 0.005, 0.0004)
CLOUDFLARE_R2 = StoragePrices("a bucket without egress fees (Cloudflare R2)", None, 0.015, 0.0, 0.0045, 0.00036)
"""As of 2026-11: US regions, standard class, first tier, without free allowances."""
AZURE_BLOB = StoragePrices("Azure Blob Storage", "azure", 0.0184, 0.087, 0.005, 0.0004)
"""Hot tier, LRS, East US 2, from a third party's copy of Microsoft's list in 2023; not checked since."""
