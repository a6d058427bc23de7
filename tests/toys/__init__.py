"""Modules of one's own, as a user would bring them: a family, a task, an objective."""
