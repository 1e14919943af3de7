#!/bin/bash
# Key, sources, hold, guard, unit order and daemon.json, each in its own way; a package of another version.
set -euo pipefail
sed -i 's/^Suites: .*/Suites: oldstable/' /etc/apt/sources.list.d/docker.sources
cp /etc/apt/keyrings/nvidia-container-toolkit.asc /etc/apt/keyrings/docker.asc
older=1.19.0-1
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --allow-downgrades --allow-change-held-packages \
  nvidia-container-toolkit=$older nvidia-container-toolkit-base=$older libnvidia-container-tools=$older libnvidia-container1=$older
apt-mark hold nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1
sed 's/CgA/CgB/' /etc/apt/keyrings/nvidia-container-toolkit.asc > /run/other && cat /run/other >> /etc/apt/keyrings/nvidia-container-toolkit.asc
rm /etc/apt/sources.list.d/nvidia-container-toolkit.sources
apt-mark unhold nvidia-container-toolkit-base
sed -i 's/nvidia-/somethingelse-/' /etc/apt/apt.conf.d/52dgx-comfyui-driver
chmod 600 /etc/apt/keyrings/*.asc
chmod 666 /etc/systemd/system/docker.service.d/dgx-comfyui-cdi.conf
python3 - <<'END'
import json
path = "/etc/docker/daemon.json"
config = json.load(open(path))
config["features"]["cdi"] = False
config["log-opts"]["max-size"] = "1g"
config["runtimes"]["nvidia"]["path"] = "/of-nobody"
config["live-restore"] = False
open(path, "w").write(json.dumps(config, indent=4) + "\n")
END
systemctl disable --now nvidia-cdi-refresh.path
systemctl stop docker.socket docker.service
