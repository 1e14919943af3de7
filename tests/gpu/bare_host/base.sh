#!/bin/bash
# Make the base image out of the machine's own file system and PyTorch, laid out as NVIDIA's images have it: the system's
# Python, torch in /usr/local/lib/python3.X/dist-packages, no torchaudio.
#   base.sh SITE_PACKAGES FOLDER     leaves FOLDER/blobs, and the manifest's digest in FOLDER/base
set -euo pipefail
site=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
python=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
mkdir -p "$folder"

# What torch itself asks for, and nothing else of the machine's environment.
cd "$site"
packages=()
for name in torch torchgen functorch torchvision torchvision.libs nvidia triton numpy numpy.libs sympy mpmath isympy.py networkx \
  jinja2 markupsafe filelock fsspec typing_extensions.py setuptools pkg_resources _distutils_hack cuda \
  torch-*.dist-info torchvision-*.dist-info nvidia_*.dist-info triton-*.dist-info numpy-*.dist-info sympy-*.dist-info \
  mpmath-*.dist-info networkx-*.dist-info jinja2-*.dist-info markupsafe-*.dist-info filelock-*.dist-info fsspec-*.dist-info \
  typing_extensions-*.dist-info setuptools-*.dist-info cuda_*.dist-info; do
  if [ -e "$name" ]; then packages+=("$name"); fi
done

# The names by which programs load the driver, which the real toolkit's hook would make when a container starts.
links=$(mktemp -d)
mkdir -p "$links/usr/lib/x86_64-linux-gnu" "$links"/{etc,dev,proc,sys,run,tmp,root,home,srv}
chmod 1777 "$links/tmp"
for name in libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1 libnvidia-gpucomp.so.1; do
  ln -s "${name%.1}.$driver" "$links/usr/lib/x86_64-linux-gnu/$name"
done
ln -s "libnvidia-nvvm.so.$driver" "$links/usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.4"
# The machine's own names folders that the image has not. One there must be: Triton asks `ldconfig -p` before it compiles.
ldconfig -X -r "$links"

# Two layers: Docker takes no path twice in one, and both bring setuptools.
keep() {
  tee "$folder/$1.tar" | sha256sum | cut -d' ' -f1 >"$folder/$1.sha256"
}

cd /
tar --create --numeric-owner --file - \
  --exclude='usr/local/cuda*' --exclude='usr/local/nvidia' --exclude='usr/share/doc' --exclude='usr/share/man' \
  --exclude='usr/lib/lib*nvidia*' --exclude='usr/lib/libcuda*' --exclude='usr/lib/libnv*' --exclude='usr/lib/libvdpau*' \
  --exclude='usr/lib/x86_64-linux-gnu/libcudnn*' --exclude='usr/lib/x86_64-linux-gnu/libnccl*' \
  --exclude='usr/lib/python3/dist-packages/_sandboxing*' --exclude='etc/ld.so.cache' --exclude='etc/hosts' --exclude='etc/resolv.conf' \
  bin lib lib64 sbin etc usr var/lib/dpkg | keep system
tar --create --numeric-owner --file - --transform="s,^${site#/},usr/local/lib/$python/dist-packages," \
  "${packages[@]/#/${site#/}/}" \
  --transform="s,^${links#/}/,," "${links#/}/usr/lib/x86_64-linux-gnu" "${links#/}"/{etc,dev,proc,sys,run,tmp,root,home,srv} |
  keep torch
rm -r "$links"
/usr/bin/python3 - "$here" "$folder" >"$folder/base" <<'PYTHON'
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from serve import describe_image

folder = Path(sys.argv[2])
path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
layers = {folder / f"{name}.tar": f"sha256:{(folder / f'{name}.sha256').read_text().strip()}" for name in ("system", "torch")}
print(describe_image(folder, layers, [f"PATH={path}", "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu"]))
PYTHON
