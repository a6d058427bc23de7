"""The main job: a latency budget in; a measured winner, baselines and a report out."""
