"""The output head and its cross-entropy, without ever holding the logits of a whole sequence.

128K tokens times a vocabulary of 128K are 64 GiB of float32 logits, and as much again for their
gradient. Here a chunk of tokens at a time goes through the head, and the gradients are taken while
its logits still exist.

Shapes: N flattened tokens, W model width, V vocabulary.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
"""The target that is no target; torch's own default, so that references need no argument."""

CHUNK_LOGITS = 2**25
CHUNK_TOKENS = 1024


def chunked_cross_entropy(hidden_NW: Tensor, weight_VW: Tensor, targets_N: Tensor, chunk: int | None = None) -> Tensor:
    """Sum of the cross-entropy, in nats, over the targets that are not ``IGNORED``.

    The sum rather than the mean: whoever knows how many targets the whole optimizer step has
    divides by that. Both gradients are computed in the forward pass, when autograd is recording
    and for the inputs that need one; backward scales them in place, so it runs once.

    Matrix products run in the inputs' dtype, or in autocast's; softmax and loss in float32. The
    gradient of the weight is accumulated in float32. float64 stays float64 throughout. What
    ``hidden_NW`` holds at ignored targets, NaN included, has no influence.

    Args:
        hidden_NW: final hidden states.
        weight_VW: the head, of the same dtype (under autocast any mixture but float64).
        targets_N: int64, each in ``[0, V)`` or ``IGNORED``.
        chunk: tokens at a time, at least 1. By default as many as keep a chunk at ``CHUNK_LOGITS``
            logits (8 bytes each in float32), but no fewer than ``CHUNK_TOKENS``: every chunk reads
            and writes the whole gradient of the weight once.

    Returns:
        A float32 scalar (float64 for float64 inputs); 0 where every target is ignored.

    Raises:
        RuntimeError: a target is outside the vocabulary (on a GPU: a device assertion), or
            backward runs a second time.
    """
    chunk = _checked_chunk(hidden_NW, weight_VW, targets_N, chunk)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch's stub
        hidden_NW, weight_VW, targets_N, chunk, torch.is_grad_enabled()
    )
    return loss


@torch.no_grad()
def token_cross_entropy(hidden_NW: Tensor, weight_VW: Tensor, targets_N: Tensor, chunk: int | None = None) -> Tensor:
    """The cross-entropy, in nats, of each target, 0 where it is ``IGNORED``; for looking at, without a gradient.

    Arguments, types and errors are those of `chunked_cross_entropy`, whose sum this is the parts of.

    Returns:
        [N], float32 (float64 for float64 inputs).
    """
    chunk = _checked_chunk(hidden_NW, weight_VW, targets_N, chunk)
    dtype = _matmul_dtype(hidden_NW)
    weight = weight_VW.to(dtype)
    losses = torch.empty(len(targets_N), dtype=torch.promote_types(dtype, torch.float32), device=hidden_NW.device)
    for start in range(0, len(targets_N), chunk):
        tokens = slice(start, start + chunk)
        losses[tokens] = _chunk_losses(hidden_NW[tokens].to(dtype), weight, targets_N[tokens], None, None)
    return losses


