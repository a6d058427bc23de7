"""Latency tables: what stands in them, how they are measured, audited, imported and ported."""
