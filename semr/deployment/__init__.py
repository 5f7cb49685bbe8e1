"""Bringing a model version to its clients: one interface (`target`), one module for each kind of place."""
