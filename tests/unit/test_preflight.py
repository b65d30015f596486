"""The check of a VM: what nvidia-smi prints, and what is refused."""

from __future__ import annotations

import pytest

from trainer.errors import HardwareError
from trainer.preflight import Card, check, parse_cards
from trainer.recipe import Hardware

NODE = Hardware(gpus="A100:8", hours=12)
SMI = "NVIDIA A100-SXM4-40GB, 40960, 580.65.06\n" * 8
CARDS = parse_cards(SMI)


def test_a_node_of_the_right_kind_passes() -> None:
    assert CARDS[0] == Card("NVIDIA A100-SXM4-40GB", 40.0, "580.65.06")
    check(NODE, CARDS, free_gib=300)
    check(NODE, [Card("NVIDIA A100-SXM4-80GB", 79.3, "580")] * 8, free_gib=300)
    check(Hardware(hours=1), [], free_gib=0)


def test_a_line_that_is_no_card_is_left_out() -> None:
    assert parse_cards("NVIDIA A100, [N/A], 580\n\nwarning: infoROM is corrupted\n") == []


@pytest.mark.parametrize(
    ("cards", "free_gib", "message"),
    [
        (CARDS[:7], 300.0, "shows 7 GPUs"),
        ([], 300.0, "shows 0 GPUs"),
        ([*CARDS[:7], Card("NVIDIA A10", 22.5, "580")], 300.0, "NVIDIA A10 has 22 GiB"),
        (CARDS, 20.0, "20 GiB of disk"),
    ],
)
def test_what_is_refused(cards: list[Card], free_gib: float, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        check(NODE, cards, free_gib)
