#!/usr/bin/env bash
# MicroK8s for system-install.sh and rasp-install.sh. It is sourced, after cluster-lib.sh, and does nothing by itself.
# The commands are those of https://canonical.com/microk8s/docs (getting-started, addons, clustering).
# shellcheck disable=SC2034,SC2154 # names of cluster-lib.sh, and for the scripts
set -euo pipefail

# The first whose addon `ingress` is Traefik and brings the Gateway API; before, it was ingress-nginx, which is retired.
readonly CHANNEL=1.35/stable
readonly READY_SECONDS=600

# A fresh snap is not on PATH of a shell that was there before it.
export PATH="$PATH:/snap/bin"

install_microk8s() {
  local channel="$1"
  if ! has snap; then
    say "installing snapd"
    apt_install snapd
  fi
  if snap list microk8s >/dev/null 2>&1; then
    say "MicroK8s is installed already; its channel is left as it is."
  else
    say "installing MicroK8s from $channel"
    run_as_root snap install microk8s --classic "--channel=$channel" ||
      fail "snap could not install MicroK8s: see its message above. Without a network it needs one; a channel that does not \
exist is answered by 'snap info microk8s' with those that do."
  fi
}

# Lets a user, and no longer only root, speak to the cluster.
join_group() {
  local user="$1"
  [[ "$user" != root ]] || return 0
  if id -nG "$user" | tr ' ' '\n' | grep -qx microk8s; then
    return 0
  fi
  run_as_root usermod -a -G microk8s "$user"
  say "$user is in the group microk8s now: log in anew, or run 'newgrp microk8s', for microk8s without sudo."
}

wait_for_microk8s() {
  run_as_root microk8s status --wait-ready --timeout "$READY_SECONDS" ||
    fail "MicroK8s is not ready after $READY_SECONDS s: 'sudo microk8s inspect' says what is wrong."
}

enable_addons() {
  local addon
  for addon in "$@"; do
    if ! $dry_run && [[ "$(look_as_root microk8s status --addon "$addon" 2>/dev/null)" == enabled ]]; then
      say "addon $addon is enabled already"
    else
      run_as_root microk8s enable "$addon" ||
        fail "the addon $addon could not be enabled: see the message above; 'microk8s status' lists what is."
    fi
  done
}
