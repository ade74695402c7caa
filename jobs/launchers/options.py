"""Reads the options of a launcher by a table, as `argparse` would. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class LauncherError(ValueError):
    """The command of a launcher cannot be taken over; the message says what to write instead."""


class Treatment(StrEnum):
    """The use that babysit makes of an option."""

    HONOURED = "honoured"  # its value has an effect here too
    IRRELEVANT = "irrelevant"  # babysit does it by itself, or it has no meaning here
    REFUSED = "refused"  # without it the training would be another one, and babysit lacks it


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One option of a launcher."""

    names: tuple[str, ...]
    """`nproc_per_node`, `m`: without dashes, and with underscores."""
    treatment: Treatment
    why: str = ""
    """The reason of an irrelevant option; what to do instead of a refused one."""
    flag: bool = False
    """True if it takes no value."""

    @property
    def name(self) -> str:
        """The name under which its value is found."""
        return self.names[0]


def honoured(*names: str, flag: bool = False) -> Option:
    """An option with an effect here."""
    return Option(names, Treatment.HONOURED, flag=flag)


def irrelevant(why: str, *names: str, flag: bool = False) -> Option:
    """An option without an effect here, and the reason."""
    return Option(names, Treatment.IRRELEVANT, why, flag)


def refused(instead: str, *names: str, flag: bool = False) -> Option:
    """An option that is refused, and what to do instead."""
    return Option(names, Treatment.REFUSED, instead, flag)


class Parsed(NamedTuple):
    """The command of a launcher, taken apart."""

    values: Mapping[str, str]
    """Honoured options by name; a flag has an empty text."""
    remarks: tuple[str, ...]
    """A sentence for each irrelevant option that was given."""
    rest: tuple[str, ...]
    """The script and its arguments."""


def parse(launcher: str, words: Sequence[str], table: Iterable[Option]) -> Parsed:
    """Take the words after the launcher apart.

    Options end at the first other word. Long names may be abbreviated, have hyphens or
    underscores, and take `=VALUE`. Of an option that is given twice the last value counts.

    Raises:
        LauncherError: An option is unknown, ambiguous, refused or without its value, or there is no
            script.
    """
    known = {name: option for option in table for name in option.names}
    values: dict[str, str] = {}
    remarks: dict[str, str] = {}
    remaining = list(words)
    while remaining and remaining[0].startswith("-") and remaining[0] != "-":
        word = remaining.pop(0)
        if word == "--":
            break
        for option, value in _taken(launcher, word, remaining, known):
            if option.treatment is Treatment.REFUSED:
                raise LauncherError(f"{launcher} {word}: {option.why}")
            if option.treatment is Treatment.HONOURED:
                values[option.name] = value
            else:
                remarks[option.name] = f"{word} has no effect: {option.why}"
    if not remaining:
        raise LauncherError(f"{launcher}: expected a script after its options")
    return Parsed(values, tuple(remarks.values()), tuple(remaining))


def _taken(
    launcher: str, word: str, remaining: list[str], known: Mapping[str, Option]
) -> Iterator[tuple[Option, str]]:
    """The options of one word, with their values; takes a value from `remaining` if needed."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        option = _long(launcher, name, known)
        yield option, _value(launcher, option, word, value if equals else None, remaining)
        return
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in known:
            raise _unknown(launcher, word)
        option = known[letter]
        if option.flag:
            yield option, ""
            continue
        given = letters.removeprefix("=") if letters else None
        yield option, _value(launcher, option, word, given, remaining)
        return


def _long(launcher: str, name: str, known: Mapping[str, Option]) -> Option:
    name = name.replace("-", "_")
    if name in known:
        return known[name]
    near = {long for long in known if len(long) > 1 and long.startswith(name)}
    meant = {known[long].name for long in near}
    if len(meant) > 1:
        raise LauncherError(f"{launcher} --{name}: may be {', '.join(sorted(near))}")
    if not near:
        raise _unknown(launcher, f"--{name}")
    return known[near.pop()]


def _value(
    launcher: str, option: Option, word: str, given: str | None, remaining: list[str]
) -> str:
    if option.flag:
        if given is not None:
            raise LauncherError(f"{launcher} {word}: takes no value")
        return ""
    if given is not None:
        return given
    if not remaining or _is_option(remaining[0]):
        raise LauncherError(f"{launcher} {word}: expected a value")
    return remaining.pop(0)


def _is_option(word: str) -> bool:
    """True for a word that argparse takes for an option, and so not for a negative number."""
    return len(word) > 1 and word[0] == "-" and not word[1:].replace(".", "", 1).isdigit()


def _unknown(launcher: str, word: str) -> LauncherError:
    return LauncherError(
        f"{launcher} {word}: no option of {launcher} that babysit knows; leave it out, or give the"
        " script to babysit without the launcher: `babysit run --processes N -- python SCRIPT`"
    )


def whole(launcher: str, option: str, text: str, least: int = 1) -> int:
    """The value of an option that wants a whole number.

    Raises:
        LauncherError: It is not whole, or too small.
    """
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise LauncherError(
            f"{launcher} --{option} {text}: expected a whole number of at least {least}"
        )
    return number
