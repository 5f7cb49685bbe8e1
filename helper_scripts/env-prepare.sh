#!/usr/bin/env bash
# Installs what the embedded stack needs and pip cannot bring: Prometheus and Alertmanager; and finds or installs uv.
set -euo pipefail

readonly HELP="Usage: env-prepare.sh [--tests] [--dry-run] [--help] | --cluster [OPTIONS]

Makes sure that these are on this machine:
  prometheus     evaluates the rules of the embedded stack
  alertmanager   sends its alerts (Debian's command is prometheus-alertmanager)
  uv             installs the Python packages; kept in the user's cache folder, see find-uv.sh

Debian and Ubuntu: apt-get, as root or with a sudo that asks for no password. No service is started, now or at boot.
macOS: Homebrew.

  --tests        also, on Debian and Ubuntu, what make test-scripts, make test-cluster and make test-images need: bats, Ansible,
                 PostgreSQL, Redis, buildah, podman, runc, debootstrap
  --dry-run      say what would be installed, change nothing
  --cluster      prepare this machine to use a SEMR on a cluster instead: helm, kubectl, semr without the servers, the contract,
                 Flyte's client configuration; see cluster-client.sh --help for its options
  --help         this text

Running it again installs nothing that is there already. Exit codes: 0 all is there, 1 something could not be installed,
2 wrong arguments."

readonly POLICY=/usr/sbin/policy-rc.d
readonly SAVED_POLICY=/usr/sbin/policy-rc.d.before-semr
readonly POLICY_MARK="written by SEMR's env-prepare.sh"
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts

say() {
  echo "env-prepare: $1"
}

fail() {
  echo "env-prepare: $1" >&2
  exit "${2:-1}"
}

has() {
  command -v "$1" >/dev/null 2>&1
}

has_alertmanager() {
  has prometheus-alertmanager || has alertmanager
}

has_uv() {
  has uv || [[ -x "${XDG_CACHE_HOME:-${HOME-}/.cache}/semr/uv/uv" ]]
}

# Whether find-uv.sh can do its work: there is a uv, or a Python that is able to install one.
can_have_uv() {
  has_uv || python3 -c 'import ensurepip, venv' 2>/dev/null || python3 -m pip --version >/dev/null 2>&1
}

as_root() {
  if [[ "$(id -u)" -eq 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q \
    -o DPkg::Lock::Timeout=120 -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

# Debian starts a service as soon as its package is installed, unless a policy-rc.d says no.
forbid_service_starts() {
  trap allow_service_starts EXIT
  # A run that was killed may have left its own policy: only a foreign one is kept.
  if [[ -e "$POLICY" ]] && ! grep -qs "$POLICY_MARK" "$POLICY"; then
    as_root mv "$POLICY" "$SAVED_POLICY"
  fi
  printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" | as_root tee "$POLICY" >/dev/null
  as_root chmod 755 "$POLICY"
}

allow_service_starts() {
  trap - EXIT
  as_root rm -f "$POLICY"
  if [[ -e "$SAVED_POLICY" ]]; then
    as_root mv "$SAVED_POLICY" "$POLICY"
  fi
}

install_with_apt() {
  local package
  if [[ "$(id -u)" -ne 0 ]] && ! sudo -n true 2>/dev/null; then
    fail "installing needs root, and sudo is missing or asks for a password: run 'sudo apt-get install $*', then this script again."
  fi
  forbid_service_starts
  # The package lists are read from the network only when they are missing or too old.
  apt_get install -y --no-install-recommends "$@" ||
    { apt_get update && apt_get install -y --no-install-recommends "$@"; } ||
    fail "apt-get could not install $*: see its messages above, check the network and the package sources."
  allow_service_starts
  if has systemctl; then
    for package in "$@"; do
      if [[ "$package" =~ ^(prometheus|postgresql|redis-server) ]]; then
        as_root systemctl disable --quiet "$package.service" || say "could not keep $package from starting at boot."
      fi
    done
  fi
}

install_with_brew() {
  has brew || fail "Homebrew is missing: install it from https://brew.sh, then run this script again."
  [[ "$(id -u)" -ne 0 ]] || fail "Homebrew refuses to run as root: run this script as a normal user."
  brew install "$@" || fail "Homebrew could not install $*: see its messages above and check the network."
}

if [[ "${1-}" == --cluster ]]; then
  shift
  exec "$scripts/cluster-client.sh" "$@"
fi

dry_run=false
tests=false
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=true ;;
    --tests) tests=true ;;
    -h | --help)
      echo "$HELP"
      exit 0
      ;;
    *) fail "unknown argument '$argument': see --help." 2 ;;
  esac
done

missing=()
case "$(uname -s)" in
  Linux)
    installer=install_with_apt
    has prometheus || missing+=(prometheus)
    has_alertmanager || missing+=(prometheus-alertmanager)
    can_have_uv || missing+=(python3 python3-venv)
    if $tests; then
      for command in bats ansible ansible-lint buildah podman runc debootstrap; do
        has "$command" || missing+=("$command")
      done
      has redis-server || missing+=(redis-server)
      # Debian keeps the server's commands out of PATH.
      has postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    fi
    ;;
  Darwin)
    installer=install_with_brew
    has prometheus || missing+=(prometheus)
    has_alertmanager || missing+=(alertmanager)
    can_have_uv || missing+=(uv)
    ;;
  *) fail "this system ($(uname -s)) is neither Linux nor macOS: SEMR's embedded stack does not run on it." ;;
esac

if [[ ${#missing[@]} -eq 0 ]]; then
  say "Prometheus and Alertmanager are there, nothing to install."
elif [[ $installer == install_with_apt ]] && ! has apt-get; then
  fail "there is no apt-get on this Linux: install ${missing[*]} with its own package manager, or from \
https://prometheus.io/download/, so that the commands are on PATH."
elif $dry_run; then
  say "would install: ${missing[*]}"
else
  say "installing: ${missing[*]}"
  "$installer" "${missing[@]}"
  has prometheus || fail "there is still no command prometheus on PATH after the installation."
  has_alertmanager || fail "there is still no command alertmanager on PATH after the installation."
fi

if $dry_run; then
  has_uv || say "would install uv with find-uv.sh"
else
  uv="$("$scripts/find-uv.sh")"
  say "uv is $uv"
fi
