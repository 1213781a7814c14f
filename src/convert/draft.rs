//! A configuration in the making: services with where each value comes from, and what there is to
//! say about them. Finishing it proves that what is written can be read back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::sources::{Mistake, Place};
use crate::config::{Config, Listen, ServiceName};

/// The most services of one conversion.
const MAX_SERVICES: usize = 1000;

/// How long the lines of a note may be in the file, in characters.
const WIDTH: usize = 108;

/// What is said of something in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The source was less safe than what was written. Nothing to do; servers or callers that were
    /// taken may now be refused.
    Unsafe,
    /// Something that an operator must provide or choose.
    Decide,
    /// What the source did is not done by what was written.
    NotCarried,
    /// Read, and needed no longer.
    Explained,
}

impl Kind {
    /// Whether an operator must look at it: what exit code 1 means.
    pub(crate) fn needs_somebody(self) -> bool {
        matches!(self, Self::Decide | Self::NotCarried)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Unsafe => "unsafe",
            Self::Decide => "decide",
            Self::NotCarried => "not carried",
            Self::Explained => "not needed",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Unsafe | Self::Explained => "now",
            Self::Decide | Self::NotCarried => "fix",
        }
    }
}

/// One thing to say. Its words never hold a secret's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// The directive, flag or variable; empty where it is about a service as a whole.
    pub(crate) directive: String,
    /// How it was in the source, and what is the matter.
    pub(crate) was: String,
    /// What tlsward does, or what to do.
    pub(crate) now: String,
    /// The service is written switched off until somebody has decided: else it would check less
    /// than the source, or not work.
    pub(crate) blocks: bool,
}

impl Note {
    pub(crate) fn new(
        kind: Kind,
        place: &Place,
        directive: impl Into<String>,
        was: impl Into<String>,
        now: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            place: place.clone(),
            directive: directive.into(),
            was: was.into(),
            now: now.into(),
            blocks: false,
        }
    }

    /// A decision without which the service stays switched off.
    pub(crate) fn blocking(
        place: &Place,
        directive: impl Into<String>,
        was: impl Into<String>,
        now: impl Into<String>,
    ) -> Self {
        Self {
            blocks: true,
            ..Self::new(Kind::Decide, place, directive, was, now)
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.place, self.kind.word())?;
        if !self.directive.is_empty() {
            write!(f, "{}: ", self.directive)?;
        }
        write!(f, "{}\n  {}: {}", self.was, self.kind.label(), self.now)
    }
}

/// One line of a table.
#[derive(Clone, Debug)]
enum Line {
    Key {
        name: &'static str,
        /// TOML.
        value: String,
        from: String,
    },
    /// Something to switch on, without its `#`.
    Hint(String),
    Remark(String),
}

/// The keys of one table, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Vec<Line>);

impl Keys {
    /// Sets a key; `value` is TOML, `from` says where it comes from.
    pub(crate) fn set(
        &mut self,
        name: &'static str,
        value: impl Into<String>,
        from: impl Into<String>,
    ) {
        self.0
            .retain(|line| !matches!(line, Line::Key { name: set, .. } if *set == name));
        self.0.push(Line::Key {
            name,
            value: value.into(),
            from: from.into(),
        });
    }

    pub(crate) fn text(&mut self, name: &'static str, value: &str, from: impl Into<String>) {
        self.set(name, quoted(value), from);
    }

    /// As [`Self::text`], where nothing was said before.
    pub(crate) fn text_unless_set(&mut self, name: &'static str, value: &str, from: &str) {
        let is_set = |line: &Line| matches!(line, Line::Key { name: set, .. } if *set == name);
        if !self.0.iter().any(is_set) {
            self.text(name, value, from);
        }
    }

    pub(crate) fn list<T: AsRef<str>>(
        &mut self,
        name: &'static str,
        values: &[T],
        from: impl Into<String>,
    ) {
        let values: Vec<String> = values.iter().map(|value| quoted(value.as_ref())).collect();
        self.set(name, format!("[{}]", values.join(", ")), from);
    }

