"""`notus-launch init` and `recipes`: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from launcher.cli_options import check_recipes_arguments
from launcher.commands.init_recipe import InitOptions, init
from launcher.commands.list_recipes import copy_recipe, list_recipes, show_recipe
from launcher.errors import RequestError
from trainer.config.recipe import builtin_names, load_recipe
from trainer.errors import DataError, RecipeError

OPTIONS = InitOptions(
    data="pairs.jsonl", model="mistralai/Mistral-7B-v0.1", method=None, gpus="A100:8", columns=None, force=False
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 300 pairs under names of their own, and a Hub that isn't queried."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.check.hub.questions", lambda *_, **__: [])
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row in range(300):
            pair = {"question": f"What is {row} + 1? " * 20, "good": "x" * 400, "bad": "y" * 90}
            file.write(json.dumps(pair) + "\n")
    return tmp_path


def test_a_recipe_is_written_with_columns_hours_and_a_check(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "recipes").mkdir()
    assert init(Path("recipes/mine.yaml"), OPTIONS) == 0
    recipe = load_recipe("recipes/mine.yaml")
    assert recipe.name == "mine"
    columns = recipe.dataset.columns.model_dump(exclude_none=True)
    assert columns == {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert recipe.dataset.name == str(here / "recipes/../pairs.jsonl")
    assert recipe.dataset.eval_rows == 15
    assert "an estimate" in Path("recipes/mine.yaml").read_text()
    told = capsys.readouterr().err
    assert "300 of 300 rows can be trained" in " ".join(told.split())
    assert "notus-launch drill --recipe recipes/mine.yaml" in told


def test_columns_that_cannot_be_guessed_are_asked_for(here: Path) -> None:
    (here / "odd.jsonl").write_text('{"a": "x", "b": "y", "c": "z"}\n' * 50)
    with pytest.raises(UserError, match="not clear which are prompt, chosen and rejected"):
        init(Path("odd.yaml"), OPTIONS._replace(data="odd.jsonl"))
    assert not Path("odd.yaml").exists()
    assert init(Path("odd.yaml"), OPTIONS._replace(data="odd.jsonl", columns="prompt=a, chosen=b,rejected=c")) == 0
    assert load_recipe("odd.yaml").dataset.columns.rejected == "c"


@pytest.mark.parametrize(
    ("columns", "message"),
    [("prompt=nothing", "no column 'nothing'"), ("answer=good", "'answer' is not"), ("chosen", "'chosen' is not")],
)
def test_columns_that_are_not_there_are_refused(columns: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        init(Path("mine.yaml"), OPTIONS._replace(columns=columns))


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        ("mine.txt", {}, UserError, "not a recipe's name"),
        ("nowhere/mine.yaml", {}, UserError, "no folder nowhere"),
        ("mine.yaml", {"data": None}, UserError, "--data is missing"),
        ("mine.yaml", {"model": None}, UserError, "--model is missing"),
        ("mine.yaml", {"data": "none.jsonl"}, DataError, "can't read none.jsonl"),
        ("mine.yaml", {"data": "pairs.csv"}, UserError, "a data file ends in"),
    ],
)
def test_bad_input_writes_nothing(
    file: str, changes: dict[str, str | None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        init(Path(file), OPTIONS._replace(**changes))  # type: ignore[arg-type]
    assert not Path(file).exists()


def test_an_interrupted_check_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a recipe with a placeholder, which the next `init` would refuse to overwrite, nor the draft."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.commands.init_recipe.check_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        init(Path("mine.yaml"), OPTIONS)
    assert [path.name for path in here.iterdir()] == ["pairs.jsonl"]


def test_a_recipe_is_overwritten_only_on_request() -> None:
    Path("mine.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.yaml exists"):
        init(Path("mine.yaml"), OPTIONS)
    assert Path("mine.yaml").read_text() == "mine"
    assert init(Path("mine.yaml"), OPTIONS._replace(force=True)) == 0


def test_recipes_are_listed_shown_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes("json")
    assert [recipe["name"] for recipe in json.loads(capsys.readouterr().out)] == builtin_names()
    list_recipes("text")
    assert "notus-7b-dpo-lora" in capsys.readouterr().out
    copy_recipe("tiny-dpo", None)
    assert load_recipe("tiny-dpo.yaml") == load_recipe("tiny-dpo")
    capsys.readouterr()
    show_recipe("tiny-dpo")
    assert capsys.readouterr().out == Path("tiny-dpo.yaml").read_text()
    with pytest.raises(UserError, match="exists"):
        copy_recipe("tiny-dpo", None)
    with pytest.raises(RecipeError, match="did you mean 'tiny-dpo'"):
        show_recipe("tiny-dop")
    with pytest.raises(UserError, match="a file of yours"):
        show_recipe("tiny-dpo.yaml")


def test_arguments_that_do_not_go_together_are_refused() -> None:
    check_recipes_arguments("list", None, None)
    for action, name, file in (("list", "x", None), ("show", None, None), ("show", "x", Path("y.yaml"))):
        with pytest.raises(RequestError):
            check_recipes_arguments(action, name, file)  # type: ignore[arg-type]
