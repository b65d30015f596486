"""The payloads of the diary's events, one model per kind.

    for event in events:
        match event.payload:
            case MachineUp(place=place, since=since): ...

In the bucket an event is `{"kind": ..., "data": {...}}`; a model has the keys of `data`. Newer versions may write more:
unknown keys are kept, an unknown kind is an `UnknownPayload`, and neither affects anything. Older versions wrote less:
a key lacks a default only if no reader can do without it, and new keys always have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PlainSerializer,
    PrivateAttr,
    model_validator,
)

from checkpoints.run_log.causes import Action, AttemptOutcome, Cause, GoneCause, Limit, words

_AS_TEXT = PlainSerializer(datetime.isoformat)
Moment = Annotated[AwareDatetime, _AS_TEXT]
AnyLimit = Annotated[Limit | Literal["other"], BeforeValidator(words(Limit, otherwise="other"))]
AnyCause = Annotated[Cause | Literal["other"], BeforeValidator(words(Cause, otherwise="other"))]
AnyAction = Annotated[Action | Literal["other"], BeforeValidator(words(Action, otherwise="other"))]
AnyOutcome = Annotated[AttemptOutcome | Literal["other"], BeforeValidator(words(AttemptOutcome, otherwise="other"))]
AnyGone = Annotated[GoneCause, BeforeValidator(words(GoneCause, otherwise="unknown"))]
About = Literal["progress", "release", "bucket", "controller", "price", "other"]
AnyAbout = Annotated[About, BeforeValidator(words(About, otherwise="other"))]


class PlaceRecord(BaseModel):
    """A market where a machine was requested. `launcher.policy.model.Place` is made from it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    cloud: str
    region: str
    zone: str | None = None
    """None if the cloud has no zones."""
    gpus: str
    """All GPUs of the node: `A100:8`."""
    spot: bool
    price_usd_per_hour: float
    """For the whole node."""
    restore_usd: float = 0.0
    """Egress fees for restoring a checkpoint to a machine here."""


class Payload(BaseModel):
    """The content of one event."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: ClassVar[str]
    _unknown_words: dict[str, str] = PrivateAttr(default_factory=dict)
    """Words of a newer version, by field: kept as they are in the bucket, but read as "other" or "unknown"."""

    @model_validator(mode="wrap")
    @classmethod
    def _keep_unknown_words(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        payload = read(data)
        if isinstance(data, Mapping):
            for name in cls.model_fields.keys() & data.keys():
                read_as = getattr(payload, name)
                if isinstance(read_as, str) and read_as != data[name]:
                    payload._unknown_words[name] = data[name]
        return payload

    def wire(self) -> dict[str, Any]:
        """The event's `data` in the bucket: what its writer set, without this version's defaults."""
        return {**self.model_dump(mode="json", exclude_unset=True), **self._unknown_words}


class UnknownPayload(Payload):
    """The content of an event of a kind that this version does not know."""

    kind = ""
    _no_mapping: tuple[Any, ...] = PrivateAttr(default=())
    """The data, if it isn't a mapping."""

    def wire(self) -> Any:
        return self._no_mapping[0] if self._no_mapping else super().wire()


class Damaged(Payload):
    """Stands in for an event that can't be read: its bytes differ from its checksum, or don't parse."""

    kind = "damaged"

    message: str
    """Names the object and its fault."""


class AtStep(Payload):
    """An event that records how many optimizer steps the attempt had done."""

    step: NonNegativeInt = 0


class RunEnd(AtStep):
    """The run is over: nothing more happens unless it is launched again."""


# --- written by the launcher and the strategy ---------------------------------------------------------


class Planned(Payload):
    """A job begins. Events before this one belong to an earlier job."""

    kind = "planned"

    strategy: str = ""
    order: tuple[dict[str, Any], ...] = ()
    """Kinds of places, in the order in which they are tried."""
    submission: str = ""
    """Travels with the job, so that one whose submission was interrupted can be found again."""


class Decided(Payload):
    """What the policy does next, and why."""

    kind = "decided"

    action: AnyAction
    cause: AnyCause | None = None
    """None in a diary of an earlier version."""
    reason: str = ""
    """For people."""
    first: str | None = None
    """The first place that a launch tries, for people."""


