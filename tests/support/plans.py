"""Plans of the shipped price snapshot, and offers made up for a test."""

from __future__ import annotations

from pathlib import Path

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Catalog, Offer, find_catalog, load_offers
from launcher.planning.node_types import wanted_gpus
from launcher.planning.plan import DryRun
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from trainer.config.recipe import load_recipe

RECIPE = load_recipe("notus-7b-dpo")
A100, A100_80, H100 = Gpus("A100", 8), Gpus("A100-80GB", 8), Gpus("H100", 8)


A100_ONLY = {"gpus": (A100,), "clouds": ("gcp", "lambda")}


def plan(snapshot: Catalog, **request: object) -> tuple[LaunchRequest, DryRun]:
    wanted = LaunchRequest(recipe="notus-7b-dpo", **request)  # type: ignore[arg-type]
    offers = load_offers(snapshot, wanted_gpus(wanted, RECIPE), wanted.clouds or ("gcp", "lambda"))
    return wanted, Planner(wanted, RECIPE, offers, "test").compare()


def node(
    gpus: str, *, price: float = 10.0, host_gib: float | None = None, pcie: bool = False, cloud: str = "vast"
) -> Offer:
    return Offer(
        cloud=cloud, region="r", zone=None, instance_type=f"i-{host_gib}", gpus=gpus, spot=False,
        price_usd_per_hour=price, host_gib=host_gib, pcie=pcie,
    )  # fmt: skip


def lists(tmp_path: Path, text: str | bytes, cloud: str = "lambda") -> Catalog:
    path = tmp_path / ".sky/catalogs/v8" / cloud / "vms.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_catalog({"HOME": str(tmp_path)})


HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice\n"
