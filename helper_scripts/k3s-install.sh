#!/usr/bin/env bash
# Makes this Linux machine a Kubernetes node with K3s: a server of its own, or a worker of one that is there.
set -euo pipefail

readonly HELP="Usage: k3s-install.sh [--channel CHANNEL] [--without COMPONENT]... [--join URL --token-file FILE] [--dry-run] [--help]

Installs K3s with its own installer (https://get.k3s.io). A server brings DNS, volumes in a folder of the node (local-path),
metrics-server, and Traefik for Ingress.

  --channel CHANNEL     stable, latest, or a minor version such as v1.34; default: stable
  --without COMPONENT   leave out traefik, local-storage or metrics-server; may be given several times
  --join URL            become a worker of the server at URL, such as https://10.0.0.1:6443
  --token-file FILE     the server's /var/lib/rancher/k3s/server/node-token, for --join;
                        the worker reads it at every start, so it has to stay
  --dry-run             print what would be run, change nothing
  --help                this text

Running it again changes nothing that is there already. K3s is removed by its own k3s-uninstall.sh (worker:
k3s-agent-uninstall.sh). Exit codes: 0 done, 1 something failed, 2 wrong arguments."

readonly INSTALLER=https://get.k3s.io
readonly READY_SECONDS=300
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"

channel=stable
without=()
server=""
token_file=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --channel)
      channel="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --without)
      component="$(value_of "$1" $# "${2-}")"
      [[ "$component" =~ ^(traefik|local-storage|metrics-server)$ ]] ||
        fail "'$component' is not one of traefik, local-storage, metrics-server." 2
      without+=("--disable=$component")
      shift
      ;;
    --join)
      server="$(value_of "$1" $# "${2-}")"
      [[ "$server" == https://* ]] || fail "--join needs a URL, such as https://10.0.0.1:6443." 2
      shift
      ;;
    --token-file)
      token_file="$(value_of "$1" $# "${2-}")"
      [[ -r "$token_file" ]] || fail "the file $token_file cannot be read." 2
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
[[ -z "$server" || -n "$token_file" ]] || fail "--join needs --token-file: see --help." 2
[[ -n "$server" || -z "$token_file" ]] || fail "--token-file is for --join: see --help." 2

need_linux K3s
need_root
check_size

install_k3s() {
  local installer environment arguments
  # The installer takes its options by environment variables: https://docs.k3s.io/reference/env-variables
  environment=("INSTALL_K3S_CHANNEL=$channel")
  if [[ -n "$server" ]]; then
    # The token is no argument that a list of processes shows.
    environment+=("K3S_URL=$server" "K3S_TOKEN_FILE=$(realpath "$token_file")")
    arguments=(agent)
  else
    arguments=(server ${without[@]+"${without[@]}"})
  fi
  if $dry_run; then
    echo "would download: $INSTALLER"
    run_as_root env "${environment[@]}" sh INSTALLER "${arguments[@]}"
    return
  fi
  installer="$(mktemp)"
  # shellcheck disable=SC2064 # the name of now
  trap "rm -f '$installer'" EXIT
  download "$INSTALLER" "$installer"
  run_as_root env "${environment[@]}" sh "$installer" "${arguments[@]}" ||
    fail "the installer of K3s failed: see its messages above, and 'journalctl -u k3s'."
}

if has k3s; then
  say "K3s is installed already and is left as it is."
else
  say "installing K3s from the channel $channel"
  install_k3s
fi
if [[ -n "$server" ]]; then
  say "this machine is a worker of $server: 'kubectl get nodes' there shows it within a minute."
  exit 0
fi
run_as_root k3s kubectl wait --for=condition=Ready node --all "--timeout=${READY_SECONDS}s" ||
  fail "the node is not ready after $READY_SECONDS s: 'journalctl -u k3s' says why."
say "the cluster is ready. Access for kubectl and helm: export KUBECONFIG=/etc/rancher/k3s/k3s.yaml (as root, or a copy).
Workers: this script with --join https://THIS-MACHINE:6443 there, and /var/lib/rancher/k3s/server/node-token of this machine.
Next: helm install, see README.md."
