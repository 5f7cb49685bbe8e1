#!/usr/bin/env bash
# Installs Python packages into an image that is being built; the Dockerfiles beside it call it.
set -euo pipefail

readonly HELP="Usage: install-python.sh dependencies EXTRAS | package | --help

  dependencies EXTRAS   makes /opt/semr, a virtual environment with what semr and these extras of it need (separated by
                        commas or spaces), in the versions of constraints.txt
  package               puts semr itself, built from the working directory, below /package, in the places that it has in
                        the image; dependencies has to be done before

Two secrets of the build are used when they are given: ca-bundle, certificates that the package index is checked with, and
index-env, lines NAME=VALUE such as UV_DEFAULT_INDEX=https://user:password@index.example.org/simple.
TORCH_BACKEND says which build of PyTorch is taken (cpu, cu130, ...; empty: that of the index)."

readonly ENVIRONMENT=/opt/semr
readonly PACKAGE=/package
readonly TOOLS=/tools
readonly SECRETS=/run/secrets

fail() {
  echo "install-python: $1" >&2
  exit "${2:-1}"
}

read_secrets() {
  if [[ -s "$SECRETS/ca-bundle" ]]; then
    export SSL_CERT_FILE="$SECRETS/ca-bundle" PIP_CERT="$SECRETS/ca-bundle"
  fi
  if [[ -s "$SECRETS/index-env" ]]; then
    set -a
    # shellcheck source=/dev/null
    . "$SECRETS/index-env"
    set +a
  fi
}

install_dependencies() {
  local extra extras=()
  for extra in ${1//,/ }; do
    extras+=(--extra "$extra")
  done
  python3 -m venv "$TOOLS"
  "$TOOLS/bin/pip" install --disable-pip-version-check --quiet --constraint constraints.txt uv
  "$TOOLS/bin/uv" venv --quiet --python "$(command -v python3)" "$ENVIRONMENT"
  if [[ -n "${TORCH_BACKEND-}" ]]; then
    export UV_TORCH_BACKEND="$TORCH_BACKEND"
  fi
  "$TOOLS/bin/uv" pip install --python "$ENVIRONMENT" --link-mode copy --compile-bytecode \
    --constraint constraints.txt --requirements pyproject.toml "${extras[@]}"
}

install_package() {
  local site
  site="$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  mkdir -p "$PACKAGE$site" "$PACKAGE$ENVIRONMENT"
  "$TOOLS/bin/uv" pip install --python "$ENVIRONMENT" --link-mode copy --compile-bytecode --no-deps \
    --target "$PACKAGE$site" .
  mv "$PACKAGE$site/bin" "$PACKAGE$ENVIRONMENT/bin"
}

case "${1-}" in
  dependencies)
    [[ $# -eq 2 ]] || fail "dependencies takes one argument, the extras: see --help." 2
    read_secrets
    install_dependencies "$2"
    ;;
  package)
    read_secrets
    install_package
    ;;
  -h | --help) echo "$HELP" ;;
  *) fail "unknown argument '${1-}': see --help." 2 ;;
esac
