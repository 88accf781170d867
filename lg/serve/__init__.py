"""A decoder behind HTTP, as OpenAI's clients speak it; what it is asked is written by one `lg.inference.Scheduler`.

`lg serve` is the command. This package knows no tokenizer of its own: it is handed a `lg.serve.tokenizer.Speaker`.
"""
