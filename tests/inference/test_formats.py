"""Keys and values in fewer bits: what they take, how far they are off, and a decoder that reads them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Window
from lg.inference import Cache, Runner
from lg.inference.formats import Codes, Format, Int4, Int8, Plain
from lg.inference.paged import PagedAttention
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder

CPU = torch.device("cpu")


def decoder(*patterns: Pattern) -> Decoder:
    torch.manual_seed(0)
    heads = next((pattern.made_for for pattern in patterns if pattern.made_for), 2)
    config = DecoderConfig(
        num_layers=len(patterns), width=32, num_heads=2 * heads, num_kv_heads=heads, head_width=16, ffn_width=32,
        vocab_size=50,
    )  # fmt: skip
    return Decoder(config, patterns).eval()


def some_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def kept(form: Format, x: Tensor) -> Tensor:
    """Vectors [n, D], written and read."""
    room = form.empty(1, -(-len(x) // 64), x.shape[1], CPU)
    at = torch.arange(len(x))
    form.write(room, 0, at // 64, at % 64, x)
    return form.read(room, 0, torch.arange(room[0].shape[1]), torch.float32).flatten(0, 1)[: len(x)]


@pytest.mark.parametrize(("form", "size"), [(Plain(torch.bfloat16), 256), (Int8(), 132), (Int4(), 68)], ids=str)
def test_memory_of_a_token_is_exact(form: Format, size: int) -> None:
    assert form.num_bytes(128) == size
    cache = Cache([Causal()] * 3, num_heads=2, head_width=128, max_length=640, formats=(form, form))
    slot = cache.open(640)
    assert slot is not None
    cache.end(cache.begin([(slot, 639)]))
    assert cache.num_bytes == cache.room_bytes == 640 * 3 * 2 * 2 * size


@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
def test_a_feature_is_off_by_half_a_step(form: Codes) -> None:
    torch.manual_seed(0)
    # Of all sizes, around 0 and not.
    x = torch.randn(300, 64) * torch.logspace(-2, 3, 300)[:, None] + torch.linspace(-20, 20, 300)[:, None]
    step = (x.amax(1) - x.amin(1)) / (2**form.bits - 1)
    # What float16 loses of the step, at most on all codes, and of the least.
    lost = 2.0**-11 * ((x.amax(1) - x.amin(1)) + x.abs().amax(1))
    assert bool(((kept(form, x) - x).abs().amax(1) <= 0.5 * step + lost).all())


@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
def test_equal_features_are_kept_as_float16_or_better(form: Codes) -> None:
    x = torch.tensor([[0.0], [1.0], [-3.3], [3.3], [1e-7], [6e4]]).expand(6, 64)
    assert bool(((kept(form, x) - x).abs() <= (x.half().float() - x).abs()).all())


def test_a_width_that_has_no_halves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Int4\(\) is not allowed for head width 33; it must be even"):
        Int4().empty(1, 1, 33, CPU)


# Relative errors of what a query gathers, against float64, in the Euclidean norm over many queries: the budget. Keys of
# real models have a few features that are tens of times the others; a vector's step then follows these.
BUDGETS = {("KV8", "random"): 0.01, ("KV8", "outliers"): 0.04, ("KV4", "random"): 0.15, ("KV4", "outliers"): 0.75}


@pytest.mark.parametrize("keys", ["random", "outliers"])
@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
def test_what_a_query_gathers_is_within_the_budget(form: Codes, keys: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(64, 128), torch.randn(1024, 128), torch.randn(1024, 128)
    if keys == "outliers":
        # Much the same in all tokens, as measured (KIVI: Liu et al. 2024, arXiv 2402.02750, section 3).
        k[:, 5] += 20.0
        k[:, 77] -= 12.0

    def gathered(k: Tensor, v: Tensor) -> Tensor:
        return (q.double() @ k.double().T * 128**-0.5).softmax(-1) @ v.double()

    true = gathered(k, v)
    error = float((gathered(kept(form, k), kept(form, v)) - true).norm() / true.norm())
    budget = BUDGETS[f"KV{form.bits}", keys]
    assert budget / 4 < error <= budget


@pytest.mark.parametrize(("form", "budget"), [(Int8(), 0.02), (Int4(), 0.3)], ids=str)
def test_a_decoder_reads_codes(form: Format, budget: float) -> None:
    model, tokens = decoder(SinkWindow(window=50, sinks=3), Causal()), some_tokens(150)
    with torch.no_grad():
        expected = model.logits(tokens[None], Documents(150))[0]
    runner = Runner(model, max_length=150, formats=(form, form))
    slot, end = runner.open(150), 0
    assert slot is not None
    for count in (100, 1, 1, 40, 1):
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        error = float((got[0] - expected[end - 1]).norm() / expected[end - 1].norm())
        assert 0 < error <= budget


PER_HEAD = PerHead(patterns=(Causal(), Window(9)), heads=(0, 1, 0))


@pytest.mark.parametrize(
    ("pattern", "form"),
    [(SinkWindow(window=50, sinks=3), Int8()), (Strided(16, 1, 3), Int4()), (PER_HEAD, Plain(torch.float32))],
    ids=str,
)
def test_kernels_read_what_pytorch_reads(pattern: Pattern, form: Format) -> None:
    model = decoder(pattern, Causal())
    texts = [some_tokens(length, seed) for seed, length in enumerate((100, 80))]
    answers = []
    for impl in ("gather", "triton"):
        runner = Runner(model, max_length=100, num_slots=3, formats=(form, form), impl="gather")
        for kind in runner.cache.kinds:
            for room in (*kind.keys, *kind.values):
                room.fill_(float("nan") if room.is_floating_point() else 255)
        slots, said, at = [runner.open(len(text)) or 0 for text in texts], [], [0, 0]
        # Both together; then one reads much and the other one token.
        for counts in [(60, 3), (1, 1), (1, 9), (1, 1)]:
            tokens = torch.cat([text[first : first + n] for text, first, n in zip(texts, at, counts, strict=True)])
            said.append(runner.read(tokens, list(zip(slots, counts, strict=True))))
            at = [first + count for first, count in zip(at, counts, strict=True)]
            # What many read at once is not in question.
            for state in runner.states:
                assert isinstance(state, PagedAttention)
                state.impl = impl
        # Another in the place of one that has gone.
        runner.cache.close(slots[0])
        slot = runner.open(70)
        assert slot == slots[0]
        said += [runner.read(texts[1][:1], [(slot, 1)]), runner.read(texts[1][1:3], [(slot, 1), (slots[1], 1)])]
        answers.append(torch.cat(said))
    assert bool(answers[0].isfinite().all())
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_kernels_are_told_of_the_prefix() -> None:
    model, tokens = decoder(PrefixLM()), some_tokens(100)
    answers = []
    for impl in ("gather", "triton"):
        runner = Runner(model, max_length=150, num_slots=2, impl="gather")
        slots = [runner.open(100, {"prefix": prefix}) for prefix in (80, 20)]
        counts = [(slot or 0, n) for slot, n in zip(slots, (85, 30), strict=True)]
        runner.read(torch.cat((tokens[:85], tokens[:30])), counts)
        for state in runner.states:
            assert isinstance(state, PagedAttention)
            state.impl = impl
        answers.append(runner.read(tokens[:2], [(slot, 1) for slot, _ in counts]))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_what_kernels_cannot_read_is_refused() -> None:
    model = decoder(Causal()).double()
    with pytest.raises(ValueError, match=r"'triton' cannot read pages: keys that are kept before they are rotated"):
        Runner(model, max_length=100, rotated=False, impl="triton")
    runner = Runner(model, max_length=100, impl="triton")
    slot = runner.open(10)
    assert slot is not None
    with pytest.raises(ValueError, match=r"not float64"):
        runner.read(some_tokens(1), [(slot, 1)])
