"""Price lists: where they are, how old they are, and the node prices in them. Offline, without credentials.

A list is one `vms.csv` per cloud in the format of SkyPilot's catalog, schema v8. Lists contain no date. When SkyPilot
fetches one it writes the checksum to `.meta/<cloud>/vms.csv.md5`; when a fetch *fails* it touches the list, so the
list's own modification time means little. A list is therefore dated by its checksum file while the two match. One
without a matching checksum was edited by hand: SkyPilot never replaces it, and it is dated by its own modification
time. The package's snapshot has the date in its name.
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
"""Lists older than this cause a warning: SkyPilot itself fetches every 7 hours, and spot prices change daily."""
REFRESH = "notus-launch prices refresh"

# GCP sells the VM and the accelerator separately. SkyPilot 0.14.1 pairs them like this (`_ACC_INSTANCE_TYPE_DICTS`);
# the others that it pairs (T4, P100, V100 on n1 machines) have no bfloat16.
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
"""Columns that a price list must have."""
_NUMBERS = ("AcceleratorCount", "Price", "SpotPrice", "MemoryGiB")
_FIX_HINT = f"fix or delete it; `{REFRESH}` fetches it again"
_LISTS_KEPT = 32
"""Lists cached in memory, so that a controller with many runs rereads a list only when it has changed."""


class PriceList(NamedTuple):
    """One cloud's list."""

    cloud: str
    path: Path
    dated: datetime
    edited: bool = False
    """Edited by hand: SkyPilot doesn't replace it."""
    shipped: bool = False

    def age(self, now: datetime) -> timedelta:
        """Time since it was current; never negative."""
        return max(now - self.dated, timedelta(0))


class Row(NamedTuple):
    """One item of a list in one zone (or region, if the cloud has no zones)."""

    instance_type: str
    gpu: str
    """'' for a GCP machine that GPUs are added to."""
    gpu_count: float | None
    region: str
    zone: str | None
    on_demand: float | None
    spot: float | None
    host_gib: float | None
    pcie: bool
    twice_on_demand: bool = False
    """Listed several times with different prices: the highest is used."""
    twice_spot: bool = False


class NodePrice(NamedTuple):
    """The prices of a node in one zone."""

    region: str
    zone: str | None
    instance_type: str
    on_demand: float | None
    spot: float | None
    host: Row | None = None
    """The machine and the GPUs, if they are sold separately: wrong prices show there."""
    gpus: Row | None = None
    pcie: bool = False
    host_gib: float | None = None
    twice_on_demand: bool = False
    twice_spot: bool = False

    def price(self, *, spot: bool) -> float | None:
        """The price in a market; None if the list has none."""
        return self.spot if spot else self.on_demand


class Catalog(NamedTuple):
    """The price lists of all clouds."""

    lists: Mapping[str, tuple[PriceList, ...]]
    """Lists by cloud, by priority; a later one only supplies what the first lacks."""
    users: Path | None = None
    """SkyPilot's folder, if it has lists."""
    zone_names: Mapping[str, str] = {}
    """AWS zone names, see `zone_names`."""

    @property
    def source(self) -> str:
        """Source of the prices, in short."""
        own = [cloud for cloud, lists in self.lists.items() if not lists[0].shipped]
        if not own:
            return _SHIPPED
        return f"SkyPilot's catalog in {self.users} for {', '.join(sorted(own))}; else {_SHIPPED}"

    def described(self, clouds: Iterable[str], now: datetime) -> str:
        """Source of the prices of these clouds, and the age of each list."""
        used = self._used(clouds)
        sources = []
        if own := [one for one in used if not one.shipped]:
            ages = ", ".join(f"{one.cloud} ({_described_age(one, now)})" for one in own)
            sources.append(f"SkyPilot's catalog in {self.users} for {ages}")
        if shipped := [one for one in used if one.shipped]:
            where = f" for {', '.join(one.cloud for one in shipped)}" if own else ""
            sources.append(f"{_SHIPPED} ({_described_age(shipped[0], now)}){where}")
        return "; ".join(sources) or "no price list"

    def warnings(self, clouds: Iterable[str], now: datetime) -> list[str]:
        """Warnings about lists of these clouds that are too old, with the command that fetches newer ones."""
        old = [one for one in self._used(clouds) if one.age(now) > STALE or one.dated < SNAPSHOT_MOMENT]
        warnings = []
        if refreshed := [one for one in old if not one.edited]:
            names = ", ".join(one.cloud for one in refreshed)
            oldest = max(one.age(now) for one in refreshed)
            warnings.append(f"prices of {names} are {_age_text(oldest)} old: `{REFRESH}` fetches newer ones")
        for one in (one for one in old if one.edited):
            warnings.append(
                f"the price list {one.path} is {_age_text(one.age(now))} old"
                + (f", older than {_SHIPPED}" if one.dated < SNAPSHOT_MOMENT else "")
                + f"; it counts as edited by hand, so it is never replaced: delete it, then run `{REFRESH}`"
            )
        return warnings

    def rows(self, cloud: str) -> tuple[Row, ...]:
        """Rows of a cloud's first list. Raises `UserError` if it can't be read."""
        return self.read(self.lists[cloud][0]) if cloud in self.lists else ()

    def read(self, one: PriceList) -> tuple[Row, ...]:
        """The rows of a list, with zones by name. Raises `UserError`."""
        stat = _stat(one.path)
        rows = _read(one.path, stat.st_mtime_ns, stat.st_size)
        return _named(rows, self.zone_names) if one.cloud == AWS and self.zone_names else rows

    def node_prices(self, cloud: str, gpus: Gpus) -> list[NodePrice]:
        """Prices of a node in each zone of a cloud, from the first list that has any. Raises `UserError`."""
        for one in self.lists.get(cloud, ()):
            if nodes := nodes_in(cloud, self.read(one), gpus):
                return nodes
        return []

    def _used(self, clouds: Iterable[str]) -> list[PriceList]:
        return [self.lists[cloud][0] for cloud in clouds if cloud in self.lists]