    pub(crate) fn drop_keys(&mut self, names: &[&str]) {
        self.0
            .retain(|line| !matches!(line, Line::Key { name, .. } if names.contains(name)));
    }

    /// Puts another table's lines behind these.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Removes the suggestions that begin so.
    pub(crate) fn drop_hints(&mut self, begin: &str) {
        self.0
            .retain(|line| !matches!(line, Line::Hint(hint) if hint.starts_with(begin)));
    }

    pub(crate) fn hint(&mut self, line: impl Into<String>) {
        self.0.push(Line::Hint(line.into()));
    }

    pub(crate) fn remark(&mut self, line: impl Into<String>) {
        self.0.push(Line::Remark(line.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn render(&self, out: &mut Page) {
        let width = self.0.iter().filter_map(|line| match line {
            Line::Key { name, value, from } if !from.is_empty() => {
                Some(name.chars().count() + value.chars().count())
            }
            _ => None,
        });
        // Remarks stand in a column, but for those of very long lines.
        let width = width.filter(|width| *width <= 60).max().unwrap_or(0);
        for line in &self.0 {
            match line {
                Line::Key { name, value, from } if from.is_empty() => {
                    out.line(&format!("{name} = {value}"));
                }
                Line::Key { name, value, from } => {
                    let pad = width.saturating_sub(name.chars().count() + value.chars().count());
                    let from = one_line(from);
                    out.line(&format!("{name} = {value}{:pad$}  # {from}", ""));
                }
                Line::Hint(line) => out.comment_tight(line),
                Line::Remark(line) => out.comment(line),
            }
        }
    }
}

/// A service in the making.
#[derive(Clone, Debug)]
pub(crate) struct DraftService {
    /// What it should be called; made unique and plain at the end.
    pub(crate) name: String,
    pub(crate) place: Place,
    /// `[services.NAME]`.
    pub(crate) keys: Keys,
    /// `[services.NAME.tls]`.
    pub(crate) tls: Keys,
    pub(crate) notes: Vec<Note>,
}

impl DraftService {
    pub(crate) fn new(name: impl Into<String>, place: &Place) -> Self {
        Self {
            name: name.into(),
            place: place.clone(),
            keys: Keys::default(),
            tls: Keys::default(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn note(&mut self, note: Note) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Whether it is written as comments only.
    pub(crate) fn is_off(&self) -> bool {
        self.notes.iter().any(|note| note.blocks)
    }

    fn tables(&self, name: &str, out: &mut Page) {
        let name = key(name);
        out.line(&format!("[services.{name}]"));
        self.keys.render(out);
        if !self.tls.is_empty() {
            out.line("");
            out.line(&format!("[services.{name}.tls]"));
            self.tls.render(out);
        }
    }
}

/// A whole configuration in the making.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// Keys above all tables.
    pub(crate) top: Keys,
    pub(crate) log: Keys,
    /// `[defaults.tls]`.
    pub(crate) defaults_tls: Keys,
    pub(crate) services: Vec<DraftService>,
    /// What concerns no service.
    pub(crate) notes: Vec<Note>,
    /// Lines at the end, as comments to switch on.
    pub(crate) example: Vec<String>,
}

/// A conversion that is done.
#[derive(Debug)]
pub(crate) struct Converted {
    /// The configuration file.
    pub(crate) config: String,
    /// Every service: its name, and whether it is written switched off.
    pub(crate) services: Vec<(ServiceName, bool)>,
    /// Everything to say, with the service that it is about, in the order of the source.
    pub(crate) notes: Vec<(Option<ServiceName>, Note)>,
}

impl Draft {
    pub(crate) fn note(&mut self, note: Note) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Writes the file. A service that the configuration would not take is switched off, with the
    /// reason as a note; so is one that wants the listener of an earlier one.
    ///
    /// # Errors
    /// More services than are taken at once; a default that the configuration would not take.
    pub(crate) fn finish(mut self, made_by: &str) -> Result<Converted, Mistake> {
        if let Some(surplus) = self.services.get(MAX_SERVICES) {
            return Err(Mistake::new(
                &surplus.place,
                format!("more than {MAX_SERVICES} services"),
                "convert the file in parts",
            ));
        }
        let names = names(&self.services);
        let mut taken: Vec<(Listen, &ServiceName)> = Vec::new();
        for (service, name) in self.services.iter_mut().zip(&names) {
            if service.is_off() {
                continue;
            }
            match listener(service, name) {
                Err((reason, fix)) => {
                    let was = format!("tlsward does not take this as it is: {reason}");
                    let place = service.place.clone();
                    service.note(Note::blocking(&place, "", was, fix));
                }
                Ok(listen) => {
                    if let Some((_, by)) = taken.iter().find(|(other, _)| other.overlaps(&listen)) {
                        let was = format!("listens on {listen}, which {by} has already");
                        let now = "give one of the two another address or port";
                        let place = service.place.clone();
                        service.note(Note::blocking(&place, "", was, now));
                    } else {
                        taken.push((listen, name));
                    }
                }
            }
        }
        let config = self.render(made_by, &names, &taken);
        prove(&config)?;
        let mut notes: Vec<(Option<ServiceName>, Note)> =
            self.notes.into_iter().map(|note| (None, note)).collect();
        let mut services = Vec::new();
        for (service, name) in self.services.into_iter().zip(names) {
            services.push((name.clone(), service.is_off()));
            for note in service.notes {
                // What several services inherit and do not need is said once.
                let is_said =
                    note.kind == Kind::Explained && notes.iter().any(|(_, said)| *said == note);
                if !is_said {
                    notes.push((Some(name.clone()), note));
                }
            }
        }
        Ok(Converted {
            config,
            services,
            notes,
        })
    }

    fn render(
        &self,
        made_by: &str,
        names: &[ServiceName],
        taken: &[(Listen, &ServiceName)],
    ) -> String {
        let mut out = Page::default();
        out.comment(&format!("Made by `{made_by}`."));
        out.comment("Before anything depends on it: `tlsward check`, then `tlsward probe --all`.");
        let general: Vec<&Note> = self
            .notes
            .iter()
            .filter(|note| note.kind != Kind::Explained)
            .collect();
        if !general.is_empty() {
            out.comment("");
            for note in general {
                out.note(note);
            }
        }
        if !self.top.is_empty() {
            out.line("");
            self.top.render(&mut out);
        }
        if let Some(port) = admin_port(taken) {
            out.line("");
            out.line("[admin]");
            out.line(&format!(
                "listen = \"127.0.0.1:{port}\"  # a service below has the usual port, 9901"
            ));
        }
        if !self.log.is_empty() {
            out.line("");
            out.line("[log]");
            self.log.render(&mut out);
        }
        if !self.defaults_tls.is_empty() {
            out.line("");
            out.line("[defaults.tls]");
            self.defaults_tls.render(&mut out);
        }
        for (service, name) in self.services.iter().zip(names) {
            out.line("");
            out.comment(&format!("--- {name}: {}", service.place));
            for note in &service.notes {
                if note.kind != Kind::Explained {
                    out.note(note);
                }
            }
            if service.is_off() {
                out.comment(
                    "SWITCHED OFF until that is decided: then remove the # of these lines.",
                );
                let mut off = Page::default();
                service.tables(name.as_str(), &mut off);
                for line in off.0.lines() {
                    out.comment_tight(line);
                }
            } else {
                service.tables(name.as_str(), &mut out);
            }
        }
        let explained = |notes: &[Note]| {
            let notes = notes.iter().filter(|note| note.kind == Kind::Explained);
            notes.cloned().collect::<BTreeSet<_>>()
        };
        let mut not_needed = explained(&self.notes);
        for service in &self.services {
            not_needed.append(&mut explained(&service.notes));
        }
        if !self.example.is_empty() {
            out.line("");
            for line in &self.example {
                out.comment_tight(line);
            }
        }
        if !not_needed.is_empty() {
            out.line("");
            out.comment("Read, and not needed here:");
            let mut not_needed: Vec<_> = not_needed.into_iter().collect();
            not_needed.sort_by(|a, b| a.place.cmp(&b.place));
            for note in not_needed {
                out.wrapped(&format!(
                    "{}: {}: {}; {}",
                    note.place, note.directive, note.was, note.now
                ));
            }
        }
        out.0
    }
}

impl Converted {
    /// Whether an operator must provide, choose or replace something.
    pub(crate) fn needs_somebody(&self) -> bool {
        self.notes
            .iter()
            .any(|(_, note)| note.kind.needs_somebody())
    }

    /// For people: every note, then a summary.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        for (service, note) in &self.notes {
            let about = service
                .as_ref()
                .map_or(String::new(), |name| format!(" ({name})"));
            let note = note.to_string();
            // The service after the first line, where the eye looks for it.
            match note.split_once('\n') {
                Some((head, rest)) => text.push_str(&format!("{head}{about}\n{rest}\n\n")),
                None => text.push_str(&format!("{note}{about}\n\n")),
            }
        }
        let off = self.services.iter().filter(|(_, off)| *off).count();
        let count = |kind| {
            self.notes
                .iter()
                .filter(|(_, note)| note.kind == kind)
                .count()
        };
        text.push_str(&format!(
            "{} written, {off} of them switched off; {} unsafe, {} to decide, {} not carried, {} not needed\n",
            match self.services.len() {
                1 => "1 service".to_owned(),
                many => format!("{many} services"),
            },
            count(Kind::Unsafe),
            count(Kind::Decide),
            count(Kind::NotCarried),
            count(Kind::Explained),
        ));
        text
    }

    /// For programs; `config` is left out where it was written to a file.
    pub(crate) fn json(&self, with_config: bool) -> Report<'_> {
        let services = self.services.iter().map(|(name, off)| ServiceReport {
            service: name,
            switched_off: *off,
        });
        let notes = self.notes.iter().map(|(service, note)| NoteReport {
            kind: note.kind,
            file: &note.place.file,
            line: note.place.line,
            service: service.as_ref(),
            directive: &note.directive,
            was: &note.was,
            now: &note.now,
            switches_off: note.blocks,
        });
        Report {
            whole: !self.needs_somebody(),
            services: services.collect(),
            notes: notes.collect(),
            config: with_config.then_some(&*self.config),
        }
    }
}

/// `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'c> {
    /// Nothing is left to decide, and nothing was left behind.
    whole: bool,
    services: Vec<ServiceReport<'c>>,
    notes: Vec<NoteReport<'c>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'c str>,
}

#[derive(Debug, Serialize)]
struct ServiceReport<'c> {
    service: &'c ServiceName,
    switched_off: bool,
}

