import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lg.models import loss as loss_module
from lg.models.loss import IGNORED, LMHead, chunked_cross_entropy, token_cross_entropy

N, V, W = 100, 77, 24


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and weight that need gradients, and targets of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, W, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, W, generator=generator, dtype=torch.float64) * 0.7
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < 0.2] = IGNORED
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The reference: all logits at once, in whatever dtype the product comes in."""
    logits = F.linear(hidden, weight)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(exact), targets, ignore_index=IGNORED, reduction="sum")


def with_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The loss and the gradients of a third of it: a step divides the sum by its targets."""
    return loss.detach(), *torch.autograd.grad(loss / 3, leaves)


@pytest.mark.parametrize("chunk", [1, 7, 50, 99, 100, 1000, None])
def test_float64_equals_plain_cross_entropy(chunk: int | None) -> None:
    hidden, weight, targets = inputs()
    loss = chunked_cross_entropy(hidden, weight, targets, chunk)
    assert loss.dtype == torch.float64
    assert loss.shape == ()
    got = with_gradients(loss, hidden, weight)
    want = with_gradients(plain(hidden, weight, targets), hidden, weight)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [7, None])
@pytest.mark.parametrize(
    ("hidden_dtype", "weight_dtype", "autocast"),
    [
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
    ],
)
def test_low_precision_errs_at_most_twice_as_much_as_plain(
    hidden_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool, chunk: int | None
) -> None:
    # Rounded first, so that all three start from the same numbers.
    hidden, weight, targets = inputs(torch.bfloat16)
    leaves = [
        tensor.detach().to(dtype).requires_grad_() for tensor, dtype in ((hidden, hidden_dtype), (weight, weight_dtype))
    ]
    oracle = [tensor.detach().double().requires_grad_() for tensor in leaves]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        chunked_loss = chunked_cross_entropy(*leaves, targets, chunk)
        plain_loss = plain(*leaves, targets)
    got = with_gradients(chunked_loss, *leaves)
    reference = with_gradients(plain_loss, *leaves)
    want = with_gradients(plain(*oracle, targets), *oracle)
    assert [tensor.dtype for tensor in got] == [torch.float32, hidden_dtype, weight_dtype]
    for mine, theirs, exact in zip(got, reference, want, strict=True):
        mine_error = (mine.double() - exact).norm()
        # Where the reference happens to be right to the last bit, a float32 rounding is allowed.
        allowed = 2 * (theirs.double() - exact).norm() + 2.0**-23 * exact.norm()
        assert mine_error <= allowed


def test_bfloat16_weight_gradient_is_accumulated_in_float32() -> None:
    # 2,048 equal contributions of one token each: a bfloat16 sum would stop growing at 256.
    hidden = torch.ones(2048, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_cross_entropy(hidden, weight, torch.zeros(2048, dtype=torch.int64), 1).backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-1024.0, 1024.0]


def test_float64_is_left_alone_by_autocast() -> None:
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(chunked_cross_entropy(hidden, weight, targets, 7), hidden, weight)
    want = with_gradients(plain(hidden, weight, targets), hidden, weight)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [0, 1])
