#!/bin/bash
set -euo pipefail
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends unattended-upgrades
echo 'deb [signed-by=/usr/share/keyrings/nvidia.gpg] https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH) /' \
  > /etc/apt/sources.list.d/nvidia-container-toolkit.list
# What other software has apt run: a source on trial must not.
echo 'APT::Update::Post-Invoke-Success { "touch /etc/a-program-of-somebody-ran"; };' > /etc/apt/apt.conf.d/50somebody
echo 'from an earlier time' > /etc/apt/sources.list.d/nvidia-container-toolkit.list.disabled
