#!/usr/bin/env bash
# Fetches the charts that the SEMR chart depends on (KubeRay operator, Flyte, kube-prometheus-stack) into its folder charts/.
set -euo pipefail

readonly HELP="Usage: chart-deps.sh [--help] [CHART]

Downloads the dependencies of CHART (default: helm_charts/SEMR) in the versions that its Chart.yaml names. Run it once after
a checkout and before 'helm install'; a packaged chart holds them already. Needs helm and the network."

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
chart="$scripts/../helm_charts/SEMR"

fail() {
  echo "chart-deps: $1" >&2
  exit "${2:-1}"
}

case "${1-}" in
  "") ;;
  -h | --help)
    echo "$HELP"
    exit 0
    ;;
  -*) fail "unknown argument '$1': see --help." 2 ;;
  *) chart="$1" ;;
esac
[[ -f "$chart/Chart.yaml" ]] || fail "$chart is not a chart: there is no Chart.yaml in it." 2
helm="$("$scripts/find-helm.sh")"

# Without a lock file 'build' resolves Chart.yaml, whose versions are exact.
"$helm" dependency build "$chart" ||
  fail "the dependencies could not be downloaded: see helm's messages above, and check that the repositories in \
$chart/Chart.yaml can be reached."
