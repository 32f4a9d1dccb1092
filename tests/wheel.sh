#!/usr/bin/env bash
# The wheel alone, from another directory: each verb's manual, a toy run with its proof, a download. $1: an environment with the tested set.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=$PWD/tests
tested=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf build  # what an earlier build left there would be in the wheel
"$tested/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
"$tested/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-deps "$work"/*.whl
# What it depends on is read where it lies: a line of a .pth runs no .pth of that folder, so that no checkout is found by it.
site='import sys; print("\n".join(path for path in sys.path if path.endswith("site-packages")))'
"$tested/bin/python" -c "$site" > "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tested.pth"
mill=$work/venv/bin/latentmill
export HF_HUB_OFFLINE=1
mkdir "$work/elsewhere"
cd "$work/elsewhere"
"$mill" doctor
for verb in $("$mill" --help | awk '/^  [a-z]/ { print $1 }'); do
    "$mill" "$verb" --help > /dev/null
done
"$mill" run builders/demo --output out --limit 6 --vae toy --text-encoder toy --dtype float32 --resolutions 64
"$mill" verify out --decode 4
"$mill" preview out
"$mill" select out --subset 0 0.5
"$mill" bench out --resolution 64 --batch-size 2 --seconds 0.5 > /dev/null
# An archive from a Hub on loopback arrives as it is there, and a second call finds it.
repository=hub/datasets/pixparse/cc12m-wds/resolve/main
mkdir -p "$repository"
cp out/preview.png 000.png
echo "a contact sheet" > 000.txt
tar -cf "$repository/cc12m-train-0000.tar" 000.png 000.txt
exec {served}< <(exec "$tested/bin/python" -u -m http.server 0 --bind 127.0.0.1 --directory hub 2> /dev/null)
server=$!
trap 'kill "$server"; rm -rf "$work"' EXIT
read -r _ _ _ _ _ port _ <&"$served"
HF_ENDPOINT=http://127.0.0.1:$port "$mill" download cc12m --parts 0 --data-dir raw
cmp raw/cc12m-train-0000.tar "$repository/cc12m-train-0000.tar"
HF_ENDPOINT=http://127.0.0.1:$port "$mill" download cc12m --parts 0 --data-dir raw | grep -q "0 fetched, 1 there already, 0 failed"
mkdir "$work/empty"
cd "$work/empty"
"$work/venv/bin/python" -P "$tests/cures.py"
