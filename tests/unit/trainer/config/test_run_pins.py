"""What a run began with is written down before anything is computed, and holds for every later attempt."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.errors import NotExact
from checkpoints.run_log.run_record import PINS_KEY
from checkpoints.storage.object_store import ObjectStore
from trainer.config.run_pins import check_pins, read_pins

MINE: dict[str, Any] = {
    "recipe": {"dpo": {"beta": 0.1}},
    "dataset": "d1",
    "tokens": "t1",
    "global_batch": 8,
    "base": {"commit": None, "weights": "w1", "content": "c1", "config.json": "f1", "chat_template.jinja": "j1"},
    "world_size": 2,
    "offload": None,
    "device": "cpu x",
    "attention": "sdpa",
    "determinism": {},
    "versions": {"torch": "2.13.0", "notus-launch": "abc"},
}


def test_the_first_attempt_decides(caplog: pytest.LogCaptureFixture) -> None:
    store = ObjectStore.memory()
    assert read_pins(store) is None
    check_pins(store, MINE, begun=False)
    assert read_pins(store) == MINE
    other = {**MINE, "world_size": 4, "versions": {"torch": "2.14.0", "notus-launch": "abd"}}
    check_pins(store, other, begun=False)
    assert read_pins(store) == MINE, "written once"
    assert "the run was begun otherwise" in caplog.text
    assert "versions.torch was '2.13.0', is '2.14.0'" in caplog.text


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tokens": "t2"}, "tokens was 't1', is 't2'"),
        ({"dataset": "d2"}, "dataset was"),
        ({"global_batch": 16}, "global_batch was 8, is 16"),
        ({"base": {**MINE["base"], "content": "c2"}}, "base.content was 'c1', is 'c2'"),
        ({"base": {**MINE["base"], "config.json": "f2"}}, r"base\.config\.json was 'f1', is 'f2'"),
        ({"base": {**MINE["base"], "chat_template.jinja": None}}, r"base\.chat_template\.jinja was 'j1', is None"),
        ({"base": {**MINE["base"], "tokenizer.json": "new"}}, r"base\.tokenizer\.json was None, is 'new'"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_another_run_is_refused(changed: dict[str, Any], named: str, begun: bool) -> None:
    store = ObjectStore.memory()
    check_pins(store, MINE, begun=False)
    with pytest.raises(NotExact, match=named):
        check_pins(store, {**MINE, **changed}, begun=begun)


def test_damaged_pins_of_a_run_without_checkpoints_are_written_anew() -> None:
    store = ObjectStore.memory()
    check_pins(store, MINE, begun=False)
    store.put(PINS_KEY, store.get(PINS_KEY).data[:-9])
    check_pins(store, {**MINE, "tokens": "t2"}, begun=True)
    assert read_pins(store) is None, "its checkpoints say what it is"
    check_pins(store, {**MINE, "tokens": "t2"}, begun=False)
    assert read_pins(store) == {**MINE, "tokens": "t2"}


def test_a_run_of_an_older_version_goes_on() -> None:
    store = ObjectStore.memory()
    check_pins(store, MINE, begun=True)
    assert read_pins(store) is None
