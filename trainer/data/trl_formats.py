"""One row of a preference set, in any of TRL's formats, as a prompt and two answers. Pure, and without torch.

    prompt       chosen, rejected
    text         texts, or turns that begin with the assistant's
    turns        texts, or turns
    none, text   turns that begin alike: that beginning is the prompt (implicit prompt)
    none         texts that begin alike: likewise, and no chat template is applied

`tools` and `chat_template_kwargs` are passed to the chat template. The content may be text, a list of text parts, or
missing if there are `tool_calls`. A key whose value is null counts as missing: Arrow gives each row the keys of others.

A row that can't be trained on as it is is left out with a reason, never converted into something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Turn = dict[str, Any]

ANSWERS = ("chosen", "rejected")
PARTS = ("prompt", *ANSWERS)
NOT_A_ROWS = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""Arguments of a tokenizer's `apply_chat_template` that are not for the template."""
FOR_TEMPLATE = ("tools", "chat_template_kwargs")
"""Columns that are passed to the chat template."""


class UnusableRow(Exception):
    """A row that can't be trained on.

    Args:
        reason: the same for all rows of that kind.
        hint: what to do if all rows are like that.
    """

    def __init__(self, reason: str, hint: str = "docs/how-to/own-data.md has the formats") -> None:
        super().__init__(reason)
        self.hint = hint


class Row(NamedTuple):
    """Prompt and answers: all three texts, or all three lists of turns."""

    prompt: str | list[Turn]
    chosen: str | list[Turn]
    rejected: str | list[Turn]
    tools: list[Any] | None = None
    template_settings: Mapping[str, Any] = {}
    plain: bool = False
    """Texts instead of turns: no chat template is applied to them."""


def read_row(raw: Mapping[str, Any]) -> Row:
    """Read a row from its values by the names in `PARTS` and `FOR_TEMPLATE`. Raises `UnusableRow`."""
    prompt, chosen, rejected = (_value(name, raw.get(name)) for name in PARTS)
    for name, answer in zip(ANSWERS, (chosen, rejected), strict=True):
        if not answer:
            raise UnusableRow(f"{name} is empty")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not prompt and "prompt" in raw:
            raise UnusableRow("the prompt is empty")
        row = _from_texts(prompt, chosen, rejected)
    else:
        row = _from_turns(prompt, _as_answer(chosen), _as_answer(rejected))
    _check_difference(row)
    return row._replace(tools=_tools(raw.get("tools")), template_settings=_settings(raw.get("chat_template_kwargs")))


def _from_texts(prompt: str | list[Turn], chosen: str, rejected: str) -> Row:
    if isinstance(prompt, list) and prompt:
        return Row(prompt, _as_answer(chosen), _as_answer(rejected))
    if not prompt:
        prompt, chosen, rejected = _split(chosen, rejected)
        if not prompt.strip():
            raise UnusableRow("there is no prompt, and the answers have no beginning in common")
        if not (chosen.strip() and rejected.strip()):
            raise UnusableRow("there is no prompt, and after what the answers have in common one of them is empty")
        return Row(prompt, chosen, rejected, plain=True)
    return Row(prompt, chosen, rejected)


