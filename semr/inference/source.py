"""Where the alone host gets its model from: the URI on its command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from semr.errors import InvalidInputError
from semr.registry import ModelVersionRef

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_LOGGED = re.compile(r"models:/m-[0-9a-f]+")


@dataclass(frozen=True)
class ModelSource:
    """A model to serve.

    Attributes:
        name: under which it is served.
        uri: as it was given.
        selector: version or alias of a registered model, None for a model that is only logged or saved.
    """

    name: str
    uri: str
    selector: str | None

    @property
    def alias(self) -> str | None:
        """The alias, None when the source is one version."""
        return None if self.selector is None or self.selector.isdigit() else self.selector

    @property
    def unregistered(self) -> ModelVersionRef:
        """Reference of a model that has no version: it counts as version 1."""
        return ModelVersionRef(self.name, "1", self.uri, "", {})


def parse_source(uri: str, name: str | None = None) -> ModelSource:
    """The source of `uri`: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or whatever else MLflow loads.

    Args:
        uri: names the model.
        name: to serve it under; the registered name by default, which it must be for a registered model.

    Raises:
        InvalidInputError: a model of that URI has no name, or the name cannot stand in a path.
    """
    match = None if _LOGGED.fullmatch(uri) else _REGISTERED.fullmatch(uri)
    if match is not None:
        if name not in (None, match["name"]):
            raise InvalidInputError(f"{uri} is registered as {match['name']!r}, and is served under that name.")
        return ModelSource(match["name"], uri, match["alias"] or match["version"])
    chosen = name or PurePosixPath(uri).name
    if not chosen or any(character in chosen for character in "/:@?#%"):
        raise InvalidInputError(f"{uri} does not say what the model is to be called: give it a name with --name.")
    return ModelSource(chosen, uri, None)
