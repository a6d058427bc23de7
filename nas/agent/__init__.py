"""Measuring on another machine: a program without dependencies, and its client."""
