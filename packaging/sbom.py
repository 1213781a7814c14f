#!/usr/bin/env python3
"""packaging/sbom.py TARGET OUTPUT: what is linked into tlsward, as a CycloneDX 1.5 document.

cargo-cyclonedx describes every crate, but it also lists what other members of the workspace, tests and
macros need, and what optional features would bring. What is really linked is what `cargo tree` says of
this one package, this target and the default features; only that is kept, with the features that are on.
The times are SOURCE_DATE_EPOCH's, and no path of this machine is left.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = "tlsward"


def output(*command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(target):
    """(name, version) of each crate that is linked, the program too, with its features."""
    tree = output(
        "cargo", "tree", "--locked", "--package", PROGRAM, "--target", target, "--edges", "normal,no-proc-macro",
        "--prefix", "none", "--no-dedupe", "--format", "{p}|{f}",
    )
    found = {}
    for line in filter(None, tree.splitlines()):
        package, features = line.split("|")
        name, version = package.split()[:2]
        found[name, version.removeprefix("v")] = sorted(filter(None, features.split(",")))
    return found


def described(target):
    """What cargo-cyclonedx says. It writes beside each manifest, so it gets a copy of them."""
    copy = ROOT / "target/package/sbom"
    shutil.rmtree(copy, ignore_errors=True)
    members = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    copy.mkdir(parents=True)
    shutil.copy(ROOT / "Cargo.lock", copy)
    for member in members:
        shutil.copytree(ROOT / member / "src", copy / member / "src")
        shutil.copy(ROOT / member / "Cargo.toml", copy / member)
    output(
        "cargo", "cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--describe", "binaries",
        "--no-build-deps", "--target", target, cwd=copy,
    )
    return json.loads((copy / f"{PROGRAM}_bin.cdx.json").read_text())


def main():
    target, destination = sys.argv[1:]
    if "SOURCE_DATE_EPOCH" not in os.environ:
        sys.exit("packaging/sbom.py: SOURCE_DATE_EPOCH is not set")
    wanted = linked(target)
    document = described(target)
    known = {(each["name"], each["version"]): each for each in document["components"]}
    program = document["metadata"]["component"]
    known[program["name"], program["version"]] = program
    missing = wanted.keys() - known.keys()
    if missing:
        sys.exit(f"packaging/sbom.py: cargo-cyclonedx does not know {sorted(missing)}")

    # References that say the same on every machine.
    names = {}
    for (name, version), features in wanted.items():
        component = known[name, version]
        component["purl"] = f"pkg:cargo/{name}@{version}".replace("+", "%2B")
        names[component["bom-ref"]] = component["bom-ref"] = component["purl"]
        component["properties"] = [{"name": "tlsward:cargo:features", "value": " ".join(features)}]

    compiler = output("rustc", "--version").split()[1]
    library = {
        "type": "library",
        "bom-ref": f"pkg:generic/rust-std@{compiler}",
        "name": "rust-std",
        "version": compiler,
        "description": "Rust's standard library",
        "scope": "required",
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
        "purl": f"pkg:generic/rust-std@{compiler}",
    }
    components = [known[key] for key in wanted if key != (program["name"], program["version"])]
    document["components"] = sorted([*components, library], key=lambda each: each["purl"])

    document["dependencies"] = sorted(
        (
            {
                "ref": names[each["ref"]],
                "dependsOn": sorted(names[other] for other in each.get("dependsOn", []) if other in names),
            }
            for each in document["dependencies"]
            if each["ref"] in names
        ),
        key=lambda each: each["ref"],
    )
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if found := re.search(r'[^"]*file://[^"]*', text):
        sys.exit(f"packaging/sbom.py: a path of this machine is left: {found[0]}")
    pathlib.Path(destination).write_text(text)


if __name__ == "__main__":
    main()
