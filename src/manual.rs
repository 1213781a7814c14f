//! The manual: a page for each command, made from its help, and `tlsward.toml(5)`, made from the
//! table of keys. For packages; what it says is what the program says.

use std::io;
use std::path::Path;

use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::config::reference::{self, Entry, Section};

/// What stands in the middle of each page's head.
const MANUAL: &str = "tlsward";

/// Where the program finds its configuration.
const FILES: [(&str, &str); 3] = [
    (
        "/etc/tlsward/config.toml",
        "The configuration, where there is no config.toml in the working directory and -c names none: tlsward.toml(5).",
    ),
    (
        "/etc/tlsward/certs",
        "Where packages expect certificates and keys: read by root and the group tlsward only.",
    ),
    (
        "/run/tlsward",
        "Sockets of the service: admin.sock answers reload, status and stop.",
    ),
];

/// Exit codes of every command.
const EXIT: [(&str, &str); 4] = [
    (
        "0",
        "Good: accepted, in use, or stopped with every connection at its end.",
    ),
    (
        "1",
        "run: could not start. check, probe, reload, status, stop, rbac: not accepted, refused, or no answer.",
    ),
    ("2", "Mistakes in the configuration or on the command line."),
    ("3", "run: stopped with connections still open."),
];

/// Writes every page into a directory, which is made if need be, as `NAME.SECTION`. `command` is
/// the whole command line of the program.
///
/// # Errors
/// The directory or a file cannot be written; the text names it.
pub(crate) fn write(command: clap::Command, directory: &Path) -> io::Result<()> {
    let about = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    std::fs::create_dir_all(directory).map_err(|error| about(directory, error))?;
    for (name, text) in pages(command) {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| about(&path, error))?;
    }
    Ok(())
}

/// File name and text of every page.
fn pages(command: clap::Command) -> Vec<(String, String)> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let version = format!("tlsward {}", command.get_version().unwrap_or_default());
    let commands: Vec<clap::Command> = command
        .get_subcommands()
        .filter(|each| !each.is_hide_set())
        .cloned()
        .collect();
    let mut pages = vec![file_page(&version)];
    for each in commands {
        pages.push(command_page(each, &version, |roff| {
            see_also(roff, &["tlsward(1)", "tlsward.toml(5)"]);
        }));
    }
    pages.push(command_page(command, &version, |roff| {
        listed(roff, "FILES", &FILES);
        listed(roff, "EXIT STATUS", &EXIT);
        see_also(roff, &["tlsward.toml(5)", "systemd.service(5)"]);
    }));
    pages
}

/// The page that clap's help makes, with more behind it.
fn command_page(
    command: clap::Command,
    version: &str,
    rest: impl Fn(&mut Roff),
) -> (String, String) {
    let man = Man::new(command).source(version).manual(MANUAL);
    let mut text = Vec::new();
    let mut more = Roff::new();
    rest(&mut more);
    man.render(&mut text)
        .and_then(|()| more.to_writer(&mut text))
        .expect("a Vec takes everything");
    let text = String::from_utf8_lossy(&text).into_owned();
    (man.get_filename(), text)
}

