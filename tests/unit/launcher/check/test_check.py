"""What a check makes of a data file, of the Hub's answers, and of a recipe's hours."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from checkpoints.errors import NotusError
from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.check.answers import Answer, Question, answers
from launcher.check.check import Where, as_json, check_before_launch, check_recipe, show_check
from launcher.check.hub import why_no_push
from launcher.check.rows import SLOWEST, Size, about_held_out, about_hours, about_steps, plausible_hours, size_of
from launcher.check.tokens import about_lengths, lengths_of
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.global_batch import planned_steps
from trainer.config.recipe import Recipe, Source, load_recipe
from trainer.data.row_count import SAMPLE_ROWS, RowCount, Texts, count_rows
from trainer.errors import DataError

GOOD = {"prompt": "Which?", "chosen": "This one", "rejected": "That"}
ROWS: list[dict[str, Any]] = [
    GOOD,
    {**GOOD, "rejected": ""},
    {**GOOD, "chosen": [{"role": "assistant", "content": "So?"}, {"role": "user", "content": "?"}]},
    {**GOOD, "prompt": "half \ud83d"},
    {**GOOD, "rejected": None},
    {**GOOD, "rejected": "This one"},
    {**GOOD, "prompt": "A longer one"},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(name: str, **dataset: Any) -> Recipe:
    tiny = load_recipe("tiny-dpo")
    return tiny.model_copy(
        update={"dataset": tiny.dataset.model_copy(update={"name": name, "eval_rows": 0, **dataset})}
    )


def test_every_row_is_read_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    count = count_rows(Source(name=str(jsonl(tmp_path / "pairs.jsonl", ROWS))))
    assert count is not None
    assert (count.rows, count.usable) == (7, 2)
    assert [(found.rows, found.reason, found.where) for found in count.left_out] == [
        (2, "rejected is empty", ("pairs.jsonl:2", "pairs.jsonl:5")),
        (1, "the last turn of chosen is of role user, and not the assistant's answer", ("pairs.jsonl:3",)),
        (1, "prompt has half a character (a lone surrogate)", ("pairs.jsonl:4",)),
        (1, "both answers are the same", ("pairs.jsonl:6",)),
    ]
    assert count.characters == (len("Which?This one"), len("A longer oneThis one"))
    assert count.sample == (Texts("Which?", "This one", "That"), Texts("A longer one", "This one", "That"))


def test_of_a_share_only_its_rows_count(tmp_path: Path) -> None:
    count = count_rows(Source(name=str(jsonl(tmp_path / "pairs.jsonl", ROWS)), fraction=0.3))
    assert count is not None
    assert (count.rows, count.usable, [found.rows for found in count.left_out]) == (2, 1, [1])
    assert len(count.sample) == 1


def test_a_sample_is_drawn_from_all_of_a_long_file(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": str(number)} for number in range(4 * SAMPLE_ROWS)]
    path, heard = jsonl(tmp_path / "pairs.jsonl", rows), []
    count = count_rows(Source(name=str(path)), lambda name, rows: heard.append((name, rows)))
    assert count is not None
    drawn = [int(texts.prompt) for texts in count.sample]
    assert len(set(drawn)) == SAMPLE_ROWS
    assert abs(sum(drawn) / SAMPLE_ROWS - 2 * SAMPLE_ROWS) < 0.1 * 4 * SAMPLE_ROWS, "its mean is that of the file"
    assert heard == [(str(path), 2000)]
    assert count_rows(Source(name=str(path))) == count


def test_parquet_is_read_like_lines(tmp_path: Path) -> None:
    rows = [row for row in ROWS if "half" not in str(row) and isinstance(row["chosen"], str)]
    path = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    count = count_rows(Source(name=str(path)))
    assert count is not None
    assert [(found.rows, found.where) for found in count.left_out] == [
        (2, ("pairs.parquet row 2", "pairs.parquet row 3")),
        (1, ("pairs.parquet row 4",)),
    ]
    turns = [
        [{"role": "assistant", "content": "A", "name": None}],
        [{"role": "assistant", "content": "B", "name": "x"}],
    ]
    parquet.write_table(pyarrow.table({"prompt": ["p", "q"], "chosen": turns, "rejected": turns[::-1]}), path)
    count = count_rows(Source(name=str(path)))
    assert count is not None
    assert count.usable == 2, "a null that Arrow filled in is not there"


def test_a_parquet_whose_objects_are_texts_is_left_to_datasets(tmp_path: Path) -> None:
    features = {"info": {"features": {"chosen": {"_type": "Json"}, "rejected": {"dtype": "string", "_type": "Value"}}}}
    table = pyarrow.Table.from_pylist([GOOD]).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "pairs.parquet")
    assert count_rows(Source(name=str(tmp_path / "pairs.parquet"))) is None
    checked = check_recipe(recipe(str(tmp_path / "pairs.parquet")), Where())
    assert [(finding.state, finding.what) for finding in checked.findings] == [("note", "data")]
    assert "read on the machine" in checked.findings[0].detail


def test_a_folder_of_this_machine_stays_here(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for local, states in ((True, []), (None, ["warning"]), (False, ["wrong"])):
        checked = check_recipe(recipe(str(tmp_path / "pairs")), Where(local=local))
        told = [finding for finding in checked.findings if "is a folder on this machine" in finding.detail]
        assert [finding.state for finding in told] == states
    with pytest.raises(RequestError, match="is a folder on this machine") as refused:
        check_before_launch(recipe(str(tmp_path / "pairs")), Where(local=False))
    assert "hf upload" in refused.value.hint


def test_a_node_that_nobody_sells() -> None:
    for node, message in (("A10O:8", "no price for a GPU 'A10O'"), ("A100:7", "no offer for A100:7")):
        with pytest.raises(NotusError, match=message):
            show_check("notus-7b-dpo-lora", [parse_gpus(node)], "text")


def test_a_damaged_file_is_refused_where_it_is_damaged(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [GOOD] * 3)
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:4: not JSON"):
        count_rows(Source(name=str(path)))
    parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 5000, pyarrow.schema([(n, "string") for n in GOOD])), path)
    damaged = bytearray(path.read_bytes())
    damaged[8:60] = bytes(52)
    (tmp_path / "pairs.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"pairs\.parquet can't be read behind row 0"):
        count_rows(Source(name=str(tmp_path / "pairs.parquet")))


def test_the_check_of_a_file_tells_rows_and_steps(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [{**GOOD, "prompt": str(n)} for n in range(40)] + ROWS[1:2])
    mine = recipe(str(path), eval_rows=5)
    checked = check_recipe(mine, Where())
    assert not checked.errors
    assert [(finding.what, finding.state) for finding in checked.findings] == [
        ("data", "ok"),
        ("data", "warning"),
        ("steps", "ok"),
    ]
    assert "40 of 41 rows can be trained" in checked.findings[0].detail
    assert "1 rejected is empty (pairs.jsonl:41)" in checked.findings[1].detail
    assert checked.findings[2].detail == "10 steps: 2 epochs of 35 rows, 8 per step on 2 ranks, 5 held out"
    told = as_json(mine, checked)
    assert (told["rows"], told["usable"], told["trained"], told["held_out"]) == (41, 40, 35, 5)
    assert told["data"][0]["left_out"] == [{"reason": "rejected is empty", "rows": 1, "where": ["pairs.jsonl:41"]}]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", ROWS[1:3])
    (tmp_path / "base").mkdir()
    mine = recipe(str(path)).model_copy(
        update={"model": load_recipe("tiny-dpo").model.model_copy(update={"name": str(tmp_path / "base")})}
    )
    checked = check_recipe(mine, Where(local=True))
    assert [(finding.what, finding.state) for finding in checked.findings] == [
        ("base model", "wrong"),
        ("data", "wrong"),
    ]
    with pytest.raises(RequestError, match=r"none of the 2 rows of .* can be trained: 1 rejected is empty") as refused:
        check_before_launch(mine, Where(local=True))
    assert refused.value.exit_code == 2
    assert "has no config.json" in capsys.readouterr().err


def counted(rows: int, unusable: tuple[int, ...]) -> RowCount:
    return RowCount("x", rows, (), "", tuple(10 for _ in range(rows - len(unusable))), unusable, ())


@pytest.mark.parametrize(
    ("eval_rows", "rows", "shuffle", "said"),
    [
        (7, None, None, "dataset.eval_rows is 7, but x has only 7 usable rows"),
        (2, 4, None, "dataset.eval_rows is 2, but the first 4 of x has only 2 usable rows"),  # rows 0 and 3 are bad
        (4, 4, 42, "dataset.eval_rows is 4, but the first 4 of x has only 4 rows"),
        (0, 1, None, "none of the 1 rows of the first 1 of x can be trained"),  # row 0
        (6, None, None, None),
        (1, 4, None, None),
        (3, 4, 42, None),  # which four these are is known on the machine
    ],
)
def test_rows_that_are_held_out_have_to_be_there(
    eval_rows: int, rows: int | None, shuffle: int | None, said: str | None
) -> None:
    mine = recipe("x", eval_rows=eval_rows, rows=rows, shuffle=shuffle)
    size = size_of(mine.dataset, [counted(9, (0, 3))], [])
    assert size is not None
    if said is None:
        assert about_held_out(mine, size) == []
        return
    with pytest.raises(RequestError) as refused:
        about_held_out(mine, size)
    assert refused.value.message == said


def test_the_first_rows_are_those_of_all_sets_one_after_the_other() -> None:
    dataset = recipe("x", rows=12).dataset
    assert size_of(dataset, [counted(9, (0, 3)), counted(9, (0, 8))], [])[:2] == (12, 9)  # type: ignore[index]
    assert size_of(dataset, [counted(9, ())], [Answer(Finding("data", "ok", ""), 5)])[:2] == (12, None)  # type: ignore[index]


def test_a_set_without_a_usable_row_beside_others_is_a_warning(tmp_path: Path) -> None:
    good, bad = jsonl(tmp_path / "good.jsonl", [GOOD] * 8), jsonl(tmp_path / "bad.jsonl", ROWS[1:3])
    checked = check_recipe(recipe(str(good), also=(Source(name=str(bad)),)), Where())
    assert not checked.errors
    assert ("data", "warning") in [(finding.what, finding.state) for finding in checked.findings]
    assert checked.size is not None
    assert (checked.size.rows, checked.size.usable) == (10, 8)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "processes", "epochs", "steps"),
    [
        (96, 4, 1, 2, 2, 24),
        (97, 4, 1, 2, 2, 26),  # the last micro-steps are filled up
        (100, 8, 4, 2, 1, 2),  # 13 micro-batches, 7 a process, in steps of 4 and 3
        (1, 8, 4, 8, 3, 3),
        (61_619, 8, 1, 8, 3, 2889),
    ],
)
def test_steps_are_counted_as_the_trainer_counts(
    rows: int, batch: int, accumulation: int, processes: int, epochs: int, steps: int
) -> None:
    tiny = load_recipe("tiny-dpo")
    training = tiny.training.model_copy(
        update={"per_device_batch": batch, "accumulation": accumulation, "epochs": epochs, "max_steps": None}
    )
    assert planned_steps(tiny.model_copy(update={"training": training}), rows, processes) == steps
    few = training.model_copy(update={"max_steps": 7})
    assert planned_steps(tiny.model_copy(update={"training": few}), rows, processes) == 7


def test_a_set_of_which_the_hub_tells_the_rows_has_about_so_many_steps() -> None:
    notus = load_recipe("notus-7b-dpo")
    assert about_steps(notus, Size(63_619, None, ()), 8).detail == (
        "about 2,889 steps: 3 epochs of 61,619 rows, 64 per step on 8 ranks, 2,000 held out"
    )


def test_the_hours_of_notus_are_plausible_and_those_of_a_copy_with_other_data_are_not() -> None:
    """By hand: 2889 steps of 64 pairs of 2 x 550 tokens, each 5/4 of the table's work, and 28 evaluations of 2000 pairs
    at 2/4; the table has 8 x 3854 tokens a second of a 6.7B model, and Zephyr has 7.24B."""
    notus, a100 = load_recipe("notus-7b-dpo"), Gpus("A100", 8)
    hours = plausible_hours(notus, Size(63_619, None, ()), 550, a100)
    assert hours is not None
    by_hand = (2889 * 64 * 5 / 4 + 28 * 2000 / 2) * 1100 / (8 * 3854 * 6.7e9 / 7.2417e9) / 3600
    assert hours == pytest.approx((by_hand, SLOWEST * by_hand), rel=1e-3)
    found = about_hours(notus, Size(63_619, None, ()), 550, a100)
    assert found is not None
    assert (found.state, found.detail[:21]) == ("ok", "12.0 h in the recipe;")
    few = about_hours(notus, Size(4_000, 4_000, ()), 550, a100)
    assert few is not None
    assert few.state == "warning"
    assert few.detail.startswith("12.0 h in the recipe, but these rows should take 0.1 to 0.4 h on A100:8")
    assert about_hours(notus, Size(4_000, 4_000, ()), 550, Gpus("T4", 8)) is None, "its speed is not known"


class Words:
    """A tokenizer: a token is a word."""

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        return [type("Encoded", (), {"ids": text.split()})() for text in texts]


def test_a_cut_that_touches_many_rows_is_a_warning() -> None:
    notus = load_recipe("notus-7b-dpo")
    short, long = Texts("a b", "c", "d e f"), Texts("a " * 800, "b " * 400, "c")
    lengths = lengths_of([short] * 3 + [long], Words())
    assert lengths.tokens == [5, 5, 5, 1200]
    assert lengths.mean(1024) == pytest.approx((15 + 1024) / 4)
    found = about_lengths(notus, lengths)
    assert found.state == "warning"
    assert "dpo.max_length 1,024 truncates about 25% of them" in found.detail
    assert about_lengths(notus, lengths_of([short] * 9, None)).state == "ok"


USER = {"name": "ada", "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]}


@pytest.mark.parametrize(
    ("token", "repo", "why"),
    [
        ({"role": "write"}, "ada/model", ""),
        ({"role": "write"}, "lab/model", ""),
        ({"role": "write"}, "club/model", "ada has only read access to club"),
        ({"role": "write"}, "argilla/notus-7b-dpo", "ada is not argilla or a member of it"),
        ({"role": "read"}, "ada/model", "HF_TOKEN may only read"),
        (
            {
                "role": "fineGrained",
                "fineGrained": {"scoped": [{"entity": {"name": "ada"}, "permissions": ["repo.write"]}]},
            },
            "ada/model",
            "",
        ),
        (
            {
                "role": "fineGrained",
                "fineGrained": {"scoped": [{"entity": {"name": "ada/model"}, "permissions": ["repo.write"]}]},
            },
            "ada/model",
            "",
        ),
        (
            {
                "role": "fineGrained",
                "fineGrained": {"scoped": [{"entity": {"name": "ada"}, "permissions": ["repo.content.read"]}]},
            },
            "ada/model",
            "HF_TOKEN is fine-grained and has no repo.write for ada",
        ),
        ({"role": "fineGrained"}, "ada/model", ""),  # what it doesn't tell is not made up
    ],
)
def test_who_may_push(token: dict[str, Any], repo: str, why: str) -> None:
    assert why_no_push({**USER, "auth": {"accessToken": token}}, repo) == why


def test_a_server_that_is_not_there_or_never_answers_is_no_error() -> None:
    done = threading.Event()

    def absent() -> Answer:
        raise OSError("connection refused\nby all of them")

    def wrong() -> Answer:
        raise RequestError("no such model", "correct it")

    def never() -> Answer:
        done.wait(60)
        return Answer(Finding("c", "ok", "late"))

    asked = [
        Question("a", absent),
        Question("b", wrong),
        Question("c", never),
        Question("d", lambda: Answer(Finding("d", "ok", "it is"))),
    ]
    try:
        heard = [answer.finding for answer in answers(asked, limit_s=0.2)]
    finally:
        done.set()
    assert heard == [
        Finding("a", "unknown", "could not be checked: connection refused"),
        Finding("b", "wrong", "no such model", "correct it"),
        Finding("c", "unknown", "could not be checked: no answer within 0 s"),
        Finding("d", "ok", "it is"),
    ]
