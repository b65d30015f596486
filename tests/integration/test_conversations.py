"""Rows become the token ids that TRL's own DPOTrainer makes of them."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.trainer.data.test_trl_formats import ROWS, assistant, user
from trainer.config.recipe import Dpo, Recipe, load_recipe
from trainer.data.dataset import prepare, tokenize_row
from trainer.data.trl_formats import UnusableRow, read_row
from trainer.errors import DataError

TOOLS_TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.name is defined %}[{{ m.name }}] {% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}({{ c.function.arguments }}){% endfor %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
AS_TRL_DOES = {
    **{name: ROWS[name][0] for name in ("turns", "implicit turns", "implicit texts")},
    "a call without content": {
        **ROWS["a call without content"][0],
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
    },
    "an answer of several turns": {
        "prompt": [user("q")],
        "chosen": [assistant("one"), {"role": "tool", "content": "x"}, assistant("two")],
        "rejected": [assistant("b")],
    },
    "a conversation": {
        "prompt": [{"role": "system", "content": "Be kind."}, user("q"), assistant("a"), user("and?")],
        "chosen": [assistant("good")],
        "rejected": [assistant("bad")],
    },
    "several turns without a prompt": {
        "chosen": [user("q"), assistant("a"), user("r"), assistant("good")],
        "rejected": [user("q"), assistant("a"), user("r"), assistant("bad")],
    },
    "turns that part early": {
        "chosen": [user("q"), assistant("a"), user("r"), assistant("good")],
        "rejected": [user("q"), assistant("b"), user("s"), assistant("bad")],
    },
    "tools": {
        "prompt": [user("q")],
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
        "tools": json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]),
    },
    "a call as the answer": {
        "prompt": [user("q")],
        "chosen": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
        "rejected": [{"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]}],
    },
    "a text that begins with the other": {"chosen": "Q: x A: yes", "rejected": "Q: x A: yes, but"},
    "turns that begin with the others": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("q"), assistant("a"), user("r"), assistant("b")],
    },
    "a text that ends already": {"chosen": "Q: q A: yes</s>", "rejected": "Q: q A: no"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    from trainer.model.builtin_models import make_tiny_llama

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(folder)
    return AutoTokenizer.from_pretrained(folder)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


WITHOUT_TOOLS = [name for name, raw in AS_TRL_DOES.items() if "tool" not in json.dumps(raw)]


@pytest.mark.parametrize(
    ("template", "name"),
    [(TOOLS_TEMPLATE, name) for name in AS_TRL_DOES] + [(THINKING_TEMPLATE, name) for name in WITHOUT_TOOLS],
)
def test_token_ids_are_those_of_trl(tokenizer: Any, template: str, name: str) -> None:
    import datasets
    from trl import DPOTrainer
    from trl.trainer.utils import remove_none_values

    raw = AS_TRL_DOES[name]
    tokenizer = with_template(tokenizer, template)
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    table = datasets.Dataset.from_list([raw]).with_transform(remove_none_values)  # as TRL advises, for Arrow's nulls
    table = table if "null" in json.dumps(raw) else datasets.Dataset.from_list([raw])
    theirs = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), table, tokenizer, settings, "train")[0]
    ours = tokenize_row(read_row(raw), tokenizer, Dpo(max_length=4096, max_prompt_length=2048))
    for ids in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert ours[ids] == theirs[ids], ids


def recipe_for(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Recipe:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe("tiny-dpo")
    dataset = recipe.dataset.model_copy(update={"name": str(path), "eval_rows": 0, **changes})
    return recipe.model_copy(update={"dataset": dataset})


def test_a_key_of_one_row_changes_no_other(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": [user(f"Q {n}")], "chosen": "yes", "rejected": "no"} for n in range(4)]
    named = [*rows[:3], {**rows[3], "prompt": [{**user("Q 3"), "name": "Ann"}]}]
    template = with_template(tokenizer, TOOLS_TEMPLATE)
    without = prepare(recipe_for(tmp_path / "a.jsonl", rows), template).train
    whole = prepare(recipe_for(tmp_path / "b.jsonl", named), template).train
    assert without.to_list()[:3] == whole.to_list()[:3]
    assert "[Ann] Q 3" in template.decode(whole[3]["prompt_ids"])


def test_texts_and_conversations_go_together(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("q", [user("q")])]
    one, two = prepare(recipe_for(tmp_path / "p.jsonl", rows), tokenizer).train
    assert one == two


def test_what_a_template_drops_is_left_out_and_named(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [good, ROWS["a call without content"][0], {**good, "tools": [{"name": "search"}]}]
    pairs = prepare(recipe_for(tmp_path / "p.jsonl", rows), tokenizer)
    assert (len(pairs.train), pairs.rows) == (1, 3)
    assert [(it.reason, it.rows, it.where) for it in pairs.left_out] == [
        ("the model's chat template drops tool calls", 1, ("p.jsonl:2",)),
        ("the model's chat template drops the tools", 1, ("p.jsonl:3",)),
    ]
    assert "left out 1 of 3 rows: the model's chat template drops tool calls (p.jsonl:2)" in caplog.text


ESCAPING_TEMPLATE = TOOLS_TEMPLATE.replace(
    "{{ m.content }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}"
)
ONE_CALL_TEMPLATE = TOOLS_TEMPLATE.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
NO_TEXT_BESIDE_A_CALL = TOOLS_TEMPLATE.replace("{{ m.content }}", "{{ m.content if not m.tool_calls else '' }}")


def call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}


@pytest.mark.parametrize("result", ['{"temperature": 3}', 'a "quoted" word', "two\nlines", "é", "plain"])
def test_a_tool_result_that_a_template_escapes_is_trained(tokenizer: Any, result: str) -> None:
    """The templates of Llama 3.1 and 3.2 and of gpt-oss write results as JSON."""
    turns = [user("q"), assistant("", tool_calls=[call("Oslo")]), {"role": "tool", "content": result}]
    row = {"prompt": turns, "chosen": "a", "rejected": "b"}
    template = with_template(tokenizer, ESCAPING_TEMPLATE)
    ids = tokenize_row(read_row(row), template, Dpo(max_length=4096, max_prompt_length=2048))["prompt_ids"]
    assert json.dumps(result, ensure_ascii=False) in template.decode(ids)


@pytest.mark.parametrize(
    ("template", "turn", "what"),
    [
        (ONE_CALL_TEMPLATE, assistant("", tool_calls=[call("Oslo"), call("Rome")]), "tool calls"),
        (NO_TEXT_BESIDE_A_CALL, assistant("Let me look.", tool_calls=[call("Oslo")]), "the assistant's text beside a"),
    ],
)
def test_what_is_dropped_in_part_is_named(tokenizer: Any, template: str, turn: dict[str, Any], what: str) -> None:
    row = {"prompt": [user("q")], "chosen": [turn, assistant("a")], "rejected": [assistant("b")]}
    cut = Dpo(max_length=4096, max_prompt_length=2048)
    tokenize_row(read_row(row), with_template(tokenizer, TOOLS_TEMPLATE), cut)
    with pytest.raises(UnusableRow, match=f"drops {what}"):
        tokenize_row(read_row(row), with_template(tokenizer, template), cut)


@pytest.mark.parametrize(("shown", "dropped"), [("{{ c.function.name }}", False), ("", True)])
def test_a_template_that_knows_its_functions_is_taken_at_its_word(tokenizer: Any, shown: str, dropped: bool) -> None:
    """It refuses the marks by which drops are noticed."""
    strict = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% if c.function.name != 'get_weather' %}{{ raise_exception('unknown function') }}{% endif %}SHOWN"
        "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ).replace("SHOWN", shown)
    turns = [user("q"), assistant("", tool_calls=[call("Oslo")]), {"role": "tool", "content": "3"}]
    row = read_row({"prompt": turns, "chosen": "a", "rejected": "b"})
    cut = Dpo(max_length=4096, max_prompt_length=2048)
    with pytest.raises(UnusableRow, match="drops tool calls") if dropped else contextlib.nullcontext():
        tokenize_row(row, with_template(tokenizer, strict), cut)


def test_the_order_of_rows_with_and_without_a_prompt_means_nothing(tokenizer: Any, tmp_path: Path) -> None:
    explicit = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    implicit = {"chosen": [user("r"), assistant("a")], "rejected": [user("r"), assistant("b")]}
    for rows in ([explicit, implicit], [implicit, explicit]):
        assert len(prepare(recipe_for(tmp_path / "p.jsonl", rows), tokenizer).train) == 2


def test_a_key_that_is_there_twice_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2: not JSON: an object has the key 'chosen' twice"):
        prepare(recipe, tokenizer)


def test_null_content_is_no_text(tokenizer: Any, tmp_path: Path) -> None:
    template = with_template(tokenizer, TOOLS_TEMPLATE)
    row = ROWS["a call without content"][0]
    ids = prepare(recipe_for(tmp_path / "p.jsonl", [row]), template).train[0]["prompt_ids"]
    assert "None" not in template.decode(ids)
    assert "<call>get_weather(" in template.decode(ids)


def test_answers_that_do_not_end_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    endless = with_template(tokenizer, TOOLS_TEMPLATE.replace("</s>", ""))
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match=r"none of the 1 rows of .*: an answer doesn't end with an end token") as caught:
        prepare(recipe_for(tmp_path / "p.jsonl", rows), endless)
    assert "dataset.end_tokens: optional" in caught.value.hint
    assert len(prepare(recipe_for(tmp_path / "p.jsonl", rows, end_tokens="optional"), endless).train) == 1


def test_a_template_without_some_role_drops_no_turn_in_silence(tokenizer: Any, tmp_path: Path) -> None:
    two_roles = with_template(
        tokenizer,
        "{% for m in messages if m.role in ('user', 'assistant') %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    )
    rows = [{"prompt": [{"role": "system", "content": "Be kind."}, user("q")], "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="the model's chat template drops turns of role system"):
        prepare(recipe_for(tmp_path / "p.jsonl", rows), two_roles)


@pytest.mark.parametrize("template", ["{% for turn in messages %}", "{{ messages | no_such_filter }}", "{{ 'a"])
def test_a_template_that_is_none_is_no_fault_of_the_rows(tokenizer: Any, tmp_path: Path, template: str) -> None:
    with pytest.raises(DataError, match="the model's chat template can't be read: line 1: ") as told:
        prepare(
            recipe_for(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}]),
            with_template(tokenizer, template),
        )
    assert "chat_template.jinja" in told.value.hint
