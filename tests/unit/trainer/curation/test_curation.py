"""`notus-data curate`: ratings as they are published, pairs by their mean, everything counted, the same every time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from checkpoints.errors import UserError
from tests.support.hub_fake import HubFake
from trainer.config.recipe import Source
from trainer.curation.binarize import LeftOut, Pair, Rules, binarize, overall_disagrees, plain
from trainer.curation.cli import app
from trainer.curation.pipeline import Destination, as_text, curate_files
from trainer.curation.ultrafeedback import ASPECTS, Completion, Record, rating, read_record
from trainer.data.preference_pairs import COLUMN_SETS, find_columns
from trainer.errors import DataError, TrainingFailed


def annotated(*ratings: object, as_list: bool = True) -> dict[str, Any]:
    values = ratings if len(ratings) == 4 else ratings * 4
    told = {aspect: {"Rating": value, "Rationale": "because"} for aspect, value in zip(ASPECTS, values, strict=True)}
    return {aspect: [one] if as_list else one for aspect, one in told.items()}


def answer(
    text: str, *ratings: object, overall: object = 5.0, model: str = "m", as_list: bool = True
) -> dict[str, Any]:
    return {
        "response": text,
        "model": model,
        "overall_score": overall,
        "annotations": annotated(*ratings, as_list=as_list),
    }


def record(*answers: dict[str, Any], instruction: str = "Say hello.", source: str = "evol_instruct") -> dict[str, Any]:
    return {"source": source, "instruction": instruction, "models": [], "completions": list(answers)}


def pair_of(row: dict[str, Any], **rules: Any) -> Pair | LeftOut:
    return binarize(read_record(row), Rules(**rules))


# --- ratings ----------------------------------------------------------------------------------------


def test_the_mean_of_four_ratings_from_either_form() -> None:
    for as_list in (True, False):
        (found,) = read_record(record(answer("a", "5", "4", "4", "3", as_list=as_list))).completions
        assert found == Completion("m", "a", 4.0, 5.0)
    assert rating([{"Rating": "4"}, {"Rating": "5"}, {"Rating": "N/A"}]) == 4.5
    assert rating({"Rating": 7}) is None, "out of the scale"
    assert rating("5") is None


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (answer("", "5"), "empty response"),
        (answer("  \n", "5"), "empty response"),
        (answer("a", "N/A", 10**400, "nan", "0"), "no aspect rated"),
        ({"response": "a", "annotations": {}}, "no aspect rated"),
        (answer("half \ud83d", "5"), "response with half a character (a lone surrogate)"),
        ({"response": "a"}, "no annotations"),
        ("a", "not an answer"),
    ],
)
def test_what_cannot_be_compared_is_left_out_and_counted(told: Any, reason: str) -> None:
    found = read_record(record(told, answer("b", "3")))
    assert [one.response for one in found.completions] == ["b"]
    assert found.oddities == {reason: 1}


@pytest.mark.parametrize(
    ("told", "mean", "unrated"),
    [
        (answer("a", "5", "N/A", "4", "4"), 13 / 3, ("honesty",)),
        (answer("a", "5", 10**400, "5", "nan"), 5.0, ("honesty", "truthfulness")),
        ({"response": "a", "annotations": {"helpfulness": [{"Rating": "3"}]}}, 3.0, ASPECTS[1:]),
    ],
)
def test_an_aspect_without_meaning_is_left_out_of_the_mean(told: Any, mean: float, unrated: tuple[str, ...]) -> None:
    """As UltraFeedback's own script: its prompt asks for N/A where honesty, for example, has no meaning."""
    found = read_record(record(told, answer("b", "3")))
    assert [one.response for one in found.completions] == ["a", "b"]
    assert found.completions[0].mean == pytest.approx(mean)
    assert found.completions[0].unrated == unrated
    strict = read_record(record(told, answer("b", "3")), strict=True)
    assert [one.response for one in strict.completions] == ["b"]
    assert strict.oddities == {f"{unrated[0]} not rated (N/A)": 1}


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = [record(answer(" a\n", "5"), answer("b ", "4"), instruction="  What?\n")]
    curate([write(tmp_path / "ultra.jsonl", rows)], tmp_path / "out")
    (row,) = table(tmp_path / "out")
    assert (row["instruction"], row["chosen_response"], row["rejected_response"]) == ("  What?\n", " a\n", "b ")


