"""The tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), from Optuna.

It suggests values of each choice by itself; where these leave no way to fit, others are drawn.
"""

from __future__ import annotations

import numpy as np

from nas.strategy.constraints import Region
from nas.strategy.searchers import Known, Propose
from nas.trellis.graph import Ints

_SOME = 16  # suggestions at a time: each takes milliseconds


def propose(region: Region, known: Known, n: int, rng: np.random.Generator) -> Ints:
    """Suggest up to `n` paths (some, positions), by the scores known inside the region."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    choices: dict[str, BaseDistribution] = {
        str(i): CategoricalDistribution(list(range(len(position.values))))
        for i, position in enumerate(known.positions)
    }
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=0 if len(known) >= 10 else 10, seed=int(rng.integers(2**31))
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    inside = known.within(region)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={str(i): v for i, v in enumerate(path)}, distributions=choices, value=score
            )
            for path, score in zip(inside.paths.tolist(), inside.scores.tolist())
        ]
    )
    trials = [study.ask(choices) for _ in range(min(n, _SOME))]
    suggested = [[trial.params[name] for name in choices] for trial in trials]
    return region.within.follow(np.array(suggested, dtype=np.int64), rng)


def make() -> Propose:
    """The searcher, which has no settings."""
    return propose
