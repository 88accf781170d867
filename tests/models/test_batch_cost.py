"""A batch's work is counted as it is done: held to brute force, and to torch's own count of what runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lg.attention import Causal, Dilated, Documents, Pattern, PrefixLM, SinkWindow, Strided
from lg.attention.attend import IMPLEMENTATIONS
from lg.models.batch_cost import BatchCosts
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.memory import Memory
from lg.models.presets import preset
from lg.models.wrap import recomputed_weights, wrap
from lg.testing.patterns import brute_force

CONFIG = preset("tiny", num_layers=3, width=32, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=48)


def costs(patterns: list[Pattern], impl: str = "dense", config: DecoderConfig = CONFIG, again: int = 0) -> BatchCosts:
    return BatchCosts(config, patterns, lambda pattern, documents: IMPLEMENTATIONS[impl], again)


def weights(config: DecoderConfig) -> tuple[int, int]:
    """Those of all blocks' matrices, and the head's, counted on the model itself."""
    decoder = Decoder(config, [Causal()] * config.num_layers)
    blocks = sum(m.weight.numel() for m in decoder.blocks.modules() if isinstance(m, torch.nn.Linear))
    return blocks, decoder.head.weight.numel()


@pytest.mark.parametrize(
    "config", [CONFIG, preset("tiny", num_layers=3, tied_embeddings=False, qkv_bias=True)], ids=str
)
def test_useful_work_is_that_of_weights_and_of_pairs_that_are_seen(config: DecoderConfig) -> None:
    patterns: list[Pattern] = [SinkWindow(window=20), Causal(), Strided(block=8, local_blocks=2, stride=3)]
    # Text of one token, and padding of one.
    documents = Documents(200, (0, 70, 71, 80, 81, 150))
    padded = [False, False, True, True, False, True]
    text = [(0, 70), (70, 71), (81, 150)]
    pairs = dense = 0
    for pattern in patterns:
        seen = brute_force(pattern.tiles(documents, config.num_kv_heads))
        kept = torch.zeros(200, dtype=torch.bool)
        for begin, end in text:
            kept[begin:end] = True
            dense += config.num_heads * (end - begin) * (end - begin + 1) // 2
        pairs += int(seen[:, kept].sum()) * config.num_heads // seen.shape[0]
    linear = 6 * sum(weights(config)) * (70 + 1 + 69)
    cost = costs(patterns, config=config).of(documents, padded)
    # Two products forward and four backward for each pair, of two operations for each feature of the head.
    assert cost.visible == linear + 12 * config.head_width * pairs
    assert cost.dense_equivalent == linear + 12 * config.head_width * dense


def test_attributes_of_documents_go_with_them() -> None:
    documents = Documents(60, (0, 10, 30), {"prefix": [5, 0, 20]})
    cost = costs([PrefixLM()] * 3).of(documents, [False, True, False])
    first, last = (PrefixLM().tiles(Documents(n, (0,), {"prefix": [p]}), 2) for n, p in ((10, 5), (30, 20)))
    pairs = 3 * 4 * (int(brute_force(first).sum()) + int(brute_force(last).sum()))
    assert cost.visible == 6 * sum(weights(CONFIG)) * 40 + 12 * 8 * pairs


def test_padding_alone_is_no_useful_work() -> None:
    cost = costs([Causal()] * 3).of(Documents(50), [True])
    assert cost.visible == cost.dense_equivalent == 0
    assert cost.executed == costs([Causal()] * 3).of(Documents(50), [False]).executed > 0


def test_full_attention_is_its_own_equivalent() -> None:
    cost = costs([Causal()] * 3).of(Documents(300, (0, 100)), [False, False])
    assert cost.visible == cost.dense_equivalent < cost.executed


def test_padding_inside_a_document_is_seen_but_no_text() -> None:
    cost, whole = (costs([Causal()] * 3).of(Documents(100), [False], n) for n in (30, 0))
    assert whole.visible - cost.visible == 6 * sum(weights(CONFIG)) * 30


@pytest.mark.parametrize("impl", ["gather", "flex", "sdpa"])
def test_attention_that_recomputes_scores_takes_eleven_products_for_six(impl: str) -> None:
    documents = Documents(256, (0, 100))
    cost = costs([Causal()] * 3, impl).of(documents, [False, False])
    pairs = 4 * int(IMPLEMENTATIONS[impl].executed(Causal().tiles(documents)).pairs)
    # 4 D forward, and 10 D backward where 8 D would do.
    assert cost.executed == 6 * sum(weights(CONFIG)) * 256 + 3 * 14 * 8 * pairs


@pytest.mark.parametrize(
    "memory",
    [Memory(), Memory("halves"), Memory("blocks"), Memory("nothing", tile=200), Memory("halves", tile=50)],
    ids=str,
)
def test_executed_work_is_what_torch_runs(memory: Memory) -> None:
    patterns: list[Pattern] = [SinkWindow(window=20), Causal(), Dilated(10, 2)]
    decoder = Decoder(CONFIG, patterns, "dense")
    wrap(decoder, memory, compile=False)
    documents, tokens = Documents(200, (0, 70)), torch.randint(256, (1, 200))
    with FlopCounterMode(display=False) as counter:
        decoder(tokens, documents).sum().backward()
    again = recomputed_weights(CONFIG, memory, False)
    cost = replace(costs(patterns, again=again), attention_again=memory.recompute == "blocks").of(
        documents, [False, False]
    )
    # The head is left out: one of its products is written in a way that torch's counter does not know.
    assert cost.executed - 6 * weights(CONFIG)[1] * 200 == counter.get_total_flops()


class Products:
    """Counts multiplications of matrices that are computed."""

    def __init__(self) -> None:
        self.flops = 0

    def backend(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        """Compiles by counting what a graph multiplies, at each run."""
        from torch._dynamo.backends.common import aot_autograd

        def counted(inner: torch.fx.GraphModule, inner_inputs: Any) -> Any:
            flops = 0
            for node in inner.graph.nodes:
                if node.target is torch.ops.aten.mm.default:
                    (m, k), n = (tuple(node.args[0].meta["val"].shape), node.args[1].meta["val"].shape[1])
                    flops += 2 * m * k * n

            def run(args: Any) -> Any:
                self.flops += flops
                return torch.fx.Interpreter(inner).boxed_run(args)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return aot_autograd(fw_compiler=counted, bw_compiler=counted)(graph, inputs)


def test_compiled_halves_are_recomputed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    products, compiler = Products(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, fullgraph: compiler(f, fullgraph=fullgraph, backend=products.backend, dynamic=False)
    )
    decoder = Decoder(CONFIG, [Causal()] * 3, "dense")
    wrap(decoder, Memory("halves"), compile=True)
    tokens = torch.randint(256, (1, 64))
    decoder(tokens, Documents(64)).sum().backward()
    blocks = weights(CONFIG)[0]
    assert recomputed_weights(CONFIG, Memory("halves"), True) == blocks
    assert products.flops == 2 * (3 * blocks + blocks) * 64


def test_nothing_is_recomputed_without_checkpointing() -> None:
    assert recomputed_weights(CONFIG, Memory(), True) == recomputed_weights(CONFIG, Memory(), False) == 0
