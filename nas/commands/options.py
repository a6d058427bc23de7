"""Options of commands that stand for settings: names, defaults, help and bounds are read there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from enum import Enum, StrEnum
from functools import partial, wraps
from typing import Annotated, Any, get_type_hints

import typer

from nas.budget import parse_count
from nas.settings import Option


def flag_of(own: Field[Any]) -> str:
    """The name of a setting on the command line, e.g. `--search-images`."""
    option: Option = own.metadata["option"]
    return f"--{option.name or own.name.replace('_', '-')}"


def option_of(kind: Any, name: str) -> Any:
    """The typer option of a field of settings."""
    (own,) = (f for f in fields(kind) if f.name == name)
    option, flag = own.metadata["option"], flag_of(own)
    if own.default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    more: dict[str, Any] = {"help": option.help}
    if option.least is not None:
        more["min"] = option.least
    if option.metavar or option.counts:
        more["metavar"] = option.metavar or "COUNT"
    if option.counts:
        more["parser"] = partial(parse_count, what=option.counts)
    return typer.Option(flag, **more)


def with_options(order: str, *kinds: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings, in this order among its own.

    The command gets their values by the names of the fields, in keywords that it does not name.
    """
    settings = {f.name: _parameter(kind, f) for kind in kinds for f in fields(kind) if f.metadata}

    def woven(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            command(**{k: v.value if isinstance(v, Enum) else v for k, v in given.items()})

        known = {**inspect.signature(command, eval_str=True).parameters, **settings}
        own = inspect.signature(command).parameters
        left_out = {n for n, p in own.items() if p.kind != p.VAR_KEYWORD} - set(order.split())
        assert not left_out, f"{left_out} of {command.__name__} have no place among the options"
        signature = inspect.Signature([known[name] for name in order.split()])
        run.__signature__ = signature  # type: ignore[attr-defined]  # which typer reads
        return run

    return woven


def _parameter(kind: Any, own: Field[Any]) -> inspect.Parameter:
    choices = own.metadata["option"].choices
    of, default = get_type_hints(kind)[own.name], own.default
    if choices:
        made: Any = StrEnum
        of = made(own.name, {choice: choice for choice in choices})
        default = of(default)
    return inspect.Parameter(
        own.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[of, option_of(kind, own.name)],
    )
