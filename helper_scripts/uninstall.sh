#!/usr/bin/env bash
# Removes SEMR from a cluster: the release of the chart, and the releases of models that it serves. Nothing else.
set -euo pipefail

readonly HELP="Usage: uninstall.sh [--release NAME] [--namespace NAME] [--context NAME] [--purge] [--yes] [--dry-run] [--help]

Lists what of SEMR is in one namespace, asks, and removes it: the releases of the chart semr-inference, the Ray clusters, and the
release of the chart semr. Volumes and generated credentials stay, and a new installation of the same name takes them up again.

  --release NAME     of the chart semr; default: semr
  --namespace NAME   default: semr
  --context NAME     of kubectl and helm; default: the current one
  --purge            remove volumes and generated credentials too: all data are lost
  --yes              do not ask
  --dry-run          list what would be removed, change nothing
  --help             this text

Never removed: namespaces, other releases, the definitions of resource types (CRDs), which other releases may use, and the
cluster itself (MicroK8s: 'sudo snap remove microk8s --purge'; K3s: k3s-uninstall.sh; kind: 'kind delete cluster').
Exit codes: 0 removed, or there was nothing; 1 something failed or was refused; 2 wrong arguments."

readonly WAIT=300s
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts
# shellcheck source=cluster-lib.sh
. "$scripts/cluster-lib.sh"

release=semr
namespace=semr
kube_context=()
helm_context=()
purge=false
yes=false
while [[ $# -gt 0 ]]; do
  case "$1" in
    --release | --namespace | --context)
      value="$(value_of "$1" $# "${2-}")"
      case "$1" in
        --release) release="$value" ;;
        --namespace) namespace="$value" ;;
        --context)
          kube_context=("--context=$value")
          helm_context=("--kube-context=$value")
          ;;
      esac
      shift
      ;;
    --purge) purge=true ;;
    --yes) yes=true ;;
    --dry-run) dry_run=true ;;
    -h | --help)
      echo "$HELP"
      exit 0
      ;;
    *) fail "unknown argument '$1': see --help." 2 ;;
  esac
  shift
done

kubectl="$("$scripts/find-kubectl.sh")"
helm="$("$scripts/find-helm.sh")"
readonly mine="app.kubernetes.io/instance=$release,app.kubernetes.io/part-of=semr"

kube() {
  "$kubectl" ${kube_context[@]+"${kube_context[@]}"} --namespace "$namespace" "$@"
}

helms() {
  "$helm" ${helm_context[@]+"${helm_context[@]}"} --namespace "$namespace" "$@"
}

# Names of the releases in the namespace whose chart is CHART; "semr" is not "semr-inference".
releases_of() {
  awk -v chart="$1" 'NR > 1 {
    for (field = 2; field <= NF; field++) if ($field ~ "^" chart "-[0-9][^ ]*$") {print $1; break}
  }' <<<"$releases"
}

# Objects of a kind that are the release's own, as kind/name; a kind that the cluster does not know has none.
objects() {
  kube get "$1" --selector "$mine" --ignore-not-found --output name 2>/dev/null || true
}

list() {
  local each
  while read -r each; do
    [[ -z "$each" ]] || echo "  $1 $each"
  done <<<"$2"
}

kube get namespace "$namespace" --ignore-not-found --output name >/dev/null ||
  fail "the cluster does not answer: see kubectl's message above, and --context."
releases="$(helms list --all 2>/dev/null || helms list)" || fail "helm cannot list the releases: see its message above."
models="$(releases_of semr-inference)"
main="$(releases_of semr | grep -x "$release" || true)"
# A name that is mistyped must not cost the models of another one.
others="$(releases_of semr)"
if [[ -z "$main" && -n "$others" ]]; then
  fail "there is no release $release of SEMR in namespace $namespace, but ${others//$'\n'/, }: name it with --release."
fi
clusters=""
if [[ -n "$main" ]]; then
  clusters="$(objects rayservices.ray.io)
$(objects rayclusters.ray.io)"
fi
kept="$(objects persistentvolumeclaim)
$(objects secret)"

if [[ -z "$models$main" ]] && { ! $purge || [[ -z "${kept//[[:space:]]/}" ]]; }; then
  say "there is no release $release of SEMR in namespace $namespace: nothing is removed."
  exit 0
fi
say "this is removed from namespace $namespace:"
list "release" "$models"
list "" "$clusters"
list "release" "$main"
if $purge; then
  list "with its data" "$kept"
else
  say "this stays (--purge removes it too):"
  list "" "$kept"
fi
if $dry_run; then
  exit 0
fi
if ! $yes; then
  read -r -p "Remove it? [y/N] " answer || answer=""
  [[ "$answer" =~ ^[yY]([eE][sS])?$ ]] || fail "nothing is removed."
fi

for model in $models; do
  helms uninstall "$model" --wait || fail "the release $model could not be removed: see helm's message above."
done
if [[ -n "$main" ]]; then
  # Before their operator, which may be part of the release: without it nobody would clean up after them.
  for kind in rayservices.ray.io rayclusters.ray.io; do
    if [[ -n "$(objects "$kind")" ]]; then
      kube delete "$kind" --selector "$mine" --ignore-not-found --wait "--timeout=$WAIT" ||
        fail "the Ray clusters are not gone after $WAIT: is the KubeRay operator running? Then run this again."
    fi
  done
  helms uninstall "$release" --wait "--timeout=$WAIT" ||
    fail "the release $release could not be removed: see helm's message above."
fi
if $purge; then
  kube delete persistentvolumeclaim,secret --selector "$mine" --ignore-not-found ||
    fail "volumes or credentials could not be removed: see kubectl's message above."
fi
say "done. The namespace is left; if it is empty: kubectl delete namespace $namespace"
