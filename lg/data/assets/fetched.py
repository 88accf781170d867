"""The texts of ``lg data fetch`` as a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lg.data.assets.asset import Asset, Damaged, folder_of, listed, read
from lg.data.assets.table import ASSETS
from lg.data.source import KEY, Document, Source


@dataclass(frozen=True)
class Fetched(Source):
    """A text that ``lg data fetch`` has brought, checked to the bit as it is read.

    Args:
        name: one of the texts of ``lg data list``.
    """

    name: str

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a file, in the order of their names.

        Raises:
            ValueError: there is no text of this name, or it is not fetched, or damaged.
        """
        asset, folder = self._asset(), folder_of(self.name)
        try:
            files = listed(folder, asset)
        except FileNotFoundError as error:
            raise ValueError(
                f"{KEY}.init_args.name: {self.name!r} is not in {folder.parent}; run `lg data fetch {self.name}` first"
            ) from error
        except Damaged as error:
            raise self._damaged(error) from error
        return (Document(name, self._text(folder / name, files[name])) for name in islice(files, start, None))

    def fingerprint(self) -> str:
        """Of the checksum that fetching and reading hold the text to.

        Raises:
            ValueError: there is no text of this name.
        """
        return self._asset().sha256[:32]

    def _asset(self) -> Asset:
        texts = {name: asset for name, asset in ASSETS.items() if asset.num_documents}
        if self.name not in texts:
            raise ValueError(
                f"{KEY}.init_args.name: {self.name!r} is not a text that lg can fetch; allowed: {', '.join(texts)}"
            )
        return texts[self.name]

    def _text(self, path: Path, digest: str) -> bytes:
        try:
            return read(path, digest)
        except Damaged as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Damaged) -> ValueError:
        return ValueError(
            f"{KEY}.init_args.name: {self.name!r} is damaged, {error}; run `lg data fetch {self.name}`, which "
            "fetches it anew"
        )
