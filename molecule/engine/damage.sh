#!/bin/bash
# Key, sources, hold, guard, unit order and daemon.json, each in its own way; a package of another version.
set -euo pipefail
sed 's/CgA/CgB/' /etc/apt/keyrings/nvidia-container-toolkit.asc > /run/other && cat /run/other >> /etc/apt/keyrings/nvidia-container-toolkit.asc
sed -i 's/^Signed-By: .*/Trusted: yes/' /etc/apt/sources.list.d/nvidia-container-toolkit.sources
apt-mark unhold nvidia-container-toolkit-base
sed -i 's/nvidia-/somethingelse-/' /etc/apt/apt.conf.d/52dgx-comfyui-driver
rm /etc/systemd/system/docker.service.d/dgx-comfyui-cdi.conf
python3 - <<'END'
import json
path = "/etc/docker/daemon.json"
config = json.load(open(path))
config["features"]["cdi"] = False
config["live-restore"] = False
open(path, "w").write(json.dumps(config, indent=4) + "\n")
END
systemctl disable --now nvidia-cdi-refresh.path
systemctl stop docker.socket docker.service
