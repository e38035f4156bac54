"""Files that pip packages ship. They are found by path; the packages are not imported."""

from __future__ import annotations

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path


def packaged(package: str, inside: str, pip_name: str, sha: str) -> str:
    """Return the text of a data file that a pip package ships, unpacked if it ends in ``.gz``.

    Args:
        package: Name under which Python would import the package.
        inside: Path of the file in the package's folder.
        pip_name: Name under which pip installs it, for the message.
        sha: sha256 of the unpacked bytes, so that a changed file is noticed.

    Raises:
        ModuleNotFoundError: if the package or the file is not there.
        ValueError: if the checksum differs.
    """
    spec = find_spec(package)
    folder = None if spec is None else next(iter(spec.submodule_search_locations or []), None)
    path = None if folder is None else Path(folder) / inside
    if path is None or not path.exists():
        raise ModuleNotFoundError(
            f"the data file of {pip_name} is not here: pip install {pip_name} "
            "(or pip install 'minidiff[data]')"
        )
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    found = hashlib.sha256(text).hexdigest()
    if found != sha:
        raise ValueError(
            f"{path.name} has sha256 {found[:12]}.., expected {sha[:12]}..: the data set changed, "
            "so numbers of the course would not hold; install the pinned version"
        )
    return text.decode()
