"""Launch options: what is right is parsed, what is wrong is explained."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from checkpoints.errors import InvalidName
from checkpoints.util.keys import check_key, check_run_name
from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.errors import RequestError
from launcher.request import check_market, parse_clouds, parse_deadline

NOW = datetime(2026, 11, 24, 20, tzinfo=UTC)


def test_gpus() -> None:
    assert parse_gpus("A100:8") == Gpus("A100", 8)
    assert parse_gpus("a100-80gb:4") == Gpus("A100-80GB", 4)
    assert parse_gpus("H100") == Gpus("H100", 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A100:0", "not a GPU request"),
        ("A100:8:8", "not a GPU request"),
        ("", "not"),
    ],
)
def test_wrong_gpus(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_gpus(text)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_clouds() -> None:
    assert parse_clouds(["GCP", "lambda"]) == ("gcp", "lambda")
    with pytest.raises(RequestError, match="unknown cloud 'lamda'; did you mean 'lambda'"):
        parse_clouds(["lamda"])
    with pytest.raises(RequestError, match="can't be combined"):
        parse_clouds(["local", "gcp"])


def test_what_a_cloud_cannot_do() -> None:
    with pytest.raises(RequestError, match="Lambda has no spot machines") as caught:
        check_market(["gcp", "lambda"], "spot")
    assert "--on-demand" in caught.value.hint
    check_market(["lambda"], "on-demand")
    check_market(["lambda"], "auto")


@pytest.mark.parametrize(
    ("text", "hours"),
    [("24h", 24.0), ("90m", 1.5), ("1d", 24.0), ("1.5 h", 1.5), ("2026-11-25T08:00+00:00", 12.0)],
)
def test_deadlines(text: str, hours: float) -> None:
    assert parse_deadline(text, NOW) == pytest.approx(hours)


@pytest.mark.parametrize(("text", "message"), [("soon", "not a deadline"), ("2026-11-24T08:00Z", "has passed")])
def test_wrong_deadlines(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_deadline(text, NOW)


@pytest.mark.parametrize("name", ["a", "tiny-dpo-20261124-6e8e", "0", "a" * 63])
def test_run_names(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "/etc", "a/b", "A", "a.b", "-a", "a-", "a b", "a\n", "a" * 64, "a\x00", "ä", "~"]
)
def test_names_with_tricks_are_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="is not a run name") as caught:
        check_run_name(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "a/../b", "..", ".hidden", "a/.x", "a\\b", "a\nb", "a/b/", "x" * 1000, "a b"]
)
def test_keys_with_tricks_are_refused(key: str) -> None:
    with pytest.raises(InvalidName):
        check_key(key)
    assert check_key("data/e000001-s00000005-9d91/r00000/c00000") != ""
