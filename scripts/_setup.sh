# shellcheck shell=bash
# Sourced by the other scripts: brings all that the package needs into .venv of this clone, once.
#
#   setup EXTRAS     installs the package with these extras of setup.py, e.g. sim,ros-wheels
#
# Nothing is done when the stamp in .venv says that it was done before, so it works offline then.
# A ROS 2 installation that is sourced is used as it is; without one, rclpy comes from wheels.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
TORCH="torch==2.13.0"
PYTHON="${PYTHON:-python3}"

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$1"
    exit 1
}

# Debian packages that are missing, one per line: a virtual environment, what Pinocchio links to,
# and an EGL renderer.
missing_packages() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    local libraries
    libraries="$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)"
    grep -q 'libgomp\.so\.1 ' <<<"$libraries" || echo libgomp1
    grep -q 'libEGL\.so\.1 ' <<<"$libraries" || echo libegl1
    grep -q 'libOpenGL\.so\.0 ' <<<"$libraries" || echo libopengl0
    grep -q 'libEGL_mesa\.so\.0 ' <<<"$libraries" || echo libegl-mesa0
    compgen -G '/usr/lib/*/dri/swrast_dri.so' >/dev/null || echo libgl1-mesa-dri
}

install_packages() {
    local missing
    missing="$(missing_packages | tr '\n' ' ')"
    [ -z "$missing" ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "These Debian packages are missing: ${missing}- install them and start again."
    fi
    say "installing ${missing% }"
    apt-get update -qq >&2
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
}

check_python() {
    command -v "$PYTHON" >/dev/null || fail "Python 3.11 or newer must be installed: no $PYTHON."
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python must be 3.11 or newer: $PYTHON is $("$PYTHON" -V). Set PYTHON to another one."
    # The interpreter itself, also when a virtual environment is active.
    PYTHON="$("$PYTHON" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')"
}

setup() {
    local extras="$1" ros="wheels" stamp
    check_python
    if [ -n "${AMENT_PREFIX_PATH:-}" ] && "$PYTHON" -c 'import rclpy' 2>/dev/null; then
        ros="$(dirname "$("$PYTHON" -c 'import rclpy; print(rclpy.__file__)')")"
        extras="$(tr ',' '\n' <<<"$extras" | grep -vx ros-wheels | paste -sd,)"
    fi
    stamp="$("$PYTHON" -V) $TORCH $extras $ros $ROOT $(cksum <"$ROOT/setup.py")"
    if [ ! -x "$VENV/bin/python" ] || ! grep -qxF "$stamp" "$VENV/installed" 2>/dev/null; then
        install_packages
        install_python "$extras" "$ros"
        echo "$stamp" >>"$VENV/installed"
    fi
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
    if [ "$ros" = wheels ]; then
        export AMENT_PREFIX_PATH="$VENV"
    fi
    export MUJOCO_GL="${MUJOCO_GL:-egl}" LP_NUM_THREADS="${LP_NUM_THREADS:-0}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
}

install_python() {
    local extras="$1" ros="$2" options=()
    [ "$ros" = wheels ] || options=(--system-site-packages)
    say "installing into $VENV (once; a few minutes)"
    "$PYTHON" -m venv "${options[@]}" "$VENV" >&2
    "$VENV/bin/python" -m pip install --quiet "$TORCH" >&2
    "$VENV/bin/python" -m pip install --quiet --editable "${ROOT}[$extras]" >&2
}
