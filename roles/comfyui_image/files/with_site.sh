#!/bin/sh
# Runs a command of the build with what the site gave: its CAs beside the base's own, its package index or its folder of
# Python packages.
# What it writes goes to a memory file system, so no layer of the image holds any of it.
set -eu
if [ -s /run/secrets/ca_bundle ]; then
  cat /etc/ssl/certs/ca-certificates.crt /run/secrets/ca_bundle > /dev/shm/ca.pem
  echo 'Acquire::https::CAInfo "/dev/shm/ca.pem";' > /dev/shm/apt.conf
  export PIP_CERT=/dev/shm/ca.pem APT_CONFIG=/dev/shm/apt.conf
fi
if [ -s /run/secrets/package_index ]; then
  PIP_INDEX_URL=$(cat /run/secrets/package_index)
  export PIP_INDEX_URL
fi
if [ -d /run/wheels ] && [ -n "$(ls -A /run/wheels)" ]; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS=/run/wheels
fi
# An NGC base sets these for its own work: an empty constraint file, and no cache.
unset PIP_CONSTRAINT PIP_NO_CACHE_DIR
exec "$@"
