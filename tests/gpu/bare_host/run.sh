#!/bin/bash
# On the bare GPU machine, as root, with what pack.sh packed:
#   run.sh base                     make the base image from this machine's own PyTorch (may run while parts still arrive)
#   run.sh unpack BUNDLE            BUNDLE: the folder with part.aa, part.ab, ...
#   run.sh boot                     boot the host; run.sh enter COMMAND... runs something in it
#   run.sh accept VERSION [ARGUMENTS of accept.py]
#   run.sh all BUNDLE VERSION [ARGUMENTS of accept.py]      all of these in turn
# The results are in root/srv/project/artifacts/gpu-host below BARE_HOST_HOME, and are there as far as they go at any time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${BARE_HOST_HOME:-/srv/bare-host}
root=$home/root
driver=${DRIVER:-/usr/local/nvidia}

enter() {
  nsenter --target "$(cat "$home/pid")" --all -- env --ignore-environment --chdir=/srv/project HOME=/root LC_ALL=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

unpack() {
  mkdir -p "$root" "$home/bundle"
  cat "$1"/part.* | tar --extract --directory "$home/bundle"
  tar --extract --xz --directory "$root" --file "$home/bundle/host.tar.xz"
  mkdir -p "$root/srv/project"
  tar --extract --directory "$root/srv/project" --file "$home/bundle/project.tar"
  mv "$home/bundle/comfyui.git" "$home/bundle/serve" "$root/srv/"
}

boot() {
  mkdir -p "$root/srv/serve/blobs" "$root/srv/comfyui/models/checkpoints" "$root/srv/workflows/input" "$root/etc/docker"
  echo '{"dns": ["172.17.0.1"]}' >"$root/etc/docker/daemon.json" # serve.py answers there
  printf '%s\n' '127.0.0.1 localhost' '172.17.0.1 packages.test' >"$root/etc/hosts"
  mv "$home"/image/blobs/* "$root/srv/serve/blobs/"
  /usr/bin/python3 "$here/boot.py" "$root" "$driver" >"$home/pid"
  enter systemd-run --quiet --unit serve python3 /srv/project/tests/gpu/bare_host/serve.py /srv/serve
  enter python3 roles/comfyui_benchmark/files/synthetic_sdxl.py /srv/comfyui/models/checkpoints
  # The project's graphs, on the only checkpoint that this machine can have.
  enter cp -r workflows/. /srv/workflows/
  sed -i 's/sd_xl_base_1\.0\.safetensors/synthetic-not-sdxl.safetensors/' "$root"/srv/workflows/{,ui/}*.json
  enter nvidia-smi -L
}

accept() {
  local version=$1
  shift
  mkdir -p "$root/srv/inventory"
  ln -sfn /srv/project/inventory/group_vars "$root/srv/inventory/group_vars"
  cat >"$root/srv/inventory/hosts.yml" <<YAML
dgx:
  hosts:
    gpu-host:
      ansible_connection: local
      comfyui_version: $version
      comfyui_base_image: 127.0.0.1:5000/pytorch:this-machine@$(cat "$home/image/base")
      comfyui_source_repo: file:///srv/comfyui.git
      comfyui_source_commit: $(enter git -C /srv/comfyui.git rev-parse "v$version^{commit}")
      comfyui_image_system_packages: [] # no package archive can be reached
      comfyui_package_index: https://packages.test:8443/simple
      comfyui_extra_ca_bundle: /srv/serve/ca.pem
      comfyui_toolkit_repository: https://stand-in.invalid/toolkit # its packages are installed already
      comfyui_models: []
      comfyui_workflows_models: [checkpoints/synthetic-not-sdxl.safetensors]
      comfyui_workflows_source_dir: /srv/workflows
      comfyui_benchmark_graphs_dir: /srv/workflows
YAML
  # Not the tests of deployment, models and graphs: the files are other ones here.
  local tests=""
  for name in api comfyui_image comfyui_service docker_engine generation gpu nvidia_container_toolkit render; do
    tests+="${tests:+:}/srv/project/tests/testinfra/test_$name.py"
  done
  enter VERIFY_TESTS="$tests" python3 tests/gpu/accept.py --inventory /srv/inventory --host gpu-host "$@"
}

base() {
  "$here/base.sh" "$(python3 -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')" "$home/image"
}

all() {
  if [ ! -s "$home/image/base" ]; then base; fi
  unpack "$1"
  boot
  accept "${@:2}"
}

case "${1:-}" in
  base | unpack | boot | accept | enter | all) "$@" ;;
  *) sed -n '2,8s/^# //p' "$0" && exit 2 ;;
esac
