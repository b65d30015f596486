"""The data step with real tokenizers and the `datasets` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from checkpoints.storage.object_store import ObjectStore
from trainer.config.recipe import Columns, Recipe, Source, load_recipe
from trainer.data.row_count import count_rows
from trainer.data.token_cache import TokenCache, TokenIndex, tokens_key
from trainer.errors import DataError, TrainingFailed


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    from trainer.model.builtin_models import make_tiny_llama

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(folder)
    return AutoTokenizer.from_pretrained(folder)


def recipe_for(path: Path, **changes: Any) -> Recipe:
    recipe = load_recipe("tiny-dpo")
    dataset = recipe.dataset.model_copy(update={"name": str(path), "eval_rows": 0, **changes})
    return recipe.model_copy(update={"dataset": dataset})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_pair_becomes_the_template_s_text_and_ids(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    path = write(tmp_path / "p.jsonl", [{"prompt": "Hi?", "chosen": "Yes.", "rejected": "Noé."}])
    row = prepare(recipe_for(path), tokenizer).train[0]
    assert tokenizer.decode(row["prompt_ids"]) == "<|user|>\nHi?</s>\n<|assistant|>\n"
    assert tokenizer.decode(row["chosen_ids"]) == "Yes.</s>\n"
    assert tokenizer.decode(row["rejected_ids"]) == "Noé.</s>\n"


def test_a_template_without_a_system_turn_says_so(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    from trainer.data.dataset import prepare

    gemma = copy.deepcopy(tokenizer)
    gemma.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    path = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert gemma.decode(prepare(recipe_for(path), gemma).train[0]["chosen_ids"]) == "a</s>\n"
    with pytest.raises(DataError, match="refuses a conversation of system, user: System role not supported") as caught:
        prepare(recipe_for(path, system=""), gemma)
    assert "leave out dataset.system" in str(caught.value.hint)


def test_a_tokenizer_without_a_template_gets_plain_text_and_an_end(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    from trainer.data.dataset import prepare

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    path = write(tmp_path / "p.jsonl", [{"prompt": "Hi?", "chosen": " Yes", "rejected": " No"}])
    row = prepare(recipe_for(path), plain).train[0]
    assert plain.decode(row["prompt_ids"] + row["chosen_ids"]) == "Hi? Yes</s>"


def test_prompt_and_answer_are_tokenised_together(tokenizer: Any, tmp_path: Path) -> None:
    """As Llama-2 and Mistral do, this tokenizer marks the beginning of every text that it is given."""
    import copy

    from tokenizers import normalizers

    from trainer.data.dataset import prepare

    marking = copy.deepcopy(tokenizer)
    marking.backend_tokenizer.normalizer = normalizers.Prepend("^")
    path = write(tmp_path / "p.jsonl", [{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}])
    row = prepare(recipe_for(path), marking).train[0]
    assert marking.decode(row["prompt_ids"]).endswith("<|assistant|>\n")
    assert marking.decode(row["chosen_ids"]).startswith("Yes.</s>")
    assert marking.decode(row["rejected_ids"]).startswith("No.</s>")


def test_a_conversation_keeps_all_its_turns(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
    answers = [[{"role": "assistant", "content": text}] for text in ("Good.", "Bad.")]
    path = write(tmp_path / "p.jsonl", [{"prompt": turns, "chosen": answers[0], "rejected": answers[1]}])
    row = prepare(recipe_for(path), tokenizer).train[0]
    assert tokenizer.decode(row["prompt_ids"]).startswith("<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nAnd?")
    assert tokenizer.decode(row["chosen_ids"]) == "Good.</s>\n"


def test_jsonl_parquet_and_both_column_sets_give_the_same(tokenizer: Any, tmp_path: Path) -> None:
    import datasets

    from trainer.data.dataset import prepare

    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    names = {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}
    renamed = [{**{names[key]: value for key, value in row.items()}, "source": "x"} for row in rows]
    one = prepare(recipe_for(write(tmp_path / "a.jsonl", rows)), tokenizer)
    two = prepare(recipe_for(write(tmp_path / "b.jsonl", renamed)), tokenizer)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "c.parquet")
    three = prepare(recipe_for(tmp_path / "c.parquet"), tokenizer)
    assert one.fingerprint == two.fingerprint == three.fingerprint
    assert one.train.to_list() == two.train.to_list() == three.train.to_list()


def test_the_split_is_the_same_every_time_and_eval_rows_are_held_out(tokenizer: Any) -> None:
    from trainer.data.dataset import prepare

    recipe = load_recipe("tiny-dpo")
    one, two = prepare(recipe, tokenizer), prepare(recipe, tokenizer)
    assert one.evaluation is not None
    assert two.evaluation is not None
    assert (len(one.train), len(one.evaluation)) == (96, 16)
    assert one.evaluation.to_list() == two.evaluation.to_list()
    train = {tuple(row["prompt_ids"]) for row in one.train}
    assert not train & {tuple(row["prompt_ids"]) for row in one.evaluation}


def test_unusable_rows_are_left_out_and_counted(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.data.dataset import prepare

    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        good,
        {**good, "chosen": ""},
        {**good, "rejected": "a"},
        {**good, "prompt": " "},
        {**good, "prompt": "x" * 100_000},
        {**good, "chosen": "y" * 100_000},
        {**good, "chosen": "y" * 100_000 + "a", "rejected": "y" * 100_000 + "b"},
    ]
    pairs = prepare(recipe_for(write(tmp_path / "p.jsonl", rows)), tokenizer)
    assert len(pairs.train) == 3
    assert set(pairs.train.column_names) == {"prompt_ids", "chosen_ids", "rejected_ids"}
    assert max(len(row["prompt_ids"]) for row in pairs.train) == 128
    assert max(len(row["prompt_ids"] + row["chosen_ids"]) for row in pairs.train) <= 256
    for line, reason in ((2, "chosen is empty"), (3, "both answers are the same"), (4, "the prompt is empty")):
        assert f"left out 1 of 7 rows: {reason}" in caplog.text
        assert f"(p.jsonl:{line})" in caplog.text
    assert [(found.rows, found.where) for found in pairs.left_out] == [
        (1, ("p.jsonl:2",)),
        (1, ("p.jsonl:3",)),
        (1, ("p.jsonl:4",)),
        (1, ("p.jsonl:7",)),
    ]
    assert "1 of 4 prompts were cut to their last 128 tokens" in caplog.text
    assert "2 of 4 pairs have an answer that was cut (dpo.max_length 256)" in caplog.text
    assert "1 of 4 pairs were left out: after the cut both answers are the same" in caplog.text


def test_broken_texts_are_counted_and_other_columns_hold_what_they_like(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.data.dataset import prepare

    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        {**good, "score": 1, "extra": {"a": 1}},
        {**good, "score": "N/A", "extra": ["b"]},
        {**good, "prompt": "\ud83d"},
        {**good, "chosen": "half \ud83d of it"},
        {**good, "rejected": 7},
        {**good, "prompt": 10**40},
        {"prompt": "q"},
    ]
    pairs = prepare(recipe_for(write(tmp_path / "p.jsonl", rows)), tokenizer)
    assert len(pairs.train) == 2
    assert {found.reason: found.where for found in pairs.left_out} == {
        "prompt has half a character (a lone surrogate)": ("p.jsonl:3",),
        "chosen has half a character (a lone surrogate)": ("p.jsonl:4",),
        "rejected is neither a text nor a list of turns": ("p.jsonl:5",),
        "prompt is neither a text nor a list of turns": ("p.jsonl:6",),
        "chosen is empty": ("p.jsonl:7",),
    }


def test_a_check_on_a_laptop_counts_what_the_trainer_counts(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare
    from trainer.data.row_count import count_rows

    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, Any]] = [
        *[good] * 5,
        {**good, "prompt": "\ud83d", "chosen": ""},
        {**good, "tools": "[", "chosen": 7},
        {**good, "chosen": "b "},
        {"prompt": None, "chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "c"}]},
        {**good, "chosen": [*turns, turns[0]]},
        {"chosen": "so it is", "rejected": "so it was"},
        {**good, "rejected": [{"role": "assistant", "content": [{"type": "image"}]}]},
        {**good, "chosen": [{"from": "gpt", "value": "a"}]},
    ]
    for share in (1.0, 0.5):
        recipe = recipe_for(write(tmp_path / "p.jsonl", rows), fraction=share)
        pairs, count = prepare(recipe, tokenizer), count_rows(recipe.dataset)
        assert count is not None
        assert (count.rows, count.usable, count.left_out) == (pairs.rows, len(pairs.train), pairs.left_out)
    assert len(count.left_out) == 1


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31, 97])
@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(1, 1, 1), (4, 2, 2), (2, 3, 4)])
def test_steps_are_those_of_accelerate_and_transformers(
    rows: int, batch: int, accumulation: int, processes: int
) -> None:
    from types import SimpleNamespace

    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler
    from transformers import Trainer

    from trainer.config.global_batch import planned_steps

    of_a_rank = BatchSamplerShard(BatchSampler(range(rows), batch, drop_last=False), processes, 0)
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda args: batch * accumulation * processes,
        get_sp_size=lambda: 1,
        num_examples=lambda loader: rows,
    )
    asked = SimpleNamespace(max_steps=-1, gradient_accumulation_steps=accumulation, num_train_epochs=3)
    *_, steps = Trainer.set_initial_training_values(trainer, asked, of_a_rank)
    recipe = load_recipe("tiny-dpo")
    training = recipe.training.model_copy(
        update={"per_device_batch": batch, "accumulation": accumulation, "epochs": 3, "max_steps": None}
    )
    assert planned_steps(recipe.model_copy(update={"training": training}), rows, processes) == steps


def test_half_a_character_in_a_conversation_is_counted(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.data.dataset import prepare

    rows = [{"prompt": [{"role": "user", "content": text}], "chosen": "a", "rejected": "b"} for text in ("q", "\udc00")]
    assert len(prepare(recipe_for(write(tmp_path / "p.jsonl", rows)), tokenizer).train) == 1
    assert "left out 1 of 2 rows" in caplog.text


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_set_without_rows_is_named(
    tokenizer: Any, tmp_path: Path, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    from trainer.data.dataset import prepare

    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    parquet.write_table(pa.Table.from_pylist([], schema), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet has no rows"):
        prepare(recipe_for(tmp_path / "empty.parquet", fraction=fraction), tokenizer)
    nothing = datasets.Dataset.from_dict({name: [] for name in schema.names})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: nothing)
    with pytest.raises(DataError, match="me/empty has no rows"):
        prepare(recipe_for(Path("me/empty"), fraction=fraction), tokenizer)


def test_parquet_with_bytes_that_are_no_text_is_named(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from trainer.data.dataset import prepare

    latin = pa.array([b"No\xe9"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": ["q"], "chosen": latin, "rejected": ["b"]})
    parquet.write_table(table, tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"latin\.parquet contains text that is not valid UTF-8"):
        prepare(recipe_for(tmp_path / "latin.parquet"), tokenizer)


def test_a_template_that_stumbles_names_the_row(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    from trainer.data.dataset import prepare

    adding = copy.deepcopy(tokenizer)
    adding.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    turns = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "user", "content": "q"}]
    path = write(tmp_path / "p.jsonl", [{"prompt": turns, "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"refuses a conversation of assistant, user: .*\(p.jsonl:1\)"):
        prepare(recipe_for(path), adding)


def test_answers_that_all_begin_alike_are_no_data(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    rows = [{"prompt": "q", "chosen": "y" * 1000 + "a", "rejected": "y" * 1000 + "b"}]
    with pytest.raises(DataError, match="differ within their first tokens") as caught:
        prepare(recipe_for(write(tmp_path / "p.jsonl", rows)), tokenizer)
    assert "raise dpo.max_length (now 256)" in str(caught.value.hint)


@pytest.mark.parametrize("count", [1, 4])
def test_too_many_held_out_rows(tokenizer: Any, tmp_path: Path, count: int) -> None:
    from trainer.data.dataset import prepare

    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(count)]
    with pytest.raises(DataError, match=f"has only {count} usable rows"):
        prepare(recipe_for(write(tmp_path / "p.jsonl", rows), eval_rows=4), tokenizer)


def test_a_hub_that_does_not_answer_is_not_the_users_error(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    from trainer.data.dataset import prepare

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingFailed, match="can't load the data set 'argilla/no-such-set'"):
        prepare(recipe_for(Path("argilla/no-such-set")), tokenizer)


def rows_of(pairs: Any) -> list[Any]:
    return [pairs.fingerprint, pairs.train.to_list(), pairs.evaluation and pairs.evaluation.to_list()]


@pytest.mark.parametrize("eval_rows", [0, 16])
def test_tokens_come_back_from_the_bucket(tokenizer: Any, tmp_path: Path, eval_rows: int) -> None:
    from trainer.data.dataset import prepare

    recipe = load_recipe("tiny-dpo")
    recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"eval_rows": eval_rows})})
    store, key = ObjectStore.memory(), tokens_key(recipe, tokenizer)
    first = TokenCache(store, tmp_path / "first")
    assert not first.fetch(key)
    pairs = prepare(recipe, tokenizer)
    first.keep(key, pairs)
    first.publish(key)
    assert rows_of(first.load(key)) == rows_of(pairs)

    other = TokenCache(store, tmp_path / "other")
    other.prefetch()
    assert other.fetch(key)
    assert rows_of(other.load(key)) == rows_of(pairs)


def test_damaged_or_odd_files_in_the_bucket_are_not_used(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    recipe = load_recipe("tiny-dpo")
    store, key = ObjectStore.memory(), tokens_key(recipe, tokenizer)
    first = TokenCache(store, tmp_path / "first")
    first.keep(key, prepare(recipe, tokenizer))
    first.publish(key)
    good = store.get(f"cache/tokens/{key}/train.arrow").data
    store.put(f"cache/tokens/{key}/train.arrow", good[:-1] + bytes([good[-1] ^ 1]))
    cut = TokenCache(store, tmp_path / "cut")
    cut.prefetch()
    assert not cut.fetch(key)

    store.put(f"cache/tokens/{key}/index.json", TokenIndex(fingerprint="x", files={"../../etc/x": "0" * 32}).to_json())
    odd = TokenCache(store, tmp_path / "odd")
    assert not odd.fetch(key)


def test_the_key_of_the_tokens_names_all_that_decides_them(tokenizer: Any, tmp_path: Path) -> None:
    import copy

    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    recipe = recipe_for(write(tmp_path / "p.jsonl", rows))
    keys = [tokens_key(recipe, tokenizer)]
    keys.append(
        tokens_key(recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"max_length": 200})}), tokenizer)
    )
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template + " "
    keys.append(tokens_key(recipe, other))
    write(tmp_path / "p.jsonl", [*rows, *rows])
    keys.append(tokens_key(recipe, tokenizer))
    assert len(set(keys)) == 4
    (tmp_path / "elsewhere").mkdir()
    moved = recipe_for(write(tmp_path / "elsewhere/p.jsonl", [*rows, *rows]))
    assert tokens_key(moved, tokenizer) == keys[-1], "where a file lies is not its content"
    elsewhere = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": 1.0})})
    assert tokens_key(elsewhere, tokenizer) == keys[-1]


def test_a_folder_of_data_is_known_by_its_files(tokenizer: Any, tmp_path: Path) -> None:
    """One that was edited between two attempts was ignored: the tokens came from the bucket."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}')
    recipe = load_recipe("tiny-dpo")
    recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"name": str(folder)})})
    before = tokens_key(recipe, tokenizer)
    assert tokens_key(recipe, tokenizer) == before
    (folder / "train.jsonl").write_text('{"prompt": "q", "chosen": "b", "rejected": "a"}')
    assert tokens_key(recipe, tokenizer) != before


