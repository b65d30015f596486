"""Offers: what a node with so many GPUs costs where, read from a SkyPilot catalog. Offline, no credentials.

The user's own catalog (`~/.sky/catalogs/v8`, kept fresh by SkyPilot) is used where it is; else the dated snapshot that
the package ships.
"""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from launcher.errors import NothingFits
from launcher.request import CLOUDS, Gpus
from trainer.gpus import GPU_MEMORY_GIB

SNAPSHOT_DATE = "2026-11"
SCHEMA = "v8"

# GCP sells the VM and the accelerator apart. SkyPilot 0.14.1 pairs them like this.
_GCP_FAMILIES = {"A100": "a2-highgpu", "A100-80GB": "a2-ultragpu", "H100": "a3-highgpu"}


class Offer(BaseModel):
    """One way to get the node."""

    model_config = ConfigDict(frozen=True)

    cloud: str
    region: str
    zone: str | None
    instance_type: str
    gpus: str
    spot: bool
    price_usd_per_hour: float
    pcie: bool = False
    """Cards without NVLink between them."""
    fits: bool = True
    flags: tuple[str, ...] = ()


class Catalog(NamedTuple):
    """Where the prices come from: the first folder that has a cloud's file."""

    folders: tuple[Path, ...]
    source: str

    def file(self, cloud: str) -> Path | None:
        """The price list of a cloud."""
        paths = (folder / cloud / "vms.csv" for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)


class _Price(NamedTuple):
    region: str
    zone: str | None
    instance_type: str
    on_demand: float | None
    spot: float | None
    gpu_on_demand: float | None
    gpu_spot: float | None
    """The GPU's share, where it is known apart: that is where odd prices show."""
    pcie: bool = False


def find_catalog(environment: os._Environ[str] | dict[str, str] | None = None) -> Catalog:
    """The user's SkyPilot catalog, and the snapshot of the package for clouds that it lacks.

    SkyPilot fetches a cloud's prices when it first needs them, so a user's catalog is mostly incomplete.
    """
    environment = os.environ if environment is None else environment
    root = Path(environment.get("SKY_RUNTIME_DIR") or environment.get("HOME") or "~").expanduser()
    users = root / ".sky" / "catalogs" / SCHEMA
    shipped = shipped_catalog()
    found = sorted(path.parent.name for path in users.glob("*/vms.csv"))
    if not found:
        return shipped
    source = f"SkyPilot's catalog in {users} for {', '.join(found)}; else {shipped.source}"
    return Catalog((users, *shipped.folders), source)


def shipped_catalog() -> Catalog:
    """The dated snapshot of the package."""
    folder = Path(str(files("launcher").joinpath("data", "catalogs", SCHEMA)))
    return Catalog((folder,), f"the shipped price snapshot of {SNAPSHOT_DATE}")


def load_offers(catalog: Catalog, wanted: Sequence[Gpus], clouds: Iterable[str] = CLOUDS) -> list[Offer]:
    """All offers for the wanted nodes, cheapest first.

    Raises:
        NothingFits: no cloud sells such a node; names what there is.
    """
    offers: list[Offer] = []
    for cloud in clouds:
        path = catalog.file(cloud)
        if path is None:
            continue
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for gpus in wanted:
            prices = _gcp_prices(rows, gpus) if cloud == "gcp" else _plain_prices(rows, gpus)
            offers += _offers(cloud, gpus, prices)
    if not offers:
        raise NothingFits(
            f"no offer for {' or '.join(map(str, wanted))} in {', '.join(clouds)} ({catalog.source})",
            f"GPUs with prices: {', '.join(GPU_MEMORY_GIB)}; try another --gpus or --cloud",
        )
    return sorted(offers, key=lambda offer: (offer.price_usd_per_hour, offer.cloud, offer.region, offer.zone or ""))


