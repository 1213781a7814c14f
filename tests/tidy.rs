//! What the documents say of the code, held against the code; and a few rules of the house that
//! no lint knows.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "reads the sources of this repository, and fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Lines of a source file, its tests not counted. A file that needs more has two subjects.
const MOST_LINES: usize = 800;

#[test]
fn modules_import_what_the_architecture_page_says_and_nothing_points_up() {
    let table = import_table();
    let rank = |module: &str| table.iter().position(|(name, _)| name == module);
    let mut wrong = String::new();
    for (module, allowed) in &table {
        for import in allowed {
            if rank(import) >= rank(module) {
                let _ = writeln!(wrong, "{module} -> {import}: points up, or to no row");
            }
        }
    }
    let mut imports: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        for import in crate_paths(&without_comments(&text)) {
            if import != module {
                let found = imports.entry(module.clone()).or_default();
                found.entry(import).or_insert_with(|| path.clone());
            }
        }
        imports.entry(module).or_default();
    }
    for module in ["lib", "main"] {
        imports.remove(module);
    }
    for (module, found) in &imports {
        let Some((_, allowed)) = table.iter().find(|(name, _)| name == module) else {
            let _ = writeln!(wrong, "{module}: has no row");
            continue;
        };
        for (import, path) in found {
            if !allowed.contains(import) {
                let _ = writeln!(
                    wrong,
                    "{module} -> {import}: not in its row ({})",
                    path.display()
                );
            }
        }
        for import in allowed.iter().filter(|import| !found.contains_key(*import)) {
            let _ = writeln!(
                wrong,
                "{module} -> {import}: in its row, but not in the code"
            );
        }
    }
    for (module, _) in table.iter().filter(|(name, _)| !imports.contains_key(name)) {
        let _ = writeln!(wrong, "{module}: a row without a module");
    }
    assert!(
        wrong.is_empty(),
        "docs/architecture.md and src/ differ:\n{wrong}"
    );
}

#[test]
fn every_dependency_is_explained() {
    let explained: BTreeSet<String> = rows(&read("docs/dependencies.md"))
        .map(|cells| cells[0].trim_matches('`').to_owned())
        .collect();
    let mut named = BTreeSet::new();
    for manifest in [
        "Cargo.toml",
        "sys/Cargo.toml",
        "bench/Cargo.toml",
        "guards/Cargo.toml",
        "fuzz/Cargo.toml",
    ] {
        named.extend(dependencies(&read(manifest)));
    }
    assert!(named.contains("rustls"), "the manifests were read");
    let missing: Vec<_> = named.difference(&explained).collect();
    let stale: Vec<_> = explained.difference(&named).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/dependencies.md lacks {missing:?} and has in vain {stale:?}"
    );
}

#[test]
fn the_operator_s_table_of_reasons_is_the_code_s() {
    let expected = reasons(&read("src/failure.rs"));
    assert!(expected.lines().count() > 30, "the vocabulary was read");
    let page = read("docs/operations.md");
    let (_, rest) = page.split_once("<!-- reasons: ").unwrap();
    let (_, rest) = rest.split_once("-->\n").unwrap();
    let (table, _) = rest.split_once("<!-- /reasons -->").unwrap();
    assert!(
        table.trim() == expected.trim(),
        "docs/operations.md differs from src/failure.rs; the table should be:\n{expected}"
    );
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut broken = String::new();
    for path in files().filter(|path| path.extension().is_some_and(|it| it == "md")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:");
            if !outside && !file.is_empty() && !path.parent().unwrap().join(file).exists() {
                let _ = writeln!(broken, "{}: {target}", path.display());
            }
        }
    }
    assert!(broken.is_empty(), "{broken}");
}

