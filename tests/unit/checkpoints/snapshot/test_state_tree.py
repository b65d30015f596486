"""Trees survive the way through JSON and bytes, whatever is in them."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import math
import os
import random
import signal
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.commit.load import load_index
from checkpoints.errors import CorruptCheckpoint, TornState
from checkpoints.restore.shard_restore import decoded
from checkpoints.save.shard_upload import upload_shard
from checkpoints.snapshot.shared_memory import SharedBuffer, open_shared
from checkpoints.snapshot.snapshot import HostBuffer, Plan, Snapshot
from checkpoints.snapshot.state_tree import Digest, Leaf, decode, digest, encode, tensor_from
from checkpoints.storage.object_store import ObjectStore

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from(DTYPES)
    | st.lists(st.integers(0, 5), max_size=3).map(torch.Size)
)
keys = st.text() | st.integers() | st.booleans() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


def through_json(value: Any) -> Any:
    leaves: list[Leaf] = []
    encoded = json.loads(json.dumps(encode(value, "root", leaves), allow_nan=False))

    def read(index: int) -> Any:
        leaf, memory = leaves[index], memoryview(bytearray(leaves[index].size_bytes))
        leaf.copy_to(memory)
        return tensor_from(leaf.kind, leaf.dtype, leaf.shape, memory)

    return decode(encoded, read)


@given(trees)
def test_any_tree_comes_back_with_its_types(tree: Any) -> None:
    back = through_json(tree)
    assert back == tree
    assert _types(back) == _types(tree)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return (type(value), [_types(item) for item in value])
    return type(value)


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32 - 1))
def test_any_tensor_comes_back_bit_for_bit(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    tensor = (torch.randn(shape) * 100).to(dtype)
    back = through_json({"t": tensor})["t"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    if tensor.numel():
        assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_strided_views_are_stored_in_order() -> None:
    tensor = torch.arange(12).reshape(3, 4).T
    assert torch.equal(through_json([tensor])[0], tensor)


def test_special_floats() -> None:
    back = through_json([math.inf, -math.inf, math.nan, -0.0])
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])
    assert math.copysign(1, back[3]) == -1


def test_generator_states_come_back() -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    back = through_json(state)
    random.setstate(back["python"])
    np.random.set_state(back["numpy"])
    torch.set_rng_state(back["torch"].clone())
    assert random.getstate() == state["python"]


def test_ordered_dicts_keep_their_order() -> None:
    shapes = OrderedDict([("z", torch.Size([2])), ("a", torch.Size([3, 1]))])
    assert list(through_json(shapes)) == ["z", "a"]


def test_what_cannot_be_stored_is_named_when_saving() -> None:
    with pytest.raises(TypeError, match=r"root/a/1: a .*Thing can't go into a checkpoint"):
        encode({"a": [1, type("Thing", (), {})()]}, "root", [])
    with pytest.raises(TypeError, match="an array of object"):
        encode(np.array([object()]), "root", [])


class Color(str, enum.Enum):  # noqa: UP042 - the older spelling is what libraries have
    RED = "red"


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Pair(1, 2), "plain tuple"),
        (Color.RED, "plain str"),
        (signal.SIGTERM, "plain int"),
        (defaultdict(list, a=[1]), "plain dict"),
        (Counter("ab"), "plain dict"),
        (np.zeros(2, dtype=[("a", "<i4"), ("b", "<f4")]), "an array of"),
        (np.ma.masked_array([1.0, 2.0], mask=[True, False]), "a MaskedArray"),
        (torch.eye(3).to_sparse(), "a sparse tensor"),
        (torch.ones(3, device="meta"), "a meta tensor"),
        ("\ud800", "half a character"),
        ({"\ud800": 1}, "half a character"),
        (torch.device("cpu"), "torch.device"),
        ({1}, "builtins.set"),
    ],
)
def test_what_would_come_back_changed_is_refused(value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        encode({"x": value}, "root", [])


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(3),
        np.bool_(True),
        np.str_("ä"),
        np.datetime64("2026-11-28"),
    ],
)
def test_scalars_keep_their_type(value: Any) -> None:
    back = through_json(value)
    assert type(back) is type(value)
    assert back == value


def test_an_integer_of_any_length_comes_back() -> None:
    assert through_json(-(10**5000)) == -(10**5000)


@pytest.mark.parametrize("wrap", [lambda it: [it], lambda it: (it,), lambda it: {0: it}, lambda it: {"a": it}])
def test_what_is_nested_is_readable_or_refused(wrap: Callable[[Any], Any]) -> None:
    """The writer reads what it wrote, as a restore would."""
    value: Any = 1.0
    for depth in range(150):
        value = wrap(value)
        snapshot = None
        with contextlib.suppress(TypeError):
            snapshot = Snapshot.take({"t": {"v": value}}, HostBuffer())
        if snapshot is None:
            assert depth >= 30, "no training nests like this, but thirty levels have room"
            return
        upload_shard(ObjectStore.memory(), "data/x", 0, snapshot)
    raise AssertionError("nested without a limit")


def test_a_name_of_a_dtype_names_nothing_else() -> None:
    for name in ("load", "no_such_thing", "__name__"):
        with pytest.raises(ValueError, match="not a dtype of torch"):
            decode({"$dtype": name}, lambda i: None)
        with pytest.raises(ValueError, match="not a dtype of torch"):
            tensor_from("torch", name, (1,), memoryview(bytearray(8)))
    for name in ("O", "i4,f4", "no such"):
        with pytest.raises(ValueError, match="dtype"):
            tensor_from("numpy", name, (1,), memoryview(bytearray(8)))


def test_an_index_that_makes_no_sense_is_damage() -> None:
    store = ObjectStore.memory()
    ref = upload_shard(store, "data/x", 0, Snapshot.take({"t": {"v": torch.ones(3)}}, HostBuffer()))
    index = load_index(store, ref)
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    trees = [{"$tensor": 7}, {"$dtype": "load"}, {"$new": 1}, {"$dict": 3}, {"$dict": [[[], 1]]}, {"$int": "x"}, deep]
    for tree in (*trees, {"$scalar": ["O", ""]}, {"$scalar": ["<f4", ""]}, {"$bytes": 3}, {"$size": "x"}):
        odd = index.model_copy(update={"trees": {"t": tree}})
        with pytest.raises(CorruptCheckpoint):
            decoded(odd, memoryview(bytearray(64)))
    for change in ({"shape": (5,)}, {"dtype": "load"}, {"offset": 10**9}):
        odd = index.model_copy(update={"tensors": (index.tensors[0].model_copy(update=change),)})
        with pytest.raises(CorruptCheckpoint):
            decoded(odd, memoryview(bytearray(64)))


def test_small_tensors_and_arrays_are_copied_when_the_save_begins() -> None:
    """Running means change in the next forward pass, which comes before anybody waits for the copy."""
    norm = torch.nn.BatchNorm1d(4)
    array = np.ones(100_000)
    plan = Plan.of({"t": {"norm": norm.state_dict(), "array": array}})
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm(torch.randn(8, 4))
    array[:] = 2
    snapshot = plan.copy(HostBuffer().reserve(plan.size_bytes))
    read = {
        spec.name: tensor_from(
            spec.kind, spec.dtype, spec.shape, snapshot.data[spec.offset : spec.offset + spec.size_bytes]
        )
        for spec in snapshot.tensors
    }
    assert all(torch.equal(read[f"t/norm/{name}"], tensor) for name, tensor in before.items())
    assert (read["t/array"] == 1).all()


@pytest.mark.parametrize(
    "change", [lambda it: it.add_(1), lambda it: it.view(-1)[:1].zero_(), lambda it: it.detach().mul_(2)]
)
def test_a_tensor_that_changed_meanwhile_fails_the_save(change: Callable[[torch.Tensor], object]) -> None:
    weights = torch.nn.Parameter(torch.ones(100_000))
    plan = Plan.of({"t": {"w": weights.detach(), "digest": Digest(weights)}})
    with torch.no_grad():
        change(weights)
    with pytest.raises(TornState, match=r"t/(w|digest) was changed while it was copied"):
        plan.copy(HostBuffer().reserve(plan.size_bytes))
    Plan.of({"t": {"w": weights.detach()}}).copy(HostBuffer().reserve(plan.size_bytes))


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="newer version"):
        decode({"$new": 1}, lambda i: None)


def test_a_snapshot_is_a_copy_and_its_buffer_is_reused() -> None:
    buffer = HostBuffer()
    tensor = torch.arange(1000, dtype=torch.float32)
    snapshot = Snapshot.take({"state": {"w": tensor}}, buffer)
    before = bytes(snapshot.data)
    tensor.zero_()
    assert bytes(snapshot.data) == before
    again = Snapshot.take({"state": {"w": tensor}}, buffer)
    assert again.data.obj is snapshot.data.obj
    assert bytes(again.data) != before


def test_shared_buffers_grow_and_are_seen_by_others(tmp_path: Path) -> None:
    buffer = SharedBuffer(tmp_path / "r0")
    small = buffer.reserve(10)
    small[:] = b"0123456789"
    assert bytes(open_shared(buffer.path, 10)) == b"0123456789"
    large = buffer.reserve(100_000)
    large[99_990:] = b"9876543210"
    assert bytes(open_shared(buffer.path, 100_000)[99_990:]) == b"9876543210"
    with pytest.raises(OSError, match="smaller than"):
        open_shared(buffer.path, 10_000_000)
    assert buffer.path.stat().st_mode & 0o077 == 0
    buffer.unlink()
    assert not buffer.path.exists()
    assert bytes(large[99_990:]) == b"9876543210"


def test_shared_memory_falls_back_where_it_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "shm" / "r0"
    full.parent.mkdir()
    real = os.posix_fallocate

    def fallocate(descriptor: int, offset: int, length: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    buffer = SharedBuffer(full, fallback=tmp_path / "elsewhere")
    buffer.reserve(10_000)[:3] = b"abc"
    assert buffer.path == tmp_path / "elsewhere"
    assert bytes(open_shared(buffer.path, 3)) == b"abc"
    assert not full.exists()
    with pytest.raises(OSError, match="No space left"):
        SharedBuffer(full).reserve(10_000)


def test_tensors_of_a_snapshot_are_aligned() -> None:
    snapshot = Snapshot.take({"s": [torch.ones(3, dtype=torch.uint8), torch.ones(5), torch.ones(2)]}, HostBuffer())
    assert [record.offset for record in snapshot.tensors] == [0, 64, 128]
    assert bytes(snapshot.data[3:64]) == bytes(61)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 1, 7)])
def test_a_digest_stands_for_a_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    back = through_json({"weights": [Digest(tensor)]})
    assert back["weights"][0].tobytes() == digest(tensor)
    if tensor.numel():
        tensor.view(-1)[-1] = 0
        assert back["weights"][0].tobytes() != digest(tensor)


def test_a_digest_is_taken_with_the_copy() -> None:
    """The tensor is the one of the snapshot's moment, and strides don't matter."""
    tensor = torch.arange(6).reshape(2, 3)
    leaves: list[Leaf] = []
    encode(Digest(tensor), "root", leaves)
    tensor += 1
    memory = bytearray(16)
    leaves[0].copy_to(memoryview(memory))
    assert bytes(memory) == digest(tensor) == digest(tensor.t().contiguous().t())


def test_memory_is_pinned_as_long_as_it_is_there(tmp_path: Path) -> None:
    pinned: list[int] = []

    def pin(memory: memoryview) -> Callable[[], None]:
        size = memory.nbytes
        pinned.append(size)
        return lambda: pinned.remove(size)

    buffer = SharedBuffer(tmp_path / "buffer", pin=pin)
    buffer.reserve(10)
    buffer.reserve(20)  # the same page
    assert pinned == [4096]
    buffer.reserve(5000)
    assert pinned == [8192]
    buffer.unlink()
    assert pinned == []


@pytest.mark.parametrize("change", ["through .data", "through numpy", "of a bfloat16"])
def test_a_change_that_torch_does_not_count_is_seen_in_the_copy(change: str) -> None:
    """The classic average of weights: `average.data.mul_(decay)`. It was committed as good."""
    weight = torch.ones(100_000, dtype=torch.bfloat16 if "bfloat16" in change else torch.float32)
    plan = Plan.of({"t": {"w": weight}})
    if change == "through numpy":
        weight.numpy().fill(3)
    else:
        weight.data.mul_(3)
    with pytest.raises(TornState, match="t/w was changed while it was copied"):
        plan.copy(HostBuffer().reserve(plan.size_bytes))


def test_another_tensor_in_data_leaves_the_one_that_was_saved() -> None:
    weight = torch.nn.Parameter(torch.ones(100_000))
    plan = Plan.of({"t": {"w": weight}})
    weight.data = torch.zeros(100_000)
    copied = plan.copy(HostBuffer().reserve(plan.size_bytes))
    assert torch.equal(torch.frombuffer(copied.data, dtype=torch.float32)[:100_000], torch.ones(100_000))
