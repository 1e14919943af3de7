"""What stands in the place of a file or a folder is renamed, never removed, and named; what is right stays."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from filter.host_files import folders_above, of_another_kind

import put_aside


def run(*paths: Path, kind: str = "file", check: bool = False) -> dict[str, Any]:
    output = io.StringIO()
    given = {"paths": [str(path) for path in paths], "kind": kind, "_ansible_check_mode": check}
    with patch_module_args(given), redirect_stdout(output), pytest.raises(SystemExit):
        put_aside.main()
    answer: dict[str, Any] = json.loads(output.getvalue())
    return answer


@pytest.mark.parametrize("check", [True, False])
def test_a_folder_in_the_place_of_a_file_is_renamed_with_what_is_in_it(tmp_path: Path, check: bool) -> None:
    path = tmp_path / "some.service"
    (path / "somebodys").mkdir(parents=True)
    answer = run(path, check=check)
    row = {"resource": str(path), "expected": "file", "found": "a folder"}
    assert (answer["changed"], answer["drift"], answer["aside"]) == (True, [row], {str(path): f"{path}.aside"})
    assert (path.exists(), (tmp_path / "some.service.aside" / "somebodys").exists()) == (check, not check)


def test_what_was_put_aside_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("first", "second"):
        path.write_text(text)
        run(path, kind="folder")
    assert (tmp_path / "folder.aside").read_text() == "first"
    assert (tmp_path / "folder.aside-1").read_text() == "second"


def test_a_dead_link_and_one_to_a_device_are_in_the_way_and_one_to_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    links = {name: tmp_path / name for name in ("dead", "device", "good")}
    for name, target in (("dead", "nowhere"), ("device", "/dev/null"), ("good", "file")):
        links[name].symlink_to(target)
    answer = run(*links.values(), tmp_path / "file", tmp_path / "absent")
    assert [row["found"] for row in answer["drift"]] == ["a link to nowhere", "a link to /dev/null"]
    assert links["good"].is_symlink()
    assert os.readlink(tmp_path / "dead.aside") == "nowhere"
    assert not run(*links.values(), tmp_path / "absent")["changed"]


def test_a_link_to_a_disk_that_is_not_mounted_is_no_place_for_a_folder(tmp_path: Path) -> None:
    link = tmp_path / "output"
    link.symlink_to(tmp_path / "raid")
    answer = run(link, kind="folder")
    assert answer["failed"]
    assert f"{link} is a link to {tmp_path}/raid, and that is not there, expected a folder" in answer["msg"]
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("entry", "kind", "other"),
    [
        ({"kind": "file", "link": None}, "file", False),
        ({"kind": "dir", "link": None}, "file", True),
        ({"kind": "file", "link": None}, "dir", True),
        ({"kind": "other", "link": "/dev/null"}, "file", True),
        ({"kind": "absent", "link": None}, "file", False),
        ({"kind": "absent", "link": "gone"}, "dir", True),
    ],
)
def test_the_probe_tells_what_is_of_another_kind(entry: dict[str, Any], kind: str, other: bool) -> None:
    assert of_another_kind({"/x": entry}, ["/x"], kind) == (["/x"] if other else [])


def test_the_folders_above_are_told_from_the_outside() -> None:
    assert folders_above(["/srv/a/b/file", "/srv/a/other"]) == ["/srv", "/srv/a", "/srv/a/b"]
