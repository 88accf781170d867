"""Where each head of a pretrained model looks while it answers a needle, and which layers the answer comes from.

    lg import smollm2 models/smollm2
    lg data fetch austen
    python benchmarks/at_a_needle.py [OUT.json] [--models models] [--length 2048] [--picture OUT.png]

A number is told far back and asked for at the end. While a digit is predicted, a query head's weight is summed over the
token that is to be written (which stands in the needle), over the rest of the needle's sentence, the first four tokens,
the last 512, and everything else. Means over digits and questions. The picture shows the first of these sums for every
head of every layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, device_name, parser, write
from torch import Tensor

from lg.attention import Documents, Tiles
from lg.data import Fetched, TokenizerFile
from lg.evaluation import Needles, haystack
from lg.evaluation.needle import Question
from lg.evaluation.probe.sight import attending
from lg.evaluation.probe.texts import pieces
from lg.models.block import Attend
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.monitor.chart import Cells, heat_map

SINKS, NEAR = 4, 512
PLACES = ("the digit", "its sentence", "first 4", "last 512", "elsewhere")


def needle_at(question: Question) -> int:
    """Where the number begins that is told."""
    tokens, answer = question.told.tolist(), question.told[-question.num_answer :].tolist()
    return next(at for at in range(len(tokens)) if tokens[at : at + len(answer)] == answer)


def shares(weights: Tensor, at: int) -> Tensor:
    """Of weights [H, digits, L], what each of the places has: [H, digits, 5]; ``at`` is where the number is told."""
    _, digits, length = weights.shape
    digit = weights[:, range(digits), range(at, at + digits)]
    sentence = weights[..., at - 8 : at + digits + 1].sum(-1) - digit
    first, last = weights[..., :SINKS].sum(-1), weights[..., length - NEAR :].sum(-1)
    return torch.stack([digit, sentence, first, last, 1 - digit - sentence - first - last], -1)


@torch.no_grad()
def looks(decoder: Decoder, question: Question) -> Tensor:
    """Shares of every head: [layers, H, 5], means over the digits."""
    length, at, found = question.length, needle_at(question), list[Tensor]()

    def looking(layer: int, attend: Attend) -> Attend:
        def attended(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str) -> Tensor:
            # The token before it predicts a digit.
            rows = torch.arange(length - question.num_answer - 1, length - 1, device=q.device)
            keys = k[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
            scores = q[0][:, rows] @ keys.mT * q.shape[-1] ** -0.5
            later = torch.arange(length, device=q.device) > rows[:, None]
            found.append(shares(scores.masked_fill(later, -torch.inf).softmax(-1), at).mean(1))
            return attend(q, k, v, tiles, impl)

        return attended

    with attending(decoder, looking):
        decoder(question.told[None].to(decoder.embedding.weight.device), Documents(length))
    return torch.stack(found).cpu()


def picture(told: Tensor, path: Path, length: int) -> None:
    """Weight on the digit [layers, H]."""
    layers, heads = told.shape
    cells = Cells([str(head) for head in range(heads)], [str(layer) for layer in range(layers)], told.T.tolist())
    title = f"where the digit that is to be written is looked up, {length:,} tokens"
    heat_map(cells, ("layer", "query head"), "weight", 1.0, title).save(path)


def main() -> None:
    """Asks, and writes the file and the picture."""
    line = parser(__doc__)
    line.add_argument("--models", type=Path, default=Path("models"))
    line.add_argument("--length", type=int, default=2048)
    line.add_argument("--picture", type=Path, default=RESULTS.parents[1] / "docs" / "images" / "at_a_needle.png")
    args = line.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = args.models / "smollm2"
    decoder, tokenizer = open_pretrained(path).decoder().eval().to(device), TokenizerFile(str(path / "tokenizer.json"))
    (filler,) = pieces([Fetched("austen")], tokenizer, 20_000, 1)
    asked = haystack(Needles((args.length,), depths=(0.1, 0.35, 0.6), samples=4), tokenizer, filler).questions
    all_looks = torch.stack([looks(decoder, question) for question in asked])
    mean = all_looks.mean(0)
    rows: list[dict[str, Any]] = []
    for layer, of_layer in enumerate(mean):
        head = int(of_layer[:, 0].argmax())
        rows.append(
            {
                "layer": layer,
                "best_head": head,
                "best": dict(zip(PLACES, [round(x, 4) for x in of_layer[head].tolist()], strict=True)),
                "mean": dict(zip(PLACES, [round(x, 4) for x in of_layer.mean(0).tolist()], strict=True)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    on = device_name(device == "cuda")
    what = f"weights of SmolLM2 135M at {len(asked)} needles in {args.length} tokens"
    write(args.out, what, on, ["torch"], rows)
    picture(mean[..., 0], args.picture, args.length)


if __name__ == "__main__":
    main()
