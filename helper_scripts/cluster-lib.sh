#!/usr/bin/env bash
# What the scripts that install and remove clusters share. It is sourced and does nothing by itself.
#
# A script that sources it has `set -euo pipefail` and a HELP; it sets `dry_run=true` for --dry-run.
set -euo pipefail

dry_run=false
me="$(basename "$0" .sh)"
readonly me
readonly LEAST_CPUS=12
readonly LEAST_MEMORY_GB=32

say() {
  echo "$me: $1"
}

warn() {
  echo "$me: warning: $1" >&2
}

fail() {
  echo "$me: $1" >&2
  exit "${2:-1}"
}

has() {
  command -v "$1" >/dev/null 2>&1
}

# The value of an option: name, number of arguments left, value.
value_of() {
  [[ $2 -ge 2 && -n "${3-}" ]] || fail "$1 needs a value: see --help." 2
  echo "$3"
}

# Runs a command that changes something; with --dry-run it is printed instead.
run() {
  if $dry_run; then
    echo "would run: $*"
  else
    "$@"
  fi
}

# The same as root.
run_as_root() {
  if [[ "$(id -u)" -eq 0 ]]; then
    run "$@"
  else
    run sudo "$@"
  fi
}

# Only looks, so it is done with --dry-run too; as root where that is possible without a question.
look_as_root() {
  if [[ "$(id -u)" -eq 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

need_linux() {
  [[ "$(uname -s)" == Linux ]] || fail "$1 runs on Linux, and this is $(uname -s): use helper_scripts/kind-up.sh here."
}

need_root() {
  ! $dry_run || return 0
  [[ "$(id -u)" -eq 0 ]] || has sudo || fail "this needs root, and there is no sudo: run it as root."
  if [[ "$(id -u)" -ne 0 ]]; then
    sudo -v || fail "this needs root, and sudo refuses: run it as root, or as a user that may use sudo."
  fi
}

# Number of processors, and gigabytes of memory as they are sold: what the kernel keeps for itself is counted in.
processors() {
  getconf _NPROCESSORS_ONLN
}

memory_gb() {
  awk '/^MemTotal:/ {printf "%d", ($2 + 1572864) / 1048576}' "${SEMR_MEMINFO:-/proc/meminfo}"
}

# SEMR's minimum is for the cluster, of which this machine may be a part.
check_size() {
  local cpus memory
  cpus="$(processors)"
  memory="$(memory_gb)"
  if [[ "$cpus" -lt "$LEAST_CPUS" || "$memory" -lt "$LEAST_MEMORY_GB" ]]; then
    warn "this machine has $cpus CPUs and $memory GB; SEMR with everything needs $LEAST_CPUS CPUs and $LEAST_MEMORY_GB GB \
in all nodes together. Add nodes, or install less (helm_charts/SEMR/ci/edge-values.yaml is for one small node)."
  fi
}

apt_install() {
  has apt-get || fail "$* is missing, and there is no apt-get: install it with this system's own package manager."
  run_as_root apt-get update
  run_as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" ||
    fail "apt-get could not install $*: see its messages above, check the network and the package sources."
}

# Downloads URL to FILE.
download() {
  has curl || fail "curl is missing: install it with this system's package manager."
  curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --output "$2" "$1" ||
    fail "$1 could not be downloaded: check the network."
}
