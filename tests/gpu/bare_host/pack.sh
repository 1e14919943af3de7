#!/bin/bash
# Pack what a bare GPU machine needs, on a machine that can fetch it and has Docker:
#   pack.sh OUT SOURCE VERSION...    SOURCE: a git clone of ComfyUI with a tag vVERSION for each version
# Leaves OUT/part.aa, part.ab, ... of PART_MIB each. HOST_BASE: another Debian image with apt to build the host on.
set -euo pipefail
out=$1 source=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/context" "$work/serve/wheels" "$work/standin"

echo "==> Packages of the stand-in for the Container Toolkit"
python3 "$root/tests/upstreams/toolkit/build.py" --root "$work/standin" >/dev/null
cp "$work"/standin/stable/deb/amd64/*_1.20.1-1_amd64.deb "$work/context/"

echo "==> The host"
sed "s|^FROM .*|FROM ${HOST_BASE:-debian:trixie-slim}|" "$here/Dockerfile" >"$work/context/Dockerfile"
docker build --quiet --tag dgx-comfyui-bare-host "$work/context" >/dev/null
container=$(docker create dgx-comfyui-bare-host /bin/true)
docker export "$container" | xz --threads=0 -6 >"$work/host.tar.xz"
docker rm "$container" >/dev/null

platforms=(--platform any)
for libc in 2_39 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${libc}_x86_64"); done
for old in 1 2010 2014; do platforms+=(--platform "manylinux${old}_x86_64"); done
for version in "$@"; do
  echo "==> Python packages of ComfyUI $version"
  python3 -m pip download --quiet --require-hashes --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
    --implementation cp "${platforms[@]}" --dest "$work/serve/wheels" \
    --requirement "$root/roles/comfyui_image/files/locks/$version.txt"
done

echo "==> ComfyUI's source, a certificate, and this project"
git clone --quiet --bare "$source" "$work/comfyui.git"
git -C "$work/comfyui.git" config uploadpack.allowAnySHA1InWant true
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=packages.test -addext subjectAltName=DNS:packages.test \
  -keyout "$work/serve/key.pem" -out "$work/serve/ca.pem" 2>/dev/null
cat "$work/serve/key.pem" "$work/serve/ca.pem" >"$work/serve/tls.pem"
git -C "$root" ls-files --cached --others --exclude-standard -z |
  tar --create --directory "$root" --null --files-from - --file "$work/project.tar"

tar --create --directory "$work" host.tar.xz serve comfyui.git project.tar | split --bytes="${PART_MIB:-56}M" - "$out/part."
ls -l "$out"
