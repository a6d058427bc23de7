#!/usr/bin/env bash
# An ARM machine without hardware: a Debian userland for arm64 with Python, numpy and onnxruntime, run by qemu.
#
#     tests/arm64_userland.sh FOLDER && VITNAS_ARM64=FOLDER pytest tests/test_ssh.py
#
# About ten seconds and 200 MB; needs Debian or Ubuntu, pip, and one of the packages qemu-user-static (tests) and
# qemu-user (experiments/arm_counts). Nothing outside FOLDER is written, root is not needed.
# FOLDER/python is then that Python.
set -euo pipefail
mkdir -p "$1"
folder=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$folder/root/proc"
: >"$work/status"

# A separate apt state, so that the machine's own knows nothing of another architecture.
apt_arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Debug::NoLocking=1 \
        -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" "$@"
}
apt_arm64 update
apt_arm64 install -y --no-install-recommends --download-only python3-minimal libpython3-stdlib libstdc++6 libgomp1 >/dev/null
for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$folder/root"; done

# onnxruntime reads which instructions there are from here; qemu 7 would show it the host's processor.
cat >"$folder/root/proc/cpuinfo" <<'CPUINFO'
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

CPUINFO

interpreter=$(ls "$folder"/root/usr/bin/python3.?? | head -n 1)
version=${interpreter##*python}
rm -rf "$folder/site"
python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder/site" \
    --python-version "$version" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 onnxruntime numpy

qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
cat >"$folder/python" <<WRAPPER
#!/bin/sh
PYTHONPATH=$folder/site exec $qemu -cpu cortex-a72 -L $folder/root $interpreter "\$@"
WRAPPER
chmod +x "$folder/python"
"$folder/python" -c 'import onnxruntime, platform; print(platform.machine(), onnxruntime.__version__)'