class MachineUp(Payload):
    """A machine runs the job."""

    kind = "machine_up"

    place: PlaceRecord
    since: Moment
    """When its billing began."""
    after_attempt: NonNegativeInt | None = None
    """The newest attempt when the machine was requested: those on it have higher numbers. None in a diary of an earlier
    version."""
    reserve: bool = False
    """When it was requested, the budget could also pay for finishing on demand."""


class UnderWay(Payload):
    """The strategy has seen the first new step on the machine that is up."""

    kind = "under_way"

    hours: float
    """Hours since the machine was requested, by the strategy's clock: how long a start takes."""


class PriceChanged(Payload):
    """The price list has a new price for the machine that is up, which applies from now on."""

    kind = "price_changed"

    place: PlaceRecord


class MachineGone(Payload):
    """The machine was released or taken away."""

    kind = "machine_gone"

    why: GoneCause = "unknown"
    place: PlaceRecord | None = None
    said: str = ""
    """The cloud's or SkyPilot's own words, for people."""
    job_status: str = ""
    """SkyPilot's final status of the job in lower case (`failed_setup`), if the machine ended with the job."""

    @model_validator(mode="before")
    @classmethod
    def _status_in_why(cls, data: Any) -> Any:
        """In the bucket the job's status is in `why`, as in all earlier versions."""
        why = data.get("why") if isinstance(data, Mapping) else None
        if isinstance(why, str) and words(GoneCause, otherwise="closed")(why) != why:
            return {**data, "why": "closed", "job_status": why}
        return data

    def wire(self) -> dict[str, Any]:
        data = super().wire()
        status = data.pop("job_status", "")
        return {**data, "why": status} if self.why == "closed" and status else data

    @property
    def cause_or_status(self) -> str:
        """For people."""
        return self.job_status or self.why


class NoCapacity(Payload):
    """No machine was available in these places."""

    kind = "no_capacity"

    places: tuple[PlaceRecord, ...]
    answers: tuple[str, ...] | None = None
    """The cloud's answer for each place, in the order of `places`; None in a diary of an earlier version."""
    reasons: tuple[str, ...] = ()
    """The distinct answers."""

    @model_validator(mode="after")
    def _an_answer_a_place(self) -> NoCapacity:
        if self.answers is not None and len(self.answers) != len(self.places):
            raise ValueError(f"{len(self.places)} places and {len(self.answers)} answers")
        return self


class SetupFailed(Payload):
    """The set-up or the preflight of a machine failed. Another machine may succeed."""

    kind = "setup_failed"

    message: str
    command: str = ""
    """The command that failed."""
    after: NonNegativeInt | None = None
    """The newest attempt before it: the machines' clocks don't order launches."""


class ReleaseFailed(Payload):
    """Releasing a machine failed. It is billed until a later try succeeds."""

    kind = "release_failed"

    place: PlaceRecord
    message: str
    """For people."""
    tries: int
    """How many have failed so far."""
    why: AnyGone = "unknown"
    """Why it is being released."""


class FalseRecovery(Payload):
    """SkyPilot reported the machine dead, but it is alive."""

    kind = "false_recovery"

    place: PlaceRecord


class Alarm(AtStep):
    """Something needs a person's attention."""

    kind = "alarm"

    phase: str = ""
    """What the attempt was doing: `training`, `set-up`, ..."""
    stuck_s: float = 0.0
    """For how long there has been no progress."""
    about: AnyAbout = "progress"
    message: str = ""
    """For people."""


class Compared(Payload):
    """Bit-exactness against an uninterrupted run."""

    kind = "compared"

    equal: bool
    steps: int = 0
    """How many steps' losses were compared."""
    tensors: int = 0
    differences: tuple[str, ...] = ()
    """The first few."""
    twin: str = ""
    """The uninterrupted run's name."""


# --- written by an attempt ----------------------------------------------------------------------------


class AttemptStarted(Payload):
    """An attempt has started on a machine."""

    kind = "attempt_started"

    host: str = ""
    processes: int = 0
    recipe: str = ""
    inputs: str = ""
    """A hash of recipe, local data and code, see `trainer.data.input_hash`."""


class Claimed(Payload):
    """The attempt holds the run."""

    kind = "claimed"


class Resumed(AtStep):
    """The state of `step` has been restored."""

    kind = "resumed"

    step: NonNegativeInt
    size_bytes: int = 0
    waited_s: float = 0.0
    not_exact: tuple[str, ...] = ()
    """What differs from the attempt that saved it."""


