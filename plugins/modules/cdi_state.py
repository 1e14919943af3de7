#!/usr/bin/python
"""Whether a CDI specification describes the host as it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cdi_state
short_description: Compare the CDI specification of the GPUs with the live host
description:
  - Compares device nodes with their major and minor numbers, and looks for every file that the specification mounts.
    A specification made before C(/dev/nvidia-uvm) existed, or by another driver, hands over a GPU on which CUDA fails.
  - Changes nothing and runs in check mode as well.
options:
  path:
    description: The specification, as nvidia-ctk writes it (YAML or JSON).
    type: path
    default: /var/run/cdi/nvidia.yaml
  every_gpu:
    description: Expect every GPU of the host in it, and the device V(all).
    type: bool
    default: true
  gpu_list:
    description: The output of C(nvidia-smi -L), for the GPUs and MIG devices that the host has. Empty is not compared.
    type: str
    default: ""
  mig_modes:
    description:
      - The output of C(nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader). A GPU in MIG mode without
        an instance has no device to describe.
    type: str
    default: ""
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Compare the CDI specification with the live device nodes
  cdi_state:
  register: __role_cdi
"""

RETURN = r"""
problems:
  description: What is wrong, in words; empty where the specification is complete and current.
  returned: always
  type: list
  sample: ["/dev/nvidia-uvm is not in it"]
missing_nodes:
  description: Device nodes that CUDA needs and the host itself lacks.
  returned: always
  type: list
  sample: ["/dev/nvidia-uvm"]
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cdi_host import spec_problems
from ansible.module_utils.cdi_spec import REQUIRED_NODES


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/run/cdi/nvidia.yaml"},
            "every_gpu": {"type": "bool", "default": True},
            "gpu_list": {"type": "str", "default": ""},
            "mig_modes": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.exit_json(
        changed=False,
        problems=spec_problems(
            Path(module.params["path"]),
            module.params["gpu_list"],
            module.params["mig_modes"],
            every_gpu=module.params["every_gpu"],
        ),
        missing_nodes=[node for node in REQUIRED_NODES if not os.path.exists(node)],
    )


if __name__ == "__main__":
    main()
