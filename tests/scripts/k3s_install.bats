#!/usr/bin/env bats

load helpers

setup() {
  make_machine
  # The installer that is "downloaded" records how it is run.
  stand_in curl 'while [[ $# -gt 0 ]]; do [[ "$1" != --output ]] || printf "%s\n" \
    "echo \"installer [\$INSTALL_K3S_CHANNEL] [\${K3S_URL-}] [\${K3S_TOKEN_FILE-}] \$*\" >>\"$CALLS\"" \
    "printf \"#!/bin/bash\\necho k3s \\\$* >>\$CALLS\\n\" >\"$BIN/k3s\"; chmod +x \"$BIN/k3s\"" >"$2"; shift; done'
}

@test "a server, by K3s' own installer" {
  run_script k3s-install.sh --channel v1.34 --without traefik
  status_is 0
  grep -q '^curl .*https://get.k3s.io$' "$CALLS"
  called "installer [v1.34] [] [] server --disable=traefik"
  called "k3s kubectl wait --for=condition=Ready node --all --timeout=300s"
}

@test "a worker: the token's file is named, the token is in no argument" {
  echo secret-token >"$BATS_TEST_TMPDIR/token"
  run_script k3s-install.sh --join https://10.0.0.1:6443 --token-file "$BATS_TEST_TMPDIR/token"
  status_is 0
  called "installer [stable] [https://10.0.0.1:6443] [$(realpath "$BATS_TEST_TMPDIR/token")] agent"
  never_called secret-token
}

@test "--join and --token-file belong together" {
  run_script k3s-install.sh --join https://10.0.0.1:6443
  status_is 2
  says "--join needs --token-file"
  run_script k3s-install.sh --join 10.0.0.1
  status_is 2
  says "needs a URL"
  run_script k3s-install.sh --token-file /nowhere
  status_is 2
  says "cannot be read"
}

@test "running it again installs nothing" {
  stand_in k3s
  run_script k3s-install.sh
  status_is 0
  never_called '^(curl|installer)'
}

@test "--dry-run downloads and runs nothing" {
  run_script k3s-install.sh --dry-run
  status_is 0
  says "would download: https://get.k3s.io"
  says "would run: env INSTALL_K3S_CHANNEL=stable sh INSTALLER server"
  [[ ! -s "$CALLS" ]]
}

@test "no network: the download's failure is named" {
  stand_in curl 'exit 6'
  run_script k3s-install.sh
  status_is 1
  says "https://get.k3s.io could not be downloaded: check the network"
}

@test "a node that does not become ready is named" {
  stand_in k3s 'exit 1'
  run_script k3s-install.sh
  status_is 1
  says "not ready after 300 s"
}