class LMHead(nn.Module):
    """Final hidden states to logits, or straight to the loss.

    The loss is computed inside the module because FSDP gathers the weight for ``forward`` only.
    """

    def __init__(self, width: int, vocab_size: int, weight: nn.Parameter | None = None) -> None:
        """Own a fresh weight ``[V, W]``, or share ``weight``: the embedding's, when tied.

        ``to_empty`` gives every module its own storage and so unties them: tie again after it.
        """
        super().__init__()
        if weight is None:
            self.weight = nn.Parameter(torch.empty(vocab_size, width))
            self.reset_parameters()
        else:
            assert weight.shape == (vocab_size, width)
            self.weight = weight

    def reset_parameters(self) -> None:
        """Draw the weight from a normal distribution of standard deviation 0.02."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, reduction: Literal["sum", "none"] = "sum"
    ) -> Tensor:
        """Logits ``[..., V]`` of ``hidden [..., W]``; with ``targets [...]``, their loss.

        The loss is ``chunked_cross_entropy``'s, a sum over the targets that are not ``IGNORED``; with the reduction
        "none" it is ``token_cross_entropy``'s, one of each target ``[...]`` and without a gradient.
        """
        if targets is None:
            return F.linear(hidden, self.weight)
        flat = hidden.flatten(0, -2), self.weight, targets.flatten()
        if reduction == "none":
            return token_cross_entropy(*flat).view(targets.shape)
        return chunked_cross_entropy(*flat)

    def extra_repr(self) -> str:
        """Width and vocabulary, for ``print(model)``."""
        vocab_size, width = self.weight.shape
        return f"{width}, {vocab_size}"


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NW: Tensor,
        weight_VW: Tensor,
        targets_N: Tensor,
        chunk: int,
        recording: bool,
    ) -> Tensor:
        dtype = _matmul_dtype(hidden_NW)
        exact = torch.promote_types(dtype, torch.float32)
        weight = weight_VW.to(dtype)
        # needs_input_grad tells what requires a gradient even under no_grad, hence `recording`.
        hidden_needs, weight_needs = (recording and needs for needs in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_NW) if hidden_needs else None
        grad_weight = torch.zeros_like(weight_VW, dtype=exact) if weight_needs else None
        loss = torch.zeros((), dtype=exact, device=hidden_NW.device)
        for start in range(0, hidden_NW.shape[0], chunk):
            tokens = slice(start, start + chunk)
            loss += _chunk_losses(
                hidden_NW[tokens].to(dtype),
                weight,
                targets_N[tokens],
                None if grad_hidden is None else grad_hidden[tokens],
                grad_weight,
            ).sum()
        ctx.weight_dtype = weight_VW.dtype
        ctx.grads = (grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "chunked_cross_entropy scales its gradients in place, so backward runs once; "
                "compute the loss again for a second backward pass"
            )
        (grad_hidden, grad_weight), ctx.grads = ctx.grads, None
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(grad_loss)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _checked_chunk(hidden_NW: Tensor, weight_VW: Tensor, targets_N: Tensor, chunk: int | None) -> int:
    """Tokens at a time, once the shapes are known to fit."""
    num_tokens, width = hidden_NW.shape
    vocab_size = weight_VW.shape[0]
    assert weight_VW.shape == (vocab_size, width)
    assert targets_N.shape == (num_tokens,)
    if chunk is None:
        chunk = max(CHUNK_TOKENS, CHUNK_LOGITS // vocab_size)
    assert chunk >= 1
    return chunk


def _chunk_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """One chunk's loss by token; overwrites ``grad_hidden``, adds to ``grad_weight``, where there is one.

    A function, so that this chunk's logits are gone before the next chunk's are made.
    """
    ignored = targets == IGNORED
    targets = targets.masked_fill(ignored, 0)
    # Masking these W features a token, not the V logits, keeps ignored tokens out of the weight's
    # gradient.
    hidden = hidden.masked_fill(ignored[:, None], 0)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    log_p = torch.log_softmax(hidden @ weight.T, dim=-1, dtype=exact)
    losses = -log_p.gather(1, targets[:, None]).squeeze(1).masked_fill(ignored, 0)
    if grad_hidden is None and grad_weight is None:
        return losses
    grad_logits = log_p.exp_()
    grad_logits[torch.arange(len(targets), device=targets.device), targets] -= 1
    grad_logits = grad_logits.to(hidden.dtype)
    if grad_hidden is not None:
        grad_hidden.copy_((grad_logits @ weight).masked_fill(ignored[:, None], 0))
    if grad_weight is not None and grad_weight.dtype == hidden.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    elif grad_weight is not None:
        grad_weight += grad_logits.T @ hidden
    return losses


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast would run the head in: its own dtype, but for float64, which it leaves."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype
