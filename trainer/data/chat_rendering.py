"""Renders a row as the texts to tokenize, with the model's chat template, or plain with an end token.

Like TRL 1.16's DPOTrainer, with three exceptions. A plain-text prompt becomes the user's turn if the model has a chat
template (TRL would train on it bare), and `dataset.system` may precede it. If a template drops something, such as a
tool call, the row is unusable (TRL would train on the rest). And content parts of text are joined.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from trainer.data.trl_formats import Row, Turn, UnusableRow
from trainer.errors import DataError

_OF_A_TEMPLATE = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template raises for a turn without content, tools in another format, arguments that aren't strings."""


class Rendered(NamedTuple):
    """The texts of a row."""

    prompt: str
    """Up to the start of the answer."""
    chosen: str
    """Prompt and answer."""
    rejected: str


def render_row(row: Row, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Rendered:
    """Render a row. `system`: a turn before a prompt that has none; None = no such turn. Raises `UnusableRow`."""
    if row.plain or not tokenizer.chat_template:
        return _plain(row, tokenizer)
    prompt, chosen, rejected = _turns(row)
    if system is not None and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    more = {"tools": row.tools, **row.template_settings}
    rendered = Rendered(
        _render(tokenizer, prompt, add_generation_prompt=True, **more),
        _render(tokenizer, prompt + chosen, **more),
        _render(tokenizer, prompt + rejected, **more),
    )
    for turns, text in ((prompt + chosen, rendered.chosen), (prompt + rejected, rendered.rejected)):
        for what in _dropped(tokenizer, turns, text, more):
            raise UnusableRow(f"the model's chat template drops {what}", "use a model whose template renders them")
    return rendered


def _turns(row: Row) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """The row as turns: plain texts become a user's turn and two assistant turns."""
    if isinstance(row.prompt, str):
        prompt = [{"role": "user", "content": row.prompt}]
        chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (row.chosen, row.rejected))
        return prompt, chosen, rejected
    return row.prompt, list(row.chosen), list(row.rejected)  # type: ignore[arg-type]  # all three are turns


def _plain(row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    end = str(tokenizer.eos_token or "")
    prompt, chosen, rejected = (_only_text(part) for part in row[:3])
    chosen, rejected = (answer if end and answer.endswith(end) else answer + end for answer in (chosen, rejected))
    return Rendered(prompt, prompt + chosen, prompt + rejected)


def _only_text(part: str | list[Turn]) -> str:
    if isinstance(part, str):
        return part
    if len(part) > 1 or part[0].get("tool_calls"):
        raise UnusableRow(
            "it is a conversation, and the model has no chat template", "use a model that was made for conversations"
        )
    return str(part[0]["content"])


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], **more: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **more))
    except TemplateSyntaxError as error:
        raise DataError(
            f"the model's chat template can't be read: line {error.lineno}: {error.message}",
            "correct chat_template.jinja, or chat_template in tokenizer_config.json, beside the model",
        ) from error
    except _OF_A_TEMPLATE as error:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        system = any(turn.get("role") == "system" for turn in turns)
        raise UnusableRow(
            f"the model's chat template refuses a conversation of {roles}: {error}",
            "if it has no system turn (Gemma), leave out dataset.system and system turns of the prompts"
            if system
            else "check the model's chat_template, and what this row passes to it",
        ) from error


def _dropped(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], text: str, more: Mapping[str, Any]
) -> Iterator[str]:
    """The parts of a conversation that are missing in its text. A template may drop the assistant's thoughts."""
    if not all(name in text for name in _function_names(more.get("tools") or [])):
        yield "the tools"
    if all(_is_plainly_there(turn, text) for turn in turns):
        return
    marked, marks = _marked(turns)
    try:
        shown = _render(tokenizer, marked, **more)
    except UnusableRow:  # the template checks what was marked: all that is left to look for is the functions' names
        if not _names_are_there(turns, text):
            yield "tool calls"
        return
    for mark, what in marks.items():
        if mark not in shown:
            yield what


def _names_are_there(turns: list[Turn], text: str) -> bool:
    return all(name in text for turn in turns for name in _function_names(turn.get("tool_calls") or []))


def _is_plainly_there(turn: Turn, text: str) -> bool:
    """Is a turn in the text as it is? Templates escape some, and the same function may be called twice."""
    if turn.get("tool_calls"):
        return False
    return turn["role"] == "assistant" or turn.get("content", "").strip() in text


def _marked(turns: list[Turn]) -> tuple[list[Turn], dict[str, str]]:
    """The turns with a mark in the place of each part that must not get lost, and what each mark stands for.

    The assistant's text counts only beside a call: elsewhere a template may cut its thoughts.
    """
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        marks[made := f"notusmark{len(marks):06d}x"] = what
        return made

    marked = []
    for turn in turns:
        changed = copy.deepcopy(turn)
        calls = changed.get("tool_calls") or []
        if turn.get("content", "").strip() and (turn["role"] != "assistant" or calls):
            changed["content"] = mark(
                "the assistant's text beside a tool call" if calls else f"turns of role {turn['role']}"
            )
        for call in calls:
            call.get("function", call)["name"] = mark("tool calls")
        marked.append(changed)
    return marked, marks


def _function_names(described: list[Any]) -> list[str]:
    """The names of calls or tools, each as `{"function": {"name": ...}}` or without the outer object."""
    inner = [one.get("function", one) if isinstance(one, dict) else {} for one in described]
    return [one["name"] for one in inner if isinstance(one, dict) and isinstance(one.get("name"), str)]


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that may end an answer: those that are special for this tokenizer."""
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return tuple(sorted(special | {token.content for token in added.values() if token.special}))
