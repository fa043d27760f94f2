#!/usr/bin/env bash
# Shows that `./run --offline DIR` builds and trains on a machine that has g++ and cmake only: no
# network, an apt-get that fails, an empty HOME, a fresh copy of the sources. Where this may be done
# (as root) the files that the packages have installed here are hidden in a private overlay of /usr,
# and the CUDA toolkit with them, whose compiler would take longer than all the rest.
#   tests/test_offline.sh [DIR]    packages that were downloaded before; default: downloads them
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "test_offline: $*" >&2
  exit 1
}

# Within the overlay: what the packages have installed is gone.
hide_packages() {
  local deb name
  mount -t tmpfs tmpfs "$work/overlay"
  mkdir "$work/overlay/upper" "$work/overlay/work"
  mount -t overlay overlay -o "lowerdir=/usr,upperdir=$work/overlay/upper,workdir=$work/overlay/work" /usr
  for deb in "$packages"/*.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    [[ $name != zlib1g ]] || continue  # every Debian has it: dpkg needs it
    dpkg -L "$name" 2>/dev/null || true
  done | sed 's,^/\(lib\|bin\|sbin\)/,/usr/\1/,' | sort -u >"$work/hidden"
  # Files go; directories refuse to, and stay where they are not empty.
  grep '^/usr/' "$work/hidden" | xargs -d '\n' rm -f 2>/dev/null || true
  sort -r "$work/hidden" | grep '^/usr/.*/' | xargs -d '\n' rmdir --ignore-fail-on-non-empty 2>/dev/null || true
  rm -rf /usr/local/cuda*
  [[ ! -e /usr/include/boost && ! -e /usr/share/datasets/fashion-mnist ]] || fail "nothing was hidden"
}

check() {
  cd -- "$work/source"
  local library status=0
  offline() {
    env -i HOME="$work/home" PATH="$work/bin:$PATH" CCACHE_DIR="$cache" CCACHE_BASEDIR="$PWD" \
      OMP_WAIT_POLICY=passive ./run --offline "$packages" "$@" >"$work/log" 2>&1
  }
  offline train --device cpu --preset quick --image-size 16 --base 8 --steps 2 --out "$work/run" ||
    fail "it failed: $(tail -n 20 "$work/log")"
  if ! nvidia-smi -L >/dev/null 2>&1; then
    offline gpu-check || status=$?
    ((status == 3)) || fail "gpu-check without a GPU ended with $status: $(tail -n 5 "$work/log")"
  fi
  [[ -s $work/run/model.safetensors ]] || fail "train wrote no model"
  [[ ! -e $work/apt-get-called ]] || fail "apt-get was called"

  # Everything comes from the prefix, wherever else it may be.
  LD_LIBRARY_PATH=$PWD/build/prefix/usr/lib/$(g++ -print-multiarch) ldd build/offline/bin/train >"$work/ldd"
  for library in dnnl fmt png16 jpeg boost_context; do
    grep -q "lib${library}[.-].*build/prefix/" "$work/ldd" ||
      fail "lib$library is not of the prefix: $(cat "$work/ldd")"
  done
  for library in dnnl fmt CLI11 nlohmann_json Boost Catch2 benchmark; do
    grep -q "^${library}_DIR:PATH=$PWD/build/prefix/" build/offline/CMakeCache.txt ||
      fail "cmake found another $library: $(grep "^${library}_DIR" build/offline/CMakeCache.txt)"
  done
  for library in JPEG PNG ZLIB; do
    ! grep "^${library}_.*\(LIBRARY\|INCLUDE\).*:\(FILE\)\?PATH=/usr/" build/offline/CMakeCache.txt ||
      fail "cmake found another $library"
  done
}

if [[ ${1:-} == --inside ]]; then  # see below
  work=$2 packages=$3 cache=$4
  trap - EXIT
  hide_packages
  check
  exit
fi

packages=${1:+$(readlink -f -- "$1")}
if [[ -z $packages ]]; then
  packages=$work/packages
  "$root/run" packages --download "$packages"
fi
bytes=$(cat -- "$packages"/*.deb | wc -c)
((bytes <= 64 * 1024 * 1024)) || fail "the packages have $bytes bytes, more than 64 MiB"

mkdir "$work/source" "$work/home" "$work/bin" "$work/overlay"
(cd -- "$root" && git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$work/source")
for name in apt-get apt sudo curl wget; do
  printf '#!/bin/sh\necho "$0 $*" >>"%s"\nexit 100\n' "$work/apt-get-called" >"$work/bin/$name"
  chmod +x "$work/bin/$name"
done
cache=${CCACHE_DIR:-${HOME:-/root}/.cache/ccache}

if unshare --mount --net true 2>/dev/null; then
  unshare --mount --net "$root/tests/test_offline.sh" --inside "$work" "$packages" "$cache"
  echo "test_offline: built and trained without the installed packages and the network ($SECONDS s)"
else
  check
  echo "test_offline: built and trained with the packages' files; could not hide what is installed ($SECONDS s)"
fi
