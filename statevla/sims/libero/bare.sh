#!/bin/sh
# Stores of LIBERO suites from a machine that has a Python with PyTorch, perhaps a GPU to draw with, and no network.
# What it needs is packed where there is one; what comes back are stores, a tenth of the raw HDF5.
#
#   statevla/sims/libero/bare.sh pack FOLDER     after `make libero`: wheels of that environment, and assets
#   FOLDER/bare.sh run SUITE [SUITE …]           there: collects, ingests, and leaves FOLDER/stores/SUITE
#
# Both go on where an interrupted call stopped; a suite that is finished is not looked at again, and of one that was
# made with other settings it is said. The two Pythons must be of the same version and platform.
#
# SUITES      pack: whose assets (default all five)
# PYTHON      pack: the environment (default .venv/bin/python); run: a Python that has PyTorch (default python3)
# EPISODES    demonstrations a task (default 50)      TASKS     numbers, such as 0,1,2 (default all)
# INIT_STATES that demonstrations start from, the first ones (default: all; evaluations want some for themselves)
# NOISE       of `statevla collect` (default 0)
# WORKERS     simulators (default: what fits)         LANGUAGE  of the ingest (default minilm, whose weights are packed)
# MUJOCO_GL   egl or osmesa (default: egl where it draws, else osmesa)
# KEEP_RAW    1: the HDF5 files stay, in FOLDER/raw
set -eu

die() {
    echo "bare.sh: $*" >&2
    exit 1
}

plain() { # names of packages, as all tools understand them
    tr '[:upper:]' '[:lower:]' | sed 's/[-_.][-_.]*/_/g'
}

mode=${1:-}
[ $# -ge 2 ] || die "expected 'pack FOLDER' or 'run SUITE [SUITE ...]'"
shift
here=$(cd "$(dirname "$0")" && pwd)

if [ "$mode" = pack ]; then
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    root=$(cd "$here/../../.." && pwd)
    python=$(command -v "${PYTHON:-$root/.venv/bin/python}") || die "no Python at '${PYTHON:-.venv/bin/python}'; run make libero"
    mkdir -p "$folder/wheels"
    # Exactly what works here, without what the other Python brings (PyTorch and what is made for it) or only tests need.
    "$python" -m pip --disable-pip-version-check freeze --exclude-editable |
        grep -v -i -E '^(torch|triton|nvidia-|mypy|pytest|ruff|hypothesis|moto|playwright)|^-e |@ ' >"$folder/packages.txt"
    "$python" -m pip --disable-pip-version-check download -q --no-deps --prefer-binary -d "$folder/wheels" -r "$folder/packages.txt"
    for source in "$folder"/wheels/*.tar.gz; do # packages without a wheel of their own
        [ -e "$source" ] || continue
        "$python" -m pip --disable-pip-version-check wheel -q --no-deps -w "$folder/wheels" "$source"
        rm "$source"
    done
    rm -f "$folder"/wheels/statevla-*.whl
    "$python" -m pip --disable-pip-version-check wheel -q --no-deps -w "$folder/wheels" "$root"
    # shellcheck disable=SC2086  # a list of suites or nothing
    (cd "$root" && "$python" -m statevla.sims.libero.assets ${SUITES:-} --copy "$folder/assets")
    cp "$here/bare.sh" "$folder/bare.sh"
    du -sh "$folder"
    exit 0
fi

[ "$mode" = run ] || die "expected pack or run, got '$mode'"
[ -d "$here/wheels" ] && [ -d "$here/assets" ] && [ -f "$here/packages.txt" ] ||
    die "$here has no wheels and assets; make it with: bare.sh pack FOLDER"
python=${PYTHON:-python3}
"$python" -c 'import torch' || die "$python has no PyTorch; name one that has: PYTHON=... $0 run $*"
env=$here/env
export LIBERO_ASSETS="$here/assets" LIBERO_CONFIG_PATH="$here/config"
if [ ! -e "$env/.ready" ]; then
    # pip installs what it is given and does not ask what is missing. Of a name, case and what stands between words vary.
    there=" $(ls "$here/wheels" | sed -n 's/-.*\.whl$//p' | plain | tr '\n' ' ')"
    lacking=
    for package in statevla $(sed 's/[=;].*//' "$here/packages.txt" | plain); do
        case "$there" in *" $package "*) ;; *) lacking="$lacking $package" ;; esac
    done
    [ -z "$lacking" ] || die "$here/wheels has no wheel of$lacking; make it again with: bare.sh pack FOLDER"
    "$python" -m venv --system-site-packages "$env"
    # If that Python is itself an environment, a new one sees what is below it and not what it has.
    "$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
        >"$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_this_machine.pth"
    "$env/bin/python" -m pip --disable-pip-version-check install -q --no-index --no-deps --ignore-installed "$here"/wheels/*.whl
    touch "$env/.ready"
fi
"$env/bin/python" -m statevla.sims.libero.assets "$@"

if [ -z "${MUJOCO_GL:-}" ]; then
    for MUJOCO_GL in egl osmesa none; do
        [ $MUJOCO_GL = none ] && die "neither EGL nor OSMesa draws here; install libegl1 with the GPU's driver, or libosmesa6"
        export MUJOCO_GL
        "$env/bin/python" -m statevla.sims.libero.render_check >/dev/null 2>&1 && break
    done
fi
export MUJOCO_GL
echo "bare.sh: draws by $MUJOCO_GL"
rm -rf "$here"/raw/*.unwanted # where removing was interrupted
mkdir -p "$here/finished"
settings="EPISODES=${EPISODES:-50} TASKS=${TASKS:-} INIT_STATES=${INIT_STATES:-} NOISE=${NOISE:-}"
settings="$settings LANGUAGE=${LANGUAGE:-minilm}"
for suite in "$@"; do
    raw=$here/raw/$suite store=$here/stores/$suite finished=$here/finished/$suite
    if [ -e "$store/manifest.json" ]; then
        made=$(cat "$finished" 2>/dev/null || true)
        if [ "$made" = "$settings" ]; then
            echo "bare.sh: $suite is finished"
            continue
        fi
        # From the HDF5 files a collection goes on, or says why not.
        [ -e "$raw" ] || die "$store was made with ${made:-other settings}, this is $settings; move it away, or say the same"
        rm -f "$finished"
    fi
    "$env/bin/statevla" collect "$suite" --out "$raw" --episodes "${EPISODES:-50}" \
        ${TASKS:+--tasks "$TASKS"} ${INIT_STATES:+--init-states "$INIT_STATES"} ${NOISE:+--noise "$NOISE"} \
        ${WORKERS:+--workers "$WORKERS"}
    "$env/bin/statevla" ingest "$suite" --source "$raw" --out "$store" --language "${LANGUAGE:-minilm}"
    "$env/bin/statevla" stats --store "$store"
    echo "$settings" >"$finished"
    # Under another name, so that what is half removed is not taken for the beginning of a collection.
    [ -n "${KEEP_RAW:-}" ] || { mv "$raw" "$raw.unwanted" && rm -rf "$raw.unwanted"; }
done
du -sh "$here"/stores/*
