#!/usr/bin/env bash
# Prepares this machine to use a SEMR that is installed on a cluster: tools, contract and Flyte's client configuration.
set -euo pipefail

readonly HELP="Usage: cluster-client.sh [--release NAME] [--namespace NAME] [--context NAME] [--host HOST] [--env-file FILE]
                         [--flyte-config FILE] [--force] [--dry-run] [--help]

  - finds or installs helm and kubectl (find-helm.sh, find-kubectl.sh), and semr with what workflows need into .venv
  - writes the contract (SEMR_*), read from the release's ConfigMap and Secret, for SEMR_ENV_FILE
  - writes the configuration of pyflyte and flytectl

  --release NAME        of the chart semr; default: semr
  --namespace NAME      default: semr
  --context NAME        of kubectl; default: the current one
  --host HOST           name or address of a node: what the release opens by NodePort is reached there. Without it the
                        addresses are those inside the cluster
  --env-file FILE       default: .env
  --flyte-config FILE   default: ~/.flyte/config.yaml
  --force               replace files that are there
  --dry-run             say what would be done, change nothing
  --help                this text

Exit codes: 0 done, 1 something failed, 2 wrong arguments or a file that is there."

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"

release=semr
namespace=semr
context=()
host=""
env_file=.env
flyte_config="${HOME:?cluster-client: HOME is not set.}/.flyte/config.yaml"
force=false
while [[ $# -gt 0 ]]; do
  case "$1" in
    --release | --namespace | --context | --host | --env-file | --flyte-config)
      value="$(value_of "$1" $# "${2-}")"
      case "$1" in
        --release) release="$value" ;;
        --namespace) namespace="$value" ;;
        --context) context=("--context=$value") ;;
        --host) host="$value" ;;
        --env-file) env_file="$value" ;;
        --flyte-config) flyte_config="$value" ;;
      esac
      shift
      ;;
    --force) force=true ;;
    --dry-run) dry_run=true ;;
    -h | --help)
      echo "$HELP"
      exit 0
      ;;
    *) fail "unknown argument '$1': see --help." 2 ;;
  esac
  shift
done

# Endpoints of the chart's `gateway.endpoints` by variable of the contract.
readonly OPENED="SEMR_OBJECT_STORE_ENDPOINT=s3
SEMR_MLFLOW_URI=mlflow
SEMR_RAY_DASHBOARD_URL=ray
SEMR_SERVE_URL=serve
SEMR_SERVE_API_URL=ray-serving
SEMR_PROMETHEUS_URL=prometheus
SEMR_EVOLUTION_URL=evolution
SEMR_FLYTE_ENDPOINT=flyte-grpc"

ask() {
  "$kubectl" ${context[@]+"${context[@]}"} --namespace "$namespace" "$@"
}

refuse_to_replace() {
  if [[ -e "$1" ]] && ! $force; then
    fail "$1 is there already: name another file, or replace it with --force." 2
  fi
}

# Port of a node for an endpoint of the chart; nothing when it is not opened.
node_port() {
  ask get service "$release-$1-nodeport" --ignore-not-found --output 'jsonpath={.spec.ports[0].nodePort}'
}

# The pairs of a ConfigMap or Secret as lines KEY=VALUE; $3 is a function of Go's templates for the values.
pairs_of() {
  ask get "$1" "$2" --ignore-not-found \
    --output "go-template={{range \$key, \$value := .data}}{{\$key}}={{\$value$3}}{{\"\\n\"}}{{end}}"
}

# The contract, addresses as seen from here.
contract() {
  local key value port endpoint
  pairs_of configmap "$release-contract" "" |
    while IFS='=' read -r key value; do
      endpoint="$(sed -n "s/^$key=//p" <<<"$OPENED")"
      if [[ -n "$host" && -n "$endpoint" && "$value" == *".svc"* ]]; then
        port="$(node_port "$endpoint")"
        if [[ -z "$port" ]]; then
          warn "$key stays $value, an address inside the cluster: gateway.endpoints.$endpoint is not opened by a NodePort."
        elif [[ "$value" == *://* ]]; then
          value="${value%%://*}://$host:$port"
        else
          value="$host:$port"
        fi
      fi
      echo "$key=$value"
    done
  pairs_of secret "$release-contract" " | base64decode"
}

# Written beside the file and moved: nobody sees half of it, and nobody else may read it.
write() {
  local file="$1" new
  if $dry_run; then
    cat >/dev/null
    echo "would write: $file"
    return
  fi
  mkdir -p "$(dirname "$file")"
  new="$(mktemp "$file.XXXXXX")"
  cat >"$new"
  mv -f "$new" "$file"
  say "$file is written"
}

flyte_configuration() {
  local endpoint="$1" insecure=true
  [[ "$endpoint" != https://* ]] || insecure=false
  cat <<YAML
# Written by SEMR's cluster-client.sh for release $release in namespace $namespace.
admin:
  endpoint: dns:///${endpoint#*://}
  insecure: $insecure
  authType: Pkce
YAML
}

if [[ ! -e "$scripts/../.venv/bin/python" ]]; then
  if $dry_run; then
    echo "would install: semr with the extra 'workflows' into .venv"
  else
    uv="$("$scripts/find-uv.sh")"
    say "installing semr with what workflows need into .venv"
    (
      cd "$scripts/.."
      "$uv" venv --quiet --python '>=3.10,<3.13' .venv
      "$uv" pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[workflows]'
    ) || fail "semr could not be installed: see the message above."
  fi
fi
refuse_to_replace "$env_file"
refuse_to_replace "$flyte_config"
kubectl="$("$scripts/find-kubectl.sh")"
helm="$("$scripts/find-helm.sh")"
say "kubectl is $kubectl, helm is $helm"
ask get configmap "$release-contract" --output name >/dev/null ||
  fail "there is no release $release of the chart semr in namespace $namespace, or the cluster does not answer: see kubectl's \
message above, and --release, --namespace, --context."
pairs="$(contract)"
write "$env_file" <<<"$pairs"
endpoint="$(sed -n 's/^SEMR_FLYTE_ENDPOINT=//p' <<<"$pairs")"
if [[ -n "$endpoint" ]]; then
  flyte_configuration "$endpoint" | write "$flyte_config"
else
  say "the release has no Flyte, so $flyte_config is not written."
fi
say "use it by: export SEMR_ENV_FILE=$(realpath "$env_file" 2>/dev/null || echo "$env_file")"