def test_half_a_character_ends_nothing(tmp_path: Path) -> None:
    good = [answer("a", "5", model="m\ud83d"), answer("b", "4")]
    rows = [record(*good, instruction="what?\udc00"), record(*good, source="\ud83d"), record(*good, instruction="q")]
    report = curate([write(tmp_path / "ultra.jsonl", rows)], tmp_path / "out")
    assert report["left_out"] == {"instruction with half a character (a lone surrogate)": 1}
    assert [(row["source"], row["chosen_model"]) for row in table(tmp_path / "out")] == [
        ("", ""),
        ("evol_instruct", ""),
    ]


def test_a_record_of_another_kind_has_nothing_in_it() -> None:
    assert read_record({"text": "x"}) == Record("", "", (), {})
    assert pair_of({"text": "x"}) == LeftOut("no instruction")


# --- pairs ------------------------------------------------------------------------------------------


def test_the_highest_mean_is_chosen_whatever_the_overall_score_says() -> None:
    row = record(answer("good", "5", overall=1.0), answer("fair", "4", overall=9.0), answer("bad", "1", overall=2.0))
    made = pair_of(row, rejected="lowest")
    assert isinstance(made, Pair)
    assert (made.chosen_response, made.rejected_response) == ("good", "bad")
    assert (made.chosen_avg_rating, made.rejected_avg_rating) == (5.0, 1.0)
    assert overall_disagrees(read_record(row)) is True
    assert overall_disagrees(read_record(record(answer("a", "5", overall=None), answer("b", "4")))) is None
    assert overall_disagrees(read_record(record(answer("a", "5", overall=8), answer("b", "4", overall=8)))) is False


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (record(answer("a", "5"), answer("b", "5")), "a tie of all answers"),
        (record(answer("a", "5")), "fewer than two rated answers"),
        (record(answer("a", "5"), answer("b", "N/A")), "fewer than two rated answers"),
        (record(answer("same", "5"), answer("same ", "4")), "both answers are the same text"),
        (record(answer("a", "5"), answer("b", "4"), instruction=" "), "no instruction"),
    ],
)
def test_records_without_a_pair_say_why(row: dict[str, Any], reason: str) -> None:
    assert pair_of(row) == LeftOut(reason)


def test_contaminated_instructions_and_sources_are_left_out() -> None:
    row = record(answer("a", "5"), answer("b", "4"), instruction="What  is\nTRUTH?", source="truthful_qa")
    assert pair_of(row, contaminated=frozenset({plain("what is truth?")})) == LeftOut("in the contamination list")
    assert pair_of(row, dropped_sources=frozenset({"truthful_qa"})) == LeftOut("source truthful_qa")


def test_the_random_rejected_answer_follows_the_seed_and_covers_all_lower_ones() -> None:
    answers = [answer("best", "5"), answer("b", "4"), answer("c", "3"), answer("d", "2")]
    rows = [record(*answers, instruction=f"question {n}") for n in range(400)]
    first = [pair_of(row, seed=1) for row in rows]
    assert first == [pair_of(row, seed=1) for row in rows]
    counts = {name: sum(made.rejected_response == name for made in first) for name in "bcd"}  # type: ignore[union-attr]
    assert all(90 < count < 180 for count in counts.values()), counts
    assert first != [pair_of(row, seed=2) for row in rows]
    assert pair_of(rows[0], seed=-3) == pair_of(rows[0], seed=-3)


@given(
    ratings=st.lists(st.tuples(*[st.integers(1, 5)] * 4), min_size=2, max_size=6),
    seed=st.integers(-(2**31), 2**31),
    how=st.sampled_from(["random", "lowest"]),
)
def test_chosen_is_always_better_and_never_beaten(ratings: list[tuple[int, ...]], seed: int, how: Any) -> None:
    row = record(*(answer(f"text {n}", *map(str, values)) for n, values in enumerate(ratings)))
    made = pair_of(row, seed=seed, rejected=how)
    means = [sum(values) / 4 for values in ratings]
    if isinstance(made, LeftOut):
        assert len(set(means)) == 1
        return
    assert made.chosen_avg_rating == max(means)
    assert made.rejected_avg_rating < made.chosen_avg_rating
    if how == "lowest":
        assert made.rejected_avg_rating == min(means)


