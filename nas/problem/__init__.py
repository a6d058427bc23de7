"""Search over a space, a latency and a score of the user's own, without a model or a device."""
