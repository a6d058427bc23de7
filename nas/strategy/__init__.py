"""Which architectures a search tries next, and what it knows of those not tried."""