#[test]
fn no_file_knows_the_machine_that_it_was_written_on() {
    // Put together here, so that this file does not find itself.
    let machine = [
        ["/ro", "ot/"],
        ["/wo", "rk/"],
        ["/tmp/", "wt"],
        ["/Us", "ers/"],
    ]
    .map(|it| it.concat());
    let mut found = String::new();
    for path in files() {
        // What is not text cannot be read, and is not meant.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            if let Some(place) = machine.iter().find(|place| line.contains(*place)) {
                let _ = writeln!(found, "{}:{}: {place}", path.display(), number + 1);
            }
        }
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn source_files_have_one_subject_and_no_unfinished_business() {
    let mut wrong = String::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines >= MOST_LINES {
            let _ = writeln!(wrong, "{}: {lines} lines", path.display());
        }
        for word in ["todo!", "unimplemented!", "dbg!"] {
            if without_comments(&text).contains(word) {
                let _ = writeln!(wrong, "{}: {word}", path.display());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The rows of the import table, from the floor up: module, and what it imports.
fn import_table() -> Vec<(String, BTreeSet<String>)> {
    let page = read("docs/architecture.md");
    let (_, rest) = page.split_once("<!-- imports: ").unwrap();
    let (_, rest) = rest.split_once("-->\n").unwrap();
    let (table, _) = rest.split_once("<!-- /imports -->").unwrap();
    rows(table)
        .map(|cells| {
            let imports = cells[1].split(',').map(|it| it.trim().to_owned());
            let imports = imports.filter(|it| it != "–").collect();
            (cells[0].trim_matches('`').to_owned(), imports)
        })
        .collect()
}

/// The cells of each row of the tables in a page, without heads.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines: Vec<&str> = page.lines().collect();
    let is_row =
        |line: &str| line.starts_with('|') && !line.starts_with("|--") && !line.starts_with("| --");
    let is_head = move |n: usize| {
        lines
            .get(n + 1)
            .is_some_and(|next| next.starts_with("|--") || next.starts_with("| --"))
    };
    page.lines()
        .enumerate()
        .filter(move |(n, line)| is_row(line) && !is_head(*n))
        .map(|(_, line)| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// The names in the tables of dependencies of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && let Some((name, _)) = line.split_once('=') {
            // `name.workspace = true` too.
            names.insert(name.split('.').next().unwrap_or_default().trim().to_owned());
        }
    }
    names.remove("tlsward");
    names.remove("tlsward-sys");
    names
}

/// The table of reasons as the text of the macro in `failure.rs` has it.
fn reasons(source: &str) -> String {
    let (_, list) = source.split_once("\nreasons! {\n").unwrap();
    let (list, _) = list.split_once("\n}\n").unwrap();
    let mut table = String::from("| `reason` | When | What to do |\n| --- | --- | --- |\n");
    let mut when = Vec::new();
    let mut word = "";
    for line in list.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            when.push(doc.trim());
        } else if let Some((_, rest)) = line.split_once(" = ")
            && !line.starts_with('"')
        {
            word = rest.trim_end_matches(',').trim_matches('"');
        } else if let Some(hint) = line.strip_prefix('"') {
            let hint = hint.strip_suffix("\";").unwrap().replace("\\\"", "\"");
            let _ = writeln!(table, "| `{word}` | {} | {hint} |", when.join(" "));
            when.clear();
        }
    }
    table
}

/// Every source file of the crate without its tests, by its path below `src/`.
fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    files()
        .filter_map(|path| Some((path.strip_prefix(&src).ok()?.to_owned(), path.clone())))
        .filter(|(below, _)| below.extension().is_some_and(|it| it == "rs"))
        .filter(|(below, _)| {
            let parts = below.iter().map(|part| part.to_string_lossy());
            !parts
                .into_iter()
                .any(|part| ["tests", "tests.rs", "test_pki.rs"].contains(&&*part))
        })
        .map(|(below, path)| {
            let text = std::fs::read_to_string(path).unwrap();
            (below, without_tests(&text))
        })
        .collect()
}

/// Tests stand last in a file.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if line == "#[cfg(test)]" && next.contains("mod ") && next.ends_with('{') {
            break;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

fn without_comments(text: &str) -> String {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// `proxy/relay.rs` belongs to `proxy`.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The first segment of every `crate::…` path.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads_of_group(group)),
            None => drop(found.insert(identifier(rest))),
        }
    }
    found.remove("");
    found
}

/// `a, b::{c, d}, self}` -> a, b.
fn heads_of_group(group: &str) -> BTreeSet<String> {
    let mut heads = BTreeSet::new();
    let mut depth = 0;
    let mut at_head = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            _ if at_head && !character.is_whitespace() => {
                heads.insert(identifier(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|it| it.is_alphanumeric() || *it == '_')
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file of the repository, in order.
fn files() -> impl Iterator<Item = PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !path.is_dir() {
                found.push(path);
            } else if ![".git", "target", "artifacts", "tlsward-demo"].contains(&&*name) {
                directories.push(path);
            }
        }
    }
    found.sort();
    // In a worktree `.git` is a file.
    found.into_iter().filter(|path| !path.ends_with(".git"))
}
