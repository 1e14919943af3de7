#!/usr/bin/python
"""One model file on a host, proved to be the published bytes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store_file
short_description: Fetch a catalogued model file and prove it to the byte
description:
  - Ensures that O(dest) has the size and the SHA-256 that a catalogue names. The bytes arrive in C(<dest>.part) beside
    it, by ranged requests that continue where an earlier run was cut off, and get their name only when they are proved.
  - Where the file is on the hub is asked through huggingface_hub, in a virtual environment in O(hub_dir) that the
    first such question makes from O(hub_requirements). A file that is there and right, or is in O(sources), needs
    neither that nor any request.
  - Beside the file lies C(<dest>.verified.json), the record of the proof. As long as size, modification time and inode
    are those of the record, the file is not read again; when one of them moved, it is. Another O(licence) is
    written into it without reading the file, which counts as a change.
  - A symbolic link at O(dest) is refused and left.
  - A right file without a valid record is adopted, that is hashed and recorded, which counts as a change. A wrong file
    is renamed to C(<dest>.rejected-<first 12 digits of its digest>), reported, and fetched again, unless the hub says
    that it is the catalogue that is wrong. Then nothing is touched.
  - Two runs for one file on one host wait for each other.
  - In check mode nothing is fetched or written and no request is made; a file without a valid record is read to tell
    what a run would do.
options:
  repo:
    description: Repository on the hub, owner/name.
    type: str
    required: true
  commit:
    description: Commit of the repository, 40 hexadecimal digits. A branch or tag can move and is refused.
    type: str
    required: true
  path:
    description: Path of the file in the repository.
    type: str
    required: true
  size_b:
    description: Published size in bytes. Given together with O(sha256).
    type: int
    default: 0
  sha256:
    description:
      - Published SHA-256, 64 hexadecimal digits.
      - Without it the hub's word is taken, once, and the record holds the file to it from then on.
    type: str
    default: ""
  dest:
    description: Absolute path of the file on the host. Its folder must be there.
    type: path
    required: true
  sources:
    description:
      - Paths on the host where the file may lie. The first one of the right size is taken, and no hub is asked.
      - It is linked if it is on the same filesystem and has the owner, group (as numbers) and mode that are asked for,
        and copied otherwise.
    type: list
    elements: path
    default: []
  licence:
    description: The file's licence, written into the record.
    type: str
    default: ""
  endpoint:
    description: Address of the hub or of a mirror that speaks its resolve protocol; the meaning of HF_ENDPOINT.
    type: str
    default: https://huggingface.co
  token:
    description: Access token for gated or private repositories. It goes to the endpoint's own host only.
    type: str
    default: ""
  ca_bundle:
    description: PEM file on the host with certificates to trust beside the host's own.
    type: str
    default: ""
  proxy:
    description: Proxy for HTTP and HTTPS. Empty means what the environment says.
    type: str
    default: ""
  hub_dir:
    description: Folder on the host for the virtual environment with huggingface_hub; this module's own.
    type: path
    default: /opt/dgx-comfyui/huggingface_hub
  hub_requirements:
    description: What is installed there, a requirements file with a hash for each package.
    type: str
    default: ""
  hub_program:
    description: The program that asks there, roles/model_store/files/hub_answer.py.
    type: str
    default: ""
  package_index:
    description: Address of the Python package index to install it from. Empty means the host's own.
    type: str
    default: ""
  audit:
    description: Read the file and compare its digest even if the record speaks for it.
    type: bool
    default: false
  allow_pickle:
    description: Take formats other than safetensors (.safetensors, .sft); they can run code when they are loaded.
    type: bool
    default: false
  attempts:
    description: Failed attempts before giving up; the count begins anew with each 32 MiB that are nearer to the end.
    type: int
    default: 6
  retry_delay_s:
    description: Pause after the first failed attempt, doubled each time up to a minute. A longer Retry-After prevails.
    type: float
    default: 1
  stall_timeout_s:
    description: A connection that brings nothing for this long is broken off and resumed. The whole has no limit.
    type: float
    default: 60
extends_documentation_fragment: files
attributes:
  check_mode:
    description: Predicts from what is on the host.
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Hold the SDXL base checkpoint
  model_store_file:
    repo: stabilityai/stable-diffusion-xl-base-1.0
    commit: 462165984030d82259a11f4367a4eed129e94a7b
    path: sd_xl_base_1.0.safetensors
    size_b: 6938078334
    sha256: 31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b
    dest: /srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors
    hub_requirements: "{{ lookup('ansible.builtin.file', 'huggingface_hub.txt') }}"
    hub_program: "{{ lookup('ansible.builtin.file', 'hub_answer.py') }}"
    owner: root
    group: root
    mode: "0644"
"""

RETURN = r"""
outcome:
  description:
    - What the run did, in check mode what it would do.
    - V(verified) nothing was to do, V(adopted) a right file was there and is now recorded, V(fetched) it came from
      the hub, V(copied) or V(linked) from one of O(sources).
  returned: success
  type: str
  sample: fetched
found:
  description: V(absent), V(recorded), V(unproved) (right bytes, no valid record) or V(wrong).
  returned: success
  type: str
  sample: absent
quarantined:
  description: Where a wrong file was moved to; empty if there was none.
  returned: success
  type: str
  sample: /srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors.rejected-bbf3d8defbfb
bytes_fetched:
  description: Bytes that came over the network, or were copied, in this run.
  returned: success
  type: int
  sample: 6938078334
bytes_kept:
  description: Bytes of an earlier, interrupted run that were used.
  returned: success
  type: int
  sample: 0
dest:
  description: Path of the file.
  returned: success
  type: str
  sample: /srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors
sha256:
  description: The file's digest; empty in check mode where only the hub can say it.
  returned: success
  type: str
  sample: 31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b
url:
  description: Where the hub has it.
  returned: success
  type: str
  sample: https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/462165984030d82259a11f4367a4eed129e94a7b/x
record:
  description: Path of the record.
  returned: success
  type: str
  sample: /srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors.verified.json
"""

