#!/usr/bin/env bash
# Makes packages of the last commit twice, in two clones in different places, each compiled from nothing, and
# compares them. Without --quick that is two release builds; with it they are built without link-time
# optimisation, which takes a third of the time and says the same of paths and times, but not of that step.
#
#   packaging/reproducible.sh [--quick] [deb|rpm|tarball|sbom|all]...
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH=$here/target/tools/bin:$PATH

if [ "${1:-}" = --quick ]; then
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1
    shift
fi
places=$(mktemp -d)
trap 'rm -rf "$places"' EXIT
first=$places/a second=$places/another/much/longer/place
for place in "$first" "$second"; do
    git clone --quiet "$here" "$place"
    (cd "$place" && packaging/build.sh "${@:-deb}")
    # Another time of day, and another zone, for the second.
    export TZ=Pacific/Auckland
done
diff "$first/target/package/SHA256SUMS" "$second/target/package/SHA256SUMS"
echo "the same, twice:"
cat "$first/target/package/SHA256SUMS"
