#!/bin/sh
# Puts a headless browser on this machine, for tests/test_report.py: Debian's own package.
# Prints the browser's path. Exit codes: 0 there is one, 3 it cannot be installed here (and why).
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" 2>/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null 2>&1; then
    echo "no browser here and no apt-get to install one: install chromium by hand" >&2
    exit 3
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "no browser here and not root: run 'sudo apt-get install chromium'" >&2
    exit 3
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y --no-install-recommends chromium >&2; }
if ! { install || { apt-get update >&2 && install; }; }; then
    echo "apt-get could not install chromium: no network, or no such package" >&2
    exit 3
fi
command -v chromium
