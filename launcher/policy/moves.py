"""When a running machine is left for a cheaper one. Pure.

Whether a spot zone has a machine is known only by asking for one, and a managed job has one machine at a time. So a
move gives up what it has first, and may find nothing: it has to be worth that too, in dollars and in slack.
"""

from __future__ import annotations

from launcher.policy.model import Action, Known, Move, Observation, Running, Stay
from launcher.policy.safety import bears_a_start, is_safe_place, is_tight, on_demand_makes_it, payable
from launcher.policy.settings import Settings
from launcher.policy.slack import outlook_against, outlook_of, slack_of
from launcher.policy.spot.market import USUAL_UP, SpotMarket, churned, survival
from launcher.policy.work_price import cheapest, hour_usd, restart_usd, spot_usd

PLAIN = churned(0.0, 1)
WORTH_IT = 0.05
"""A move to cheaper spot saves at least this share of what is left to pay."""


def leave_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    """For on demand, where that is cheaper by now; else for cheaper spot."""
    if not running.trained or running.worked_h < settings.return_h * 2**seen.moves_in_vain:
        return Stay()
    here = next((known for known in seen.places if known.place == running.place), Known(running.place))
    action = _to_on_demand(seen, here, settings)
    return action if isinstance(action, Move) else _to_cheaper_spot(seen, here, settings)


def _to_on_demand(seen: Observation, here: Known, settings: Settings) -> Action:
    """From a spot machine that was taken while on demand was sold out, or whose price has risen since."""
    best = cheapest([known for known in seen.places if is_safe_place(seen, known)], spot=False)
    if best is None or is_tight(seen, seen.work_left_h + 2 * seen.restart_h + settings.check_h):
        return Stay()  # where it would be made here, an unsuccessful move may miss it
    saved = seen.work_left_h * (spot_usd(seen, here, settings) - best.price_usd_per_hour)
    # Where it is sold out again, there was a restart for nothing.
    if saved <= restart_usd(seen, here.place) + restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _to_cheaper_spot(seen: Observation, here: Known, settings: Settings) -> Action:
    """The zone whose expected saving is largest. It may have no machine; then one here, or elsewhere, is started."""
    if is_tight(seen, seen.work_left_h + 3 * seen.restart_h + settings.check_h):
        return Stay()
    gains = [(_expected_gain_usd(seen, here, known, settings), known) for known in _cheaper(seen, here)]
    gain_usd, best = max(gains, key=lambda gain: gain[0], default=(0.0, here))
    if gain_usd <= WORTH_IT * seen.work_left_h * here.place.price_usd_per_hour:
        return Stay()
    return Move("cheaper", f"{best.place} may save ${gain_usd:.2f} on the rest")


def _cheaper(seen: Observation, here: Known) -> list[Known]:
    return [
        known
        for known in seen.places
        if known.place.spot
        and known.rest_h <= 0
        and known.place.price_usd_per_hour < here.place.price_usd_per_hour
        and payable(seen, known.place)
        and bears_a_start(seen, known.place, seen.places)
    ]


def _expected_gain_usd(seen: Observation, here: Known, there: Known, settings: Settings) -> float:
    """Of asking there: what is saved if it has a machine, less the restarts and the slack that the try costs.

    A good move costs a start, and most likely a preemption more: its spell may be new.
    """
    chance = chance_up(seen, there)
    hourly = hour_usd(seen, here, settings) - hour_usd(seen, there, settings)
    good = seen.work_left_h * hourly - 2 * restart_usd(seen, there.place)
    slack_usd = (1 + chance) * _slack_usd(seen, seen.restart_h, settings)
    return chance * good - (1 - chance) * restart_usd(seen, here.place) - slack_usd


