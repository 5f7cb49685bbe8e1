"""Workflows on SEMR: each folder prepares its data, trains its model and says when to do it again."""
