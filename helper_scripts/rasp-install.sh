#!/usr/bin/env bash
# Makes a Raspberry Pi a worker node of a MicroK8s cluster.
set -euo pipefail

readonly HELP="Usage: rasp-install.sh [--join ADDRESS] [--channel CHANNEL] [--cmdline FILE] [--dry-run] [--help]

On a 64-bit Raspberry Pi OS or Ubuntu: switches the memory control group on, which Kubernetes needs and the Raspberry Pi's
firmware leaves off; says when the Pi has to be started anew (then run this again); and installs MicroK8s.

  --join ADDRESS      join the cluster as a worker: what 'microk8s add-node' on its first node prints, HOST:25000/TOKEN
  --channel CHANNEL   of the snap, that of the other nodes; default: 1.35/stable
  --cmdline FILE      the kernel's command line; default: /boot/firmware/cmdline.txt or /boot/cmdline.txt
  --dry-run           print what would be run, change nothing
  --help              this text

Running it again changes nothing that is there already. Exit codes: 0 done, 1 something failed, 2 wrong arguments,
3 done so far, start the Pi anew and run it again."

# Either name is read by some kernels only.
readonly FLAGS=(cgroup_enable=memory cgroup_memory=1)
readonly REBOOT=3
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"
# shellcheck source=microk8s-lib.sh
. "$scripts/microk8s-lib.sh"

channel="$CHANNEL"
address=""
cmdline=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --join)
      address="$(value_of "$1" $# "${2-}")"
      [[ "$address" =~ ^[^/]+:[0-9]+/.+$ ]] || fail "--join needs HOST:25000/TOKEN, as 'microk8s add-node' prints it." 2
      shift
      ;;
    --channel)
      channel="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --cmdline)
      cmdline="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --dry-run) dry_run=true ;;
    -h | --help)
      echo "$HELP"
      exit 0
      ;;
    *) fail "unknown argument '$1': see --help." 2 ;;
  esac
  shift
done

need_linux MicroK8s
[[ "$(uname -m)" == aarch64 ]] ||
  fail "this is $(uname -m): SEMR's images are for arm64, so the Pi needs a 64-bit system."
if [[ -z "$cmdline" ]]; then
  for each in /boot/firmware/cmdline.txt /boot/cmdline.txt; do
    if [[ -f "$each" ]]; then
      cmdline="$each"
      break
    fi
  done
fi
[[ -f "$cmdline" ]] || fail "the kernel's command line is not in /boot/firmware/cmdline.txt or /boot/cmdline.txt: name it with --cmdline."
need_root

# The command line is one line; a second one is not read.
set_flags() {
  local flag missing=()
  for flag in "${FLAGS[@]}"; do
    head -n 1 "$cmdline" | tr ' ' '\n' | grep -qx "$flag" || missing+=("$flag")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    return
  fi
  say "adding ${missing[*]} to $cmdline; the old one is kept as $cmdline.before-semr"
  run_as_root cp "$cmdline" "$cmdline.before-semr"
  run_as_root sed -i "1 s/[[:space:]]*\$/ ${missing[*]}/" "$cmdline"
}

# With control groups v2 the list of controllers says it, before them /proc/cgroups.
has_memory_group() {
  grep -qw memory /sys/fs/cgroup/cgroup.controllers 2>/dev/null ||
    awk '$1 == "memory" && $4 == 1 {found = 1} END {exit !found}' "${SEMR_CGROUPS:-/proc/cgroups}"
}

set_flags
if ! has_memory_group; then
  say "the memory control group is off until the next start: 'sudo reboot', then run this script again."
  $dry_run || exit "$REBOOT"
fi

# Ubuntu keeps the kernel module of the cluster's network in a package of its own.
if grep -qs '^ID=ubuntu' "${SEMR_OS_RELEASE:-/etc/os-release}" && apt-cache show linux-modules-extra-raspi >/dev/null 2>&1; then
  if ! dpkg -s linux-modules-extra-raspi >/dev/null 2>&1; then
    apt_install linux-modules-extra-raspi
  fi
fi
install_microk8s "$channel"
wait_for_microk8s
if [[ -n "$address" ]]; then
  run_as_root microk8s join "$address" --worker ||
    fail "the cluster did not take this node: an address of 'microk8s add-node' is good once."
  say "joined: 'microk8s kubectl get nodes' on the first node shows it. Then switch on ray.jobs.workerGroups.arm64 in the chart's values."
else
  say "MicroK8s is ready. To join a cluster: run 'microk8s add-node' on its first node, and here
  rasp-install.sh --join HOST:25000/TOKEN
with what it prints. Then switch on ray.jobs.workerGroups.arm64 in the chart's values."
fi
