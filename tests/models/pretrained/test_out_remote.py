"""What transformers has no class for goes out with a model file of its own: the same logits, in every way of asking."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache, dynamic_module_utils

from lg.attention import Causal, Documents, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Window
from lg.attention.pattern import NAMES
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save

N = 150
CONFIG = DecoderConfig(4, 48, 6, 2, 8, 80, 97, rope_theta=5e4, norm_eps=1e-5)


@dataclass(frozen=True)
class EveryThird(Pattern):
    """A pattern of a user's own, whose heads differ."""

    step: int

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return (k <= q) & ((q - k < 5) | ((k + h) % self.step == 0))


@dataclass(frozen=True)
class Length(Pattern):
    """Asks how long the document is."""

    def sees(self, q: Any, k: Any, h: Any, doc: Any) -> Any:  # type: ignore[override]
        return (k <= q) & (k < doc.length // 2)


@dataclass(frozen=True)
class Before(Pattern):
    """Not the query itself: the first sees nothing."""

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k < q


SINKS, FULL = SinkWindow(window=9, sinks=3), Causal()
STRIPES = Strided(block=4, local_blocks=2, stride=3)
MODELS: dict[str, tuple[DecoderConfig, list[Pattern]]] = {
    "sinks": (CONFIG, [SINKS, FULL, FULL, SINKS]),
    "sinks only": (replace(CONFIG, tied_embeddings=True, head_width=16), [SINKS] * 4),
    "stripes": (replace(CONFIG, qkv_bias=True), [STRIPES, FULL, STRIPES, FULL]),
    "heads": (replace(CONFIG, qk_norm=True, head_width=16), [FULL, PerHead((FULL, SINKS), (0, 1)), SINKS, FULL]),
    "own": (replace(CONFIG, no_rope_layers=(1, 3)), [EveryThird(7), FULL, FULL, EveryThird(7)]),
    "two windows": (CONFIG, [Window(5), Window(20), SINKS | STRIPES, FULL]),
}


@pytest.fixture(scope="module", autouse=True)
def modules_aside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies model files into its cache, and the cache's folder into the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


def made(config: DecoderConfig, sees: list[Pattern]) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, sees, "dense")
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return decoder


def loaded(folder: Path, attention: str = "sdpa") -> Any:
    found: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention)
    return found.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def written(name: str) -> tuple[Decoder, Path]:
        config, sees = MODELS[name]
        decoder, path = made(config, sees), tmp_path_factory.mktemp("models") / "out"
        save(path, decoder.state_dict(), config, sees, longest=256)
        return decoder, path

    return written


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_lg(name: str, attention: str, folder: Any) -> None:
    decoder, path = folder(name)
    model = loaded(path, attention)
    assert model.config.model_type.startswith("lg_")
    ids = tokens(1, N)
    want = decoder.logits(ids, Documents(N))
    close(model(ids).logits, want)
    # In chunks of many and of one, on one cache.
    cached, parts = DynamicCache(), []
    for first, end in [(0, 40), (40, 110), *((n, n + 1) for n in range(110, 130)), (130, N)]:
        parts.append(model(ids[:, first:end], past_key_values=cached, use_cache=True).logits)
    close(torch.cat(parts, 1), want)
    assert cached.get_seq_length() == N


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_rows_padded_on_either_side_are_as_if_alone(name: str, attention: str, folder: Any) -> None:
    decoder, path = folder(name)
    model = loaded(path, attention)
    lengths = (N, 97, 60)
    ids = tokens(3, N)
    for side in ("left", "right"):
        mask = torch.zeros(3, N, dtype=torch.int64)
        for row, length in enumerate(lengths):
            mask[row, slice(N - length, N) if side == "left" else slice(0, length)] = 1
        logits = model(ids, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            own = ids[row, mask[row].bool()][None]
            close(logits[row, mask[row].bool()][None], decoder.logits(own, Documents(length)))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_generate_is_what_argmax_says(name: str, folder: Any) -> None:
    decoder, path = folder(name)
    model = loaded(path)
    lengths = (90, 40)
    ids, mask = tokens(2, 90), torch.ones(2, 90, dtype=torch.int64)
    mask[1, :50] = 0
    out = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0)
    beams = model.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False, num_beams=2, pad_token_id=0)
    slow = model.generate(
        ids, attention_mask=mask, max_new_tokens=30, do_sample=False, num_beams=2, pad_token_id=0, use_cache=False
    )
    assert torch.equal(beams, slow)
    for row, length in enumerate(lengths):
        text = out[row, 90 - length :][None]
        said = decoder.logits(text, Documents(text.shape[1]))[0, length - 1 : -1].argmax(-1)
        assert torch.equal(said, text[0, length:])


@torch.no_grad()
def test_packed_rows_do_not_see_each_other(folder: Any) -> None:
    decoder, path = folder("sinks")
    model = loaded(path)
    ids = tokens(1, N)
    positions = torch.cat((torch.arange(70), torch.arange(N - 70)))[None]
    close(model(ids, position_ids=positions, use_cache=False).logits, decoder.logits(ids, Documents(N, [0, 70])))


