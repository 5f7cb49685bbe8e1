#!/usr/bin/env bats
# The playbooks: syntax, ansible-lint, check mode, and runs against a stand-in for MicroK8s on this machine.

load helpers

readonly PLAYBOOKS="$BATS_TEST_DIRNAME/../../helper_scripts/microk8s_ansible"

setup() {
  command -v ansible-playbook >/dev/null || skip "no ansible-playbook: apt-get install ansible"
  export CALLS="$BATS_TEST_TMPDIR/calls" ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_HOME="$BATS_TEST_TMPDIR/ansible"
  export ANSIBLE_LOCAL_TEMP="$BATS_TEST_TMPDIR/local" ANSIBLE_REMOTE_TEMP="$BATS_TEST_TMPDIR/remote"
  : >"$CALLS"
  cat >"$BATS_TEST_TMPDIR/inventory.yaml" <<'YAML'
all:
  vars: {ansible_connection: local, ansible_become: false, ansible_python_interpreter: /usr/bin/python3}
  children:
    servers: {hosts: {node-1: }}
    workers: {hosts: {node-2: }}
YAML
  cat >"$BATS_TEST_TMPDIR/microk8s" <<'SH'
#!/bin/bash
echo "microk8s $*" >>"$CALLS"
case "$*" in
  "status --addon dns") echo enabled ;;
  "status --addon "*) echo disabled ;;
  "kubectl get nodes --output name") echo node/elsewhere ;;
  "kubectl get storageclass"*) echo storageclass.storage.k8s.io/microk8s-hostpath ;;
  "add-node --format json") echo '{"token": "0a/1b", "urls": ["10.0.0.1:25000/0a/1b"]}' ;;
esac
SH
  chmod +x "$BATS_TEST_TMPDIR/microk8s"
}

play() {
  cd "$PLAYBOOKS" || return 1
  run ansible-playbook --inventory "$BATS_TEST_TMPDIR/inventory.yaml" \
    --extra-vars "microk8s_command=$BATS_TEST_TMPDIR/microk8s" "$@"
}

@test "the syntax of every playbook, with the inventory that is the example" {
  cd "$PLAYBOOKS"
  for playbook in site install join addons health remove; do
    run ansible-playbook --inventory inventory.example.yaml --syntax-check "$playbook.yaml"
    status_is 0
  done
}

@test "ansible-lint has nothing to say" {
  command -v ansible-lint >/dev/null || skip "no ansible-lint: apt-get install ansible-lint"
  cd "$PLAYBOOKS"
  run ansible-lint --offline -p .
  status_is 0
}

@test "addons: those that are missing are enabled" {
  play addons.yaml
  status_is 0
  diff - <(grep enable "$CALLS") <<'CALLS'
microk8s enable hostpath-storage
microk8s enable metrics-server
microk8s enable ingress
CALLS
}

@test "check mode of addons and join changes nothing" {
  play --check addons.yaml
  status_is 0
  play --check join.yaml
  status_is 0
  never_called 'enable|add-node|join'
}

@test "join: workers join the first server once, as workers; the server does not" {
  play join.yaml
  status_is 0
  diff - <(grep -E 'add-node|join' "$CALLS") <<'CALLS'
microk8s add-node --format json
microk8s join 10.0.0.1:25000/0a/1b --worker
CALLS
  [[ "$output" != *0a/1b* ]]
}

@test "a node that is in the cluster does not join again" {
  sed -i "s#echo node/elsewhere#echo node/$(uname -n | cut -d . -f 1 | tr '[:upper:]' '[:lower:]')#" "$BATS_TEST_TMPDIR/microk8s"
  play join.yaml
  status_is 0
  never_called 'add-node|join'
}

@test "health: a cluster without storage is not well" {
  play health.yaml
  status_is 0
  sed -i '/storageclass/d' "$BATS_TEST_TMPDIR/microk8s"
  play health.yaml
  status_is 2
  says "No StorageClass"
}

@test "remove wants to be told so" {
  play remove.yaml
  status_is 2
  says "remove_all_data=yes"
}

@test "Raspberry Pis: the flags are added once" {
  echo 'console=tty1 rootwait' >"$BATS_TEST_TMPDIR/cmdline.txt"
  cat >"$BATS_TEST_TMPDIR/pi.yaml" <<YAML
- hosts: workers
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: $(realpath "$PLAYBOOKS")/tasks/raspberry-pi.yaml
  handlers:
    - name: Start it anew
      ansible.builtin.debug: {msg: started anew}
YAML
  play --extra-vars "{raspberry_pi_cmdline_files: [/nowhere, $BATS_TEST_TMPDIR/cmdline.txt]}" "$BATS_TEST_TMPDIR/pi.yaml"
  status_is 0
  says "started anew"
  [[ "$(cat "$BATS_TEST_TMPDIR/cmdline.txt")" == 'console=tty1 rootwait cgroup_enable=memory cgroup_memory=1' ]]
  play --extra-vars "{raspberry_pi_cmdline_files: [$BATS_TEST_TMPDIR/cmdline.txt]}" "$BATS_TEST_TMPDIR/pi.yaml"
  status_is 0
  [[ "$output" != *"started anew"* ]]
}
