"""One model family per file: its parts (layers for every choice) and its presets (spaces)."""
