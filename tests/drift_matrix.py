"""The drift matrix: the damages that each managed resource may take, and which of them are planted together.

The resources are those that a host's first run named, and what the roles' probes look at. damages.yml of the scenario
says of which kind they are and what can happen to that kind. Nothing here needs a host.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "molecule" / "drift" / "tests" / "damages.yml"
QUICK_ROUNDS = 3


class MatrixError(ValueError):
    """What is wrong with the data, in words."""


@dataclass(frozen=True)
class Damage:
    """What can happen to the resources of a kind. `plant` is a script that gets the groups of the kind's pattern."""

    name: str
    plant: str
    says: str
    # Patterns of further resources that the table names because of it, each with why.
    also: Mapping[str, str] = field(default_factory=dict)
    takes_below: bool = False
    # Planted together with the damages of that name; with those of its own where this is empty.
    round: str = ""
    # Patterns of what may not be planted beside it (KIND-DAMAGE), each with why.
    apart: Mapping[str, str] = field(default_factory=dict)
    # Pattern of what the state of the host may have over what it was, with why.
    leaves: Mapping[str, str] = field(default_factory=dict)


def script(damage: Damage, words: Iterable[str]) -> str:
    """A damage as a script, with its words as arguments."""
    return f"set -- {shlex.join(words)}\n{damage.plant}"


@dataclass(frozen=True)
class Kind:
    """Resources that are damaged alike. `demo` is a word of the shell that comes to one of them on a host."""

    name: str
    match: str
    damages: tuple[Damage, ...]
    demo: str = ""
    # What the table calls it, with the groups of the pattern; its own name where this is empty.
    row: str = ""
    # Why its resources take no damage of their own.
    spared: str = ""


@dataclass(frozen=True)
class Foreign:
    """What belongs to others beside what is ours: a file, or what `plant` makes and `intact` finds as it was."""

    name: str
    path: str = ""
    text: str = "Of somebody else.\n"
    plant: str = ""
    intact: str = ""

    @property
    def making(self) -> str:
        """The script that puts it there."""
        quoted = shlex.quote(self.path)
        file = f'mkdir --parents "$(dirname {quoted})"; printf %s {shlex.quote(self.text)} > {quoted}'
        return file if self.path else self.plant

    @property
    def looking(self) -> str:
        """The script that succeeds while it is as it was."""
        file = f'test "$(cat {shlex.quote(self.path)}; echo .)" = {shlex.quote(f"{self.text}.")}'
        return file if self.path else self.intact

    def gone_with(self, round_: Round) -> bool:
        """Whether a damage of this round itself takes it."""
        folders = [one.resource for one in round_.planted if one.damage.takes_below]
        return any(self.path.startswith(f"{folder}/") for folder in folders)


@dataclass(frozen=True)
class Planted:
    """One damage of one resource, and the resources that a table must name for it."""

    resource: str
    row: str
    kind: str
    damage: Damage
    words: tuple[str, ...]
    names: frozenset[str]

    @property
    def title(self) -> str:
        return f"{self.resource}: {self.damage.name}"

    @property
    def what(self) -> str:
        return f"{self.kind}-{self.damage.name}"

    @property
    def script(self) -> str:
        """The damage as a script for the host."""
        return script(self.damage, self.words)


