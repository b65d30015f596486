"""The JSON records of a checkpoint: a manifest names one shard per rank, a shard index names chunks and tensors.

    HEAD --sha256--> manifest --sha256--> shard index of each rank --crc32c, xxh3--> chunks

Two levels, so that a rank reads only the manifest and its own index, and the manifest of 1,024 ranks stays small. Each
arrow carries a hash, so that the bytes of a checkpoint are verified from HEAD down.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

import xxhash
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from checkpoints.errors import CorruptCheckpoint, InvalidName
from checkpoints.util.keys import check_key


def _checked_key(key: str) -> str:
    try:
        return check_key(key)
    except InvalidName as error:  # in a record this is damage, not user input
        raise ValueError(error.message) from error


Key = Annotated[str, AfterValidator(_checked_key)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


CHECK = "check"
"""The key of a record's own checksum in its JSON."""


class Record(BaseModel):
    """A frozen record in a bucket. Unknown keys are refused: a newer format has another version number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> bytes:
        """JSON with a checksum of the content: a flipped bit in a name or a number may still be valid JSON."""
        content = self.model_dump(mode="json", exclude_none=True)
        return json.dumps({**content, CHECK: checksum(content)}, separators=(",", ":")).encode()


class Chunk(Record):
    """One immutable object: a slice of a rank's byte stream."""

    key: Key
    size_bytes: int = Field(gt=0)
    crc32c: int = Field(ge=0, lt=1 << 32)


class TensorRecord(Record):
    """Where a tensor is in the rank's byte stream, C order, little endian."""

    name: str = Field(description="file and path inside its tree, for people and for comparisons")
    kind: Literal["torch", "numpy"]
    dtype: str = Field(description="the torch or numpy name, for example bfloat16")
    shape: tuple[int, ...]
    offset: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    xxh3: Xxh3


class ShardIndex(Record):
    """Everything that one rank saved."""

    version: Literal[1] = 1
    rank: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    chunks: tuple[Chunk, ...]
    tensors: tuple[TensorRecord, ...]
    trees: dict[str, Any] = Field(description="file name -> JSON tree whose tensors point into `tensors`")


class ShardRef(Record):
    """A rank's shard as the manifest sees it."""

    rank: int = Field(ge=0)
    index: Key
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Manifest(Record):
    """One checkpoint."""

    version: Literal[1] = 1
    run: str
    step: int = Field(ge=0, description="optimizer steps done")
    epoch: int = Field(ge=1, description="fencing token of the writer: the attempt that saved it")
    world_size: int = Field(ge=1)
    created_at: AwareDatetime
    reason: str = Field(description="why it was saved: interval, epoch, stop, final")
    fingerprint: dict[str, Any] = Field(description="what has to be equal for an exact resume")
    shards: tuple[ShardRef, ...]

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


R = TypeVar("R", bound=Record)


def parse(record: type[R], data: bytes, where: str) -> R:
    """Parse a record that came from a bucket; raises `CorruptCheckpoint` naming `where`."""
    content = checked(data, where, record.__name__)
    try:
        # From JSON and not from the objects, so that times are parsed; the content is small except for shard indexes.
        return record.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise CorruptCheckpoint(
            f"{where} is not a valid {record.__name__}: {path or 'JSON'}: {first['msg']}"
        ) from error


def checked(data: bytes, where: str, kind: str = "record") -> Any:
    """The JSON content of any record, if it matches its own checksum; else raises `CorruptCheckpoint`."""
    try:
        content = json.loads(data)
        check = content.pop(CHECK)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{where} is not a valid {kind}: {error}") from error
    if check != checksum(content):
        raise CorruptCheckpoint(f"{where} differs from its checksum")
    return content


def checksum(content: object) -> str:
    """xxh3-128 of JSON content, independent of spacing and key order."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def sha256(data: bytes) -> str:
    """The identity of a record."""
    return hashlib.sha256(data).hexdigest()


def manifest_key(step: int, epoch: int, digest: str) -> str:
    """The create-once key of a manifest."""
    return f"manifests/s{step:08d}-e{epoch:06d}-{digest[:16]}.json"