# --- files ------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some(count: int) -> list[dict[str, Any]]:
    generator = random.Random(7)
    return [
        record(
            *(answer(f"answer {n} {k}", *(str(generator.randint(1, 5)) for _ in range(4))) for k in range(4)),
            instruction=f"question {n} – ü",
        )
        for n in range(count)
    ]


def curate(inputs: list[Path], out: Path, shard_rows: int = 50_000, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"rejected": "random", "seed": 42, "contamination": None, "drop_sources": []}
    return curate_files(inputs, Destination(out, shard_rows, None, private=True), **{**options, **more})


def table(folder: Path) -> list[dict[str, Any]]:
    return [row for shard in sorted((folder / "data").iterdir()) for row in parquet.read_table(shard).to_pylist()]


def test_files_become_shards_with_a_card_a_report_and_histograms(tmp_path: Path) -> None:
    rows = [*some(40), record(answer("a", "5"), answer("b", "5")), record(answer("", "1"))]
    source = write(tmp_path / "ultra.jsonl", rows)
    report = curate([source], tmp_path / "out", shard_rows=15)
    assert report["records"] == 42
    assert report["left_out"]["a tie of all answers"] >= 1
    assert report["left_out"]["fewer than two rated answers"] == 1
    assert report["answers_left_out"] == {"empty response": 1}
    assert report["pairs"] + sum(report["left_out"].values()) == 42
    made = table(tmp_path / "out")
    assert len(made) == report["pairs"] == sum(report["margin"].values())
    assert parquet.read_metadata(tmp_path / "out/data/train-00000.parquet").num_rows == 15
    assert tuple(find_columns(list(made[0]), Source(name="it")).values()) == COLUMN_SETS[1], "trains as it is"
    assert "ü" in made[0]["instruction"]
    assert (tmp_path / "out/histograms.png").read_bytes().startswith(b"\x89PNG")
    assert f"{report['pairs']} preference pairs" in (tmp_path / "out/README.md").read_text()
    assert json.loads((tmp_path / "out/report.json").read_text()) == report


