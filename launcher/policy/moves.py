"""When to leave a running machine for a cheaper one. Pure.

Whether a spot zone has a machine is known only by requesting one, and a managed job has one machine at a time. So a
move first gives up the current machine and may then find none; it must be worth that risk, in dollars and in slack.
"""

from __future__ import annotations

from launcher.policy.model import Action, Move, Observation, PlaceState, Running, Stay
from launcher.policy.safety import can_afford_start, is_safe_place, is_tight, on_demand_in_time, payable
from launcher.policy.settings import Settings
from launcher.policy.slack import slack_of, slack_table, slack_table_against
from launcher.policy.spot.market import USUAL_UP, SpotMarket, churned, survival
from launcher.policy.work_price import cheapest, hour_usd, restart_usd, spot_usd

PLAIN = churned(0.0, 1)
WORTH_IT = 0.05
"""A move to cheaper spot must save at least this share of what is left to pay."""


def leave_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    """Move to on demand if that has become cheaper, else to cheaper spot."""
    if not running.trained or running.worked_h < settings.return_h * 2**seen.failed_moves:
        return Stay()
    here = next((state for state in seen.places if state.place == running.place), PlaceState(running.place))
    action = _to_on_demand(seen, here, settings)
    return action if isinstance(action, Move) else _to_cheaper_spot(seen, here, settings)


def _to_on_demand(seen: Observation, here: PlaceState, settings: Settings) -> Action:
    """Leave a spot machine that was taken while on demand was sold out, or whose price has risen since."""
    best = cheapest([state for state in seen.places if is_safe_place(seen, state)], spot=False)
    if best is None or is_tight(seen, seen.work_left_h + 2 * seen.restart_h + settings.check_h):
        return Stay()  # an unsuccessful move may miss a deadline that this machine would make
    saved = seen.work_left_h * (spot_usd(seen, here, settings) - best.price_usd_per_hour)
    # If on demand is sold out again, the restart was wasted.
    if saved <= restart_usd(seen, here.place) + restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _to_cheaper_spot(seen: Observation, here: PlaceState, settings: Settings) -> Action:
    """Move to the zone with the largest expected saving. If it has no machine, one is started here or elsewhere."""
    if is_tight(seen, seen.work_left_h + 3 * seen.restart_h + settings.check_h):
        return Stay()
    gains = [(_expected_gain_usd(seen, here, state, settings), state) for state in _cheaper(seen, here)]
    gain_usd, best = max(gains, key=lambda gain: gain[0], default=(0.0, here))
    if gain_usd <= WORTH_IT * seen.work_left_h * here.place.price_usd_per_hour:
        return Stay()
    return Move("cheaper", f"{best.place} may save ${gain_usd:.2f} on the rest")


def _cheaper(seen: Observation, here: PlaceState) -> list[PlaceState]:
    return [
        state
        for state in seen.places
        if state.place.spot
        and state.rest_h <= 0
        and state.place.price_usd_per_hour < here.place.price_usd_per_hour
        and payable(seen, state.place)
        and can_afford_start(seen, state.place, seen.places)
    ]


def _expected_gain_usd(seen: Observation, here: PlaceState, there: PlaceState, settings: Settings) -> float:
    """Expected gain of a try there: the saving if it has a machine, less the restarts and the slack that it costs.

    A successful move costs a start, and most likely one more preemption: the spell there may be new.
    """
    chance = chance_up(seen, there)
    hourly = hour_usd(seen, here, settings) - hour_usd(seen, there, settings)
    good = seen.work_left_h * hourly - 2 * restart_usd(seen, there.place)
    slack_usd = (1 + chance) * _slack_usd(seen, seen.restart_h, settings)
    return chance * good - (1 - chance) * restart_usd(seen, here.place) - slack_usd


