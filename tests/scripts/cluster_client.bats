#!/usr/bin/env bats
# The contract of a release, as kubectl gives it; kubectl's own templates do the work where there is a kubectl to ask.

load helpers

setup() {
  make_machine
  stand_in helm 'echo v4.1.4'
  # .venv counts as there: what is installed into it is not what is looked at here.
  mkdir -p "$BATS_TEST_TMPDIR/checkout/.venv/bin"
  cp -r "$SCRIPTS" "$BATS_TEST_TMPDIR/checkout/helper_scripts"
  touch "$BATS_TEST_TMPDIR/checkout/.venv/bin/python"
  CLIENT="$BATS_TEST_TMPDIR/checkout/helper_scripts/env-prepare.sh"
  cat >"$BATS_TEST_TMPDIR/configmap.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: semr-contract}
data:
  SEMR_MLFLOW_URI: http://semr-mlflow.ml.svc.cluster.local:5000
  SEMR_SERVE_URL: http://semr-ray-head-svc.ml.svc.cluster.local:8000
  SEMR_FLYTE_ENDPOINT: semr-flyte-binary-grpc.ml.svc.cluster.local:8089
  SEMR_FLYTE_DOMAIN: development
YAML
  cat >"$BATS_TEST_TMPDIR/secret.yaml" <<'YAML'
apiVersion: v1
kind: Secret
metadata: {name: semr-contract}
data:
  SEMR_EVOLUTION_TOKEN: dG9rZW4=
YAML
  REAL="$(command -v kubectl || echo "${SEMR_TEST_KUBECTL-}")"
  export REAL
  # The template is worked out by a real kubectl, without a cluster.
  stand_in kubectl 'case "$*" in
    *"get service semr-mlflow-nodeport"*) echo 31007 ;;
    *"get service semr-flyte-grpc-nodeport"*) echo 31081 ;;
    *"get configmap semr-contract"*go-template*) "$REAL" annotate --local --filename "$BATS_TEST_TMPDIR/configmap.yaml" a=b "${@: -2}" ;;
    *"get secret semr-contract"*go-template*) "$REAL" annotate --local --filename "$BATS_TEST_TMPDIR/secret.yaml" a=b "${@: -2}" ;;
  esac'
}

client() {
  PATH="$BIN" run "$CLIENT" --cluster --env-file "$BATS_TEST_TMPDIR/env" --flyte-config "$BATS_TEST_TMPDIR/flyte/config.yaml" "$@"
}

needs_kubectl() {
  [[ -n "$REAL" ]] || skip "no kubectl: its templates cannot be worked out"
}

@test "the contract as the cluster has it, and only its owner reads it" {
  needs_kubectl
  client
  status_is 0
  diff - "$BATS_TEST_TMPDIR/env" <<'ENV'
SEMR_FLYTE_DOMAIN=development
SEMR_FLYTE_ENDPOINT=semr-flyte-binary-grpc.ml.svc.cluster.local:8089
SEMR_MLFLOW_URI=http://semr-mlflow.ml.svc.cluster.local:5000
SEMR_SERVE_URL=http://semr-ray-head-svc.ml.svc.cluster.local:8000
SEMR_EVOLUTION_TOKEN=token
ENV
  [[ "$(stat --format %a "$BATS_TEST_TMPDIR/env")" == 600 ]]
}

@test "--host: what a NodePort opens is reached there, the rest is named" {
  needs_kubectl
  client --host node.example.org --context lab --namespace ml
  status_is 0
  grep -qx 'SEMR_MLFLOW_URI=http://node.example.org:31007' "$BATS_TEST_TMPDIR/env"
  grep -qx 'SEMR_FLYTE_ENDPOINT=node.example.org:31081' "$BATS_TEST_TMPDIR/env"
  says "SEMR_SERVE_URL stays http://semr-ray-head-svc.ml.svc.cluster.local:8000"
  says "gateway.endpoints.serve is not opened"
  grep -qx '  endpoint: dns:///node.example.org:31081' "$BATS_TEST_TMPDIR/flyte/config.yaml"
  grep -qx '  insecure: true' "$BATS_TEST_TMPDIR/flyte/config.yaml"
  grep -q '^kubectl --context=lab --namespace ml get configmap' "$CALLS"
}

@test "a file that is there is replaced only with --force" {
  needs_kubectl
  echo mine >"$BATS_TEST_TMPDIR/env"
  client
  status_is 2
  says "replace it with --force"
  [[ "$(cat "$BATS_TEST_TMPDIR/env")" == mine ]]
  client --force
  status_is 0
  grep -q SEMR_MLFLOW_URI "$BATS_TEST_TMPDIR/env"
}

@test "--dry-run writes nothing" {
  needs_kubectl
  client --dry-run
  status_is 0
  says "would write: $BATS_TEST_TMPDIR/env"
  [[ ! -e "$BATS_TEST_TMPDIR/env" && ! -e "$BATS_TEST_TMPDIR/flyte" ]]
}

@test "a cluster or release that is not there is named" {
  stand_in kubectl 'case "$*" in "version --client") ;; *) echo "Error from server (NotFound)" >&2; exit 1 ;; esac'
  client
  status_is 1
  says "there is no release semr of the chart semr in namespace semr"
  [[ ! -e "$BATS_TEST_TMPDIR/env" ]]
}
