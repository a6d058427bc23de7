"""What a person reads after a run: the HTML page, its wording and its pictures."""
