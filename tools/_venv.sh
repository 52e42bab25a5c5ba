# Sourced by the scripts of this folder, from the repository's root: the virtual environment .venv, and how it comes about.

apt_updated=
apt_install() { # apt_install PACKAGE...: with sudo when not root
  local sudo=()
  if ! command -v apt-get >/dev/null; then
    echo "missing: $*; there is no apt-get here, so please install them by hand" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo)
    echo "missing: $*; installing with sudo apt-get, which may ask for your password"
  else
    echo "missing: $*; installing with apt-get"
  fi
  if [ -z "$apt_updated" ]; then
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update || return 1
    apt_updated=1
  fi
  # RUNLEVEL=1: nothing of it need be started as a service now.
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get -qq -y install --no-install-recommends "$@" >/dev/null
}

quiet_pip() { # quiet_pip ARGUMENT...: pip install, whose own words are shown only when it fails
  local log code
  log=$(mktemp)
  .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-input --root-user-action=ignore "$@" \
    >"$log" 2>&1
  code=$?
  if [ $code -ne 0 ]; then cat "$log" >&2; fi
  rm -f "$log"
  return $code
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

make_venv() { # make_venv PYTHON: .venv with that Python, unless it is there
  local python=$1
  if ! command -v "$python" >/dev/null; then
    echo "$python is not installed: apt-get install python3, or choose another with PYTHON=..." >&2
    return 1
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "$python is not Python 3.10 or newer; choose another with PYTHON=..." >&2
    return 1
  fi
  if [ "$(version_of .venv/bin/python)" = "$(version_of "$python")" ]; then return 0; fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python cannot make a virtual environment: it lacks ensurepip"
    apt_install python3-venv || return 1
  fi
  echo "making .venv with $python ($(version_of "$python"))"
  "$python" -m venv --clear .venv
}

what_is_installed() { # a name for everything that an installation depends on
  cat pyproject.toml tools/build_kernels.py edgert/kernels/_kernels.c 2>/dev/null | sha256sum
}
