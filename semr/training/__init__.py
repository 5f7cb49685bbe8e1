"""Data-parallel training on Ray Train; one module per framework, each imported only where it is used."""
