"""The contract of a stack as a file: `KEY=value` lines that `semr.settings` reads."""

from __future__ import annotations

from semr.settings import Settings
from semr.stack.state import StateFolder, write_private


def write_contract(folder: StateFolder, settings: Settings) -> None:
    """Write the contract into the state folder, readable by its owner only."""
    write_private(folder.env_file, "".join(f"{name}={value}\n" for name, value in settings.contract().items()))


def read_contract(folder: StateFolder) -> Settings:
    """The contract as the stack wrote it, whatever the environment of this process says.

    Raises:
        FileNotFoundError: there is no such file, since the stack is not up.
    """
    lines = folder.env_file.read_text(encoding="utf-8").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    values = {name: pairs.get(Settings.variable(name), field.default) for name, field in Settings.model_fields.items()}
    return Settings(**values)
