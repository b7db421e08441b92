#!/bin/sh
# Puts the LIBERO simulator into a Python environment:  install.sh [PYTHON]      (default .venv/bin/python)
#
# LIBERO_ASSETS        folder with LIBERO's meshes and textures. It comes first, then those of an existing install, for
#                      each suite that they are complete for; what is missing comes from five packages (330 MiB)
# LIBERO_SUITES        suites whose assets are wanted (default: all five)
# LIBERO_CONFIG_PATH   folder for LIBERO's config.yaml (default: ${XDG_CACHE_HOME:-~/.cache}/statevla/libero),
#                      and for those packages' files
#
# The simulator's packages declare dependencies (robomimic, thop, old numpy, ...) that the simulation does not import,
# so they are installed without them and what is really imported is listed here. Calling it twice changes nothing.
set -eu

python=${1:-.venv/bin/python}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)

if ! [ -x "$(command -v "$python")" ]; then
    echo "install.sh: no Python at '$python'; create the environment first (make install) or name another one" >&2
    exit 1
fi

python=$(command -v "$python")
case "$python" in /*) ;; *) python=$PWD/$python ;; esac

# --- OpenGL without a screen ------------------------------------------------------------------------------------------
gl_packages="libegl1 libgles2 libgl1 libegl-mesa0 libgl1-mesa-dri libosmesa6"
missing=""
for package in $gl_packages; do
    case "$package" in
        libegl1) file=libEGL.so.1 ;;
        libgles2) file=libGLESv2.so.2 ;;
        libgl1) file=libGL.so.1 ;;
        libegl-mesa0) file=libEGL_mesa.so.0 ;;
        libosmesa6) file=libOSMesa.so ;;
        libgl1-mesa-dri) # drivers, found by path: no soname to look up
            [ -n "$(find /usr/lib /usr/lib64 \( -name '*_dri.so' -o -name 'libgallium*.so' \) 2>/dev/null | head -n 1)" ] ||
                missing="$missing $package"
            continue ;;
    esac
    /sbin/ldconfig -p 2>/dev/null | grep -q "$file" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "install.sh: installing$missing"
        apt-get update -qq
        # shellcheck disable=SC2086  # a list of package names
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "install.sh: rendering needs OpenGL without a screen. Missing:$missing" >&2
        echo "            As an administrator run: apt-get install --no-install-recommends$missing" >&2
        echo "            then run this again. MUJOCO_GL=egl (default) or MUJOCO_GL=osmesa chooses the library." >&2
        exit 1
    fi
fi

# --- Python packages ---------------------------------------------------------------------------------------------------
# MuJoCo 3.3.2 renders like the release that recorded LIBERO's data; from 3.3.3 on pictures and contacts differ.
constraints=""
[ -f "$root/constraints.txt" ] && constraints="-c $root/constraints.txt"
pip="$python -m pip --disable-pip-version-check install -q --no-compile"
$pip --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1 mujoco==3.3.2
# shellcheck disable=SC2086  # two words or none
$pip $constraints scipy==1.17.1 numba==0.68.1 opencv-python-headless==4.11.0.86 pillow pyyaml easydict cloudpickle \
    gymnasium termcolor future tqdm matplotlib absl-py 'etils[epath]' glfw pyopengl

# --- LIBERO's config and assets ----------------------------------------------------------------------------------------
cd "$root"
# shellcheck disable=SC2086  # a list of suites or nothing
exec "$python" -m statevla.sims.libero.assets ${LIBERO_SUITES:-}
