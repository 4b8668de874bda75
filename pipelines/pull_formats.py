"""What a pulled encoder becomes: our own folder as it was registered, or one for timm or ONNX, checked when it is made.

A converted folder has a `pulled.json`: which version it was made from, and the sha256 of each file.
"""

import json
from pathlib import Path
from typing import Literal, cast

from ssl_core.errors import UserError
from ssl_core.export import CHECKSUMS, export_digest, verify_export
from ssl_core.storage.local import publish_bytes, sha256_file

Format = Literal["safetensors", "timm", "onnx"]
RECORD = "pulled.json"


def convert(export: Path, folder: Path, form: Format, *, version: str) -> None:
    """Make `folder` of an exported encoder, in another format.

    Raises:
        UserError: this encoder cannot be expressed so, or gives other features then.
    """
    if form == "timm":
        from ssl_core.export_timm import save_timm_folder as save
    else:
        from ssl_core.export_onnx import save_onnx as save
    save(export, folder)
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    record = {"version": version, "format": form, "export": export_digest(export), "files": files}
    publish_bytes(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def holds(folder: Path, digest: str, form: Format) -> bool:
    """Whether a folder is the encoder whose export has this digest, whole and in this format."""
    if form == "safetensors":
        try:
            verify_export(folder)
        except UserError:
            return False
        return (folder / CHECKSUMS).is_file() and export_digest(folder) == digest
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = cast(dict[str, str], record["files"])
        same = (record["format"], record["export"]) == (form, digest)
        return same and all(sha256_file(folder / name) == found for name, found in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
