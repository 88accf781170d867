"""``lg probe``: which layers of a pretrained model must see everything, as scores, a picture and a schedule."""

from __future__ import annotations

from lg.cli.progress import progress

HELP = """usage: lg probe --model=MODEL [--OPTION=VALUE ...]

Ranks the layers of a pretrained model by what is lost when they see only sinks and a window, before it is trained any
further; the weights are left as they are. Writes the scores, a picture beside them, and prints the lines of YAML that
build a schedule from them (Measured). A model is a folder of transformers, a GGUF file, or a checkpoint file of lg.

  lg probe --model=models/smollm2
  lg probe --model=models/smollm2 --data=stdlib,austen --length=4K --measures=mass,gates
  lg probe --model=models/smollm2 --measures=gates --full_heads=12        KV heads instead of layers

measures:
  mass      attention's weight beyond the window; cheap, tells where a layer looks, not whether that matters
  gates     a gate on each KV head, learned on frozen weights, as in DuoAttention
  needle    what a number told far back makes the answer likelier by: with each layer local (one_out), with each alone
            full (one_in), and with layers taken greedily, begun with pairs (greedy)
  context   likewise, what the context makes the last tokens of a text likelier by

One way alone is named so: needle_one_out, needle_one_in, needle_greedy, context_one_out and so on.

measures that train, asked for by name only; the weights are put back:
  needle_adapted, context_adapted
            sets of --full_layers layers, which the other measures propose, and random ones: each is trained for a few
            steps, the better half again for twice as many, until one is left (successive halving). About 20 bytes a
            parameter on the device, and the activations of a text, none of which is computed again; what they cost in
            tokens is told when they begin

options, with what they are on a GPU and on a CPU:
  --data A,B         stdlib: texts, each a name of `lg data list`, a folder of text files, or a .jsonl file
  --tokenizer PATH   the model's own, or that of its run: a tokenizer.json, a folder that has one, or "bytes"
  --measures A,B     mass,gates,needle,context
  --length N         8K, or what the model was made for; 1K: tokens of a text
  --window N         an eighth of the length: keys that a restricted layer sees, besides
  --sinks N          4: the first ones
  --texts N          8: pieces of documents that are read
  --questions N      8: about needles, each read twice
  --layers N         8, or --full_layers if that is more: full layers up to which greedy goes
  --candidates N     8: layers that greedy tries
  --steps N          300: of learning the gates
  --sets N           8: sets that are trained at first
  --adapt_steps N    16: for how many steps, of a text each; they are others than those that are measured on
  --adapt_rate X     1e-4: the learning rate's peak
  --full_layers N    4: full layers of the schedule that is printed, and of sets that are trained
  --full_heads N     print patterns and schedule with N full KV heads, by gates or else by mass
  --device NAME      cuda if there is one, else cpu
  --devices N        1, or auto: GPUs, each with the whole model, that share the work; the gates are learned on one.
                     On a CPU processes, each with as many threads as one alone
  --out FILE         probe.json

What is measured is kept in a file beside it (probe.partial.json) until all is; the same command goes on from there.
"""

_DEFAULTS = {
    "data": "stdlib", "measures": "mass,gates,needle,context", "sinks": "4", "texts": "8", "questions": "8",
    "candidates": "8", "steps": "300", "sets": "8", "adapt_steps": "16", "adapt_rate": "1e-4", "devices": "1",
    "out": "probe.json",
}  # fmt: skip
_OTHERS = ("model", "tokenizer", "length", "window", "layers", "full_layers", "full_heads", "device")


def run(args: list[str]) -> None:
    """Measures, writes and prints.

    Args:
        args: "probe", and the words after it.

    Raises:
        ValueError: when the input is at fault, or nothing could be measured.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    from lg.cli.bench import Parser
    from lg.cli.probe_run import probed

    parser = Parser(prog="lg probe", allow_abbrev=False, add_help=False)
    for name in (*_DEFAULTS, *_OTHERS):
        parser.add_argument(f"--{name}", default=_DEFAULTS.get(name))
    options = parser.parse_args(words)
    with progress("lg probe", "the same command goes on from what was measured") as line:
        probed(options, line)