/// `tlsward.toml(5)`.
fn file_page(version: &str) -> (String, String) {
    let mut roff = Roff::new();
    roff.control("TH", ["tlsward.toml", "5", "", version, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("tlsward.toml - configuration of tlsward(1)")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("/etc/tlsward/config.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in [
        "One file, TOML 1.0. Every mistake is reported at once, each with its place, its reason and its fix; a \
         running tlsward then keeps what it had. `tlsward check` reads the file, loads every certificate and \
         shows where each value comes from. It is read again when it changes, on SIGHUP and by `tlsward reload`.",
        "Durations are strings of whole numbers with units, the longest first: `\"250ms\"`, `\"10s\"`, `\"1h30m\"`. \
         Relative paths count from the directory of the file. In strings `${NAME}` stands for an environment \
         variable, `${NAME:-default}` for the variable or a default, `$${` for `${` itself.",
        "For each key of a service the first of these counts: its own table, an annotation of its Kubernetes \
         Service, an environment variable, `[defaults]` or `[defaults.tls]`, the default below.",
    ] {
        roff.control("PP", []);
        roff.text(inlines(paragraph));
    }
    for section in reference::reference() {
        add_section(&mut roff, &section);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (variable, key) in reference::variables() {
        roff.control("TP", []);
        roff.text([bold(*variable)]);
        roff.text(match key.is_empty() {
            true => inlines("The path of the file, where -c does not name one."),
            false => inlines(&format!("Sets `{key}`.")),
        });
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.control("EX", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    listed(&mut roff, "FILES", &FILES);
    see_also(&mut roff, &["tlsward(1)", "tlsward-check(1)"]);
    ("tlsward.toml.5".to_owned(), roff.render())
}

/// A smallest useful file.
const EXAMPLE: &str = r#"[admin]
listen = "unix:/run/tlsward/admin.sock"

[services.billing]
listen   = "127.0.0.1:7001"
upstream = "billing.internal:8443"

[services.billing.tls]
ca   = "certs/ca.crt"
cert = "certs/billing/tls.crt"
key  = "certs/billing/tls.key"
"#;

fn add_section(roff: &mut Roff, section: &Section) {
    let heading = section.heading.replace('`', "");
    roff.control("SH", [heading.as_str()]);
    for Entry {
        name,
        value,
        default,
        meaning,
        elsewhere,
    } in &section.keys
    {
        roff.control("TP", []);
        roff.text([bold(*name), roman(" = "), roman(value.replace('`', ""))]);
        roff.text(inlines(meaning));
        roff.control("br", []);
        roff.text(inlines(&match default.as_str() {
            "required" => "Required.".to_owned(),
            default => format!("Default: {default}."),
        }));
        if !elsewhere.is_empty() {
            let names: Vec<String> = elsewhere
                .iter()
                .map(|(program, name)| format!("{program} `{name}`"))
                .collect();
            roff.control("br", []);
            roff.text(inlines(&format!("Elsewhere: {}.", names.join(", "))));
        }
    }
}

fn listed(roff: &mut Roff, heading: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (term, meaning) in entries {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
}

fn see_also(roff: &mut Roff, pages: &[&str]) {
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages.join(", "))]);
}

/// What stands between backticks is bold.
fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(at, part)| if at % 2 == 1 { bold(part) } else { roman(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> clap::Command {
        clap::Command::new("tlsward")
            .version("1.2.3")
            .about("carries bytes")
            .subcommand(clap::Command::new("run").about("Run"))
            .subcommand(clap::Command::new("man").hide(true))
    }

    #[test]
    fn every_command_has_a_page_but_those_that_are_hidden() {
        let names: Vec<String> = pages(program()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["tlsward.toml.5", "tlsward-run.1", "tlsward.1"]);
    }

    #[test]
    fn the_page_of_the_file_has_every_key_with_its_value_default_and_meaning() {
        let (_, page) = file_page("tlsward 1.2.3");
        let plain = page
            .replace("\\fB", "")
            .replace("\\fR", "")
            .replace("\\-", "-");
        let plain = plain.replace("\\&", "").replace("\\*(Aq", "'");
        let mut seen = 0;
        for section in reference::reference() {
            for key in section.keys {
                let bare = |text: &str| text.replace('`', "");
                assert!(
                    plain.contains(&format!("\n{} = {}\n", key.name, bare(&key.value))),
                    "{}",
                    key.name
                );
                assert!(plain.contains(key.meaning), "{}", key.meaning);
                assert!(plain.contains(&bare(&key.default)), "{}", key.default);
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen}");
        for (variable, _) in reference::variables() {
            assert!(plain.contains(&format!("\n{variable}\n")), "{variable}");
        }
    }

    #[test]
    fn the_example_of_the_page_is_a_good_configuration() {
        use crate::config::Config;
        let path = Path::new("/etc/tlsward/config.toml");
        let parsed = Config::parse(EXAMPLE, path, &std::collections::BTreeMap::new());
        parsed.unwrap_or_else(|problems| panic!("{problems}"));
    }
}
