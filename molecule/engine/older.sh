#!/bin/bash
# A stranger's container whose GPU a reload of systemd would take: by the legacy hook, in cgroups of systemd's.
set -euo pipefail
cp --archive /etc/docker/daemon.json /run/daemon.json
python3 - <<'END'
import json
path = "/etc/docker/daemon.json"
config = json.load(open(path))
config["exec-opts"] = ["native.cgroupdriver=systemd"]
open(path, "w").write(json.dumps(config, indent=4) + "\n")
END
printf '#!/bin/sh\nexit 0\n' > /usr/local/bin/nvidia-container-runtime-hook
chmod 755 /usr/local/bin/nvidia-container-runtime-hook
systemctl restart docker.service
libraries=$(ldd /usr/bin/sleep | grep --only-matching '/lib[^ ]*')
# shellcheck disable=SC2086 # one word for each
tar --create --dereference /usr/bin/sleep $libraries | docker import - stranger
docker run --detach --name stranger --gpus all --network none stranger /usr/bin/sleep infinity
# An earlier run that brought the toolkit died before the restart of an engine that looks for it at its start only.
touch /run/dgx-comfyui-toolkit-came
