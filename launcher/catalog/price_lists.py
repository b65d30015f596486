"""Price lists: where they are, how old they are, and what a node costs by them. Offline, no credentials.

A list is one `vms.csv` per cloud in the form of SkyPilot's catalog, schema v8. No list carries a date of its own,
neither in its header nor in its rows. When SkyPilot fetches one it writes the checksum to `.meta/<cloud>/vms.csv.md5`;
when a fetch *fails* it touches the list, so the list's own time says little. A list is therefore dated by its checksum
file while the two match. One without a matching checksum was edited by hand: SkyPilot never replaces it, and it is
dated by its own modification time. The snapshot of the package has the date in its name.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from checkpoints.errors import UserError
from checkpoints.util.environment import user_path
from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.zone_names import CLOUD as AWS
from launcher.catalog.zone_names import zone_names
from trainer.config.clouds import CLOUDS

SNAPSHOT_DATE = "2026-11"
SNAPSHOT_MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
"""A list is newer than the snapshot if it is newer than this: its files were stored on different days of that month."""
SCHEMA = "v8"
STALE = timedelta(days=7)
"""An older list is worth a warning: SkyPilot itself fetches every 7 hours, and spot prices move daily."""
REFRESH = "notus-launch prices refresh"

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
_GCP_HOSTS = (*_GCP_FAMILIES.values(), "g2-standard")
_COLUMNS = frozenset({"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"})
"""Without these a price list can't be read."""
_NUMBERS = ("AcceleratorCount", "Price", "SpotPrice", "MemoryGiB")
_WAY_OUT = f"fix it, or delete it: `{REFRESH}` fetches it again"
_LISTS_KEPT = 32
"""Lists that are kept in memory, so that a controller with many runs reads a list again only when it has changed."""


class PriceList(NamedTuple):
    """One cloud's list."""

    cloud: str
    path: Path
    dated: datetime
    edited: bool = False
    """By hand: SkyPilot doesn't replace it."""
    shipped: bool = False

    def age(self, now: datetime) -> timedelta:
        """Since it was known to be current; never negative."""
        return max(now - self.dated, timedelta(0))


class Row(NamedTuple):
    """One thing that a list sells in one zone (or region, where the cloud has no zones)."""

    instance_type: str
    gpu: str
    """'' for a machine of GCP that GPUs are added to."""
    gpu_count: float | None
    region: str
    zone: str | None
    on_demand: float | None
    spot: float | None
    host_gib: float | None
    pcie: bool
    twice_on_demand: bool = False
    """Listed several times, with different prices: the dearest is taken."""
    twice_spot: bool = False


class NodePrice(NamedTuple):
    """A node in one zone, as its list prices it."""

    region: str
    zone: str | None
    instance_type: str
    on_demand: float | None
    spot: float | None
    host: Row | None = None
    """The machine's part and the GPUs' part, where they are sold apart: that is where odd prices show."""
    gpus: Row | None = None
    pcie: bool = False
    host_gib: float | None = None
    twice_on_demand: bool = False
    twice_spot: bool = False

    def price(self, *, spot: bool) -> float | None:
        """Of a market; None where the list has none."""
        return self.spot if spot else self.on_demand