@torch.no_grad()
def test_the_cache_keeps_sinks_and_window_alone(folder: Any) -> None:
    model = loaded(folder("sinks")[1])
    cached = DynamicCache()
    model(tokens(2, N), past_key_values=cached, use_cache=True)
    kept = [layer.keys.shape[2] for layer in cached.layers]
    assert kept == [3 + 8, N, N, 3 + 8]
    with pytest.raises(ValueError, match="assisted generation is not allowed"):
        cached.crop(-1)
    cached.reset()
    close(model(tokens(1, 40), past_key_values=cached, use_cache=True).logits, model(tokens(1, 40)).logits)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_it_trains(folder: Any) -> None:
    decoder, path = folder("sinks")
    model = loaded(path).train()
    model.gradient_checkpointing_enable()
    ids = tokens(1, N)
    model(ids, labels=ids).loss.backward()
    want = torch.nn.functional.cross_entropy(decoder.logits(ids, Documents(N))[0, :-1], ids[0, 1:])
    want.backward()
    torch.testing.assert_close(
        model.model.layers[0].self_attn.q_proj.weight.grad,
        decoder.get_parameter("blocks.0.mixer.q_proj.weight").grad,
        rtol=1e-3,
        atol=1e-5,
    )


def test_it_needs_no_lg(folder: Any, tmp_path: Path) -> None:
    decoder, path = folder("heads")
    program = f"""
import sys
sys.modules["lg"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(path)!r}, trust_remote_code=True)
with torch.no_grad():
    torch.save(model(torch.load({str(tmp_path / "ids")!r})).logits, {str(tmp_path / "logits")!r})
assert not [name for name in sys.modules if name.startswith("lg.")]
"""
    torch.save(tokens(1, N), tmp_path / "ids")
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        close(torch.load(tmp_path / "logits"), decoder.logits(tokens(1, N), Documents(N)))


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_through_either_library(name: str, folder: Any, tmp_path: Path) -> None:
    decoder, path = folder(name)
    config, sees = MODELS[name]
    model = loaded(path)
    model.save_pretrained(tmp_path / "again")
    for where in (path, tmp_path / "again"):
        found = open_pretrained(where)
        assert (found.config, list(found.sees)) == (config, sees)
        back = found.decoder("dense").state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in decoder.state_dict().items())
    again = loaded(tmp_path / "again")
    with torch.no_grad():
        torch.testing.assert_close(again(tokens(1, N)).logits, model(tokens(1, N)).logits)


def test_it_is_not_loaded_as_something_else(folder: Any) -> None:
    # Were its model_type the family's, transformers would take its own class, and every layer would see everything.
    with pytest.raises((ValueError, OSError, KeyError), match=r"trust_remote_code|custom code"):
        AutoModelForCausalLM.from_pretrained(folder("sinks")[1], trust_remote_code=False)


def test_what_is_not_computed_is_refused(folder: Any, tmp_path: Path) -> None:
    path = folder("sinks")[1]
    model = loaded(path)
    ids = tokens(1, 20)
    with pytest.raises(ValueError, match=r"StaticLayer is not allowed; patterns need a DynamicCache"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=64), use_cache=True)
    with pytest.raises(ValueError, match=r"attention_mask: \[1, 1, 20, 20\] is not allowed"):
        model(ids, attention_mask=torch.ones(1, 1, 20, 20))
    with pytest.raises(ValueError, match=r"attention_mask: \[1, 5\] is not allowed; it must be \[1, 20\]"):
        model(ids, attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="flex_attention"):
        loaded(path, "flex_attention")
    model.config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match=r"attn_implementation='paged\|sdpa' is not allowed"):
        model(ids)


@torch.no_grad()
def test_a_query_that_sees_nothing(tmp_path: Path) -> None:
    sees: list[Pattern] = [Before(), FULL, FULL, FULL]
    decoder = made(CONFIG, sees)
    save(tmp_path / "out", decoder.state_dict(), CONFIG, sees, longest=64)
    close(loaded(tmp_path / "out")(tokens(1, N)).logits, decoder.logits(tokens(1, N), Documents(N)))
    with pytest.raises(ValueError, match="a query sees no key at all by k < q"):
        loaded(tmp_path / "out", "eager")(tokens(1, N))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (Length(), "asks for doc.length: the length is not known while text is generated"),
        (PrefixLM(), "asks for doc.prefix"),
        (~Window(4), "lets a query see later keys"),
        (PerHead((FULL, SINKS), (0, 1, 0)), "made for 3 KV heads, and the decoder has 2"),
    ],
)
def test_patterns_that_cannot_be_written(pattern: Pattern, said: str, tmp_path: Path) -> None:
    sees = [pattern, FULL, FULL, FULL]
    weights = made(CONFIG, [FULL] * 4).state_dict()
    with pytest.raises(ValueError, match=said):
        save(tmp_path / "out", weights, CONFIG, sees, longest=64)
    assert not list(tmp_path.iterdir())


def test_unknown_patterns_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sees: list[Pattern] = [EveryThird(7), FULL, FULL, FULL]
    save(tmp_path / "out", made(CONFIG, sees).state_dict(), CONFIG, sees, longest=64)
    monkeypatch.delitem(NAMES, "EveryThird")
    with pytest.raises(ValueError, match=r"EveryThird' is not known; it must be a pattern of lg's, or one of yours"):
        open_pretrained(tmp_path / "out")


def test_a_file_beside_another_config_is_refused(folder: Any, tmp_path: Path) -> None:
    decoder, _ = folder("sinks")
    config, sees = MODELS["sinks"]
    save(tmp_path / "out", decoder.state_dict(), config, sees, longest=64)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    told["lg"]["sees"][0] = "k <= q"
    (tmp_path / "out" / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"lg.sees: .* is not what modeling_lg.py computes"):
        loaded(tmp_path / "out")
