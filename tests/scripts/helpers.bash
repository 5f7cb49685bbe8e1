# A machine for the scripts: a PATH with the basic tools and what a test puts there. Every call of a stand-in is recorded.

readonly ROOT="$BATS_TEST_DIRNAME/../.."
readonly SCRIPTS="$ROOT/helper_scripts"
# Those that change nothing outside the files they are given.
readonly TOOLS=(awk base64 basename bash cat chmod cp cut dirname env false grep head install ln ls mkdir mktemp mv realpath rm
  sed sh sleep tail tr true)

make_machine() {
  BIN="$BATS_TEST_TMPDIR/bin"
  CALLS="$BATS_TEST_TMPDIR/calls"
  HOME="$BATS_TEST_TMPDIR/home"
  export BIN CALLS HOME
  unset XDG_CACHE_HOME KUBECONFIG SUDO_USER
  mkdir -p "$BIN" "$HOME"
  : >"$CALLS"
  for tool in "${TOOLS[@]}"; do
    ln -s "$(command -v "$tool")" "$BIN/$tool"
  done
  stand_in uname 'case "$1" in -m) echo x86_64 ;; *) echo Linux ;; esac'
  stand_in id 'case "$*" in -un*) echo root ;; -u*) echo 0 ;; -nG*) echo root ;; esac'
  stand_in getconf 'echo 16'
  printf 'MemTotal:       65000000 kB\n' >"$BATS_TEST_TMPDIR/meminfo"
  export SEMR_MEMINFO="$BATS_TEST_TMPDIR/meminfo"
}

# A command that is recorded and then does what BODY says; the basic tools of a look at the machine are not worth a record.
stand_in() {
  local name="$1" body="${2-exit 0}" record='echo "${0##*/} $*" >>"$CALLS"'
  case "$name" in uname | id | getconf) record="" ;; esac
  rm -f "$BIN/$name"
  printf '#!/bin/bash\n%s\n%s\n' "$record" "$body" >"$BIN/$name"
  chmod +x "$BIN/$name"
}

# A person who is not root; what sudo is given is recorded and run.
ordinary_user() {
  stand_in id 'case "$*" in -un*) echo ada ;; -u*) echo 1000 ;; -nG*) echo ada ;; esac'
  stand_in sudo "${1-[[ \$1 != -* ]] || shift; [[ \$# -eq 0 ]] || \"\$@\"}"
}

run_script() {
  local script="$1"
  shift
  PATH="$BIN" run "$SCRIPTS/$script" "$@"
}

called() {
  grep -qxF -- "$1" "$CALLS" || {
    echo "not called: $1"
    echo "called:"
    cat "$CALLS"
    return 1
  }
}

never_called() {
  if grep -qE -- "$1" "$CALLS"; then
    echo "called, though it must not be: $1"
    cat "$CALLS"
    return 1
  fi
}

status_is() {
  [[ "$status" -eq "$1" ]] || {
    echo "exit code $status in place of $1:"
    echo "$output"
    return 1
  }
}

says() {
  [[ "$output" == *"$1"* ]] || {
    echo "does not say: $1"
    echo "$output"
    return 1
  }
}
