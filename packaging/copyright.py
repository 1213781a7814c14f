#!/usr/bin/env python3
"""packaging/copyright.py SBOM OUTPUT: whose work is in the program, and under which licences.

In Debian's machine-readable form (DEP-5), from the SBOM for what is linked, and from the sources of each
crate for whose it is. A licence whose text is not in packaging/licenses is an error.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
FORMAT = "https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
# Whose full text Debian has in /usr/share/common-licenses.
COMMON = ["Apache-2.0", "CC0-1.0"]
# Chosen, in this order, where a choice stands within a combination: DEP-5 has no brackets.
PREFERRED = ["Apache-2.0", "MIT", "ISC"]

# "Copyright (c) whoever", and "Copyright 2017 whoever" or "© 2017 whoever", but not "copyright notice".
OWNED = r"copyright\s*(?:\(c\)|©)\s*(\S.*)|(?:copyright:?|\(c\)|©)\s+((?:\d{4}|the |by ).*)"


def simplified(expression):
    """An SPDX expression without brackets and exceptions, in the words of DEP-5."""

    def chosen(match):
        choices = match[1].split(" OR ")
        return next((name for name in PREFERRED if name in choices), choices[0])

    expression = re.sub(r"\(([^()]*)\)", chosen, expression.replace("/", " OR "))
    if " OR " in expression:
        choices = [each for each in expression.split(" OR ") if " WITH " not in each]
        expression = " or ".join(sorted(choices))
    # A licence that stands twice in a combination is one.
    return " and ".join(dict.fromkeys(expression.split(" AND ")))


def notices(directory, authors, name):
    """The lines of copyright in the files of licences of a crate; its authors where there are none."""
    found = []
    for path in sorted(directory.iterdir()):
        if not re.match(r"(?i)(li[cs]en[cs]e|copying|copyright|notice)", path.name) or not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            line = re.sub(r"^[\s/*#>-]+", "", line).strip()
            match = re.match(OWNED, line, re.IGNORECASE)
            if match and "[yyyy]" not in line and len(line) < 200:
                found.append(re.sub(r"(?i)\s*all rights reserved\.?", "", match[1] or match[2]).strip(" .,"))
    return list(dict.fromkeys(found)) or authors or [f"the authors of {name}"]


def main():
    source, destination = sys.argv[1:]
    document = json.loads(pathlib.Path(source).read_text())
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--locked", "--format-version", "1"],
            cwd=HERE.parent, check=True, stdout=subprocess.PIPE,
        ).stdout
    )
    packages = {(each["name"], each["version"]): each for each in metadata["packages"]}

    stanzas = collections.defaultdict(list)
    for component in document["components"]:
        name, version = component["name"], component["version"]
        (license_,) = component["licenses"]
        expression = simplified(license_["expression"])
        if name == "rust-std":
            stanzas[expression, ("the Rust Project developers",)].append(f"{name}-{version}")
            continue
        package = packages[name, version]
        if package["source"] is None:
            continue
        directory = pathlib.Path(package["manifest_path"]).parent
        owners = tuple(notices(directory, package["authors"], name))
        stanzas[expression, owners].append(f"{name}-{version}")

    text = [f"Format: {FORMAT}", "Upstream-Name: tlsward"]
    text += wrapped(
        "Comment",
        "The program contains the Rust crates below, linked into it; sbom.cdx.json lists them with their features. "
        "Where a crate offers a choice of licences within a combination of them, one is chosen here.",
    )
    text += ["", "Files: *", "Copyright: 2026 The tlsward authors", "License: Apache-2.0"]
    used = {"Apache-2.0"}
    for (expression, owners), crates in sorted(stanzas.items(), key=lambda each: each[1]):
        used |= set(re.split(r" and | or ", expression))
        text += ["", "Files: " + "\n       ".join(f"vendor/{crate}/*" for crate in crates)]
        text += ["Copyright: " + "\n           ".join(owners), f"License: {expression}"]
    for name in sorted(used):
        text += ["", f"License: {name}"]
        if name in COMMON:
            words = f"On Debian systems the full text is in /usr/share/common-licenses/{name}."
            text.append(f" {words}")
        else:
            body = (HERE / "licenses" / f"{name}.txt").read_text()
            text += [f" {line}" if line.strip() else " ." for line in body.splitlines()]
    pathlib.Path(destination).write_text("\n".join(text) + "\n")


def wrapped(field, words):
    return textwrap.wrap(f"{field}: {words}", 100, subsequent_indent=" ")


if __name__ == "__main__":
    main()
