#!/bin/sh
# Are these images published for these platforms, and do they run? For a CI job.
#
#   validate.sh LIST REPORTS
#
# LIST has one image a line, `#` begins a remark:
#
#   REFERENCE PLATFORM... [alive=TIME | timeout=TIME] [-- COMMAND...]
#
# First every reference is checked for every platform: that costs a request each and starts
# nothing. Then each image is run once for each platform, on this machine or by an emulator that
# is registered on it, and REPORTS gets a JUnit file for each image. The exit code is that of the
# first image that failed, of a run before one of a check, and 0 if all is well.
#
# edgepull takes the engine and the credentials from its usual variables (CONTAINERD_ADDRESS,
# CONTAINERD_NAMESPACE, REGISTRY_AUTH_FILE); EDGEPULL names another program than the one in PATH.
set -eu
set -f

if [ $# -ne 2 ] || [ ! -r "$1" ]; then
  echo "usage: $0 LIST REPORTS" >&2
  exit 2
fi
list=$1 reports=$2
edgepull=${EDGEPULL:-edgepull}
mkdir -p "$reports"

# each FUNCTION: calls it for each image as FUNCTION REFERENCE WORD...
each() {
  while read -r line || [ -n "$line" ]; do
    line=${line%%#*}
    # Words, on purpose; no file names are made of them (set -f).
    # shellcheck disable=SC2086
    set -- "$1" $line
    if [ $# -gt 1 ]; then
      # What is called must not read the list.
      "$@" </dev/null
    fi
  done <"$list"
}

checked=0
check() {
  reference=$1
  shift
  arguments=
  for word in "$@"; do
    case $word in
      --) break ;;
      */*) arguments="$arguments --platform $word" ;;
    esac
  done
  code=0
  # shellcheck disable=SC2086
  "$edgepull" check "$reference" $arguments || code=$?
  if [ "$checked" = 0 ]; then checked=$code; fi
}

smoked=0
reported=0
smoke() {
  reference=$1
  shift
  arguments=
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
      */*) arguments="$arguments --platform $1" ;;
      alive=*) arguments="$arguments --alive ${1#*=}" ;;
      timeout=*) arguments="$arguments --timeout ${1#*=}" ;;
      *)
        echo "$list: $reference: \`$1\` is neither a platform nor alive= nor timeout=" >&2
        exit 2
        ;;
    esac
    shift
  done
  reported=$((reported + 1))
  report=$reports/$reported-$(printf %s "$reference" | tr -c 'A-Za-z0-9.\n' -).xml
  code=0
  # What is left are `--` and the command, if there is one.
  # shellcheck disable=SC2086
  "$edgepull" smoke --progress none --junit "$report" $arguments "$reference" "$@" || code=$?
  if [ "$smoked" = 0 ]; then smoked=$code; fi
}

echo "== published?"
each check
echo "== does it run?"
each smoke
if [ "$smoked" != 0 ]; then exit "$smoked"; fi
exit "$checked"