import os
import re
import stat
import urllib.parse
from dataclasses import asdict
from typing import Any

from ansible.module_utils import model_files as rules
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.model_fetch import ensure
from ansible.module_utils.model_transfer import read_text
from ansible.module_utils.model_wanted import StoreError, Wanted
from ansible.module_utils.progress import Reporter


def problems(params: dict[str, Any]) -> list[str]:
    """What is wrong with the arguments, before anything is touched."""
    folder, filename = os.path.split(params["dest"])
    entry = {key: params[key] for key in ("repo", "commit", "path", "licence", "allow_pickle")}
    # An option that was left out is no key of an entry.
    entry |= {key: params[key] for key in ("size_b", "sha256") if params[key]}
    found = list(rules.entry_problems(filename, {**entry, "folder": "models", "filename": filename}))
    if not os.path.isabs(folder):
        found.append(f"dest is {params['dest']!r}, not an absolute path")
    found += [
        f"{key} is {rules.without_credentials(params[key])!r}, not an http or https address"
        for key in ("endpoint", "proxy")
        if (params[key] or key == "endpoint") and not re.match(r"https?://[^/]", params[key])
    ]
    if params["sources"] and not params["sha256"]:
        found.append("sources are given without a sha256 to prove them by")
    limits = ("attempts", "retry_delay_s", "stall_timeout_s")
    found += [f"{key} is {params[key]}, not above 0" for key in limits if params[key] <= 0]
    return found


class Attributes:
    """Owner and mode as the task asks for them."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module

    def give(self, path: str) -> None:
        arguments = self._module.load_file_common_arguments(self._module.params, path=path)
        self._module.set_fs_attributes_if_different(arguments, changed=False)

    def fit(self, status: os.stat_result) -> bool:
        found = {
            "owner": str(status.st_uid), "group": str(status.st_gid), "mode": f"{stat.S_IMODE(status.st_mode):04o}"
        }  # fmt: skip
        return all(str(self._module.params[key]) == value for key, value in found.items())


def run(module: AnsibleModule) -> None:
    """Check the arguments, bring the file, answer."""
    params: dict[str, Any] = module.params
    for key in ("endpoint", "proxy", "package_index"):
        module.no_log_values.update(rules.credentials(params[key]))
    if found := problems(params):
        module.fail_json(msg=". ".join(found) + ".")
    if params["token"] and urllib.parse.urlsplit(params["endpoint"]).scheme == "http":
        module.warn("The token goes to the endpoint in clear: its address begins with http, not https.")
    fields = Wanted.__dataclass_fields__
    given = {key: value for key, value in params.items() if key in fields}
    wanted = Wanted(**{**given, "sources": tuple(params["sources"])})
    try:
        with Reporter.from_environment() as report:
            outcome = ensure(
                wanted, Attributes(module), audit=params["audit"], check_mode=module.check_mode, report=report
            )
    except StoreError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or wanted.dest}: {error.strerror or error}.")
    result = asdict(outcome)
    for warning in result.pop("warnings"):
        module.warn(warning)
    if os.path.exists(wanted.dest):
        file_args = module.load_file_common_arguments(params, path=wanted.dest)
        result["changed"] = module.set_fs_attributes_if_different(file_args, changed=result["changed"])
    # The record has what the catalogue leaves to the hub.
    _, sha256 = rules.proof(read_text(wanted.record), wanted.entry)
    shown = rules.without_credentials(wanted.url)
    module.exit_json(**result, dest=wanted.dest, sha256=sha256, url=shown, record=wanted.record)


def main() -> None:
    run(
        AnsibleModule(
            argument_spec={
                "repo": {"type": "str", "required": True},
                "commit": {"type": "str", "required": True},
                "path": {"type": "str", "required": True},
                "size_b": {"type": "int", "default": 0},
                "sha256": {"type": "str", "default": ""},
                "dest": {"type": "path", "required": True},
                "sources": {"type": "list", "elements": "path", "default": []},
                "licence": {"type": "str", "default": ""},
                "endpoint": {"type": "str", "default": "https://huggingface.co"},
                "token": {"type": "str", "default": "", "no_log": True},
                "ca_bundle": {"type": "str", "default": ""},
                "proxy": {"type": "str", "default": ""},
                "hub_dir": {"type": "path", "default": "/opt/dgx-comfyui/huggingface_hub"},
                # No secrets, but ten thousands of characters in each log that tells what a module was called with.
                "hub_requirements": {"type": "str", "default": "", "no_log": True},
                "hub_program": {"type": "str", "default": "", "no_log": True},
                "package_index": {"type": "str", "default": ""},
                "audit": {"type": "bool", "default": False},
                "allow_pickle": {"type": "bool", "default": False},
                "attempts": {"type": "int", "default": 6},
                "retry_delay_s": {"type": "float", "default": 1},
                "stall_timeout_s": {"type": "float", "default": 60},
            },
            add_file_common_args=True,
            supports_check_mode=True,
        )
    )


if __name__ == "__main__":
    main()
