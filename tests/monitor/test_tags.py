"""Every scalar says its unit in its tag, whatever logs it."""

import re

from kept_run import Run

UNIT = r"_(nats|ms|s|percent|GiB|tokens_per_s|TFLOP_per_s|per_byte)$"
# Numbers of things, and norms, which have none.
WITHOUT = r"^(epoch|data/tokens|train/grad_norm|grad_norm/.*)$"


def test_every_tag_says_its_unit(run: Run) -> None:
    tags = run.tags("")
    assert {tag.split("/")[0] for tag in tags} >= {"train", "val", "speed", "data", "work", "memory", "grad_norm"}
    assert not [tag for tag in tags if not re.search(UNIT, tag) and not re.match(WITHOUT, tag)]
