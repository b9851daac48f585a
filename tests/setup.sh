#!/bin/sh
# What the system must have before a virtual environment can be made and the shim compiled:
# installed when root, named in one line when not.
set -eu
PYTHON=${PYTHON:-python3}

missing=
need() { missing="$missing $1"; }

command -v gcc >/dev/null || need gcc
command -v ld >/dev/null || need binutils
echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || need libc6-dev
echo '#include <linux/kvm.h>' | gcc -E - >/dev/null 2>&1 || need linux-libc-dev
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || need python3-venv
"$PYTHON" -c 'import os, sysconfig as s; os.stat(s.get_paths()["include"] + "/Python.h")' 2>/dev/null || need python3-dev
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "kvmpy needs Python 3.11 or newer; name one: make PYTHON=/path/to/python" >&2
	exit 1
}
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing:$missing" >&2
	apt-get update -qq
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
	echo "kvmpy needs these packages: sudo apt-get install$missing" >&2
	exit 1
fi
