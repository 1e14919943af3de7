"""Module comfyui_image_build: the parser on what buildx 0.13.1 said, the command, the whole with a mock of docker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
from hypothesis import given
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]
# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins" / "module_utils"))

import comfyui_image_build as image  # noqa: E402 - after its helpers can be found

LAYER_1, LAYER_2 = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BASE = f"registry.test:5000/pytorch:1@{LAYER_1}"
SECRET = "https://user:hunter22@index.test/simple"  # noqa: S105  opens nothing


def follow(text: str) -> image.BuildLog:
    log = image.BuildLog()
    for line in text.splitlines():
        log.add(line)
    return log


BEGIN = f"""#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 471B done
#1 DONE 0.1s

#5 [stage-0 1/4] FROM {BASE}
#5 resolve {BASE} done
#5 {LAYER_1} 11.53MB / 100.13MB 0.1s
#5 {LAYER_2} 1.05GB / 4.73GB 0.1s
#5 {LAYER_1} 100.13MB / 100.13MB 0.9s done
"""
FAILING = """#7 [stage-0 3/4] RUN --mount=type=cache,target=/root/.cache/pip     if true; then pip install
#7 0.222 Collecting aiohttp
#7 DONE 7.5s

#8 [stage-0 4/4] RUN for i in $(seq 30); do echo line $i; done; exit 3
"""


def test_the_base_counts_its_bytes() -> None:
    log = follow(BEGIN)
    assert (log.step, log.steps, log.name) == (1, 4, "FROM registry.test:5000/pytorch:1")
    assert log.fetched_b == 1_150_130_000


def test_the_base_says_when_it_is_unpacked() -> None:
    log = follow(BEGIN + f"#5 extracting {LAYER_1} 5.0s\n")
    assert (log.text, log.fetched_b) == ("FROM registry.test:5000/pytorch:1: unpacking", 1_150_130_000)
    log.add(f"#5 {LAYER_2} 4.73GB / 4.73GB 9.1s done")
    log.add(f"#5 extracting {LAYER_2} 5.0s")
    assert (log.text, log.fetched_b) == ("FROM registry.test:5000/pytorch:1: unpacking", None)


def test_steps_are_followed_without_their_mounts() -> None:
    log = follow(BEGIN + FAILING.partition("#8")[0])
    assert (log.step, log.steps, log.name, log.fetched_b) == (3, 4, "RUN if true; then pip install", None)
    assert log.text == "RUN if true; then pip install: Collecting aiohttp"


def test_a_long_command_leaves_room_for_what_it_says() -> None:
    log = follow(f"#6 [2/9] RUN {'x' * 200}\n#6 0.1 first\n#6 0.2 Downloading numpy\n#6 0.3 \n#4 0.4 beside")
    assert log.text == f"RUN {'x' * 33}...: Downloading numpy"


def test_steps_without_the_name_of_a_stage_are_followed_too() -> None:
    assert follow("#6 [2/9] COPY torch_gate.py /opt/comfyui/").name == "COPY torch_gate.py /opt/comfyui/"


def test_a_step_that_is_named_again_stays_what_it_is() -> None:
    again = FAILING.partition("#8")[0]
    log = follow(BEGIN + again + "#7 [stage-0 3/4] RUN --mount=type=cache,target=/root/.cache/pip  if true; then ...\n")
    assert (log.step, log.said) == (3, "Collecting aiohttp")


def test_writing_the_image_is_a_step_of_its_own() -> None:
    log = follow(FAILING.partition("#8")[0] + "#9 exporting to image\n#9 exporting layers 0.0s done\n#9 DONE 0.1s")
    assert (log.step, log.steps, log.name) == (4, 4, "writing the image")


def test_a_failure_names_its_step_and_its_last_twenty_lines() -> None:
    output = "".join(f"#8 0.2 line {number}\n" for number in range(1, 31))
    end = '#8 ERROR: process "/bin/sh -c ..." did not complete successfully: exit code: 3\n------\n > [4/4] RUN ...\n'
    log = follow(BEGIN + FAILING + output + end + "#7 ERROR: context canceled\n")
    assert log.failed_step == "4/4 RUN for i in $(seq 30); do echo line $i; done; exit 3"
    assert log.last_lines == [f"line {number}" for number in range(11, 31)]


def test_a_step_that_the_builder_itself_could_not_do_says_so_beside_its_own_lines() -> None:
    reason = "failed to write /var/lib/docker/tmp/x: no space left on device"
    log = follow(f"#7 [3/4] RUN pip install\n#7 0.1 Collecting aiohttp\n#7 ERROR: {reason}\n")
    assert log.last_lines == ["Collecting aiohttp", reason]


def test_a_failure_outside_the_steps_has_the_last_lines_of_all() -> None:
    log = follow("#2 [internal] load metadata for x\n#2 ERROR: not found\nERROR: failed to solve: x: not found")
    assert log.failed_step == ""
    assert log.last_lines[-1] == "ERROR: failed to solve: x: not found"


def test_a_success_has_no_failed_step() -> None:
    assert follow(BEGIN + FAILING).failed_step == ""


@given(
    lines=st.lists(st.from_regex(r"#\d{1,2} ?(\[[^\]]{0,5}\d/\d\] |ERROR: |exporting to |\d\.\d )?.{0,9}"), max_size=9)
)
def test_no_output_breaks_the_parser(lines: list[str]) -> None:
    log = image.BuildLog()
    for line in lines:
        log.add(line)
    assert len(log.last_lines) <= image.LAST_LINES


def parameters(path: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "name": "dgx-comfyui",
        "tag": "1-0",
        "path": str(path),
        "record": str(Path(path).parent / "record.json"),
        "build_args": {},
        "contexts": {},
        "secrets": [],
        **more,
    }


def test_no_value_of_a_secret_or_an_argument_is_in_the_command() -> None:
    secrets = [{"id": "ca", "src": "/etc/ca.pem", "value": None}, {"id": "index", "src": None, "value": SECRET}]
    argv, environment = image.build_command(
        parameters("/b", build_args={"https_proxy": "http://u:p@proxy:1"}, secrets=secrets)
    )
    assert not [word for word in argv if "hunter22" in word or "u:p" in word]
    assert argv[:5] == ["docker", "buildx", "build", "--progress", "plain"]
    assert argv[-2:] == ["--", "/b"]
    assert "id=ca,type=file,src=/etc/ca.pem" in argv
    assert environment == {"https_proxy": "http://u:p@proxy:1", "COMFYUI_IMAGE_BUILD_SECRET_1": SECRET}
    assert "id=index,type=env,env=COMFYUI_IMAGE_BUILD_SECRET_1" in argv
    assert argv[argv.index("--build-arg") + 1] == "https_proxy"


def test_a_folder_of_the_host_takes_the_place_of_a_stage() -> None:
    argv, _ = image.build_command(parameters("/b", contexts={"wheels": "/srv/with blanks"}))
    assert argv[argv.index("--build-context") + 1] == "wheels=/srv/with blanks"


# The module as a whole, with a program called docker that answers as it is told.

INSPECTED = [{"Id": "sha256:11", "Architecture": "arm64", "Size": 3_000_000, "Config": {"Labels": {"a": "b"}}}]
HISTORY = f"""0 CMD ["python"]
700 RUN pip install
20 LABEL {image.FIRST_STEP}=sha256:00
5000 RUN of the base
"""
DOCKER = f"""#!/bin/sh
cd "$(dirname "$0")" || exit 99
echo "$@" >> calls
case "$*" in
  "image inspect --format"*) test -e built && echo sha256:11 ;;
  "image inspect"*) echo '{json.dumps(INSPECTED)}' ;;
  "image history"*) echo '{HISTORY.strip()}' ;;
  "container ls"*) ! test -e left || echo 77 ;;
  "container create --name {image.READER} "*) echo 77 ;;
  "container cp {image.READER}:/opt/comfyui/contents.json"*) echo '[{{"name": "einops"}}]' > "$4" ;;
  "container cp {image.READER}:/opt/comfyui/requirements.txt"*) echo "einops==1" > "$4" ;;
  "buildx build"*) cat said; test -e fails && exit 1; test -e elsewhere || touch built ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "record.json").write_text("{}")
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    end = '#8 ERROR: process "/bin/sh -c for i" did not complete successfully: exit code: 3\n'
    (folder / "said").write_text(BEGIN + FAILING + f"#8 0.1 from {SECRET}\n" + end)
    return folder


