#!/usr/bin/env bash
# A Kubernetes cluster in containers on this machine, to try the chart: kind.
set -euo pipefail

readonly HELP="Usage: kind-up.sh [--name NAME] [--image IMAGE] [--load IMAGE]... [--dry-run] [--help]

Makes a cluster of one node with kind, in which the NodePorts of values_example.yaml are opened on localhost, and waits until
it is ready. Needs kind, kubectl, and docker or podman.

  --name NAME     of the cluster; default: semr
  --image IMAGE   of the node, such as kindest/node:v1.34.0; default: that of the installed kind
  --load IMAGE    bring an image of this machine into the cluster, such as one of docker_build/; may be given several times
  --dry-run       print what would be run, change nothing
  --help          this text

A cluster of that name that is there is used as it is. 'kind delete cluster --name NAME' removes it.
Exit codes: 0 the cluster is ready, 1 something failed, 2 wrong arguments. Next: helm install, with
--set general.host=localhost, as in README.md."

readonly READY_SECONDS=300
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"

name=semr
image=()
loaded=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name)
      name="$(value_of "$1" $# "${2-}")"
      shift
      ;;
    --image)
      image=("--image=$(value_of "$1" $# "${2-}")")
      shift
      ;;
    --load)
      loaded+=("$(value_of "$1" $# "${2-}")")
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

has kind || fail "kind is missing: get it as https://kind.sigs.k8s.io/docs/user/quick-start/#installation says."
has kubectl || fail "kubectl is missing: get it as https://kubernetes.io/docs/tasks/tools/ says."
has docker || has podman || fail "neither docker nor podman is here, and kind needs one of them."
if has docker; then
  docker info >/dev/null 2>&1 || fail "docker does not answer: start it, or check that this user may use it."
fi
check_size

if kind get clusters 2>/dev/null | grep -qx "$name"; then
  say "there is a cluster $name, which is used as it is."
else
  say "making the cluster $name"
  run kind create cluster --name "$name" --config "$scripts/kind-cluster.yaml" --wait "${READY_SECONDS}s" \
    ${image[@]+"${image[@]}"} ||
    fail "kind could not make the cluster: see its messages above. A port that is taken is one of kind-cluster.yaml."
fi
for each in ${loaded[@]+"${loaded[@]}"}; do
  run kind load docker-image "$each" --name "$name" || fail "the image $each could not be brought into the cluster."
done
run kubectl --context "kind-$name" wait --for=condition=Ready node --all "--timeout=${READY_SECONDS}s" ||
  fail "the node is not ready after $READY_SECONDS s: 'kubectl --context kind-$name describe nodes' says why."
say "the cluster is ready; kubectl's context is kind-$name. It has no metrics-server: autoscalers that look at the CPU need one."