#[derive(Debug, Serialize)]
struct NoteReport<'c> {
    kind: Kind,
    file: &'c str,
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'c ServiceName>,
    directive: &'c str,
    was: &'c str,
    now: &'c str,
    switches_off: bool,
}

/// Reads the service back alone; its listener, or what is wrong with it.
fn listener(service: &DraftService, name: &ServiceName) -> Result<Listen, (String, String)> {
    let mut page = Page::default();
    // Its own listener may be the admin's usual one, which then goes elsewhere.
    page.line("admin.listen = \"off\"");
    service.tables(name.as_str(), &mut page);
    let path = Path::new("/etc/tlsward/config.toml");
    match Config::parse(&page.0, path, &BTreeMap::new()) {
        Ok(config) => {
            let listen = config.services.into_values().next().map(|it| it.listen);
            listen.ok_or_else(|| ("it is no service".to_owned(), "write it by hand".to_owned()))
        }
        Err(problems) => {
            let first = problems.iter().next();
            Err(first.map_or_else(Default::default, |problem| {
                let key = problem.key.rsplit('.').next().unwrap_or_default();
                (format!("{key}: {}", problem.reason), problem.fix.clone())
            }))
        }
    }
}

/// Reads the whole file back. What each converter writes is good by itself; that all of it together
/// is, is proven here, since what cannot be read must not reach anybody.
fn prove(config: &str) -> Result<(), Mistake> {
    let path = Path::new("/etc/tlsward/config.toml");
    let Err(problems) = Config::parse(config, path, &BTreeMap::new()) else {
        return Ok(());
    };
    let place = Place {
        file: "the result".into(),
        line: 0,
    };
    let first = problems.iter().next();
    Err(first.map_or_else(
        || Mistake::new(&place, "cannot be read back", "report this"),
        |it| Mistake::new(&place, format!("{}: {}", it.key, it.reason), it.fix.clone()),
    ))
}

