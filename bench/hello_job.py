"""The smallest Ray job: one line of log."""

print("hello", flush=True)
