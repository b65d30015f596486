"""Preference pairs: columns, files, and cutting to length as TRL did in 2023."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.recipe import Columns, Dataset, Dpo, Source
from trainer.data.preference_pairs import check_local, find_columns, fingerprint_rows, fit_pair, read_jsonl
from trainer.data.trl_formats import PARTS, read_row
from trainer.errors import DataError

LIMITS = Dpo(max_length=10, max_prompt_length=4)


def cut(prompt: int, chosen: int, rejected: int) -> tuple[list[int], list[int], list[int]]:
    ids = fit_pair(list(range(prompt)), list(range(100, 100 + chosen)), list(range(200, 200 + rejected)), LIMITS)
    return ids.prompt_ids, ids.chosen_ids, ids.rejected_ids


def test_what_fits_is_not_touched_even_if_the_prompt_is_longer_than_its_limit() -> None:
    assert cut(7, 3, 2) == (list(range(7)), [100, 101, 102], [200, 201])


def test_a_long_prompt_keeps_its_end() -> None:
    assert cut(9, 5, 2) == ([5, 6, 7, 8], [100, 101, 102, 103, 104], [200, 201])


def test_long_answers_keep_their_beginning() -> None:
    prompt, chosen, rejected = cut(9, 9, 7)
    assert prompt == [5, 6, 7, 8]
    assert chosen == [100, 101, 102, 103, 104, 105]
    assert rejected == [200, 201, 202, 203, 204, 205]


def test_a_short_prompt_with_long_answers_keeps_the_whole_prompt() -> None:
    prompt, chosen, rejected = cut(2, 20, 3)
    assert prompt == [0, 1]
    assert (len(chosen), len(rejected)) == (6, 3)


@given(*(st.integers(0, 40),) * 3, st.integers(2, 20), st.data())
def test_cutting_never_exceeds_the_limit_nor_invents_tokens(
    prompt: int, chosen: int, rejected: int, limit: int, data: st.DataObject
) -> None:
    dpo = Dpo(max_length=limit, max_prompt_length=data.draw(st.integers(1, limit - 1)))
    p, c, r = (list(range(start, start + n)) for start, n in ((0, prompt), (100, chosen), (200, rejected)))
    ids = fit_pair(p, c, r, dpo)
    assert len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids)) <= limit
    assert ids.prompt_ids == (p[-len(ids.prompt_ids) :] if ids.prompt_ids else [])
    assert ids.chosen_ids == c[: len(ids.chosen_ids)]
    assert ids.rejected_ids == r[: len(ids.rejected_ids)]
    if prompt + max(chosen, rejected) <= limit:
        assert ids == (p, c, r)


SET = Source(name="d")


def test_both_column_sets_are_known() -> None:
    assert find_columns(["prompt", "chosen", "rejected", "x"], SET) == {name: name for name in PARTS}
    found = find_columns(["instruction", "rejected_response", "chosen_response"], SET)
    assert found == {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}


def test_the_prompt_may_be_what_both_answers_begin_with() -> None:
    assert find_columns(["chosen", "rejected", "tools"], SET) == {
        "chosen": "chosen",
        "rejected": "rejected",
        "tools": "tools",
    }


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="d has no column 'rejected'; it has prompt, chosen") as caught:
        find_columns(["prompt", "chosen"], SET)
    assert caught.value.exit_code == 2
    assert "dataset.columns" in caught.value.hint


def test_own_names_of_columns() -> None:
    mine = Source(name="d", columns=Columns(prompt="question", chosen="good", rejected="bad"))
    assert find_columns(["question", "good", "bad"], mine) == {
        "prompt": "question",
        "chosen": "good",
        "rejected": "bad",
    }
    with pytest.raises(DataError, match=r"d has no column 'bad', which dataset\.columns names"):
        find_columns(["question", "good"], mine)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{oops\n', ":2: not JSON"),
        (b"[1]\n", ":1: not a JSON object"),
        (b"\n\n", "has no rows"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":1: not JSON: Exceeds the limit"),
        (b"[" * 100_000 + b"\n", ":1: not JSON: maximum recursion"),
        (b'{"prompt": "\xff"}\n', r":1: not UTF-8 text \(byte 12 of the file\)"),
        (
            b'{"prompt": "a"}\n' * 60_000 + b'{"prompt": "\xff"}\n',
            r":60001: not UTF-8 text \(byte 960012 of the file\)",
        ),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_jsonl(path))


def test_a_local_file_is_checked_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(DataError, match="no column 'rejected'"):
        check_local(Dataset(name=str(path)))
    check_local(Dataset(name="builtin:tiny-preferences"))
    check_local(Dataset(name="argilla/some-set"))
    with pytest.raises(DataError, match="no built-in data set"):
        check_local(Dataset(name="builtin:nothing"))


@pytest.mark.parametrize("name", ["pairs.csv", "sub/pairs.tsv", "a/b/c", "what is this", "pairs.jsonl.gz", "-x/y"])
def test_what_is_no_data_set_is_no_name_on_the_hub(name: str) -> None:
    with pytest.raises(DataError):
        check_local(Dataset(name=name))


def test_names_on_the_hub_and_folders_pass(tmp_path: Path) -> None:
    for name in ("argilla/dpo-mix-7k", "squad", "someone/set.v2", str(tmp_path)):
        check_local(Dataset(name=name))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    path.write_text("not parquet")
    with pytest.raises(DataError, match="as parquet"):
        check_local(Dataset(name=str(path)))


def test_the_shipped_pairs_are_usable() -> None:
    import trainer

    rows = list(read_jsonl(Path(trainer.__file__).parent / "builtin/tiny-preferences.jsonl"))
    assert len(rows) == 112
    renamed = [
        {"prompt": row["instruction"], "chosen": row["chosen_response"], "rejected": row["rejected_response"]}
        for row in rows
    ]
    assert [read_row(row)[:3] for row in renamed] == [tuple(row.values()) for row in renamed]
    assert len({row["prompt"] for row in renamed}) == 112


def test_the_fingerprint_sees_order_and_content() -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    assert fingerprint_rows(rows) == fingerprint_rows([{"prompt": "a"}, {"prompt": "b"}])
    assert fingerprint_rows(rows) != fingerprint_rows(rows[::-1])
