"""Measured latency tables that ship as data; tables of your own devices live in the user cache."""