class Catalog(NamedTuple):
    """The price lists of all clouds."""

    lists: Mapping[str, tuple[PriceList, ...]]
    """By cloud, the one that counts first; the next one only has what the first lacks."""
    users: Path | None = None
    """SkyPilot's folder, where it has lists."""
    zone_names: Mapping[str, str] = {}
    """AWS's, see `zone_names`."""

    @property
    def source(self) -> str:
        """Where the prices come from, in short."""
        own = [cloud for cloud, lists in self.lists.items() if not lists[0].shipped]
        if not own:
            return _SHIPPED
        return f"SkyPilot's catalog in {self.users} for {', '.join(sorted(own))}; else {_SHIPPED}"

    def described(self, clouds: Iterable[str], now: datetime) -> str:
        """Where the prices of these clouds come from, and how old each list is."""
        used = self._used(clouds)
        told = []
        if own := [one for one in used if not one.shipped]:
            ages = ", ".join(f"{one.cloud} ({_of_age(one, now)})" for one in own)
            told.append(f"SkyPilot's catalog in {self.users} for {ages}")
        if shipped := [one for one in used if one.shipped]:
            where = f" for {', '.join(one.cloud for one in shipped)}" if own else ""
            told.append(f"{_SHIPPED} ({_of_age(shipped[0], now)}){where}")
        return "; ".join(told) or "no price list"

    def warnings(self, clouds: Iterable[str], now: datetime) -> list[str]:
        """Lists of these clouds that are too old to rely on, and the command that gets newer ones."""
        old = [one for one in self._used(clouds) if one.age(now) > STALE or one.dated < SNAPSHOT_MOMENT]
        found = []
        if refreshed := [one for one in old if not one.edited]:
            names = ", ".join(one.cloud for one in refreshed)
            oldest = max(one.age(now) for one in refreshed)
            found.append(f"prices of {names} are {_in_words(oldest)} old: `{REFRESH}` fetches newer ones")
        for one in (one for one in old if one.edited):
            found.append(
                f"the price list {one.path} is {_in_words(one.age(now))} old"
                + (f", older than {_SHIPPED}" if one.dated < SNAPSHOT_MOMENT else "")
                + f"; it counts as edited by hand, so nothing replaces it: delete it, then `{REFRESH}`"
            )
        return found

    def rows(self, cloud: str) -> tuple[Row, ...]:
        """What counts first of a cloud. Raises `UserError` for a list that can't be read."""
        return self.read(self.lists[cloud][0]) if cloud in self.lists else ()

    def read(self, one: PriceList) -> tuple[Row, ...]:
        """The rows of a list, zones by name. Raises `UserError`."""
        stat = _stat(one.path)
        rows = _read(one.path, stat.st_mtime_ns, stat.st_size)
        return _named(rows, self.zone_names) if one.cloud == AWS and self.zone_names else rows

    def node_prices(self, cloud: str, gpus: Gpus) -> list[NodePrice]:
        """What such a node costs in each zone of a cloud, by the first list that has any. Raises `UserError`."""
        for one in self.lists.get(cloud, ()):
            if found := nodes_in(cloud, self.read(one), gpus):
                return found
        return []

    def _used(self, clouds: Iterable[str]) -> list[PriceList]:
        return [self.lists[cloud][0] for cloud in clouds if cloud in self.lists]


_SHIPPED = f"the shipped price snapshot of {SNAPSHOT_DATE}"


def find_catalog(environment: os._Environ[str] | dict[str, str] | None = None) -> Catalog:
    """The user's SkyPilot catalog, and the snapshot of the package for clouds that it lacks.

    SkyPilot fetches a cloud's prices when it first needs them, so a user's catalog is mostly incomplete. A list that is
    older than the snapshot gives way to it, unless the user edited it.
    """
    environment = os.environ if environment is None else environment
    root = user_path(environment.get("SKY_RUNTIME_DIR") or environment.get("HOME") or "~")
    users = root / ".sky" / "catalogs" / SCHEMA
    shipped = shipped_catalog()
    own = [one for cloud in CLOUDS if (one := _users_list(users, cloud)) is not None]
    names = zone_names(users)
    if not own:
        return shipped._replace(zone_names=names)
    first = {one.cloud: (one,) for one in own if one.edited or one.dated >= SNAPSHOT_MOMENT}
    behind = {one.cloud: (*shipped.lists.get(one.cloud, ()), one) for one in own if one.cloud not in first}
    lists = {**shipped.lists, **first, **behind}
    return Catalog({cloud: lists[cloud] for cloud in CLOUDS if cloud in lists}, users, names)


