#!/usr/bin/env bash
# Does the real LeRobot package open what we export, and do we ingest what it writes? Run by hand; result in
# docs/sources.md.
#
#   tests/packaging/lerobot.sh [FOLDER]      default: a temporary folder
#
# LeRobot's requirements conflict with ours, so it gets an environment of its own (gigabytes where torch is a CUDA
# build), made in FOLDER and left there. What may be set:
#   LEROBOT='lerobot[dataset]==0.6.1'   what pip installs there        PEER_PYTHON=python3.12   its interpreter
#   VENV=path   an environment that has it already                      OURS=python   one that has statevla
#   VIDEO_BACKEND=pyav   LeRobot's decoder; default: its own choice     EPISODES=4
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$(mktemp -d)}
mkdir -p "$work"
here=$root/tests/packaging
ours=${OURS:-$root/.venv/bin/python}
venv=${VENV:-$work/venv}
if [ -z "${VENV:-}" ] && [ ! -x "$venv/bin/python" ]; then
    "${PEER_PYTHON:-python3.12}" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check "${LEROBOT:-lerobot[dataset]}"
fi
mine() { (unset LD_LIBRARY_PATH; cd "$root" && PYTHONPATH=$root "$ours" "$@"); }
peer() { HF_HUB_OFFLINE=1 HF_HOME="$work/hf" "$venv/bin/python" "$here/lerobot_peer.py" "$@"; }
"$venv/bin/python" - <<'PY'
import importlib.metadata as m, sys
named = ("lerobot", "torch", "torchcodec", "av", "datasets", "numpy")
have = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print("theirs: Python", sys.version.split()[0], *(f"{name} {have.get(name, '-')}" for name in named))
PY
mine -c 'import av, pyarrow, sys; print("ours: Python", sys.version.split()[0], "av", av.__version__, "pyarrow", pyarrow.__version__)'

rm -rf "$work"/{raw,store,lossy,lossless,theirs,back}*
mine -m cli collect tabletop --episodes "${EPISODES:-4}" --out "$work/raw" --json >/dev/null
mine -m cli ingest tabletop --source "$work/raw" --out "$work/store" --language hashed --train-split 0.75 --json >/dev/null
mine "$here/lerobot_ours.py" expect "$work/store" "$work/store.npz"
mine -m cli export lerobot "$work/store" "$work/lossy" --json >/dev/null
mine -m cli export lerobot "$work/store" "$work/lossless" --lossless --json >/dev/null
peer open "$work/lossy" "$work/store.npz" 38
peer open "$work/lossless" "$work/store.npz" 99
for kind in video image; do
    peer write "$work/theirs-$kind" "$work/theirs-$kind.npz" "$kind"
    mine -m cli ingest lerobot --source "$work/theirs-$kind" --out "$work/back-$kind" --language hashed --codec png --json >/dev/null
    mine "$here/lerobot_ours.py" compare "$work/back-$kind" "$work/theirs-$kind.npz" "$([ $kind = image ] && echo 99 || echo 25)"
done
echo "all as it must be"
