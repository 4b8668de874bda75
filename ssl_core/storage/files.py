"""Named files below a local folder or a bucket's prefix, through one small set of operations.

A file appears whole or not at all in both. `create` is the one operation that two processes cannot both succeed with:
a hard link on a disk, a conditional put (`If-None-Match: *`) in a bucket.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ssl_core.storage import s3
from ssl_core.storage.local import atomic_path, sync_folder
from ssl_core.storage.s3 import Folder, S3Location


class Files(Protocol):
    """Files by name; a name may have folders in it (`a/b`). Whatever a call raises, no half file is left."""

    def names(self) -> list[str]:
        """All of them, in order; none where the folder does not exist."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file's bytes, or None where there is none of that name."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a small file, unless there is one of that name; whether it was made."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A local path for the body to write; becomes the file, or replaces it, if the body ends well."""
        ...

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """A local path with the file's bytes, for the body to read; raises OSError or UserError where there is none."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""
        ...

    def clear_unfinished(self) -> None:
        """Remove what killed writers left; only for who knows that nobody is writing now."""
        ...


def files_at(folder: Folder) -> Files:
    """The files of a folder or a bucket's prefix."""
    return LocalFiles(folder) if isinstance(folder, Path) else BucketFiles(folder)


class LocalFiles:
    """A local folder's, or one on a file system that several machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """All but those that are being written."""
        found = (path for path in self._paths() if not _unfinished(path))
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def _paths(self) -> Iterator[Path]:
        """All files; a folder that goes away meanwhile has none."""
        for folder, _, names in os.walk(self._folder):
            yield from (Path(folder, name) for name in names)

    def read(self, name: str) -> bytes | None:
        """Its bytes."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """By a hard link, which fails where the name is taken."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:  # somebody else's, or this one's: a network file system may have asked twice
            return self.read(name) == data
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        sync_folder(self._folder)
        return True

    @contextmanager
    def writing(self, name: str) -> Generator[Path]:
        """Beside its place, then renamed."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary

    @contextmanager
    def reading(self, name: str) -> Generator[Path]:
        """Where it is."""
        yield self._folder / name

    def remove(self, names: Iterable[str]) -> None:
        """With the folder that is empty then."""
        for name in names:
            path = self._folder / name
            path.unlink(missing_ok=True)
            if path.parent != self._folder:
                with suppress(OSError):  # something is in it, or it is gone
                    path.parent.rmdir()

    def clear_unfinished(self) -> None:
        """Temporary files, and folders with nothing in them."""
        for path in [path for path in self._paths() if _unfinished(path)]:
            path.unlink(missing_ok=True)
        for folder, _, _ in list(os.walk(self._folder, topdown=False)):
            with suppress(OSError):  # something is in it
                Path(folder).rmdir()


class BucketFiles:
    """A bucket's, below a prefix; what is written or read goes through this machine's temporary folder."""

    def __init__(self, location: S3Location) -> None:
        self._location = location

    def names(self) -> list[str]:
        """As the bucket lists them."""
        return [name for name, _ in s3.list_sizes(self._location)]

    def read(self, name: str) -> bytes | None:
        """Its bytes."""
        return s3.read_bytes(self._location / name)

    def create(self, name: str, data: bytes) -> bool:
        """By a conditional put."""
        return s3.create(self._location / name, data)

    @contextmanager
    def writing(self, name: str) -> Generator[Path]:
        """In a temporary folder, then sent."""
        with _temporary(name) as path:
            yield path
            s3.upload(path, self._location / name, metadata={})

    @contextmanager
    def reading(self, name: str) -> Generator[Path]:
        """Fetched first."""
        with _temporary(name) as path:
            facts = s3.look_up(self._location / name)
            if facts is None:
                raise FileNotFoundError(f"there is no object {self._location / name}")
            s3.download(self._location / name, path, size=facts.size)
            yield path

    def remove(self, names: Iterable[str]) -> None:
        """By many at a time."""
        s3.remove(self._location, names)

    def clear_unfinished(self) -> None:
        """Parts of uploads that were never completed."""
        s3.abort_uploads(self._location)


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


@contextmanager
def _temporary(name: str) -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ssl-pipelines-"))
    try:
        yield folder / name.rpartition("/")[2]
    finally:
        shutil.rmtree(folder)
