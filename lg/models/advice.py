"""What is better known before training is paid for: warnings of what is allowed, and seldom meant."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lg.attention import Causal, Pattern
from lg.models.block import MixerSpec
from lg.models.config import DecoderConfig
from lg.models.pretrained import Pretrained
from lg.models.rope_scaling import DynamicNTK, ntk_theta

log = logging.getLogger(__name__)


def tell_other_patterns(pretrained: Pretrained, sees: Sequence[Pattern | MixerSpec]) -> None:
    """Says where layers of what was pretrained see something else than everything, and than they will here.

    Args:
        pretrained: what training begins with.
        sees: what each layer will see in eval mode; what it sees in training alone is a means.
    """
    for trained in dict.fromkeys(pretrained.sees):
        pairs = enumerate(zip(pretrained.sees, sees, strict=False))
        others = [layer for layer, (before, now) in pairs if before == trained != now]
        if trained != Causal() and others:
            log.warning(
                "model.init_args.schedule: layers %s see other keys than as they were pretrained, %s",
                ", ".join(map(str, others)),
                trained,
            )


def tell_no_export(config: DecoderConfig) -> None:
    """Warns of rotary positions that no class of transformers has as lg has them."""
    if isinstance(config.rope_scaling, DynamicNTK):
        log.warning(
            "model.init_args.rope_scaling: a model with %s cannot be exported (lg export); with NTK, of one factor, it "
            "can",
            config.rope_scaling,
        )


def tell_small_theta(pretrained: Pretrained, config: DecoderConfig, num_positions: int, name: str) -> None:
    """Warns where rows reach further than what was pretrained, and its rotary positions were left as they are.

    Args:
        pretrained: what training begins with.
        config: the shape that is trained.
        num_positions: how many positions rows are drawn from.
        name: of what was pretrained.
    """
    known = pretrained.longest
    if not known or num_positions <= known or config.rope_scaling is not None:
        return
    least = ntk_theta(pretrained.config.rope_theta, num_positions / known, config.head_width)
    if config.rope_theta < least:
        log.warning(
            "model.init_args.decoder.rope_theta: %g is small for %d positions, where %s is made for %d: by the NTK "
            "rule, theta * (L / L0) ** (D / (D - 2)), it is %.3g, and %.3g, twice that, is ProLong's; or give a "
            "model.init_args.rope_scaling",
            config.rope_theta, num_positions, name, known, least, 2 * least,
        )  # fmt: skip
