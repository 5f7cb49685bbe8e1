#!/usr/bin/env bash
# Prints the path of a usable uv: the one on PATH, else one that is installed from PyPI into the user's cache folder.
set -euo pipefail

readonly HELP="Usage: find-uv.sh [--help]

Prints the path of uv and nothing else on standard output. Without uv on PATH it installs uv from PyPI once, as one file
in \${XDG_CACHE_HOME:-\$HOME/.cache}/semr/uv. Needs python3 with venv or pip for that."

fail() {
  echo "find-uv: $1" >&2
  exit "${2:-1}"
}

works() {
  "$1" --version >/dev/null 2>&1
}

case "${1-}" in
  "") ;;
  -h | --help)
    echo "$HELP"
    exit 0
    ;;
  *) fail "unknown argument '$1': see --help." 2 ;;
esac

if uv="$(command -v uv)" && works "$uv"; then
  echo "$uv"
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?find-uv: HOME is not set: set it, or XDG_CACHE_HOME.}/.cache}/semr/uv"
uv="$cache/uv"
if works "$uv"; then
  echo "$uv"
  exit 0
fi

command -v python3 >/dev/null || fail "uv is not on PATH and there is no python3 to install it with: install python3."
mkdir -p "$cache" || fail "cannot write to $cache: set XDG_CACHE_HOME to a folder that can be written."
work="$(mktemp -d "$cache/install.XXXXXX")"
trap 'rm -rf "$work"' EXIT

pip_install() {
  "$@" install --quiet --disable-pip-version-check --timeout 20 --retries 1 uv >&2
}

echo "find-uv: installing uv from PyPI into $cache" >&2
# Debian's python3 has venv but not ensurepip unless python3-venv is installed.
if python3 -c 'import ensurepip, venv' 2>/dev/null; then
  python3 -m venv "$work" >&2
  pip_install "$work/bin/python" -m pip || fail "pip could not install uv: check the network and pip's settings."
elif python3 -m pip --version >/dev/null 2>&1; then
  PIP_TARGET="$work" pip_install python3 -m pip || fail "pip could not install uv: check the network and pip's settings."
else
  fail "python3 has neither venv with ensurepip nor pip: run helper_scripts/env-prepare.sh, or install uv yourself."
fi

# uv is one self-contained binary: moving it into place is atomic, so that parallel runs do not see half a file.
mv -f "$work/bin/uv" "$uv"
works "$uv" || fail "the uv that PyPI offers for this machine does not run: install uv yourself."
echo "$uv"
