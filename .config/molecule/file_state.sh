#!/bin/bash
# Names, modes and checksums of all that belongs to the system; caches of Python beside its sources do not count.
set -euo pipefail
find /etc /usr /srv /var/lib/dpkg/status -xdev -not -name '*.pyc' -not -name __pycache__ \
  -printf '%M %U:%G %p %l\n' | sort
find /etc /usr /srv /var/lib/dpkg/status -xdev -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
