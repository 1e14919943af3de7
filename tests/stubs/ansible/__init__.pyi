# For the checker only. On a host and in tests Ansible makes plugins/module_utils/NAME.py known as
# ansible.module_utils.NAME; here those that import each other are. The rest of Ansible has no types.
from typing import Any

def __getattr__(name: str) -> Any: ...
