"""The matrix of resources and damages: nothing is left out, nothing hides another, a table is held to it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import drift_matrix
from drift_matrix import Damage, Kind, MatrixError, all_damages, differences, every_round, quick_rounds

RM, CHMOD = Damage("deleted", "rm", "gone"), Damage("mode", "chmod", "open")
FOLDER = Kind("folder", "/[a-z]+", (Damage("deleted", "rm -r", "gone", takes_below=True), CHMOD))
FILE = Kind("file", "(/[a-z]+/(.+))", (RM, CHMOD))
RESOURCES = ["/etc", "/etc/a", "/etc/b", "/opt/c"]


def rounds(resources: Sequence[str] = RESOURCES, kinds: Sequence[Kind] = (FOLDER, FILE)) -> dict[str, list[str]]:
    planned = every_round(all_damages(resources, kinds))
    return {one.title: sorted(planted.resource for planted in one.planted) for one in planned}


def test_one_round_for_each_damage_and_what_takes_others_with_it_later() -> None:
    assert rounds() == {
        "deleted": ["/etc/a", "/etc/b", "/opt/c"],
        "further-1": ["/etc"],
        "mode": ["/etc", "/etc/a", "/etc/b", "/opt/c"],
    }


def test_a_folder_that_is_gone_is_named_with_all_below() -> None:
    (gone,) = [one for one in all_damages(RESOURCES, (FOLDER, FILE)) if one.damage.takes_below]
    assert gone.names == {"/etc", "/etc/a", "/etc/b"}


def test_what_the_table_calls_otherwise_is_below_its_folder_too() -> None:
    model = Kind("model", "model (.+)", (RM,))
    record = Kind("record", "(.+)[.]json", (RM,), row="model {0}")
    planted = all_damages(["/etc", "model /etc/m", "/etc/m.json"], (model, record, FOLDER))
    assert {one.resource: set(one.names) for one in planted if one.damage.name == "deleted"} == {
        "/etc": {"/etc", "model /etc/m"},
        "model /etc/m": {"model /etc/m"},
        "/etc/m.json": {"model /etc/m"},
    }


def test_what_has_no_damage_fails_unless_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="No damage is defined for unit x, hold y, which the first run"):
        all_damages([*RESOURCES, "unit x", "hold y"], (FOLDER, FILE))
    data = tmp_path / "damages.yml"
    data.write_text("kinds: [{kind: unit, match: unit .+}]\nforeign: {}\n")
    with pytest.raises(MatrixError, match=r"unit in damages\.yml: expected damages, or the reason"):
        drift_matrix.read(data)
    data.write_text("kinds: [{kind: unit, match: unit .+, spared: it belongs to the host}]\nforeign: {}\n")
    assert all_damages(["unit x"], drift_matrix.read(data)[0]) == []


def test_a_script_gets_the_words_of_the_name() -> None:
    (one, *_) = all_damages(["/opt/it's"], (FILE,))
    assert one.script == "set -- '/opt/it'\"'\"'s' 'it'\"'\"'s'\nrm"


def test_what_hides_another_gets_a_round_of_its_own() -> None:
    apart = Damage("deleted", "rm", "gone", apart={"oth.*-deleted": "they hide each other"})
    one, other = Kind("one", "/opt/[ab]", (apart,)), Kind("other", "/opt/c", (RM,))
    planned = rounds(["/opt/a", "/opt/b", "/opt/c", "/opt/d"], (one, other, FILE))
    assert planned["deleted"] == ["/opt/a", "/opt/b", "/opt/d"]
    assert planned["further-1"] == ["/opt/c"]


def test_what_follows_from_several_is_named_once_for_all() -> None:
    follows = Damage("deleted", "rm", "gone", also={"/image": "they are of it"})
    planned = every_round(all_damages(["/a/1", "/a/2", "/image"], (Kind("part", "/a/.", (follows,)), FOLDER)))
    (both,) = [one for one in planned if len(one.planted) == 2]
    assert both.names == {"/a/1", "/a/2", "/image"}


def test_three_rounds_name_every_resource() -> None:
    resources = [*RESOURCES, *(f"/opt/{number}" for number in range(9))]
    planned = quick_rounds(all_damages(resources, (FOLDER, FILE)))
    assert len(planned) == 3
    assert frozenset().union(*(one.names for one in planned)) == set(resources)
    assert {planted.damage.name for one in planned for planted in one.planted} == {"deleted", "mode"}


def test_more_than_fits_into_three_rounds_is_said() -> None:
    apart = Damage("deleted", "rm", "gone", apart={"..*": "they hide each other"})
    kinds = [Kind(name, f"/opt/{name}", (apart,)) for name in "abcd"]
    with pytest.raises(MatrixError, match="3 rounds do not hold /opt/d: too many"):
        quick_rounds(all_damages(["/opt/a", "/opt/b", "/opt/c", "/opt/d"], kinds))


def test_a_table_is_held_to_what_was_planted() -> None:
    (deleted, *_) = every_round(all_damages(["/opt/a", "/opt/b"], (FILE,)))
    right = [{"resource": name, "outcome": "repaired"} for name in ("/opt/a", "/opt/b")]
    assert differences(deleted, right, "repaired") == []
    assert differences(deleted, right[:1], "repaired") == ["not named: /opt/b"]
    more = [*right, {"resource": "/opt/c", "outcome": "repaired"}]
    assert differences(deleted, more, "repaired") == ["named, and not damaged: /opt/c"]
    failed = [right[0], {**right[1], "outcome": "not repaired"}]
    assert differences(deleted, failed, "repaired") == ["/opt/b: not repaired, expected repaired"]


def test_the_data_says_why_wherever_it_makes_an_exception() -> None:
    kinds, foreign = drift_matrix.read()
    assert foreign
    for kind in kinds:
        for damage in kind.damages:
            assert damage.says, damage.name
            assert all(len(why) > 9 for field in (damage.also, damage.apart, damage.leaves) for why in field.values())