@lru_cache(maxsize=1)
def shipped_catalog() -> Catalog:
    """The dated snapshot of the package."""
    folder = Path(str(files("launcher").joinpath("data", "catalogs", SCHEMA)))
    paths = {cloud: folder / cloud / "vms.csv" for cloud in CLOUDS}
    return Catalog(
        {
            cloud: (PriceList(cloud, path, SNAPSHOT_MOMENT, shipped=True),)
            for cloud, path in paths.items()
            if path.is_file()
        }
    )


def nodes_in(cloud: str, rows: Iterable[Row], gpus: Gpus) -> list[NodePrice]:
    """What such a node costs in each zone, by the rows of a cloud's list."""
    return _gcp_nodes(rows, gpus) if cloud == "gcp" else _plain_nodes(rows, gpus)


# --- dates ------------------------------------------------------------------------------------------


def _users_list(users: Path, cloud: str) -> PriceList | None:
    path = users / cloud / "vms.csv"
    if not path.is_file():
        return None
    edited = _is_edited(path, mark := users / ".meta" / cloud / "vms.csv.md5")
    changed_s = _stat(path if edited else mark).st_mtime
    return PriceList(cloud, path, datetime.fromtimestamp(changed_s, UTC), edited=edited)


def _is_edited(path: Path, mark: Path) -> bool:
    """As SkyPilot decides it (`is_catalog_modified`)."""
    try:
        stat = path.stat()
        return mark.read_text(encoding="utf-8").strip() != _checksum(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, UnicodeDecodeError):
        return True


@lru_cache(maxsize=_LISTS_KEPT)
def _checksum(path: Path, changed_ns: int, size: int) -> str:
    """As SkyPilot's. `changed_ns` and `size` are part of what is asked for: a file that has changed has another one."""
    del changed_ns, size
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"the price list {path} can't be read: {error}", _WAY_OUT) from error


def _of_age(one: PriceList, now: datetime) -> str:
    return f"{_in_words(one.age(now))} old" + (", edited by hand" if one.edited else "")


def _in_words(age: timedelta) -> str:
    hours = age / timedelta(hours=1)
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:,.0f} days"


# --- reading ----------------------------------------------------------------------------------------


