#!/usr/bin/env bats

load helpers

# Two releases that are SEMR's, and two that are not, of which one is called like it.
RELEASES='NAME            NAMESPACE  REVISION  UPDATED                              STATUS    CHART                  APP VERSION
semr            semr       3         2026-11-20 10:11:12.131415 +0000 UTC deployed  semr-0.1.0             0.1.0
inference-mnist semr       1         2026-11-20 10:11:12.131415 +0000 UTC deployed  semr-inference-0.1.0   0.1.0
semr-website    semr       1         2026-11-20 10:11:12.131415 +0000 UTC deployed  nginx-1.2.3            1.2
postgres        semr       1         2026-11-20 10:11:12.131415 +0000 UTC deployed  postgresql-16.0.0      16'

setup() {
  make_machine
  export RELEASES
  # Both helm 3, whose list wants --all, and helm 4, which refuses it.
  stand_in helm 'case "$*" in
    version*) echo v4.1.4 ;;
    *"list --all") exit 1 ;;
    *list) echo "$RELEASES" ;;
  esac'
  stand_in kubectl 'case "$*" in
    *"get rayservices.ray.io"*) echo rayservice.ray.io/semr-serving ;;
    *"get rayclusters.ray.io"*) echo raycluster.ray.io/semr-ray ;;
    *"get persistentvolumeclaim"*) echo persistentvolumeclaim/semr-minio ;;
    *"get secret"*) echo secret/semr-contract ;;
  esac'
}

changed() {
  grep -E '(uninstall|delete)' "$CALLS"
}

@test "it removes SEMR's releases and Ray clusters, in this order, and nothing else" {
  run_script uninstall.sh --yes
  status_is 0
  diff - <(changed) <<'CALLS'
helm --namespace semr uninstall inference-mnist --wait
kubectl --namespace semr delete rayservices.ray.io --selector app.kubernetes.io/instance=semr,app.kubernetes.io/part-of=semr --ignore-not-found --wait --timeout=300s
kubectl --namespace semr delete rayclusters.ray.io --selector app.kubernetes.io/instance=semr,app.kubernetes.io/part-of=semr --ignore-not-found --wait --timeout=300s
helm --namespace semr uninstall semr --wait --timeout=300s
CALLS
}

@test "it lists first, and asks" {
  run_script uninstall.sh </dev/null
  status_is 1
  says "release inference-mnist"
  says "raycluster.ray.io/semr-ray"
  says "release semr"
  says "this stays"
  says "persistentvolumeclaim/semr-minio"
  says "nothing is removed"
  run changed
  [[ -z "$output" ]]
}

@test "an answer of yes removes, any other does not" {
  run_script uninstall.sh <<<"maybe"
  status_is 1
  run changed
  [[ -z "$output" ]]
  run_script uninstall.sh <<<"y"
  status_is 0
  called "helm --namespace semr uninstall semr --wait --timeout=300s"
}

@test "volumes and credentials go only with --purge, and only the release's own" {
  run_script uninstall.sh --yes
  never_called 'delete persistentvolumeclaim'
  run_script uninstall.sh --yes --purge
  status_is 0
  called "kubectl --namespace semr delete persistentvolumeclaim,secret --selector app.kubernetes.io/instance=semr,app.kubernetes.io/part-of=semr --ignore-not-found"
}

@test "no namespace and no definition of a resource type is ever removed" {
  run_script uninstall.sh --yes --purge
  never_called 'delete (namespace|ns|crd|customresourcedefinition)'
  never_called 'delete .*--all'
}

@test "--dry-run lists and removes nothing" {
  run_script uninstall.sh --dry-run --purge --yes
  status_is 0
  says "with its data persistentvolumeclaim/semr-minio"
  run changed
  [[ -z "$output" ]]
}

@test "without a release of SEMR nothing is removed" {
  export RELEASES="${RELEASES%%$'\n'*}"
  run_script uninstall.sh --yes
  status_is 0
  says "nothing is removed"
  run changed
  [[ -z "$output" ]]
}

@test "a release of that name which is another chart's stays, and so do the models of SEMR's" {
  run_script uninstall.sh --yes --release postgres
  status_is 1
  says "there is no release postgres of SEMR in namespace semr, but semr"
  run changed
  [[ -z "$output" ]]
}

@test "context and namespace reach kubectl and helm" {
  run_script uninstall.sh --yes --namespace ml --context lab
  status_is 0
  called "helm --kube-context=lab --namespace ml uninstall semr --wait --timeout=300s"
  grep -q '^kubectl --context=lab --namespace ml delete' "$CALLS"
}

@test "a cluster that does not answer is named" {
  stand_in kubectl 'case "$*" in "version --client") ;; *) exit 1 ;; esac'
  run_script uninstall.sh --yes
  status_is 1
  says "the cluster does not answer"
}

@test "Ray clusters that do not go are named, and the release stays for another try" {
  stand_in kubectl 'case "$*" in *delete*) exit 1 ;; *"get rayservices.ray.io"*) echo rayservice.ray.io/semr-serving ;; esac'
  run_script uninstall.sh --yes
  status_is 1
  says "is the KubeRay operator running"
  never_called 'uninstall semr'
}
