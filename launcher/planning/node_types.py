"""The kinds of node that a recipe can run on: whether it fits, and how fast it is there. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.catalog.gpu_speeds import PCIE, TIMED, relative_speed
from launcher.catalog.offers import Offer, by_kind
from launcher.errors import RequestError
from launcher.planning.plan import Candidate
from launcher.request import LaunchRequest
from trainer.config.clouds import CLOUDS
from trainer.config.gpu_types import GPU_TYPES, VISIBLE, unusable
from trainer.config.memory_estimate import Fit, fit
from trainer.config.recipe import Recipe


@dataclass(frozen=True)
class NodeKind:
    """All trusted offers of a cloud, GPU kind and market, with the recipe's speed and fit on them."""

    offers: Sequence[Offer]
    speed: float
    """Relative to the GPUs whose hours of work are known."""
    memory: str
    host_gib: int | None = None
    """Host memory to request, because the cloud also has smaller nodes of this kind."""

    @property
    def first(self) -> Offer:
        return self.offers[0]

    @property
    def name(self) -> str:
        market = "spot" if self.first.spot else "on demand"
        return f"{CLOUDS[self.first.cloud].label} {market} {self.first.gpus}"

    @property
    def candidate(self) -> Candidate:
        return Candidate(cloud=self.first.cloud, gpus=self.first.gpus, spot=self.first.spot, host_gib=self.host_gib)


@dataclass(frozen=True)
class Base:
    """The GPUs whose hours of work are known."""

    gpus: Gpus
    pcie: bool
    """The hours are those of cards on PCIe."""

    def speed_of(self, offer: Offer) -> float:
        """Speed relative to these GPUs. The speed of the offer's kind must be known."""
        speed = relative_speed(parse_gpus(offer.gpus), self.gpus, pcie=offer.pcie)
        assert speed is not None, "offers of unknown speed have no kind"
        return speed / PCIE if self.pcie else speed


@dataclass(frozen=True)
class Supply:
    """The offers of a request, and what can be planned on them."""

    offers: Sequence[Offer]
    """All offers, with whether the recipe fits."""
    kinds: Sequence[NodeKind]
    base: Base
    unknown_speed: Sequence[str]
    """GPUs that the recipe fits, but whose speed is not known."""


def wanted_gpus(request: LaunchRequest, recipe: Recipe) -> tuple[Gpus, ...]:
    """The nodes to look for: the requested ones, else each kind with NVLink and a known speed.

    If none is requested, a node has as many GPUs as the recipe was made for.
    """
    if request.gpus:
        return tuple(dict.fromkeys(request.gpus))
    count = _made_for(recipe).count
    return tuple(Gpus(name, count) for name in TIMED if GPU_TYPES[name].nvlink)


def supply_for(request: LaunchRequest, recipe: Recipe, offers: Sequence[Offer]) -> Supply:
    """The offers by kind, without those that the recipe does not fit or whose speed is not known.

    Raises `RequestError` if the speed of all requested GPUs is unknown and --hours doesn't give their time.
    """
    base = _base(request, recipe, offers)
    nodes = {name: parse_gpus(name) for name in dict.fromkeys(offer.gpus for offer in offers)}
    cards = {name: _fit(recipe, gpus) for name, gpus in nodes.items()}
    fitting = {name: gpus for name, gpus in nodes.items() if cards[name].fits}
    unknown_speed = [name for name, gpus in fitting.items() if relative_speed(gpus, base.gpus) is None]
    _refuse_unknown_speed(unknown_speed, fitting)
    fits = {key: cards[key[0]].on_host(key[1]) for key in dict.fromkeys(map(_node_of, offers))}
    judged = [_judged(offer, fits[_node_of(offer)]) for offer in offers]
    possible = (offer for offer in judged if offer.fits and offer.gpus not in unknown_speed)
    groups = by_kind(possible, trusted_only=not request.trust_prices)
    kinds = [_kind(group, base, fits[_node_of(group[0])], judged) for group in groups]
    return Supply(judged, kinds, base, unknown_speed)


def _made_for(recipe: Recipe) -> Gpus:
    return parse_gpus(recipe.hardware.gpus or "A100:8")


def _base(request: LaunchRequest, recipe: Recipe, offers: Sequence[Offer]) -> Base:
    """The GPUs that the hours refer to: with --hours the only requested node, else the recipe's."""
    if request.hours is None or len(set(request.gpus)) != 1 or not offers:
        return Base(_made_for(recipe), pcie=False)
    return Base(parse_gpus(offers[0].gpus), pcie=all(offer.pcie for offer in offers))


def _fit(recipe: Recipe, gpus: Gpus) -> Fit:
    """Fit by GPU memory; the host's memory differs between offers (`Fit.on_host`)."""
    made_for = _made_for(recipe)
    if recipe.hardware.gpus and gpus.count < made_for.count:
        return Fit(False, None, f"the recipe's batch is made for {made_for.count} GPUs")
    if recipe.hardware.gpus and (why := unusable(gpus.name)):
        return Fit(False, None, why)
    memory_gib = GPU_TYPES[gpus.name].memory_gib if gpus.name in GPU_TYPES else None
    return fit(recipe, memory_gib * VISIBLE if memory_gib else None, gpus.count)


def _refuse_unknown_speed(unknown: Sequence[str], fitting: Mapping[str, Gpus]) -> None:
    if fitting and len(unknown) == len(fitting):
        raise RequestError(
            f"the speed of {' or '.join(unknown)} is not known (known: "
            f"{', '.join(TIMED)}), so the hours of work can't be estimated",
            f"give the hours for one kind of node: --gpus {unknown[0]} --hours H",
        )


def _node_of(offer: Offer) -> tuple[str, float | None]:
    """What determines whether a recipe fits: the GPUs and the host's memory."""
    return offer.gpus, offer.host_gib


def _judged(offer: Offer, its_fit: Fit) -> Offer:
    misfit = "" if its_fit.fits else its_fit.reason
    if (offer.fits, offer.misfit) == (its_fit.fits, misfit):
        return offer  # a copy of ten thousand offers takes a tenth of a second
    return offer.model_copy(update={"fits": its_fit.fits, "misfit": misfit})


def _kind(group: Sequence[Offer], base: Base, its_fit: Fit, judged: Sequence[Offer]) -> NodeKind:
    """The kind of a group of offers; `its_fit` is how the recipe fits the first of them."""
    first = group[0]
    market = (first.cloud, first.gpus, first.spot)
    small = any(not offer.fits for offer in judged if (offer.cloud, offer.gpus, offer.spot) == market)
    if not small or its_fit.host_gib is None or first.host_gib is None:
        # Don't request memory that the catalog doesn't list: SkyPilot would no longer find that node.
        return NodeKind(group, base.speed_of(first), its_fit.reason)
    return NodeKind(group, base.speed_of(first), its_fit.reason, math.ceil(its_fit.host_gib))