/// The first port from 9902 on that no service has, where one has the admin endpoint's.
fn admin_port(taken: &[(Listen, &ServiceName)]) -> Option<u16> {
    let is_taken = |port: u16| {
        let admin = Listen::Tcp(([127, 0, 0, 1], port).into());
        taken.iter().any(|(listen, _)| listen.overlaps(&admin))
    };
    if !is_taken(9901) {
        return None;
    }
    (9902..=u16::MAX).find(|port| !is_taken(*port))
}

/// Plain and unique names for the services, close to what the source calls them.
fn names(services: &[DraftService]) -> Vec<ServiceName> {
    let mut taken = BTreeSet::new();
    services
        .iter()
        .map(|service| {
            let plain = plain_name(&service.name);
            let mut name = plain.clone();
            let mut number = 1;
            while !taken.insert(name.clone()) {
                number += 1;
                let suffix = format!("-{number}");
                let room = ServiceName::MAX_LEN - suffix.len();
                name = format!("{}{suffix}", &plain[..plain.len().min(room)]);
            }
            ServiceName::parse(&name)
                .expect("letters, digits and -, beginning with a letter or digit")
        })
        .collect()
}

/// Dots become `-`: a name without them needs no quotes in TOML.
fn plain_name(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => c,
            _ => '-',
        })
        .collect();
    let plain = plain.trim_matches(['-', '_']);
    let plain = &plain[..plain.len().min(ServiceName::MAX_LEN)];
    match plain {
        "" => "service".to_owned(),
        plain => plain.to_owned(),
    }
}