def test_sets_are_mixed_by_their_fractions(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    first = write(tmp_path / "a.jsonl", [{"prompt": f"a{n}", "chosen": "yes", "rejected": "no"} for n in range(10)])
    rows = [{"instruction": f"b{n}", "chosen_response": "yes", "rejected_response": "no", "more": n} for n in range(8)]
    second = Source(name=str(write(tmp_path / "b.jsonl", rows)), fraction=0.25)
    pairs = prepare(recipe_for(first, fraction=0.5, also=(second,)), tokenizer)
    prompts = [tokenizer.decode(row["prompt_ids"]).split("\n")[1].removesuffix("</s>") for row in pairs.train]
    assert prompts == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    whole = prepare(recipe_for(first, fraction=0.5), tokenizer)
    assert whole.fingerprint != pairs.fingerprint, "another mix is another run"
    tiny = prepare(recipe_for(first, fraction=0.01), tokenizer)
    assert len(tiny.train) == 1


def test_sets_of_texts_and_of_conversations_are_mixed(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    first = write(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "yes", "rejected": "no"}])
    turns = [{"role": "user", "content": "a"}]
    second = Source(name=str(write(tmp_path / "b.jsonl", [{"prompt": turns, "chosen": "yes", "rejected": "no"}])))
    one, two = prepare(recipe_for(first, also=(second,)), tokenizer).train
    assert one == two


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_by_the_set_s_own_names(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    import datasets

    from trainer.data.dataset import prepare

    rows = [{"question": "q", "good": "a", "bad": "b", "prompt": "something else"}]
    path = write(tmp_path / "p.jsonl", rows)
    if kind == "parquet":
        path = tmp_path / "p.parquet"
        datasets.Dataset.from_list(rows).to_parquet(path)
    named = prepare(recipe_for(path, columns=Columns(prompt="question", chosen="good", rejected="bad")), tokenizer)
    usual = write(tmp_path / "u.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert named.train.to_list() == prepare(recipe_for(usual), tokenizer).train.to_list()


def test_a_set_with_several_configurations(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("easy", "hard"):
        write(folder / f"{name}.jsonl", [{"prompt": name, "chosen": "a", "rejected": "b"}])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(DataError, match=r"Config name is missing.*easy.*hard") as caught:
        prepare(recipe_for(folder), tokenizer)
    assert "dataset.config" in str(caught.value.hint)
    hard = prepare(recipe_for(folder, config="hard"), tokenizer)
    assert "hard" in tokenizer.decode(hard.train[0]["prompt_ids"])


def test_the_split_of_2023_shuffled_first(tokenizer: Any, tmp_path: Path) -> None:
    """As the script of Notus did: `load_dataset(...).shuffle(seed=42)`, then `train_test_split(seed=42)`."""
    import datasets

    from trainer.data.dataset import prepare

    rows = [{"prompt": f"q{n:03d}", "chosen": "a", "rejected": "b"} for n in range(200)]
    theirs = datasets.Dataset.from_list(rows).shuffle(seed=42).train_test_split(test_size=20, seed=42)
    ours = prepare(recipe_for(write(tmp_path / "p.jsonl", rows), eval_rows=20, shuffle=42), tokenizer)
    assert ours.evaluation is not None
    for part, wanted in ((ours.train, theirs["train"]), (ours.evaluation, theirs["test"])):
        prompts = [tokenizer.decode(row["prompt_ids"]).split("\n")[1].removesuffix("</s>") for row in part]
        assert prompts == wanted["prompt"]


GOOD = {"prompt": "Which?", "chosen": "This one", "rejected": "That"}


@pytest.mark.parametrize(
    "note", [b'{"info"', b"[]", b"\xff\xfe", b'{"info": null}', b'{"info": [1]}', b'{"info": {"features": [1]}}']
)
def test_a_damaged_note_of_the_columns_is_told(tokenizer: Any, tmp_path: Path, note: bytes) -> None:
    """The trainer reads a parquet file through `datasets`, which fails on it."""
    from trainer.data.dataset import prepare

    path = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]).replace_schema_metadata({b"huggingface": note}), path)
    for read in (lambda: count_rows(Source(name=str(path))), lambda: prepare(recipe_for(path), tokenizer)):
        with pytest.raises(DataError, match=r"the metadata of `datasets` on its columns .* is damaged") as told:
            read()
        assert "replace_schema_metadata" in told.value.hint


def test_a_type_that_datasets_does_not_know(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    path = tmp_path / "pairs.parquet"
    note = json.dumps({"info": {"features": {"prompt": {"_type": "Nope"}}}})
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]).replace_schema_metadata({"huggingface": note}), path)
    assert count_rows(Source(name=str(path))) is None
    with pytest.raises(DataError, match="Feature type 'Nope' not found"):
        prepare(recipe_for(path), tokenizer)


def test_two_columns_of_one_name(tokenizer: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import prepare

    path = tmp_path / "pairs.parquet"
    table = pyarrow.Table.from_pylist([GOOD])
    parquet.write_table(table.append_column("prompt", table["prompt"]), path)
    for read in (lambda: count_rows(Source(name=str(path))), lambda: prepare(recipe_for(path), tokenizer)):
        with pytest.raises(DataError, match="has two columns called 'prompt'"):
            read()
