#!/bin/bash
# A DGX Spark by all that the roles look at: GPU, architecture, release file.
set -euo pipefail
systemctl stop comfyui.service
printf '#!/bin/sh\necho aarch64\n' > /usr/local/bin/uname
printf '#!/bin/sh\n[ "$*" = --print-architecture ] && echo arm64 && exit\nexec /usr/bin/dpkg "$@"\n' > /usr/local/bin/dpkg
chmod 755 /usr/local/bin/uname /usr/local/bin/dpkg
# The stand-in program asks the kernel itself.
sed -i 's/os\.uname()\.machine/"aarch64"/' /usr/bin/nvidia-ctk
rm /dev/nvidia1 /dev/nvidia2
python3 /usr/local/src/driver/driver.py install --profile gb10
cat > /etc/dgx-release <<'END'
DGX_NAME="DGX Spark"
DGX_SWBUILD_VERSION="7.2.3"
DGX_SERIAL_NUMBER="1660224000998"
DGX_OTA_VERSION="7.6.0"
END
