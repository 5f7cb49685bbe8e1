#!/usr/bin/env bats

load helpers

setup() {
  make_machine
  stand_in uname 'case "$1" in -m) echo aarch64 ;; *) echo Linux ;; esac'
  stand_in snap 'case "$1" in list) exit 1 ;; esac'
  stand_in microk8s
  stand_in apt-get
  CMDLINE="$BATS_TEST_TMPDIR/cmdline.txt"
  echo 'console=tty1 root=PARTUUID=1-2 rootwait ' >"$CMDLINE"
  printf '#subsys_name hierarchy num_cgroups enabled\nmemory 0 1 1\n' >"$BATS_TEST_TMPDIR/cgroups"
  printf 'ID=debian\n' >"$BATS_TEST_TMPDIR/os-release"
  export SEMR_CGROUPS="$BATS_TEST_TMPDIR/cgroups" SEMR_OS_RELEASE="$BATS_TEST_TMPDIR/os-release" CMDLINE
}

@test "the memory flags are added once, to the one line, and the old file is kept" {
  for _ in 1 2; do
    run_script rasp-install.sh --cmdline "$CMDLINE"
    status_is 0
    [[ "$(cat "$CMDLINE")" == 'console=tty1 root=PARTUUID=1-2 rootwait cgroup_enable=memory cgroup_memory=1' ]]
    [[ "$(cat "$CMDLINE.before-semr")" == 'console=tty1 root=PARTUUID=1-2 rootwait ' ]]
  done
  called "snap install microk8s --classic --channel=1.35/stable"
}

@test "while the group is off it says to start anew, with exit code 3, and installs nothing" {
  [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || skip "this machine has control groups v2, whose list of controllers is looked at first"
  printf 'memory 0 1 0\n' >"$SEMR_CGROUPS"
  run_script rasp-install.sh --cmdline "$CMDLINE"
  status_is 3
  says "sudo reboot"
  never_called 'snap install'
}

@test "it joins as a worker, or says how to" {
  run_script rasp-install.sh --cmdline "$CMDLINE"
  status_is 0
  says "microk8s add-node"
  never_called 'microk8s join'
  run_script rasp-install.sh --cmdline "$CMDLINE" --join 10.0.0.1:25000/0a1b/2c3d
  status_is 0
  called "microk8s join 10.0.0.1:25000/0a1b/2c3d --worker"
}

@test "an address that cannot be one, a 32-bit system and a missing command line are refused" {
  run_script rasp-install.sh --cmdline "$CMDLINE" --join 10.0.0.1
  status_is 2
  says "HOST:25000/TOKEN"
  run_script rasp-install.sh --cmdline /nowhere/cmdline.txt
  status_is 1
  says "name it with --cmdline"
  stand_in uname 'case "$1" in -m) echo armv7l ;; *) echo Linux ;; esac'
  run_script rasp-install.sh --cmdline "$CMDLINE"
  status_is 1
  says "64-bit"
}

@test "Ubuntu gets its extra kernel modules" {
  printf 'NAME=Ubuntu\nID=ubuntu\n' >"$SEMR_OS_RELEASE"
  stand_in apt-cache
  stand_in dpkg 'exit 1'
  run_script rasp-install.sh --cmdline "$CMDLINE"
  status_is 0
  called "apt-get install --yes --no-install-recommends linux-modules-extra-raspi"
}

@test "--dry-run changes no file and installs nothing" {
  run_script rasp-install.sh --cmdline "$CMDLINE" --dry-run
  status_is 0
  says "would run: sed -i"
  [[ "$(cat "$CMDLINE")" == 'console=tty1 root=PARTUUID=1-2 rootwait ' ]]
  never_called 'snap install|^microk8s'
}
