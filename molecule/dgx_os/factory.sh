#!/bin/bash
# Out of a copy of a provisioned host: what our roles brought goes, what DGX OS and its other users bring comes.
set -euo pipefail
systemctl stop comfyui.service
docker rm --force comfyui
image=$(docker image ls --quiet dgx-comfyui | head -n 1)

packages="nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1"
# shellcheck disable=SC2086 # four words
apt-mark unhold $packages
systemctl disable --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service
rm -f /etc/apt/sources.list.d/nvidia-container-toolkit.sources /etc/apt/keyrings/nvidia-container-toolkit.asc
rm -f /etc/systemd/system/docker.service.d/dgx-comfyui-cdi.conf /etc/docker/daemon.json.before-dgx-comfyui
python3 /usr/local/src/driver/driver.py install --profile dgx-h100
systemctl restart nvidia-driver-standin.service

cat > /etc/dgx-release <<'END'
DGX_NAME="DGX H100"
DGX_PRETTY_NAME="NVIDIA DGX H100"
DGX_SWBUILD_VERSION="7.2.3"
DGX_PLATFORM=DGX Server for DGX H100
DGX_SERIAL_NUMBER="1660224000999"

DGX_OTA_VERSION="7.4.0"
DGX_OTA_DATE="Di 3. Feb 09:14:02 CET 2026"

DGX_OTA_VERSION="7.5.0"
DGX_OTA_DATE="Thu Jul  9 08:12:09 UTC 2026"
END

# As the package nv-docker-options has it, with addresses that this host's own network leaves free.
mkdir -p /etc/systemd/system/docker.service.d
cat > /etc/systemd/system/docker.service.d/docker-override.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// -s overlay2 --default-shm-size=1G --bip=172.31.0.1/16 --fixed-cidr=172.31.0.0/16
LimitMEMLOCK=infinity
LimitSTACK=67108864
END
cat > /etc/docker/daemon.json <<'END'
{
  "default-cgroupns-mode": "host",
  "features": {"buildkit": true},
  "log-opts": {"max-size": "50m"},
  "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "args": []}},
  "max-concurrent-uploads": 2,
  "insecure-registries": ["upstreams.test:5000", "planted.example.com:5000"],
  "labels": ["owner=somebody-else"]
}
END
cp /etc/docker/daemon.json /run/planted-daemon.json
# The specification of a boot at which nvidia-uvm came too late.
sed -i '/nvidia-uvm/d' /var/run/cdi/nvidia.yaml
# The legacy hook, as far as the engine and a reader of its containers can tell.
printf '#!/bin/sh\nexit 0\n' > /usr/local/bin/nvidia-container-runtime-hook
chmod 755 /usr/local/bin/nvidia-container-runtime-hook
systemctl daemon-reload
systemctl reset-failed docker.service
systemctl restart docker.service
run=(docker run --detach --restart always --network none --entrypoint sleep)
"${run[@]}" --name stranger "$image" infinity
"${run[@]}" --name stranger-with-gpu --gpus all "$image" infinity
docker container inspect --format '{{.Id}} {{.State.StartedAt}} {{.State.Pid}}' stranger stranger-with-gpu > /run/stranger
# A reload of systemd would take that GPU away, and moves this figure.
systemctl show --property UnitsLoadTimestampMonotonic > /run/systemd-read