# The folder of the locks is a scratch one.
CALL = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import ansible.module_utils
ansible.module_utils.__path__.append(sys.path[0])
from ansible.module_utils.testing import patch_module_args
import comfyui_image_build as module
alone = module.alone
module.alone = lambda path, report: alone(path, report, sys.argv[3])
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""


def begin(docker: Path, *, check: bool = False, path: str = "", **more: Any) -> subprocess.Popen[str]:
    """The module in a process of its own, as on a host."""
    arguments = {**parameters(docker), **more, "_ansible_check_mode": check}
    paths = [str(REPOSITORY / "plugins" / "module_utils"), str(REPOSITORY / "plugins" / "modules")]
    return subprocess.Popen(
        [sys.executable, "-c", CALL, json.dumps(paths), json.dumps(arguments), str(docker.parent / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path or f"{docker}:{os.environ['PATH']}"},
    )


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    with process:
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    answer: dict[str, Any] = json.loads(output)
    return answer


def call(docker: Path, **more: Any) -> dict[str, Any]:
    return answer_of(begin(docker, **more))


def test_an_image_that_is_there_is_not_built(docker: Path) -> None:
    (docker / "built").touch()
    answer = call(docker)
    assert (answer["changed"], answer["image_id"]) == (False, "sha256:11")
    assert "buildx" not in (docker / "calls").read_text()


def test_an_image_gets_a_record_and_its_lock(docker: Path) -> None:
    path = docker.parent / "images" / "1-0.json"
    answer = call(docker, record=str(path))
    assert (answer["size_b"], answer["overhead_b"]) == (3_000_000, 720)
    record = json.loads(path.read_text())
    assert record["contents"] == [{"name": "einops"}]
    assert (record["reference"], record["architecture"], record["labels"]) == ("dgx-comfyui:1-0", "arm64", {"a": "b"})
    assert path.with_suffix(".txt").read_text() == "einops==1\n"
    assert sorted(one.name for one in path.parent.iterdir()) == ["1-0.json", "1-0.txt"]
    assert (docker / "calls").read_text().splitlines()[-1] == f"container rm {image.READER}"
    assert (docker / "calls").read_text().count("container rm") == 1


def test_a_container_that_an_interrupted_run_left_goes(docker: Path) -> None:
    (docker / "left").touch()
    call(docker)
    assert (docker / "calls").read_text().count(f"container rm {image.READER}") == 2


def test_an_image_that_lost_its_record_gets_it_again(docker: Path) -> None:
    (docker / "built").touch()
    path = docker.parent / "images" / "1-0.json"
    assert call(docker, record=str(path), check=True)["changed"] is True
    assert not path.exists()
    assert call(docker, record=str(path))["changed"] is True
    assert path.exists()
    assert call(docker, record=str(path))["changed"] is False


def test_a_new_image_takes_the_place_of_the_last_ones_record(docker: Path) -> None:
    record = docker.parent / "record.json"
    record.write_text('{"image_id": "sha256:of another build"}')
    assert call(docker)["changed"] is True
    assert json.loads(record.read_text())["image_id"] == "sha256:11"


def test_without_the_first_step_all_counts() -> None:
    assert image.overhead_b("700 RUN pip install\n5000 RUN of the base\n") == 5700


def test_a_dry_run_predicts_and_builds_nothing(docker: Path) -> None:
    assert call(docker, check=True)["changed"] is True
    assert "buildx" not in (docker / "calls").read_text()


def test_an_image_that_is_not_there_is_built(docker: Path) -> None:
    answer = call(docker)
    assert (answer["changed"], answer["image_id"], answer["reference"]) == (True, "sha256:11", "dgx-comfyui:1-0")


def test_a_failed_build_says_where_and_hides_the_secret(docker: Path) -> None:
    (docker / "fails").touch()
    answer = call(docker, secrets=[{"id": "index", "value": SECRET}])
    assert answer["failed"] is True
    assert answer["msg"].startswith("Building dgx-comfyui:1-0 failed at step 4/4 RUN for i in")
    assert answer["log"][-1].startswith("from ")
    assert "hunter22" not in json.dumps(answer)
    assert "hunter22" not in (docker / "calls").read_text()


@pytest.mark.parametrize("secret", [SECRET, "plain-words"])
def test_no_secret_is_in_what_is_reported(docker: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    (docker / "said").write_text(f"#8 [4/4] RUN pip\n#8 0.1 from {secret}\n#8 ERROR: exit code: 3\n")
    monkeypatch.setenv("PATH", f"{docker}:{os.environ['PATH']}")
    reported: list[str] = []
    image.build(parameters(docker), lambda text, **_: reported.append(text), {secret})
    assert "RUN pip: from ********" in reported
    assert secret not in "".join(reported)
    (docker / "fails").touch()
    assert secret not in json.dumps(call(docker, secrets=[{"id": "index", "value": secret}]))


def test_a_build_that_somebody_stopped_is_told_from_one_that_failed(docker: Path) -> None:
    (docker / "fails").touch()
    (docker / "said").write_text(BEGIN + FAILING)
    answer = call(docker)
    assert answer["interrupted"] is True
    assert answer["msg"].startswith("Building dgx-comfyui:1-0 ended in the middle, after ")
    (docker / "said").write_text(BEGIN + FAILING + "ERROR: failed to solve: no such host\n")
    assert "interrupted" not in call(docker)


def test_a_builder_that_keeps_its_image_is_named(docker: Path) -> None:
    (docker / "elsewhere").touch()
    answer = call(docker)
    assert answer["failed"] is True
    assert "docker buildx use default" in answer["msg"]


def test_a_second_build_waits_and_takes_over_the_image_of_the_first(docker: Path) -> None:
    (docker / "said").unlink()
    os.mkfifo(docker / "said")  # the first build hangs until something is said
    first = begin(docker)
    deadline_s = time.monotonic() + 20
    while "buildx" not in ((docker / "calls").read_text() if (docker / "calls").exists() else ""):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    second = begin(docker)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)
    assert (docker / "calls").read_text().count("buildx") == 1
    (docker / "said").write_text("#6 [2/9] COPY a b\n")
    assert answer_of(first)["changed"] is True
    assert answer_of(second)["changed"] is False
    assert (docker / "calls").read_text().count("buildx") == 1


def test_a_host_without_docker_is_told_so(docker: Path) -> None:
    answer = call(docker, path="/nonexistent")
    assert answer["failed"] is True
    assert answer["msg"].startswith("Cannot build: docker: No such file or directory.")
