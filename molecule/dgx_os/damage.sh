#!/bin/bash
# What an update, a hand or another program did to the files that the roles manage.
set -euo pipefail
python3 - <<'END'
import json
path = "/etc/docker/daemon.json"
config = json.load(open(path))
config["live-restore"] = False
config["runtimes"]["nvidia"]["path"] = "/usr/local/bin/of-an-older-instruction"
config["log-opts"]["max-size"] = "1m"
open(path, "w").write(json.dumps(config, indent=2) + "\n")
END
rm /etc/systemd/system/docker.service.d/dgx-comfyui-cdi.conf
systemctl disable --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service
systemctl show --property UnitsLoadTimestampMonotonic > /run/systemd-read
# The major of nvidia-uvm moves between boots; nvidia-smi works all the same.
sed -i 's/major: 510/major: 509/' /var/run/cdi/nvidia.yaml
# A specification made by hand, of a driver that is gone.
mkdir -p /etc/cdi
sed 's/580\.159\.04/580.95.05/' /var/run/cdi/nvidia.yaml > /etc/cdi/nvidia.yaml
