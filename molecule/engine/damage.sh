#!/bin/bash
# Key, sources, hold, guard, unit order and daemon.json, each in its own way; a package of another version.
set -euo pipefail
cat /etc/apt/keyrings/docker.asc >> /etc/apt/keyrings/nvidia-container-toolkit.asc
sed -i 's/^Signed-By: .*/Trusted: yes/' /etc/apt/sources.list.d/nvidia-container-toolkit.sources
apt-mark unhold nvidia-container-toolkit-base
sed -i 's/nvidia-/somethingelse-/' /etc/apt/apt.conf.d/52dgx-comfyui-driver
rm /etc/systemd/system/docker.service.d/dgx-comfyui-cdi.conf
printf '{\n    "features": {"cdi": false}\n}\n' > /etc/docker/daemon.json
systemctl disable --now nvidia-cdi-refresh.path
systemctl stop docker.socket docker.service
