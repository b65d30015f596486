"""Rows in TRL's formats, and those that can't be trained."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.data.trl_formats import Row, UnusableRow, read_row, without_nulls


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
ROWS: dict[str, tuple[dict[str, Any], Row]] = {
    "texts": ({"prompt": "q", "chosen": "a", "rejected": "b"}, Row("q", "a", "b")),
    "turns": (
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "a text prompt and turns": (
        {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "a prompt of turns and texts": (
        {"prompt": [user("q")], "chosen": "a", "rejected": "b"},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "implicit turns": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "a text prompt that the turns begin with": (
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "a prompt told twice": (
        {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        Row([user("q")], [assistant("a")], [assistant("b")]),
    ),
    "implicit texts": (
        {"chosen": "Human: q Bot: yes", "rejected": "Human: q Bot: no"},
        Row("Human: q Bot:", " yes", " no", plain=True),
    ),
    "an answer of several turns": (
        {
            "prompt": "q",
            "chosen": [assistant("one"), {"role": "tool", "content": "x"}, assistant("two")],
            "rejected": [assistant("b")],
        },
        Row([user("q")], [assistant("one"), {"role": "tool", "content": "x"}, assistant("two")], [assistant("b")]),
    ),
    "parts of text": (
        {
            "prompt": [user([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])],
            "chosen": "a",
            "rejected": "b",
        },
        Row([user("one two")], [assistant("a")], [assistant("b")]),
    ),
    "a call without content": (
        {
            "prompt": [
                user("q"),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "x", "tool_calls": None},
            ],
            "chosen": "a",
            "rejected": "b",
        },
        Row(
            [user("q"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}],
            [assistant("a")],
            [assistant("b")],
        ),
    ),
    "tools as JSON, and settings": (
        {
            "prompt": "q",
            "chosen": "a",
            "rejected": "b",
            "tools": '[{"name": "f"}]',
            "chat_template_kwargs": {"x": True, "y": None},
        },
        Row("q", "a", "b", [{"name": "f"}], {"x": True}),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_formats(name: str) -> None:
    raw, row = ROWS[name]
    assert read_row(raw) == row


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({**GOOD, "chosen": ""}, "chosen is empty"),
        ({**GOOD, "rejected": None}, "rejected is empty"),
        ({**GOOD, "rejected": []}, "rejected is empty"),
        ({**GOOD, "rejected": 7}, "rejected is neither a text nor a list of turns"),
        ({**GOOD, "prompt": ["q"]}, "prompt is neither a text nor a list of turns"),
        ({**GOOD, "prompt": [user(" ")]}, "the prompt is empty"),
        ({**GOOD, "rejected": " a "}, "both answers are the same"),
        ({**GOOD, "chosen": [assistant("x")], "rejected": [assistant(" x")]}, "both answers are the same"),
        ({**GOOD, "chosen": "\ud83d"}, "chosen has half a character (a lone surrogate)"),
        ({**GOOD, "prompt": " "}, "the prompt is empty"),
        (
            {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("a")]},
            "there is no prompt, and the answers have no turns in common",
        ),
        (
            {**GOOD, "chosen": [assistant("a"), user("thanks")], "rejected": [assistant("b"), user("no")]},
            "the last turn of chosen is of role user, and not the assistant's answer",
        ),
        ({**GOOD, "chosen": [assistant("a")], "rejected": [assistant("")]}, "rejected is empty"),
        (
            {**GOOD, "prompt": [{"from": "human", "value": "q"}]},
            "a turn of prompt has from and value, and TRL knows role and content",
        ),
        ({**GOOD, "prompt": [{"content": "q"}]}, "a turn of prompt has no role"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "a turn of prompt has neither content nor tool_calls"),
        (
            {**GOOD, "prompt": [user([{"type": "image_url", "image_url": "x"}])]},
            "prompt has a content part of type image_url: only text can be trained",
        ),
        ({**GOOD, "prompt": [user(7)]}, "prompt has a content part of type int: only text can be trained"),
        ({**GOOD, "tools": "{"}, "tools is text that is not JSON"),
        ({**GOOD, "tools": {"name": "f"}}, "tools is not a list of function schemas"),
        ({**GOOD, "chat_template_kwargs": "x"}, "chat_template_kwargs is not an object"),
    ],
)
def test_what_cannot_be_trained(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        read_row(raw)
    assert str(caught.value) == reason


def test_what_arrow_filled_in_is_taken_away() -> None:
    filled = [{"role": "user", "content": "q", "name": None, "tool_calls": [{"arguments": {"a": 1, "b": None}}]}]
    assert without_nulls(filled) == [{"role": "user", "content": "q", "tool_calls": [{"arguments": {"a": 1}}]}]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": "", "chosen": "The answer is 5", "rejected": "The reply is 6"}, "the prompt is empty"),
        ({"prompt": None, "chosen": "I think yes", "rejected": "I say no"}, "the prompt is empty"),
        (
            {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "tool_calls": 5}], "rejected": "b"},
            "a turn of chosen has tool_calls that are not a list of function calls",
        ),
        (
            {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "tool_calls": ["x"]}], "rejected": "b"},
            "a turn of chosen has tool_calls that are not a list of function calls",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [5]}, "tools is not a list of function schemas"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "chat_template_kwargs": {"add_generation_prompt": True}},
            "chat_template_kwargs sets add_generation_prompt, which a row can't",
        ),
    ],
)
def test_what_would_be_bent_or_crash_is_left_out(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow) as refused:
        read_row(raw)
    assert str(refused.value) == reason


def test_without_a_prompt_column_the_common_beginning_is_the_prompt() -> None:
    row = read_row({"chosen": "so it is", "rejected": "so it was"})
    assert (row.prompt, row.plain) == ("so it", True)