def test_one_input_alone_may_need_a_gradient(needed: int) -> None:
    hidden, weight, targets = inputs()
    want = with_gradients(plain(hidden, weight, targets), hidden, weight)
    (weight, hidden)[needed].requires_grad_(False)
    leaf = (hidden, weight)[needed]
    got = with_gradients(chunked_cross_entropy(hidden, weight, targets, 7), leaf)
    torch.testing.assert_close(got, (want[0], want[1 + needed]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_tokens", [N, 0])
def test_no_valid_target_gives_zero_everywhere(num_tokens: int) -> None:
    hidden, weight, targets = inputs()
    targets = torch.full_like(targets, IGNORED)[:num_tokens]
    chunked_cross_entropy(hidden[:num_tokens], weight, targets, 7).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()
    assert chunked_cross_entropy(hidden[:num_tokens], weight, targets) == 0


def test_nan_at_ignored_targets_has_no_influence() -> None:
    hidden, weight, targets = inputs()
    want = with_gradients(chunked_cross_entropy(hidden, weight, targets, 7), hidden, weight)
    with torch.no_grad():
        hidden[targets == IGNORED] = torch.nan
    got = with_gradients(chunked_cross_entropy(hidden, weight, targets, 7), hidden, weight)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = inputs(torch.float32)
    loss, *grads = with_gradients(chunked_cross_entropy(hidden * 1e4, weight, targets, 7), hidden, weight)
    torch.testing.assert_close(loss, plain(hidden * 1e4, weight, targets).detach())
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("target", [V, -1])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    hidden, weight, targets = inputs()
    targets[50] = target
    with pytest.raises(RuntimeError, match="out of bounds"):
        chunked_cross_entropy(hidden, weight, targets)


def test_a_second_backward_is_refused_not_wrong() -> None:
    hidden, weight, targets = inputs()
    loss = chunked_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward runs once"):
        loss.backward()


def test_two_runs_agree_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        hidden, weight, targets = inputs(torch.float32)
        loss = chunked_cross_entropy(hidden, weight, targets, 7)
        runs.append(with_gradients(loss, hidden, weight))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


class Sizes(TorchDispatchMode):
    """Records how many elements each tensor made by an operation spans."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


@pytest.mark.parametrize("explicit", [True, False])
def test_no_tensor_holds_the_logits_of_all_tokens(explicit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(torch.float32)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 30 * V)
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 10)
    with Sizes() as sizes:
        chunked_cross_entropy(hidden, weight, targets, 30 if explicit else None).backward()
    assert max(sizes.seen) == max(30 * V, N * W, V * W) < N * V


def test_small_vocabularies_and_large_get_a_sensible_default_chunk() -> None:
    hidden = torch.randn(1100, 2)
    for vocab_size, largest in ((8, 1100 * 8), (40_000, 1024 * 40_000)):
        with Sizes() as sizes, torch.no_grad():
            chunked_cross_entropy(hidden, torch.randn(vocab_size, 2), torch.zeros(1100, dtype=torch.int64))
        assert max(sizes.seen) == largest


def test_no_gradient_work_without_recording() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with Sizes() as recording:
        with_grad = chunked_cross_entropy(hidden, weight, targets, 7)
    with torch.no_grad(), Sizes() as bare:
        without = chunked_cross_entropy(hidden, weight, targets, 7)
    assert without == with_grad.detach()
    assert not without.requires_grad
    assert max(bare.seen) < N * W <= max(recording.seen)


def test_head_gives_logits_or_the_summed_loss() -> None:
    torch.manual_seed(0)
    head = LMHead(W, V).double()
    hidden, _, targets = inputs()
    hidden, targets = hidden.view(2, N // 2, W), targets.view(2, N // 2)
    logits = head(hidden)
    assert logits.shape == (2, N // 2, V)
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(head(hidden, targets), want)


def test_a_tied_head_shares_its_weight_and_both_gradients_reach_it() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(V, W)
    model = nn.ModuleDict({"embedding": embedding, "head": LMHead(W, V, embedding.weight)})
    assert len(list(model.parameters())) == 1
    reference = copy.deepcopy(embedding)
    tokens = torch.randint(V, (N,))
    _, _, targets = inputs()
    model["head"](embedding(tokens), targets).backward()
    plain(reference(tokens), reference.weight, targets).backward()
    torch.testing.assert_close(embedding.weight.grad, reference.weight.grad)


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_of_each_token_equals_plain_cross_entropy(dtype: torch.dtype, chunk: int | None) -> None:
    hidden, weight, targets = inputs(dtype)
    losses = token_cross_entropy(hidden, weight, targets, chunk)
    exact = torch.promote_types(dtype, torch.float32)
    assert losses.dtype == exact and losses.shape == (N,) and not losses.requires_grad
    want = F.cross_entropy(F.linear(hidden, weight).to(exact), targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses, want.detach())
    assert (losses[targets == IGNORED] == 0).all()
    torch.testing.assert_close(losses.sum(), chunked_cross_entropy(hidden, weight, targets, chunk).detach())


def test_the_head_gives_the_loss_of_each_token_in_the_shape_of_the_targets() -> None:
    hidden, weight, targets = inputs(torch.float32)
    head = LMHead(W, V, nn.Parameter(weight.detach()))
    losses = head(hidden.view(4, 25, W), targets.view(4, 25), "none")
    assert losses.shape == (4, 25)
    torch.testing.assert_close(losses.flatten(), token_cross_entropy(hidden, head.weight, targets))
