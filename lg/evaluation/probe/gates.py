"""Gates on KV heads, learned on frozen weights: which heads must see everything for the same final hidden states.

Shapes: H query heads, G KV heads, L tokens, P answer tokens, W model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lg.attention import Tiles
from lg.evaluation.needle import Haystack
from lg.evaluation.probe.measure import Finding, Measure, Probe, Unmeasurable, are_finite, mean, ranked
from lg.evaluation.probe.sight import LocalTiles, attending
from lg.evaluation.probe.tasks import Needle
from lg.evaluation.prompts import PackedPrompts
from lg.models.block import Attend
from lg.models.decoder import Decoder

_KEPT_EVERY = 10  # steps


@dataclass(frozen=True)
class Gates(Measure):
    """One gate ``a`` in [0, 1] for each KV head: its output is ``a * full + (1 - a) * local``. The gates that stay open
    are those without which the final hidden states, at answers to questions about a needle, would change.

    The loss is the mean squared difference to the hidden states of the model as it is, plus ``penalty * mean(|a|)``.
    The learning rate rises over the first fifth of the steps and falls over the last.

    Attributes:
        hay: the questions; a step reads one sequence of them.
        steps: of AdamW.
        learning_rate: its peak.
        penalty: on open gates.
    """

    source = "DuoAttention (Xiao et al. 2024, arXiv 2410.10819, section 2)"
    hay: Haystack
    steps: int = 300
    learning_rate: float = 0.02
    penalty: float = 0.05

    @property
    def name(self) -> str:
        return "gates"

    def passes(self, num_layers: int) -> float:
        # A step goes forward once with two attentions, and back as far as the gates, which costs as much again.
        return 2 * self.steps + len(self.hay.packed) + 2 * Needle(self.hay).passes

    def run(self, probe: Probe) -> Finding:
        # Where nothing is retrieved, no gate matters.
        probe.ends(Needle(self.hay))
        name = f"gates: {self.steps} steps"
        state = probe.notebook.units.get(name)
        if state is None or state["step"] < self.steps:
            self._learn(probe, name, state)
        heads = probe.notebook.units[name]["gates"]
        if not are_finite(heads):
            raise Unmeasurable(f"gates are no finite numbers after {self.steps} steps; the model's gradients overflow")
        return ranked([mean(of_layer) for of_layer in heads], "gate", heads=heads)

    def _learn(self, probe: Probe, name: str, state: dict[str, Any] | None) -> None:
        """Learns from where an earlier run stopped."""
        decoder = probe.decoder
        device = decoder.embedding.weight.device
        gates = torch.ones(probe.num_layers, decoder.config.num_kv_heads, device=device, requires_grad=True)
        optimizer = torch.optim.AdamW([gates], lr=self.learning_rate, weight_decay=0.0)
        begun = 0 if state is None else self._restored(state, gates, optimizer)
        before = [parameter.requires_grad for parameter in decoder.parameters()]
        decoder.requires_grad_(False)
        try:
            with torch.no_grad():
                wanted = [self._hidden(decoder, packed) for packed in self.hay.packed]
            for step in range(begun, self.steps):
                probe.notebook.tell(f"{name}: {step}")
                number = step % len(self.hay.packed)
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * ramp(step, self.steps)
                with attending(decoder, _mixed(probe, gates)):
                    hidden = self._hidden(decoder, self.hay.packed[number])
                loss = (hidden - wanted[number]).square().mean() + self.penalty * gates.abs().mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    gates.clamp_(0, 1)
                if (step + 1) % _KEPT_EVERY == 0 or step + 1 == self.steps:
                    probe.notebook.put(name, self._kept(step + 1, gates, optimizer))
        finally:
            for parameter, asks in zip(decoder.parameters(), before, strict=True):
                parameter.requires_grad_(asks)

    def _hidden(self, decoder: Decoder, packed: PackedPrompts) -> Tensor:
        """The final hidden states that predict the answers: float32 [P, W]."""
        device = decoder.embedding.weight.device
        places = torch.cat(list(self.hay.answers(packed).values())) - 1
        hidden: Tensor = decoder(packed.tokens.to(device), packed.documents)[0, places.to(device)]
        return hidden.float()

    @staticmethod
    def _kept(step: int, gates: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        moments = optimizer.state[gates]
        told = {name: moments[name].tolist() for name in ("exp_avg", "exp_avg_sq")}
        return {"step": step, "gates": gates.detach().tolist(), **told}

    @staticmethod
    def _restored(state: dict[str, Any], gates: Tensor, optimizer: torch.optim.Optimizer) -> int:
        """Puts back what `_kept` made; the step that is next."""
        step: int = state["step"]
        with torch.no_grad():
            gates.copy_(torch.tensor(state["gates"]))
        moments = {name: torch.tensor(state[name], device=gates.device) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[gates] = {"step": torch.tensor(float(step)), **moments}
        return step


def ramp(step: int, steps: int) -> float:
    """What the learning rate's peak is multiplied by: it rises over a fifth of the steps and falls over the last."""
    fifth = max(steps / 5, 1)
    return min(1.0, max((step + 1) / fifth, 0.1), max((steps - step) / fifth, 0.1))


def _mixed(probe: Probe, gates: Tensor) -> Any:
    """How a layer attends when its KV heads are gated."""
    local = LocalTiles(probe.local, gates.shape[1])

    def by(layer: int, attend: Attend) -> Attend:
        def attended(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str) -> Tensor:
            gate = gates[layer].repeat_interleave(q.shape[1] // k.shape[1])[None, :, None, None].to(q.dtype)
            near = attend(q, k, v, local.beside(tiles), impl)
            return near + gate * (attend(q, k, v, tiles, impl) - near)

        return attended

    return by