def test_the_same_input_gives_the_same_bytes_and_order_does_not_change_a_pair(tmp_path: Path) -> None:
    rows = some(30)
    for name in ("one", "two"):
        curate([write(tmp_path / "ultra.jsonl", rows)], tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path
    curate([write(tmp_path / "back.jsonl", rows[::-1])], tmp_path / "three")
    assert sorted(map(str, table(tmp_path / "three"))) == sorted(map(str, table(tmp_path / "one")))


def test_parquet_input_gives_what_json_lines_give(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = some(20)
    (tmp_path / "in").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    curate([tmp_path / "in"], tmp_path / "one")
    curate([write(tmp_path / "ultra.jsonl", rows)], tmp_path / "two")
    assert table(tmp_path / "one") == table(tmp_path / "two")


def test_parquet_with_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    import pyarrow as pa

    latin = pa.array([b"No\xe9"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"instruction": latin}), tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"can't read .*latin\.parquet as parquet: 'utf-8' codec"):
        curate([tmp_path / "latin.parquet"], tmp_path / "out")


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_contamination_list_is_text_or_json_lines(tmp_path: Path, suffix: str) -> None:
    listed = tmp_path / f"test.{suffix}"
    text = "QUESTION 3 – ü\n" if suffix == "txt" else json.dumps({"prompt": "question 3 – Ü"}) + "\n"
    listed.write_text(text, encoding="utf-8")
    report = curate([write(tmp_path / "ultra.jsonl", some(10))], tmp_path / "out", contamination=listed)
    assert report["left_out"]["in the contamination list"] == 1


def test_a_contamination_list_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    listed = tmp_path / "test.txt"
    listed.write_bytes(b"what?\nwhy\xff?\n")
    with pytest.raises(DataError, match=r"test\.txt:2: not UTF-8 text \(byte 9 of the file\)"):
        curate([write(tmp_path / "ultra.jsonl", some(3))], tmp_path / "out", contamination=listed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\nnot json\n', "ultra.jsonl:2: not JSON"),
        ('{"a": 1}\n', "none of the 1 records makes a pair: {'no instruction': 1}"),
        ("", "has no rows"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "ultra.jsonl"
    source.write_text(content)
    with pytest.raises(DataError, match=message):
        curate([source], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ultra.jsonl"]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        curate([write(tmp_path / "ultra.jsonl", some(3))], tmp_path / "out")
    with pytest.raises(DataError, match="there is no file"):
        curate([tmp_path / "missing.jsonl"], tmp_path / "new")


def test_a_push_is_checked_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    source = write(tmp_path / "ultra.jsonl", some(3))
    options: dict[str, Any] = {"rejected": "random", "seed": 1, "contamination": None, "drop_sources": []}
    for repo, message in (("mine", "is not a data set on the Hub"), ("me/mine", "needs a token")):
        with pytest.raises(UserError, match=message):
            curate_files([source], Destination(tmp_path / "out", 10, repo, private=True), **options)
    assert not (tmp_path / "out").exists()


def test_a_push_sends_the_folder_as_a_private_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubFake().install(monkeypatch)
    source = write(tmp_path / "ultra.jsonl", some(3))
    where = Destination(tmp_path / "out", 10, "me/mine", private=True)
    curate_files([source], where, rejected="random", seed=1, contamination=None, drop_sources=[])
    assert hub.created == [{"repo": "me/mine", "private": True, "exist_ok": True, "repo_type": "dataset"}]
    assert hub.names("me/mine") == {"README.md", "report.json", "histograms.png", "data/train-00000.parquet"}


def test_a_push_that_failed_is_repeated_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, out = HubFake().install(monkeypatch), tmp_path / "out"
    hub.files["me/mine"] = {"data/train-00001.parquet": b"of an earlier push"}
    hub.refusals = 1
    source = write(tmp_path / "ultra.jsonl", some(9))
    options: dict[str, Any] = {"rejected": "random", "seed": 1, "contamination": None, "drop_sources": []}
    where = Destination(out, 10, "me/mine", private=True)
    with pytest.raises(TrainingFailed, match="the connection was reset"):
        curate_files([source], where, **options)
    monkeypatch.setattr("trainer.curation.pipeline.read_rows", None)  # what is there isn't made again
    for _ in range(2):
        assert curate_files([source], where, **options) == json.loads((out / "report.json").read_text())
        assert hub.files["me/mine"] == {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file() and path.name != ".notus.json"
        }

    for changed in ({"seed": 2}, {"drop_sources": ["x"]}):
        with pytest.raises(UserError, match="is not empty"):
            curate_files([source], where, **{**options, **changed})
    write(source, some(8))
    with pytest.raises(UserError, match="is not empty"):
        curate_files([source], where, **options)


def test_the_command_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "ultra.jsonl", some(10))
    app(["curate", str(source), "--out", str(tmp_path / "out"), "--rejected", "lowest"], standalone_mode=False)
    assert "pairs from 10 records" in capsys.readouterr().out
    with pytest.raises(UserError, match="--rejected 'worst' is not known"):
        app(["curate", str(source), "--out", str(tmp_path / "x"), "--rejected", "worst"], standalone_mode=False)


def test_what_matched_nothing_is_said(tmp_path: Path) -> None:
    source = write(tmp_path / "ultra.jsonl", [record(answer("a", "5"), answer("b", "4"))])
    (tmp_path / "list.txt").write_text("another question\n")
    report = curate([source], tmp_path / "out", drop_sources=["truthfulqa"], contamination=tmp_path / "list.txt")
    assert report["matched_nothing"] == ["--drop-source truthfulqa", "--contamination"]
    assert "--drop-source truthfulqa matched nothing" in as_text(report, tmp_path / "out")
