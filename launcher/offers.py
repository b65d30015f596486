"""Offers: what a node with so many GPUs costs where, read from a SkyPilot catalog. Offline, no credentials.

The user's own catalog (`~/.sky/catalogs/v8`, kept fresh by SkyPilot) is used where it is; else the dated snapshot that
the package ships.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from checkpoints.environment import user_path
from checkpoints.errors import UserError
from launcher.errors import NothingFits, RequestError
from launcher.request import CLOUDS, Gpus, did_you_mean
from trainer.gpus import GPU_MEMORY_GIB

SNAPSHOT_DATE = "2026-11"
SCHEMA = "v8"

# GCP sells the VM and the accelerator apart. SkyPilot 0.14.1 pairs them like this (`_ACC_INSTANCE_TYPE_DICTS`); what it
# pairs otherwise (T4, P100, V100 on n1 machines) doesn't compute in bfloat16.
_GCP_FAMILIES = {
    "A100": "a2-highgpu",
    "A100-80GB": "a2-ultragpu",
    "H100": "a3-highgpu",
    "H100-MEGA": "a3-megagpu",
    "H200": "a3-ultragpu",
    "B200": "a4-highgpu",
}
_GCP_L4 = {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}
_COLUMNS = frozenset({"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"})
"""Without these a price list can't be read."""
_GCP_HOSTS = (*_GCP_FAMILIES.values(), "g2-standard")
_WAY_OUT = "mend it, or delete it: `notus-launch prices refresh` fetches it anew"
_MORE = "the shipped snapshot has nodes of 8 GPUs only; `notus-launch prices refresh` gets SkyPilot's lists, with more"
_Row = dict[str, str]
"""A line of a price list, by column."""
_NUMBERS = ("AcceleratorCount", "Price", "SpotPrice", "MemoryGiB")


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
    host_gib: float | None = None
    """The node's own memory; None where the catalog doesn't say."""
    fits: bool = True
    misfit: str = ""
    """Why the recipe doesn't fit."""
    flags: tuple[str, ...] = ()

    @property
    def area(self) -> str:
        """What a spot machine is counted by, as of a policy's place: its zone, or region."""
        return self.zone or self.region


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
    host_gib: float | None = None


def find_catalog(environment: os._Environ[str] | dict[str, str] | None = None) -> Catalog:
    """The user's SkyPilot catalog, and the snapshot of the package for clouds that it lacks.

    SkyPilot fetches a cloud's prices when it first needs them, so a user's catalog is mostly incomplete.
    """
    environment = os.environ if environment is None else environment
    root = user_path(environment.get("SKY_RUNTIME_DIR") or environment.get("HOME") or "~")
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
        UserError: a price list that can't be read.
        RequestError: a kind of GPU that no price list has; names the nearest.
        NothingFits: no cloud sells such a node; names what there is.
    """
    clouds = tuple(clouds)
    lists = {cloud: _read(path) for cloud in clouds if (path := catalog.file(cloud)) is not None}
    shipped = any((path := catalog.file(cloud)) and path.is_relative_to(catalog.folders[-1]) for cloud in lists)
    where = f"{', '.join(lists) or 'no cloud'} ({catalog.source})"
    sold = _nodes_sold(lists.values())
    more = f"; {_MORE}" if shipped else ""
    wanted = [_spelled(gpus, sold, where, more) for gpus in wanted]
    offers = [offer for cloud, rows in lists.items() for gpus in wanted for offer in _of_node(cloud, rows, gpus)]
    if not offers:
        kinds = [name for name in dict.fromkeys(gpus.name for gpus in wanted) if name in sold]
        nodes = [Gpus(name, int(count)) for name in kinds for count in sorted(sold[name]) if count >= 1]
        there = [str(gpus) for gpus in nodes if any(_of_node(cloud, rows, gpus) for cloud, rows in lists.items())]
        raise NothingFits(
            f"no offer for {' or '.join(map(str, wanted))} in {where}",
            f"there is: {', '.join(there or sorted(sold)) or 'nothing'}{more}",
        )
    return sorted(offers, key=lambda offer: (offer.price_usd_per_hour, offer.cloud, offer.region, offer.zone or ""))


def _of_node(cloud: str, rows: list[_Row], gpus: Gpus) -> list[Offer]:
    return _offers(cloud, gpus, _gcp_prices(rows, gpus) if cloud == "gcp" else _plain_prices(rows, gpus))


def _nodes_sold(lists: Iterable[list[_Row]]) -> defaultdict[str, set[float]]:
    """How many GPUs of each kind a node has somewhere."""
    sold: defaultdict[str, set[float]] = defaultdict(set)
    for row in (row for rows in lists for row in rows if row["AcceleratorName"]):
        sold[row["AcceleratorName"]].add(_number(row["AcceleratorCount"]) or 0)
    return sold


def _spelled(gpus: Gpus, sold: Mapping[str, object], where: str, more: str) -> Gpus:
    """As the price lists spell it. Raises `RequestError` for a kind that neither they nor we know."""
    names = {name.lower(): name for name in (*GPU_MEMORY_GIB, *sold)}
    if gpus.name.lower() not in names:
        raise RequestError(
            f"no price for a GPU {gpus.name!r} in {where}{did_you_mean(gpus.name, sold)}",
            f"priced: {', '.join(sorted(sold))}{more}",
        )
    return Gpus(names[gpus.name.lower()], gpus.count)


def _read(path: Path) -> list[_Row]:
    """The lines of a price list that are of GPU nodes; raises `UserError` that names the file and the way out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = sorted(_COLUMNS - set(reader.fieldnames or ()))
            if missing:
                raise UserError(f"the price list {path} has no column {', '.join(missing)}", _WAY_OUT)
            rows = [_checked(row, path, reader.line_num) for row in reader if _is_of_gpus(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the price list {path} can't be read: {error}", _WAY_OUT) from error
    if not rows:
        raise UserError(f"the price list {path} has no GPU node", _WAY_OUT)
    return rows


def _is_of_gpus(row: Mapping[str, str | None]) -> bool:
    """Of a GPU, or of a machine of GCP that GPUs are added to."""
    return bool(row["AcceleratorName"]) or (row["InstanceType"] or "").startswith(_GCP_HOSTS)


def _checked(row: _Row, path: Path, line: int) -> _Row:
    """The line, if its numbers are numbers; raises `UserError`."""
    for column in _NUMBERS:
        try:
            value = _number(row.get(column))
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            told = f"{path}, line {line}: {column} {row[column]!r} is no number"
            raise UserError(told, _WAY_OUT)
    if any(row[column] is None for column in _COLUMNS):
        raise UserError(f"{path}, line {line}: it ends too early", _WAY_OUT)
    return row


def _plain_prices(rows: list[_Row], gpus: Gpus) -> list[_Price]:
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
            host_gib=_number(row.get("MemoryGiB")) or None,
        )
        for row in rows
        if row["AcceleratorName"] == gpus.name and _number(row["AcceleratorCount"]) == gpus.count
    ]


def _gcp_prices(rows: list[_Row], gpus: Gpus) -> list[_Price]:
    """GCP: the VM's row and the accelerator's row of the same zone, added."""
    family = _GCP_FAMILIES.get(gpus.name)
    instance_type = f"{family}-{gpus.count}g" if family else _GCP_L4.get(gpus.count) if gpus.name == "L4" else None
    if instance_type is None:
        return []
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
                host_gib=_number(host.get("MemoryGiB")) or None,
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
                    host_gib=price.host_gib,
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
