#!/usr/bin/python
"""Whether apt can install from a source, and with which key, asked before either is added."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_source_try
short_description: Try a package source in a folder of its own, and wait for apt
description:
  - A source that does not answer makes every later C(apt-get update) of the host fail. So it is tried first, with key,
    lists and caches in a temporary folder, and nothing of the host is changed.
  - The key is compared by its full fingerprint before anything else looks at it. A file with a second key is refused.
  - Waits until no other program holds the locks of apt and dpkg, and fails with the name of the one that does.
  - Changes nothing and runs in check mode as well.
options:
  sources:
    description: The source in the deb822 form. Its C(Signed-By) is replaced by the key that was fetched.
    type: str
    required: true
  key_url:
    description: Where the key is.
    type: str
    required: true
  fingerprint:
    description: Its full fingerprint, 40 capital hex digits.
    type: str
    required: true
  package:
    description: A package to look for.
    type: str
    required: true
  version:
    description: The version of it that has to be offered.
    type: str
    required: true
  hint:
    description: What to type where the source does not answer or the version is not offered; part of the message.
    type: str
    required: true
  wait_s:
    description: How long to wait for the locks.
    type: int
    default: 600
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Try the repository before it is added
  apt_source_try:
    sources: "{{ lookup('ansible.builtin.template', 'example.sources.j2') }}"
    key_url: https://packages.example.com/key.asc
    fingerprint: 0123456789ABCDEF0123456789ABCDEF01234567
    package: example
    version: 1.2.3-1
    hint: "Set example_repository_url to a mirror."
"""

RETURN = r"""
key:
  description: The key, armoured, with nothing beside it. The file to place.
  returned: success
  type: str
offered:
  description: The versions that are offered, newest first.
  returned: success
  type: list
  sample: ["1.2.3-1", "1.2.2-1"]
"""

import os
import tempfile
import time
import urllib.error

from ansible.module_utils.apt_lock import wait_until_free
from ansible.module_utils.apt_source import NO_HOOKS, complaint, isolated, offered_versions, signed_by
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.daemon_json import mask_credentials
from ansible.module_utils.openpgp import KeyFileError, read_key
from ansible.module_utils.urls import open_url

KEY_LIMIT_B = 1 << 20
KEY_TRIES = 3


def fetch_key(module: AnsibleModule) -> str:
    """The key in the file at its address, if it is the expected one and no other is beside it."""
    url, wanted, hint = (module.params[name] for name in ("key_url", "fingerprint", "hint"))
    shown = mask_credentials(url)
    data = b""
    for attempt in range(KEY_TRIES):
        try:
            data = open_url(url, timeout=30).read(KEY_LIMIT_B)
            break
        except (OSError, urllib.error.URLError, ValueError) as error:
            if attempt + 1 == KEY_TRIES:
                module.fail_json(
                    msg=f"The key at {shown} cannot be fetched: {error}. Expected {wanted} there. Nothing was "
                    f"changed. {hint}"
                )
            time.sleep(2)
    try:
        key: str = read_key(data, wanted)
    except KeyFileError as error:
        module.fail_json(
            msg=f"The file at {shown} is not the key: {error}, expected {wanted} alone. It was not trusted, nothing "
            f"was changed. If the key was replaced, confirm the new fingerprint at a second source. {hint}"
        )
        raise
    return key


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "str", "required": True},
            "key_url": {"type": "str", "required": True, "no_log": False},
            "fingerprint": {"type": "str", "required": True},
            "package": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "hint": {"type": "str", "required": True},
            "wait_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8"}
    key = fetch_key(module)
    if busy := wait_until_free(module.params["wait_s"]):
        module.fail_json(msg=busy)
    package, version, hint = (module.params[name] for name in ("package", "version", "hint"))
    with tempfile.TemporaryDirectory(prefix="apt-source-") as folder:
        os.makedirs(f"{folder}/lists/partial")
        texts = {
            "key.asc": key,
            "no-hooks.conf": NO_HOOKS,
            "try.sources": signed_by(module.params["sources"], f"{folder}/key.asc"),
        }
        for name, text in texts.items():
            with open(f"{folder}/{name}", "w", encoding="utf-8") as stream:
                stream.write(text)
        code, output, errors = module.run_command(["apt-get", "update", *isolated(folder)])
        if code != 0:
            said = mask_credentials(complaint(errors or output))
            module.fail_json(
                msg=f"The package source does not work: {said} Expected signed package lists "
                f"with {package} {version}. Nothing was changed. {hint}"
            )
        _, madison, _ = module.run_command(["apt-cache", *isolated(folder), "madison", package])
    offered = offered_versions(madison)
    if version not in offered:
        module.fail_json(
            msg=f"{package} {version} is not offered, expected one of {', '.join(offered) or 'none at all'}. "
            f"Nothing was changed. {hint}"
        )
    module.exit_json(changed=False, offered=offered, key=key)


if __name__ == "__main__":
    main()