def chance_up(seen: Observation, state: PlaceState) -> float:
    """The probability that a spot place has a machine now.

    It recovers at the rates of a stock-out since it last refused or preempted a machine. A place that did neither has
    the usual availability.
    """
    ago = [hours for hours in (state.refused_h_ago, state.preempted_h_ago) if hours is not None]
    if not ago:
        return USUAL_UP
    chain = seen.market.chain if seen.market else PLAIN
    return float(USUAL_UP * (1 - survival(chain.down_ends, min(ago))))


def _slack_usd(seen: Observation, hours: float, settings: Settings) -> float:
    """Cost of losing that many hours of slack, by the table; 0 without a deadline."""
    certain = cheapest(seen.places, spot=False)
    if seen.deadline_h is None or certain is None:
        return 0.0
    table = slack_table_against(seen, certain, PLAIN, seen.places, settings)
    return table.slack_cost(seen.work_left_h, slack_of(seen), hours) * certain.price_usd_per_hour


def leave_on_demand(seen: Observation, running: Running, settings: Settings) -> Action:
    """Move to spot (by the table if the spot market can be observed, else as a try), or to cheaper on demand."""
    if not running.trained:
        return Stay()  # still being set up: what was paid for that would be wasted
    if seen.market is not None and seen.deadline_h is not None:
        action = _by_table(seen, seen.market, settings)
    else:
        action = _try_spot(seen, running, settings)
    return action if isinstance(action, Move) else _to_cheaper_on_demand(seen, running, settings)


def _to_cheaper_on_demand(seen: Observation, running: Running, settings: Settings) -> Action:
    """Leave an expensive machine that was taken while cheaper ones were sold out, or whose price has risen since."""
    pause_h = settings.return_h * 2**seen.failed_moves
    if running.worked_h < pause_h or (seen.budget_left_usd is not None and not seen.measured):
        return Stay()
    rested = [
        state
        for state in seen.places
        if is_safe_place(seen, state) and (state.refused_h_ago is None or state.refused_h_ago >= pause_h)
    ]
    best = cheapest([state for state in rested if can_afford_start(seen, state.place, seen.places)], spot=False)
    if best is None or is_tight(seen, seen.work_left_h + 2 * seen.restart_h + settings.check_h):
        return Stay()  # an unsuccessful move ends on a machine like this one
    here_usd = running.place.price_usd_per_hour
    saved = seen.work_left_h * (here_usd - best.price_usd_per_hour)
    if saved <= restart_usd(seen, running.place) + restart_usd(seen, best) + WORTH_IT * seen.work_left_h * here_usd:
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _try_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    on_demand_usd = running.place.price_usd_per_hour
    spot = [state for state in seen.places if state.place.spot and state.rest_h <= 0 and payable(seen, state.place)]
    spot = [state for state in spot if can_afford_start(seen, state.place, seen.places)]
    spot = [state for state in spot if spot_usd(seen, state, settings) < on_demand_usd]
    if not spot or running.worked_h < settings.return_h * 2**seen.failed_moves:
        return Stay()
    if seen.budget_left_usd is not None and not seen.measured:
        return Stay()  # the cost of finishing is not known yet, and this machine will finish
    if is_tight(seen, seen.work_left_h + 3 * seen.restart_h + settings.check_h):
        return Stay()  # leave time for an unsuccessful move, and for a preemption after a successful one
    best = min(spot, key=lambda state: spot_usd(seen, state, settings)).place
    saved = seen.work_left_h * (on_demand_usd - best.price_usd_per_hour)
    # Failure costs a restart on demand; success costs a restart on spot and most likely a preemption.
    if saved <= restart_usd(seen, running.place) + 2 * restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _by_table(seen: Observation, market: SpotMarket, settings: Settings) -> Action:
    table = slack_table(seen, market.chain, seen.places, settings)
    slack_h = slack_of(seen)
    if not on_demand_in_time(seen) or slack_h <= table.at(table.keep, seen.work_left_h, market):
        return Stay()
    return Move("slack_enough", f"{slack_h:.1f} h of slack are enough to move to spot")
