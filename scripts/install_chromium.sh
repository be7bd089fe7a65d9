#!/usr/bin/env bash
# Installs Debian's chromium, which the tests of the report page use, unless it is installed.
set -euo pipefail
if command -v chromium >/dev/null; then
  chromium --version
  exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
