"""Images that shall be packed are read, checked, and made smaller where that is wished; in any process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssl_core.data.answering import answer_tasks
from ssl_core.data.decode import DecodeError
from ssl_core.data.recode import Recoding, recoded
from ssl_core.data.sources import SourceImage
from ssl_core.data.staging import cannot_be_read

Chosen = tuple[str, SourceImage]
"""An image and its key in the shards."""

Looked = dict[str, Any] | str
"""A sample as WebDataset writes it, or "path: reason" of an image that is left out."""


@dataclass(frozen=True, kw_only=True)
class Looker:
    """Looks at images.

    Attributes:
        recoding: how they are stored.
        threads: how many are looked at at a time, in one process.
    """

    recoding: Recoding
    threads: int

    def do(self, work: Sequence[Chosen]) -> list[Looked]:
        """Look at some images; raises UserError where one cannot be read."""
        return [self._look(key, image) for key, image in work]

    def news(self) -> None:
        """Nothing."""

    def _look(self, key: str, image: SourceImage) -> Looked:
        try:
            data, extension = recoded(image.read(), image.extension, self.recoding)
        except OSError as error:
            raise cannot_be_read(image.origin, error) from error
        except DecodeError as error:
            return f"{image.origin}: {error}"
        label = {} if image.label is None else {"cls": str(image.label).encode()}
        return {"__key__": key, extension: data, **label}


def _itself(looker: Looker) -> Looker:
    return looker


def main() -> None:
    """Work until standard input ends; the command line has the descriptor of the answers."""
    answer_tasks(_itself)
