"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lg.serve.engine import Engine


def metrics(engine: Engine, answered: Mapping[tuple[str, int], int]) -> str:
    """Every count, as text.

    Args:
        engine: what writes.
        answered: requests, by path and status.
    """
    lines: list[str] = []
    for name, kind, what, values in _counted(engine, answered):
        lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _counted(
    engine: Engine, answered: Mapping[tuple[str, int], int]
) -> Iterator[tuple[str, str, str, Mapping[str, int]]]:
    of_requests = {f'{{path="{path}",status="{status}"}}': n for (path, status), n in sorted(answered.items())}
    scheduler = engine.scheduler
    cache = scheduler.runner.cache
    # Of one head in one layer each.
    groups = [(group, len(kind.layers) * len(group.heads)) for kind in cache.kinds for group in kind.groups]
    yield "lg_requests_total", "counter", "Answers that have begun.", of_requests
    yield "lg_prompt_tokens_total", "counter", "Tokens of prompts that were read.", {"": engine.num_prompt_tokens}
    yield "lg_new_tokens_total", "counter", "Tokens that were written.", {"": engine.num_new_tokens}
    yield (
        "lg_requests_open",
        "gauge",
        "Requests that are prepared, wait, are read or are written.",
        {"": engine.num_open},
    )
    yield "lg_requests_waiting", "gauge", "Requests that wait for a slot or for pages.", {"": scheduler.num_waiting}
    yield "lg_requests_running", "gauge", "Requests that are being read or written.", {"": scheduler.num_running}
    held, all_pages = (sum(n * each for n, each in pages) for pages in zip(*(
        ((group.num_held, each), (group.num_pages, each)) for group, each in groups
    ), strict=True))  # fmt: skip
    yield "lg_kv_pages", "gauge", "Pages of 64 keys and values of one head.", {"": all_pages}
    yield "lg_kv_pages_in_use", "gauge", "Those that a later token may see.", {"": held}
    yield "lg_kv_bytes_in_use", "gauge", "Bytes of these.", {"": cache.num_bytes}