class DamageFound(Payload):
    """A checkpoint failed verification and was skipped."""

    kind = "damaged"

    step: NonNegativeInt = 0
    """The checkpoint's step, which this attempt need not have reached."""
    manifest: str = ""
    fault: str = ""


class Training(AtStep):
    """The attempt has finished its first step, which ends its start-up."""

    kind = "training"

    step: NonNegativeInt
    total_steps: int = 0
    links: tuple[str, ...] = ()
    """Pages that show the run."""


class LeftOutRows(BaseModel):
    """Rows of the data set that aren't trained on, for one reason."""

    model_config = ConfigDict(extra="allow", frozen=True)

    reason: str
    rows: NonNegativeInt
    where: tuple[str, ...] = ()
    """The first of them: `FILE:LINE`, or `SET row N`."""


class DataPrepared(Payload):
    """The data set has been tokenized. Not written if the tokens come from the run's cache."""

    kind = "data_prepared"

    rows: NonNegativeInt
    """How many were read."""
    train: NonNegativeInt
    evaluation: NonNegativeInt = 0
    left_out: tuple[LeftOutRows, ...] = ()


class Evaluated(AtStep):
    """An evaluation of the model after `step`."""

    kind = "evaluated"

    step: NonNegativeInt
    metrics: dict[str, Any]


class Saved(AtStep):
    """The checkpoint of `step` is committed."""

    kind = "saved"

    step: NonNegativeInt
    reason: str = ""
    """`interval`, `epoch`, `stop`, `final`."""
    size_bytes: int = 0
    upload_s: float = 0.0
    commit_s: float = 0.0


class Notice(AtStep):
    """A preemption was announced, or the attempt was asked to stop."""

    kind = "notice"

    source: str
    """A cloud (`gcp`, `aws`), `file`, a request (`stop`, `move`), `user`, or a signal's name."""
    deadline: Moment | None = None
    """When the machine will be gone, as its source put it."""


class Exported(Payload):
    """The model is in final/."""

    kind = "exported"

    files: dict[str, str]
    """xxh3-128 by file name."""
    base: dict[str, str | None] | None = None
    """The identity of the base model; None for an older run."""


class Pushed(Payload):
    """The model is on the Hub."""

    kind = "pushed"

    repo: str
    commit: str


class Preempted(AtStep):
    """The attempt was killed. Written by the process that killed it."""

    kind = "preempted"

    by: str = ""


class AttemptEnded(AtStep):
    """The attempt is over."""

    kind = "attempt_ended"

    outcome: AnyOutcome = "failed"
    message: str = ""
    """For people."""


# --- the ends of a run --------------------------------------------------------------------------------


class Finished(RunEnd):
    """The run is done."""

    kind = "finished"


class Failed(RunEnd):
    """The run has failed for good."""

    kind = "failed"

    message: str = ""
    hint: str = ""
    exit_code: int = 1


class Stopped(RunEnd):
    """The run was stopped, by the user or at a limit; it can be resumed."""

    kind = "stopped"

    reason: str = ""
    """For people."""
    limit: AnyLimit | None = None
    """The limit that ended it; None if a person stopped it."""


_MODELS: tuple[type[Payload], ...] = (
    *(
        Planned,
        Decided,
        MachineUp,
        UnderWay,
        PriceChanged,
        MachineGone,
        NoCapacity,
        SetupFailed,
        ReleaseFailed,
        FalseRecovery,
        Alarm,
        Compared,
    ),
    *(
        AttemptStarted,
        Claimed,
        Resumed,
        DamageFound,
        DataPrepared,
        Training,
        Evaluated,
        Saved,
        Notice,
        Exported,
        Pushed,
    ),
    *(Preempted, AttemptEnded, Finished, Failed, Stopped),
)
KINDS: Mapping[str, type[Payload]] = {model.kind: model for model in _MODELS}
"""The models by their `kind` in the bucket."""


def payload_of(kind: str, data: Any) -> Payload:
    """Validate an event's data as its kind. Raises pydantic's `ValidationError`."""
    if isinstance(data, Damaged):
        return data
    if kind in KINDS or isinstance(data, Mapping | Payload):
        return KINDS.get(kind, UnknownPayload).model_validate(data)
    unknown = UnknownPayload()
    unknown._no_mapping = (data,)
    return unknown