_SHIPPED = f"the shipped price snapshot of {SNAPSHOT_DATE}"


def find_catalog(environment: os._Environ[str] | dict[str, str] | None = None) -> Catalog:
    """The user's SkyPilot catalog, and the package's snapshot for clouds that it lacks.

    SkyPilot fetches a cloud's prices when it first needs them, so a user's catalog is usually incomplete. The snapshot
    takes precedence over an older list, unless the user edited it.
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
    """The package's dated snapshot."""
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
    """Prices of a node in each zone, from the rows of a cloud's list."""
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
    """The same check as SkyPilot's `is_catalog_modified`."""
    try:
        stat = path.stat()
        return mark.read_text(encoding="utf-8").strip() != _checksum(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, UnicodeDecodeError):
        return True


@lru_cache(maxsize=_LISTS_KEPT)
def _checksum(path: Path, changed_ns: int, size: int) -> str:
    """The same checksum as SkyPilot's. `changed_ns` and `size` are cache keys: a changed file is read again."""
    del changed_ns, size
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"the price list {path} can't be read: {error}", _FIX_HINT) from error


def _described_age(one: PriceList, now: datetime) -> str:
    return f"{_age_text(one.age(now))} old" + (", edited by hand" if one.edited else "")


def _age_text(age: timedelta) -> str:
    hours = age / timedelta(hours=1)
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:,.0f} days"


# --- reading ----------------------------------------------------------------------------------------


@lru_cache(maxsize=_LISTS_KEPT)
def _read(path: Path, changed_ns: int, size: int) -> tuple[Row, ...]:
    """The rows of GPU nodes, each zone once; raises `UserError` that names the file and the fix.

    `changed_ns` and `size` are cache keys: a changed list is read again.
    """
    del changed_ns, size
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = sorted(_COLUMNS - set(reader.fieldnames or ()))
            if missing:
                raise UserError(f"the price list {path} has no column {', '.join(missing)}", _FIX_HINT)
            rows = [_row(cells, path, reader.line_num) for cells in reader if _is_of_gpus(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the price list {path} can't be read: {error}", _FIX_HINT) from error
    if not rows:
        raise UserError(f"the price list {path} has no GPU node", _FIX_HINT)
    return _each_once(rows)


def _is_of_gpus(cells: Mapping[str, str | None]) -> bool:
    """Is it a GPU, or a GCP machine that GPUs are added to?"""
    return bool(cells["AcceleratorName"]) or (cells["InstanceType"] or "").startswith(_GCP_HOSTS)


def _row(cells: dict[str, str], path: Path, line: int) -> Row:
    """Parse and check a line of the file; raises `UserError`."""
    count, on_demand, spot, host_gib = (_number(cells, column, path, line) for column in _NUMBERS)
    if any(cells[column] is None for column in _COLUMNS):
        raise UserError(f"{path}, line {line} is incomplete", _FIX_HINT)
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
    """Parse a number; None for an empty cell."""
    if not (text := cells.get(column)):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, line {line}: {column} {text!r} is not a number", _FIX_HINT)
    return value


def _each_once(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Merge repeated lines for the same zone (skypilot#1367). If their prices differ, the highest counts."""
    merged: dict[tuple[object, ...], Row] = {}
    rows = list(rows)
    zoned = {_market(row) for row in rows if row.zone is not None}
    for row in rows:
        if row.zone is None and _market(row) in zoned:
            continue  # its zones are listed separately
        key = (*_market(row), (row.zone or "").casefold())
        merged[key] = _merged(merged[key], row) if key in merged else row
    return tuple(merged.values())


def _market(row: Row) -> tuple[object, ...]:
    """A row's key; names are case-insensitive."""
    return row.instance_type.casefold(), row.gpu.casefold(), row.gpu_count, row.region.casefold()


def _merged(one: Row, other: Row) -> Row:
    return one._replace(
        on_demand=_dearer(one.on_demand, other.on_demand),
        spot=_dearer(one.spot, other.spot),
        twice_on_demand=one.twice_on_demand or one.on_demand != other.on_demand,
        twice_spot=one.twice_spot or one.spot != other.spot,
    )


def _named(rows: tuple[Row, ...], names: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows with zones by name, without zones that the account lacks; unchanged if none would be left."""
    named = tuple(
        row if row.zone is None else row._replace(zone=names[row.zone])
        for row in rows
        if row.zone is None or row.zone in names
    )
    return named or rows


# --- nodes ------------------------------------------------------------------------------------------


def _plain_nodes(rows: Iterable[Row], gpus: Gpus) -> list[NodePrice]:
    """Nodes of clouds that list a whole node in one row."""
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
    """GCP nodes: the sum of the VM's row and the accelerator's row in the same zone."""
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