/// A key of a table, quoted where TOML wants it.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !name.is_empty() && name.chars().all(bare) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

/// A TOML string that stands for exactly `text`: variables in it are not expanded.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.replace("${", "$${").chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Without anything that would end a comment.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The text of the file.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn comment(&mut self, text: &str) {
        let line = format!("# {}", one_line(text));
        self.line(line.trim_end());
    }

    /// `#key = value`: to be switched on.
    fn comment_tight(&mut self, text: &str) {
        let line = format!("#{}", one_line(text));
        self.line(line.trim_end());
    }

    fn note(&mut self, note: &Note) {
        for line in note.to_string().lines() {
            self.wrapped(line);
        }
    }

    /// A comment in lines that are no longer than they should be, those after the first indented.
    fn wrapped(&mut self, text: &str) {
        let (first, further) = match text.starts_with(' ') {
            true => ("  ", "       "),
            false => ("", "    "),
        };
        let mut line = String::from(first);
        for word in text.split_whitespace() {
            let is_full = line.chars().count() + word.chars().count() > WIDTH;
            if is_full && !line.trim().is_empty() {
                self.comment(line.trim_end());
                line = String::from(further);
            }
            line.push_str(word);
            line.push(' ');
        }
        self.comment(line.trim_end());
    }
}
