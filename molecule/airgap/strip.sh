#!/bin/bash
# Out of a copy of a provisioned host: everything goes that was fetched for it. Engine and git stay: the host's own sources
# bring those.
set -euo pipefail
systemctl disable --now comfyui.service comfyui-guard.timer
docker rm --force comfyui
docker image ls --quiet | sort --unique | xargs docker image rm --force
docker builder prune --all --force
rm -rf /etc/comfyui /var/lib/comfyui /opt/dgx-comfyui /srv/comfyui
packages="nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1"
# shellcheck disable=SC2086 # four words
apt-mark unhold $packages
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get purge --yes $packages
rm -f /etc/apt/sources.list.d/nvidia-container-toolkit.sources /etc/apt/keyrings/nvidia-container-toolkit.asc