def _plain_prices(rows: list[dict[str, str]], gpus: Gpus) -> list[_Price]:
    """Clouds that sell a whole node in one row."""
    return [
        _Price(
            region=row["Region"],
            zone=row.get("AvailabilityZone") or None,
            instance_type=row["InstanceType"],
            on_demand=_number(row["Price"]),
            spot=_number(row["SpotPrice"]),
            gpu_on_demand=None,
            gpu_spot=None,
            pcie="PCIe" in (row.get("GpuInfo") or ""),
        )
        for row in rows
        if row["AcceleratorName"] == gpus.name and _number(row["AcceleratorCount"]) == gpus.count
    ]


def _gcp_prices(rows: list[dict[str, str]], gpus: Gpus) -> list[_Price]:
    """GCP: the VM's row and the accelerator's row of the same zone, added."""
    instance_type = f"{_GCP_FAMILIES[gpus.name]}-{gpus.count}g"
    hosts = {row["AvailabilityZone"]: row for row in rows if row["InstanceType"] == instance_type}
    prices = []
    for row in rows:
        host = hosts.get(row["AvailabilityZone"])
        if row["InstanceType"] or row["AcceleratorName"] != gpus.name or host is None:
            continue
        if _number(row["AcceleratorCount"]) != gpus.count:
            continue
        on_demand, spot = _number(row["Price"]), _number(row["SpotPrice"])
        prices.append(
            _Price(
                region=row["Region"],
                zone=row["AvailabilityZone"],
                instance_type=instance_type,
                on_demand=_sum(_number(host["Price"]), on_demand),
                spot=_sum(_number(host["SpotPrice"]), spot),
                gpu_on_demand=on_demand,
                gpu_spot=spot,
            )
        )
    return prices


def _offers(cloud: str, gpus: Gpus, prices: list[_Price]) -> list[Offer]:
    medians = {
        spot: statistics.median(values)
        for spot in (False, True)
        if (values := [value for price in prices if (value := price.spot if spot else price.on_demand)])
    }
    offers = []
    for price in prices:
        for spot, value in ((False, price.on_demand), (True, price.spot)):
            if value is None or (spot and not CLOUDS[cloud].has_spot):
                continue
            offers.append(
                Offer(
                    cloud=cloud,
                    region=price.region,
                    zone=price.zone,
                    instance_type=price.instance_type,
                    gpus=str(gpus),
                    spot=spot,
                    price_usd_per_hour=round(value, 5),
                    pcie=price.pcie,
                    flags=_flags(price, spot, value, medians.get(spot, 0.0)),
                )
            )
    return offers


def _flags(price: _Price, spot: bool, value: float, median: float) -> tuple[str, ...]:
    """Reasons to distrust a price. A flagged offer is shown, never recommended."""
    flags = []
    if value <= 0:
        flags.append("zero price")
    if not spot:
        below_node = price.spot is not None and 0 < value < price.spot
        below_gpu = (
            price.gpu_on_demand is not None and price.gpu_spot is not None and price.gpu_on_demand < price.gpu_spot
        )
        if below_node or below_gpu:
            flags.append("on-demand price below its own spot price")
    if value > 0 and (value * 3 < median or value > 3 * median):
        flags.append("more than 3x off the same node elsewhere")
    return tuple(flags)


def by_kind(offers: Iterable[Offer], *, trusted_only: bool = True) -> list[list[Offer]]:
    """The offers of each cloud, GPU kind and market, cheapest first in each and among them. Never a zero price."""
    groups: dict[tuple[str, str, bool], list[Offer]] = defaultdict(list)
    for offer in offers:
        if offer.price_usd_per_hour > 0 and not (trusted_only and offer.flags):
            groups[offer.cloud, offer.gpus, offer.spot].append(offer)
    sorted_groups = (sorted(group, key=lambda offer: offer.price_usd_per_hour) for group in groups.values())
    return sorted(sorted_groups, key=lambda group: group[0].price_usd_per_hour)


def cheapest_by_kind(offers: Iterable[Offer], *, trusted_only: bool = True) -> list[Offer]:
    """The cheapest offer of each cloud, GPU kind and market, cheapest first."""
    return [group[0] for group in by_kind(offers, trusted_only=trusted_only)]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
