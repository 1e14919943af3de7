#!/bin/bash
set -euo pipefail
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends unattended-upgrades
echo 'deb [signed-by=/usr/share/keyrings/nvidia.gpg] https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH) /' \
  > /etc/apt/sources.list.d/nvidia-container-toolkit.list
echo 'from an earlier time' > /etc/apt/sources.list.d/nvidia-container-toolkit.list.disabled
