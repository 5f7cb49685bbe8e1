#!/usr/bin/env bats

load helpers

setup() {
  make_machine
  stand_in snap 'case "$1" in list) exit 1 ;; esac'
  stand_in microk8s 'case "$*" in
    "status --addon "*) echo disabled ;;
    config) echo "apiVersion: v1" ;;
  esac'
  stand_in usermod
  stand_in chown
}

# Every call has to be of a form that MicroK8s' documentation has.
documented() {
  local call
  while read -r call; do
    grep -v '^#' "$BATS_TEST_DIRNAME/microk8s-commands.txt" | sed 's/  *#.*//' | while read -r form; do
      [[ ! "$call" =~ ^$form$ ]] || echo found
    done | grep -q found || {
      echo "not in the documentation of MicroK8s: $call"
      return 1
    }
  done < <(grep -E '^(snap|microk8s|usermod) ' "$CALLS")
}

@test "a fresh machine gets MicroK8s with the four addons, in this order" {
  run_script system-install.sh --kubeconfig "$BATS_TEST_TMPDIR/config"
  status_is 0
  grep -vE '^microk8s status --addon|^chown' "$CALLS" >"$BATS_TEST_TMPDIR/order"
  diff - "$BATS_TEST_TMPDIR/order" <<'CALLS'
snap list microk8s
snap install microk8s --classic --channel=1.35/stable
microk8s status --wait-ready --timeout 600
microk8s enable dns
microk8s enable hostpath-storage
microk8s enable metrics-server
microk8s enable ingress
microk8s status --wait-ready --timeout 600
microk8s config
microk8s kubectl get nodes
CALLS
  documented
}

@test "running it again installs and enables nothing" {
  stand_in snap
  stand_in microk8s 'case "$*" in "status --addon "*) echo enabled ;; esac'
  run_script system-install.sh
  status_is 0
  never_called 'snap install|microk8s enable|usermod'
  says "installed already"
}

@test "options: channel, without an addon" {
  run_script system-install.sh --channel 1.36/stable --without ingress --without metrics-server
  status_is 0
  called "snap install microk8s --classic --channel=1.36/stable"
  called "microk8s enable dns"
  never_called 'enable (ingress|metrics-server)'
}

@test "an addon that is none is refused" {
  run_script system-install.sh --without gpu
  status_is 2
  says "'gpu' is not one of dns hostpath-storage metrics-server ingress"
}

@test "--dry-run says all commands and changes nothing" {
  run_script system-install.sh --dry-run
  status_is 0
  says "would run: snap install microk8s --classic --channel=1.35/stable"
  says "would run: microk8s enable ingress"
  never_called '^(snap install|microk8s|usermod)'
  says "would run: microk8s config" || says "for access to this cluster"
}

@test "an ordinary user: by sudo, and into the group microk8s" {
  ordinary_user
  run_script system-install.sh --kubeconfig "$BATS_TEST_TMPDIR/config"
  status_is 0
  called "sudo snap install microk8s --classic --channel=1.35/stable"
  called "usermod -a -G microk8s ada"
  says "newgrp microk8s"
  documented
}

@test "access goes to a file that only its owner reads" {
  run_script system-install.sh --kubeconfig "$BATS_TEST_TMPDIR/access/config"
  status_is 0
  [[ "$(stat --format %a "$BATS_TEST_TMPDIR/access/config")" == 600 ]]
  [[ "$(cat "$BATS_TEST_TMPDIR/access/config")" == "apiVersion: v1" ]]
}

@test "a small machine is warned about, and used" {
  stand_in getconf 'echo 4'
  printf 'MemTotal:       7900000 kB\n' >"$SEMR_MEMINFO"
  run_script system-install.sh
  status_is 0
  says "this machine has 4 CPUs and 9 GB" || says "this machine has 4 CPUs and 8 GB"
  says "12 CPUs and 32 GB"
}

@test "a machine that is sold with 32 GB is no small one" {
  stand_in getconf 'echo 12'
  # The kernel of a machine with 32 GiB reports about 31.3.
  printf 'MemTotal:       32790000 kB\n' >"$SEMR_MEMINFO"
  run_script system-install.sh
  status_is 0
  [[ "$output" != *warning* ]]
}

@test "without snapd it is installed; without apt-get it is said" {
  rm "$BIN/snap"
  run_script system-install.sh
  status_is 1
  says "snapd is missing, and there is no apt-get"
  stand_in apt-get 'case "$*" in *"install"*) printf "#!/bin/bash\n[[ \$1 != list ]]\n" >"$BIN/snap"; chmod +x "$BIN/snap" ;; esac'
  run_script system-install.sh
  status_is 0
  called "apt-get install --yes --no-install-recommends snapd"
}

@test "no network: snap's failure is named" {
  stand_in snap 'case "$1" in list) exit 1 ;; *) echo "error: cannot contact the store" >&2; exit 1 ;; esac'
  run_script system-install.sh
  status_is 1
  says "snap could not install MicroK8s"
  never_called 'microk8s enable'
}

@test "a cluster that does not become ready is named" {
  stand_in microk8s 'exit 1'
  run_script system-install.sh
  status_is 1
  says "not ready after 600 s"
  says "microk8s inspect"
}

@test "an addon that fails is named" {
  stand_in microk8s 'case "$*" in "status --addon "*) echo disabled ;; "enable hostpath-storage") exit 1 ;; esac'
  run_script system-install.sh
  status_is 1
  says "the addon hostpath-storage could not be enabled"
}
