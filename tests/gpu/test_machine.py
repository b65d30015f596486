"""What the set-up of a VM asks of its GPUs, asked here."""

from __future__ import annotations

import pytest

from trainer.config.recipe import Hardware
from trainer.errors import HardwareError
from trainer.supervisor.preflight import check, check_torch, read_cards


def test_the_driver_and_torch_agree_about_the_cards() -> None:
    import torch

    cards = read_cards()
    assert len(cards) == torch.cuda.device_count()
    assert cards[0].name == torch.cuda.get_device_name(0)
    assert cards[0].driver
    check_torch()


def test_more_cards_than_there_are_are_refused() -> None:
    cards = read_cards()
    check(Hardware(gpus=f"A100:{len(cards)}", hours=1), cards, free_gib=1000)
    with pytest.raises(HardwareError, match=f"shows {len(cards)} GPUs"):
        check(Hardware(gpus=f"A100:{len(cards) + 1}", hours=1), cards, free_gib=1000)