@lru_cache(maxsize=_LISTS_KEPT)
def _read(path: Path, changed_ns: int, size: int) -> tuple[Row, ...]:
    """The rows of GPU nodes, each zone once; raises `UserError` that names the file and the way out.

    `changed_ns` and `size` are part of what is asked for: a list that has changed is read again.
    """
    del changed_ns, size
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = sorted(_COLUMNS - set(reader.fieldnames or ()))
            if missing:
                raise UserError(f"the price list {path} has no column {', '.join(missing)}", _WAY_OUT)
            rows = [_row(cells, path, reader.line_num) for cells in reader if _is_of_gpus(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the price list {path} can't be read: {error}", _WAY_OUT) from error
    if not rows:
        raise UserError(f"the price list {path} has no GPU node", _WAY_OUT)
    return _each_once(rows)


def _is_of_gpus(cells: Mapping[str, str | None]) -> bool:
    """Of a GPU, or of a machine of GCP that GPUs are added to."""
    return bool(cells["AcceleratorName"]) or (cells["InstanceType"] or "").startswith(_GCP_HOSTS)


def _row(cells: dict[str, str], path: Path, line: int) -> Row:
    """A line of the file, checked; raises `UserError`."""
    count, on_demand, spot, host_gib = (_number(cells, column, path, line) for column in _NUMBERS)
    if any(cells[column] is None for column in _COLUMNS):
        raise UserError(f"{path}, line {line}: it ends too early", _WAY_OUT)
    return Row(
        instance_type=cells["InstanceType"].strip(),
        gpu=cells["AcceleratorName"].strip(),
        gpu_count=count,
        region=_name(cells["Region"]),
        zone=_name(cells.get("AvailabilityZone") or "") or None,
        on_demand=on_demand,
        spot=spot,
        host_gib=host_gib or None,
        pcie="PCIe" in (cells.get("GpuInfo") or ""),
    )


def _name(cell: str) -> str:
    """A region or zone, without unprintable characters."""
    return "".join(letter for letter in cell if letter.isprintable()).strip()


def _number(cells: dict[str, str], column: str, path: Path, line: int) -> float | None:
    """None for an empty cell."""
    if not (text := cells.get(column)):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, line {line}: {column} {text!r} is no number", _WAY_OUT)
    return value


def _each_once(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Some lists have a line several times (skypilot#1367): it is one zone. Of different prices the dearest counts."""
    found: dict[tuple[object, ...], Row] = {}
    rows = list(rows)
    zoned = {_market(row) for row in rows if row.zone is not None}
    for row in rows:
        if row.zone is None and _market(row) in zoned:
            continue  # of one of its zones
        key = (*_market(row), (row.zone or "").casefold())
        found[key] = _merged(found[key], row) if key in found else row
    return tuple(found.values())


def _market(row: Row) -> tuple[object, ...]:
    """Names in capitals are the same ones."""
    return row.instance_type.casefold(), row.gpu.casefold(), row.gpu_count, row.region.casefold()


def _merged(one: Row, other: Row) -> Row:
    return one._replace(
        on_demand=_dearer(one.on_demand, other.on_demand),
        spot=_dearer(one.spot, other.spot),
        twice_on_demand=one.twice_on_demand or one.on_demand != other.on_demand,
        twice_spot=one.twice_spot or one.spot != other.spot,
    )


def _named(rows: tuple[Row, ...], names: Mapping[str, str]) -> tuple[Row, ...]:
    """Zones by name, without those that the account does not have; as they are where it would have none."""
    found = tuple(
        row if row.zone is None else row._replace(zone=names[row.zone])
        for row in rows
        if row.zone is None or row.zone in names
    )
    return found or rows


# --- nodes ------------------------------------------------------------------------------------------


def _plain_nodes(rows: Iterable[Row], gpus: Gpus) -> list[NodePrice]:
    """Clouds that sell a whole node in one row."""
    return [
        NodePrice(
            region=row.region,
            zone=row.zone,
            instance_type=row.instance_type,
            on_demand=row.on_demand,
            spot=row.spot,
            pcie=row.pcie,
            host_gib=row.host_gib,
            twice_on_demand=row.twice_on_demand,
            twice_spot=row.twice_spot,
        )
        for row in rows
        if row.gpu == gpus.name and row.gpu_count == gpus.count
    ]


def _gcp_nodes(rows: Iterable[Row], gpus: Gpus) -> list[NodePrice]:
    """GCP: the VM's row and the accelerator's row of the same zone, added."""
    family = _GCP_FAMILIES.get(gpus.name)
    instance_type = f"{family}-{gpus.count}g" if family else _GCP_L4.get(gpus.count) if gpus.name == "L4" else None
    if instance_type is None:
        return []
    hosts, cards = {}, []
    for row in rows:
        if row.instance_type == instance_type:
            hosts[row.zone] = row
        elif not row.instance_type and row.gpu == gpus.name and row.gpu_count == gpus.count:
            cards.append(row)
    return [_gcp_node(hosts[card.zone], card) for card in cards if card.zone in hosts]


def _gcp_node(host: Row, card: Row) -> NodePrice:
    return NodePrice(
        region=card.region,
        zone=card.zone,
        instance_type=host.instance_type,
        on_demand=_sum(host.on_demand, card.on_demand),
        spot=_sum(host.spot, card.spot),
        host=host,
        gpus=card,
        host_gib=host.host_gib,
        twice_on_demand=host.twice_on_demand or card.twice_on_demand,
        twice_spot=host.twice_spot or card.twice_spot,
    )


def _dearer(one: float | None, other: float | None) -> float | None:
    return max((price for price in (one, other) if price is not None), default=None)


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