def chance_up(seen: Observation, known: Known) -> float:
    """The chance that a spot place has a machine now.

    The place comes back with the rates of a stock-out since it last refused, or took a machine away. A place that did
    neither is like any other.
    """
    ago = [hours for hours in (known.refused_h_ago, known.preempted_h_ago) if hours is not None]
    if not ago:
        return USUAL_UP
    chain = seen.market.chain if seen.market else PLAIN
    return float(USUAL_UP * (1 - survival(chain.down_ends, min(ago))))


def _slack_usd(seen: Observation, hours: float, settings: Settings) -> float:
    """What so many hours less of slack cost, by the table; nothing without a deadline."""
    certain = cheapest(seen.places, spot=False)
    if seen.deadline_h is None or certain is None:
        return 0.0
    table = outlook_against(seen, certain, PLAIN, seen.places, settings)
    return table.slack_cost(seen.work_left_h, slack_of(seen), hours) * certain.price_usd_per_hour


def leave_on_demand(seen: Observation, running: Running, settings: Settings) -> Action:
    """For spot: by the table where the spot market can be seen, else as a try. Or for a cheaper machine on demand."""
    if not running.trained:
        return Stay()  # it is still being set up: what was paid for that would buy nothing
    if seen.market is not None and seen.deadline_h is not None:
        action = _by_table(seen, seen.market, settings)
    else:
        action = _try_spot(seen, running, settings)
    return action if isinstance(action, Move) else _to_cheaper_on_demand(seen, running, settings)


def _to_cheaper_on_demand(seen: Observation, running: Running, settings: Settings) -> Action:
    """From a dear machine that was taken while the cheaper ones were sold out, or whose price has risen since."""
    pause_h = settings.return_h * 2**seen.moves_in_vain
    if running.worked_h < pause_h or (seen.budget_left_usd is not None and not seen.measured):
        return Stay()
    rested = [
        known
        for known in seen.places
        if is_safe_place(seen, known) and (known.refused_h_ago is None or known.refused_h_ago >= pause_h)
    ]
    best = cheapest([known for known in rested if bears_a_start(seen, known.place, seen.places)], spot=False)
    if best is None or is_tight(seen, seen.work_left_h + 2 * seen.restart_h + settings.check_h):
        return Stay()  # an unsuccessful move ends on a machine like this one
    here_usd = running.place.price_usd_per_hour
    saved = seen.work_left_h * (here_usd - best.price_usd_per_hour)
    if saved <= restart_usd(seen, running.place) + restart_usd(seen, best) + WORTH_IT * seen.work_left_h * here_usd:
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _try_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    on_demand_usd = running.place.price_usd_per_hour
    spot = [known for known in seen.places if known.place.spot and known.rest_h <= 0 and payable(seen, known.place)]
    spot = [known for known in spot if bears_a_start(seen, known.place, seen.places)]
    spot = [known for known in spot if spot_usd(seen, known, settings) < on_demand_usd]
    if not spot or running.worked_h < settings.return_h * 2**seen.moves_in_vain:
        return Stay()
    if seen.budget_left_usd is not None and not seen.measured:
        return Stay()  # what the way to the end costs is not known yet, and this machine is on it
    if is_tight(seen, seen.work_left_h + 3 * seen.restart_h + settings.check_h):
        return Stay()  # time for an unsuccessful move, and for a preemption after a good one
    best = min(spot, key=lambda known: spot_usd(seen, known, settings)).place
    saved = seen.work_left_h * (on_demand_usd - best.price_usd_per_hour)
    # Unsuccessful it costs a restart on demand, and a good one a restart on spot and most likely a preemption.
    if saved <= restart_usd(seen, running.place) + 2 * restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _by_table(seen: Observation, market: SpotMarket, settings: Settings) -> Action:
    outlook = outlook_of(seen, market.chain, seen.places, settings)
    slack_h = slack_of(seen)
    if not on_demand_makes_it(seen) or slack_h <= outlook.at(outlook.keep, seen.work_left_h, market):
        return Stay()
    return Move("slack_enough", f"{slack_h:.1f} h of slack are worth a change to spot")
