#!/bin/bash
# Names, modes and checksums of all that belongs to the system, and what its Docker engine holds. Caches of Python beside
# its sources, and the working files of Ansible and of Docker's client, do not count.
set -euo pipefail
places=(/etc /opt /root /srv /usr /var/lib/comfyui /var/lib/dpkg/status)
there=()
for place in "${places[@]}"; do if [ -e "$place" ]; then there+=("$place"); fi; done
mine=(-not -name '*.pyc' -not -name __pycache__ -not -path '/root/.ansible*' -not -path '/root/.docker*')
find "${there[@]}" -xdev "${mine[@]}" -printf '%M %U:%G %p %l\n' | sort
find "${there[@]}" -xdev -type f "${mine[@]}" -print0 | sort -z | xargs -0 sha256sum
if docker info > /dev/null 2>&1; then
  docker image ls --all --no-trunc --format 'image {{.Repository}}:{{.Tag}} {{.ID}}'
  docker container ls --all --no-trunc --format 'container {{.Names}} {{.ID}} {{.State}}'
  docker volume ls --format 'volume {{.Name}}'
fi
