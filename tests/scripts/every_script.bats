#!/usr/bin/env bats
# What holds for every script that installs or removes something.

load helpers

readonly ALL=(system-install.sh k3s-install.sh kind-up.sh rasp-install.sh uninstall.sh cluster-client.sh env-prepare.sh
  find-kubectl.sh)

setup() {
  make_machine
}

@test "--help prints the usage" {
  for script in "${ALL[@]}"; do
    run_script "$script" --help
    status_is 0
    says "Usage: $script"
  done
}

@test "an unknown argument is refused with exit code 2 and changes nothing" {
  for script in "${ALL[@]}"; do
    run_script "$script" --nonsense
    status_is 2
    says "unknown argument '--nonsense'"
  done
  [[ ! -s "$CALLS" ]]
}

@test "an option without its value is refused with exit code 2" {
  for option in "system-install.sh --channel" "k3s-install.sh --join" "kind-up.sh --name" "rasp-install.sh --join" \
    "uninstall.sh --release" "cluster-client.sh --host"; do
    # shellcheck disable=SC2086 # script and option
    run_script $option
    status_is 2
    says "needs a value"
  done
}

@test "installers for Linux refuse another system" {
  stand_in uname 'echo Darwin'
  for script in system-install.sh k3s-install.sh rasp-install.sh; do
    run_script "$script"
    status_is 1
    says "and this is Darwin"
  done
}

@test "installers refuse to run without root and sudo" {
  ordinary_user
  rm "$BIN/sudo"
  stand_in uname 'case "$1" in -m) echo aarch64 ;; *) echo Linux ;; esac'
  echo quiet >"$BATS_TEST_TMPDIR/cmdline.txt"
  for script in system-install.sh k3s-install.sh "rasp-install.sh --cmdline $BATS_TEST_TMPDIR/cmdline.txt"; do
    # shellcheck disable=SC2086 # script and option
    run_script $script
    status_is 1
    says "there is no sudo"
  done
}

@test "installers say when sudo refuses" {
  ordinary_user 'exit 1'
  run_script system-install.sh
  status_is 1
  says "sudo refuses"
}
