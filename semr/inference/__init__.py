"""The model server: one HTTP application, hosted by Ray Serve or alone."""
