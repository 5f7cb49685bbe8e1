#!/usr/bin/env bash
# Runs the tests of the scripts, and says when it cannot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v bats >/dev/null; then
  echo "tests/scripts SKIPPED: bats is not installed (helper_scripts/env-prepare.sh --tests, or apt-get install bats)."
  exit 0
fi
# Templates of kubectl are worked out by a real one, which needs no cluster for it.
SEMR_TEST_KUBECTL="$(../../helper_scripts/find-kubectl.sh)" || SEMR_TEST_KUBECTL=""
export SEMR_TEST_KUBECTL
exec bats .
