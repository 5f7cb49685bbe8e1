#!/usr/bin/env bash
# Makes this Linux machine a Kubernetes node with MicroK8s, with what the SEMR chart needs of a cluster.
set -euo pipefail

readonly HELP="Usage: system-install.sh [--channel CHANNEL] [--without ADDON]... [--user NAME] [--kubeconfig FILE] [--dry-run] [--help]

Installs MicroK8s as a snap and enables:
  dns                names of services
  hostpath-storage   volumes in a folder of the node (for several nodes, a storage of your own is better)
  metrics-server     what autoscalers look at
  ingress            Traefik, with Ingress and Gateway API, on ports 80 and 443

  --channel CHANNEL   of the snap; default: 1.35/stable. An installed MicroK8s keeps the one that it has
  --without ADDON     leave one of the four out; may be given several times
  --user NAME         who may use microk8s without sudo; default: who calls this
  --kubeconfig FILE   where access for kubectl and helm is written; default: ~/.kube/config, if there is no such file
  --dry-run           print what would be run, change nothing
  --help              this text

Running it again changes nothing that is there already. Exit codes: 0 the cluster is ready, 1 something failed, 2 wrong
arguments. Next: helper_scripts/chart-deps.sh and helm install, as in README.md."

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"
# shellcheck source=microk8s-lib.sh
. "$scripts/microk8s-lib.sh"

channel="$CHANNEL"
addons=(dns hostpath-storage metrics-server ingress)
user="${SUDO_USER:-$(id -un)}"
kubeconfig=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --channel)
      channel="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --without)
      without="$(value_of "$1" $# "${2-}")"
      kept=()
      for addon in "${addons[@]}"; do
        [[ "$addon" == "$without" ]] || kept+=("$addon")
      done
      [[ ${#kept[@]} -lt ${#addons[@]} ]] || fail "'$without' is not one of ${addons[*]}." 2
      addons=("${kept[@]}")
      shift
      ;;
    --user)
      user="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --kubeconfig)
      kubeconfig="$(value_of "$1" $# "${2-}")"
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
id -u "$user" >/dev/null 2>&1 || fail "there is no user $user." 2
need_root
check_size

# Access for kubectl and helm; an existing file may be of another cluster.
write_kubeconfig() {
  local file="$kubeconfig"
  if [[ -z "$file" ]]; then
    file="$(eval echo "~$user")/.kube/config"
    if [[ -e "$file" ]]; then
      say "$file is there and is left as it is; for access to this cluster: microk8s config > FILE, and KUBECONFIG=FILE"
      return
    fi
  fi
  if $dry_run; then
    echo "would run: microk8s config > $file"
    return
  fi
  local folder
  folder="$(dirname "$file")"
  [[ -d "$folder" ]] || install --directory --mode=0700 --owner="$user" "$folder"
  (
    umask 077
    look_as_root microk8s config >"$file"
  ) || fail "access could not be written to $file."
  [[ "$(id -un)" == "$user" ]] || run_as_root chown "$user" "$file"
  say "access for kubectl and helm is in $file"
}

install_microk8s "$channel"
join_group "$user"
wait_for_microk8s
enable_addons "${addons[@]}"
wait_for_microk8s
write_kubeconfig
if ! $dry_run; then
  look_as_root microk8s kubectl get nodes
fi
say "the cluster is ready. More nodes: 'microk8s add-node' here prints what to run there. Next: helm install, see README.md."
