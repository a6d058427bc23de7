"""The vocabulary of search spaces: choices, rules, architectures, layers and families."""
