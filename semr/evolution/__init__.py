"""The loop that lets models evolve: when to retrain (policy, trigger), whether to promote (gate), and the record of both."""