@dataclass(frozen=True)
class Round:
    """What is planted at once."""

    title: str
    planted: tuple[Planted, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset().union(*(one.names for one in self.planted))


def read(path: Path = DATA) -> tuple[tuple[Kind, ...], tuple[Foreign, ...]]:
    """The kinds, and what of others is planted beside them."""
    document = yaml.safe_load(path.read_text())
    kinds = []
    for entry in document["kinds"]:
        fields = dict(entry)
        damages = tuple(Damage(name, **words) for name, words in fields.pop("damages", {}).items())
        kinds.append(Kind(fields.pop("kind"), damages=damages, **fields))
    if wrong := [kind.name for kind in kinds if bool(kind.damages) == bool(kind.spared)]:
        raise MatrixError(f"{', '.join(wrong)} in {path.name}: expected damages, or the reason why there are none.")
    return tuple(kinds), tuple(Foreign(name, **words) for name, words in document["foreign"].items())


def kind_of(resource: str, kinds: Iterable[Kind]) -> tuple[Kind, tuple[str, ...]] | None:
    """The first kind whose pattern is the whole name, and the words that its scripts get."""
    for kind in kinds:
        if found := re.fullmatch(kind.match, resource):
            return kind, found.groups() or (resource,)
    return None


def rows_below(folder: str, named: Mapping[str, tuple[Kind, str, tuple[str, ...]]]) -> set[str]:
    """What the table calls the resources that lie in a folder; `named` has kind, row and words of each."""
    return {row for kind, row, words in named.values() if kind.damages and words[0].startswith(f"{folder}/")}


def all_damages(resources: Sequence[str], kinds: Sequence[Kind]) -> list[Planted]:
    """Every damage of every resource. MatrixError where one has none and no reason why."""
    found = {resource: kind_of(resource, kinds) for resource in resources}
    if unknown := [resource for resource, what in found.items() if what is None]:
        raise MatrixError(
            f"No damage is defined for {', '.join(unknown)}, which the first run of a host named or a probe looks at; "
            f"expected a kind in {DATA.name} that matches, with damages or with the reason why it has none."
        )
    named = {
        resource: (what[0], what[0].row.format(*what[1]) or resource, what[1])
        for resource, what in found.items()
        if what
    }
    planted = []
    for resource, (kind, row, words) in named.items():
        for damage in kind.damages:
            names = {row} | (rows_below(resource, named) if damage.takes_below else set())
            names |= {one for one in resources if any(re.fullmatch(pattern, one) for pattern in damage.also)}
            planted.append(Planted(resource, row, kind.name, damage, words, frozenset(names)))
    return planted


def hide_each_other(one: Planted, other: Planted) -> bool:
    """Whether two damages cannot be told apart where both are there."""
    # The script of a kind is made for all its resources at once; only folders lie in one another.
    if one.what == other.what:
        return one.damage.takes_below and (one.row in other.names or other.row in one.names)
    named = one.row in other.names or other.row in one.names
    apart = [(pattern, other.what) for pattern in one.damage.apart]
    apart += [(pattern, one.what) for pattern in other.damage.apart]
    return named or any(re.fullmatch(pattern, what) for pattern, what in apart)


def fits(one: Planted, others: Iterable[Planted]) -> bool:
    """Whether a damage may be planted beside others."""
    return not any(hide_each_other(one, other) for other in others)


def every_round(planted: Iterable[Planted]) -> list[Round]:
    """One round for each name of a damage, and further ones for those that hide one of these or each other."""
    rounds: dict[str, list[Planted]] = {}
    further: list[list[Planted]] = []
    # Folders last: what takes everything below has few beside it.
    for one in sorted(planted, key=lambda one: (len(one.names), one.resource)):
        group = rounds.setdefault(one.damage.round or one.damage.name, [])
        place = next((group for group in [group, *further] if fits(one, group)), None)
        if place is None:
            further.append([one])
        else:
            place.append(one)
    groups = [*rounds.items(), *((f"further-{number + 1}", group) for number, group in enumerate(further))]
    return [Round(title, tuple(group)) for title, group in groups]


def quick_rounds(planted: Sequence[Planted], count: int = QUICK_ROUNDS) -> list[Round]:
    """So many rounds that together touch every resource, each with as many names of damages as there are."""
    groups: list[list[Planted]] = [[] for _ in range(count)]
    # Every place that is left to a resource: a damage of it, in one of the rounds.
    places: dict[str, list[tuple[Planted, int]]] = {}
    for turn, one in enumerate(planted):
        places.setdefault(one.resource, []).extend((one, (turn + step) % count) for step in range(count))
    hides = {name: sum(hide_each_other(ways[0][0], other) for other in planted) for name, ways in places.items()}
    left = []

    def crowd(way: tuple[Planted, int]) -> tuple[int, int]:
        """How much damage of the same name, and of any, a round has."""
        one, number = way
        return sum(other.damage.name == one.damage.name for other in groups[number]), len(groups[number])

    while places:
        # What has the fewest places first, and of these what takes most places from others.
        resource = min(places, key=lambda name: (len(places[name]), -hides[name], name))
        ways = places.pop(resource)
        if any(resource in one.names for group in groups for one in group):
            continue
        if not ways:
            left.append(resource)
            continue
        one, number = min(ways, key=crowd)
        groups[number].append(one)
        places = {
            name: [way for way in others if way[1] != number or not hide_each_other(way[0], one)]
            for name, others in places.items()
        }
    if left:
        raise MatrixError(f"{count} rounds do not hold {', '.join(left)}: too many damages hide each other.")
    return [Round(f"quick-{number + 1}", tuple(group)) for number, group in enumerate(groups) if group]


def differences(round_: Round, rows: Iterable[Mapping[str, Any]], outcome: str) -> list[str]:
    """How a table differs from what was planted: nothing more, nothing less, and each with this outcome."""
    found = {row["resource"]: row["outcome"] for row in rows}
    lines = [f"not named: {name}" for name in sorted(round_.names - found.keys())]
    lines += [f"named, and not damaged: {name}" for name in sorted(found.keys() - round_.names)]
    lines += [f"{name}: {said}, expected {outcome}" for name, said in sorted(found.items()) if said != outcome]
    return lines
