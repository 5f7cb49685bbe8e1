"""Which extra of the distribution brings a library, so that a missing one is named by what installs it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from semr.errors import InvalidInputError

# By importable name. An extra that contains another one stands where it is what a person would install.
_EXTRAS = {
    "flask": "stack",
    "flytekit": "workflows",
    "jinja2": "workflows",
    "keras": "tensorflow",
    "matplotlib": "workflows",
    "PIL": "pictures",
    "prometheus_flask_exporter": "stack",
    "ray": "ray",
    "sklearn": "workflows",
    "tensorflow": "tensorflow",
    "torch": "torch",
}
#: What the embedded stack's servers are made of, but for programs, which it looks for itself.
STACK = ("flask", "prometheus_flask_exporter", "ray")


class MissingExtraError(InvalidInputError):
    """A library is not installed that an extra of the distribution brings.

    Args:
        module: importable name of the library.
        extra: the extra.
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(f"This needs {module}, which is not installed: pip install 'semr[{extra}]'.")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return (type(self), (self.module, self.extra))


def need(modules: Iterable[str]) -> None:
    """Check that libraries are installed, without importing them.

    Raises:
        MissingExtraError: for the first that is not.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(module, _EXTRAS[module])


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to show in place of a failed import; None when no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    return MissingExtraError(module, _EXTRAS[module]) if module in _EXTRAS else None