def _from_turns(prompt: str | list[Turn], chosen: list[Turn], rejected: list[Turn]) -> Row:
    if prompt and _begins(chosen, prompt) and _begins(rejected, prompt):  # the answers repeat it
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif not prompt or (isinstance(prompt, str) and chosen[0]["role"] != "assistant"):
        length = _implicit(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    if not prompt:
        raise UnusableRow("there is no prompt, and the answers have no turns in common")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for name, turns in zip(ANSWERS, (chosen, rejected), strict=True):
        if not turns:
            raise UnusableRow(f"{name} is empty")
        if (role := turns[-1]["role"]) != "assistant":
            raise UnusableRow(f"the last turn of {name} is of role {role}, and not the assistant's answer")
        if not _has_content(turns[-1]):
            raise UnusableRow(f"{name} is empty")
    return Row(prompt, chosen, rejected)


def _begins(turns: list[Turn], prompt: str | list[Turn]) -> bool:
    return isinstance(prompt, list) and turns[: len(prompt)] == prompt


def _check_difference(row: Row) -> None:
    prompt, chosen, rejected = row[:3]
    if isinstance(prompt, list) and not any(_has_content(turn) for turn in prompt):
        raise UnusableRow("the prompt is empty")
    if _bare(chosen) == _bare(rejected):
        raise UnusableRow("both answers are the same")


def _bare(answer: str | list[Turn]) -> Any:
    """The answer without whitespace around its texts."""
    if isinstance(answer, str):
        return answer.strip()
    return [{**turn, "content": turn.get("content", "").strip()} for turn in answer]


def _has_content(turn: Turn) -> bool:
    return bool(turn.get("content", "").strip() or turn.get("tool_calls"))


def _as_answer(answer: str | list[Turn]) -> list[Turn]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _split(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split at the first difference, or before the space that precedes it, as TRL's `extract_prompt` does."""
    length = _implicit(chosen, rejected)
    if length and chosen[length - 1] == " " and chosen[length : length + 1] != rejected[length : length + 1]:
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _implicit(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of an implicit prompt: up to the first difference.

    If one answer begins with the whole of the other, the last common element stays with the answers, as in TRL's
    `extract_prompt`.
    """
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), max(0, shorter - 1))


# --- values -----------------------------------------------------------------------------------------


def _value(name: str, value: Any) -> str | list[Turn]:
    """A column's value; '' if it is empty."""
    if value is None or value == []:
        return ""
    if not encodable(value):
        raise UnusableRow(f"{name} has half a character (a lone surrogate)")
    if isinstance(value, str):
        return value if value.strip() else ""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UnusableRow(f"{name} is neither a text nor a list of turns")
    return [_turn(name, turn) for turn in value]


def _turn(name: str, turn: Turn) -> Turn:
    """A turn without the keys that are null, and with its content as text."""
    kept = {key: value for key, value in turn.items() if value is not None}
    if not isinstance(kept.get("role"), str):
        keys = "from and value, and TRL knows role and content" if {"from", "value"} <= kept.keys() else "no role"
        raise UnusableRow(f"a turn of {name} has {keys}")
    if "content" in kept:
        kept["content"] = _text(name, kept["content"])
    elif not kept.get("tool_calls"):
        raise UnusableRow(f"a turn of {name} has neither content nor tool_calls")
    if not all(_names_a_function(call) for call in _listed(kept.get("tool_calls"))):
        raise UnusableRow(f"a turn of {name} has tool_calls that are not a list of function calls")
    return kept


def _listed(value: Any) -> list[Any]:
    """The value as a list; anything else becomes its only, invalid element."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _names_a_function(described: Any) -> bool:
    inner = described.get("function", described) if isinstance(described, dict) else None
    return isinstance(inner, dict) and isinstance(inner.get("name"), str)


def _text(name: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UnusableRow(f"{name} has a content part of type {kind}: only text can be trained")
    return "".join(part["text"] for part in parts)


def _tools(value: Any) -> list[Any] | None:
    """The tools as TRL accepts them: a list of function schemas, or that list as JSON text."""
    try:
        read = json.loads(value) if isinstance(value, str) and value.strip() else value
    except ValueError as error:
        raise UnusableRow("tools is text that is not JSON") from error
    if read and not (isinstance(read, list) and all(isinstance(tool, dict) for tool in read)):
        raise UnusableRow("tools is not a list of function schemas")
    return read if isinstance(read, list) else None  # a template may treat an empty list as TRL does, unlike none


def _settings(value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UnusableRow("chat_template_kwargs is not an object")
    kept = {key: it for key, it in (value or {}).items() if it is not None}
    if ours := sorted(kept.keys() & NOT_A_ROWS):
        raise UnusableRow(f"chat_template_kwargs sets {', '.join(ours)}, which a row can't")
    return kept


def encodable(value: Any) -> bool:
    r"""Can all its texts be written as UTF-8? JSON may hold half of a surrogate pair (`"\ud83d"`), which isn't text."""
    if isinstance(value, str):
        return value.isascii() or _has_no_half_character(value)
    if isinstance(value, dict):
        return encodable(list(value)) and encodable(list(value.values()))
    if isinstance(value, list):
        for inner in value:  # plain loops: this runs for every text of a set, several times
            if not encodable(inner):
                return False
    return True


def _has_no_half_character(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth: Arrow gives each row the keys of all rows."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
