#!/usr/bin/env bats

load helpers

setup() {
  make_machine
  stand_in kind
  stand_in kubectl
  stand_in docker
}

@test "a cluster with the NodePorts of values_example.yaml" {
  run_script kind-up.sh
  status_is 0
  called "kind create cluster --name semr --config $(cd "$SCRIPTS" && pwd)/kind-cluster.yaml --wait 300s"
  called "kubectl --context kind-semr wait --for=condition=Ready node --all --timeout=300s"
  diff <(grep -o 'nodePort: [0-9]*' "$ROOT/values_example.yaml" | cut -d ' ' -f 2 | sort) \
    <(grep -o 'hostPort: [0-9]*' "$SCRIPTS/kind-cluster.yaml" | cut -d ' ' -f 2 | sort)
  diff <(grep -o 'containerPort: [0-9]*' "$SCRIPTS/kind-cluster.yaml" | cut -d ' ' -f 2) \
    <(grep -o 'hostPort: [0-9]*' "$SCRIPTS/kind-cluster.yaml" | cut -d ' ' -f 2)
}

@test "a cluster that is there is used, and images are brought in" {
  stand_in kind 'case "$*" in "get clusters") echo lab ;; esac'
  run_script kind-up.sh --name lab --load semr-ray:dev --load semr-flyte-task:dev
  status_is 0
  never_called 'kind create'
  called "kind load docker-image semr-ray:dev --name lab"
  called "kind load docker-image semr-flyte-task:dev --name lab"
}

@test "--dry-run makes nothing" {
  run_script kind-up.sh --dry-run --image kindest/node:v1.34.0
  status_is 0
  says "would run: kind create cluster --name semr"
  says "--image=kindest/node:v1.34.0"
  never_called 'kind (create|load)'
}

@test "what is missing is named" {
  rm "$BIN/docker"
  run_script kind-up.sh
  status_is 1
  says "neither docker nor podman"
  stand_in docker 'exit 1'
  run_script kind-up.sh
  status_is 1
  says "docker does not answer"
  rm "$BIN/kind"
  run_script kind-up.sh
  status_is 1
  says "kind is missing"
}
