//! Mistakes in the configuration: each with its place, its reason and its fix.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kubernetes::{ObjectRef, ServiceObject};

/// All mistakes of one configuration, in the order of the file, then of the environment; or of one
/// Kubernetes Service. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The mistakes.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many there are; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One block for each mistake, with an empty line between two.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// The key that it belongs to, for example `services.billing.tls.cert`; of an annotation the
    /// key that it stands for. Empty where none can be named.
    pub key: String,
    /// The offending text as written, shortened to its first line.
    pub text: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

/// Where a mistake is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// In the file.
    File {
        /// The file, as given to [`Config::parse`](super::Config::parse).
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// In an environment variable.
    Variable {
        /// The variable's name.
        variable: String,
    },
    /// In a Kubernetes Service.
    Service {
        /// Which, as `namespace/name`.
        service: String,
        /// The annotation; `None`: the Service as a whole.
        #[serde(skip_serializing_if = "Option::is_none")]
        annotation: Option<String>,
    },
}

/// The source line of a mistake, and the part of it to point at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: String,
    /// Characters before the caret.
    before: usize,
    /// Characters to mark; at least 1.
    marked: usize,
}

/// `file:line:column: key: reason`, the source line with a caret, `fix: …`; or
/// `Service namespace/name, annotation NAME: reason`, `fix: …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gutter = String::new();
        match &self.place {
            Place::File { file, line, column } => {
                write!(f, "{}:{line}:{column}: ", file.display())?;
                gutter = line.to_string();
            }
            Place::Variable { variable } => write!(f, "environment variable {variable}: ")?,
            Place::Service {
                service,
                annotation,
            } => {
                write!(f, "Service {service}")?;
                if let Some(annotation) = annotation {
                    write!(f, ", annotation {annotation}")?;
                }
                f.write_str(": ")?;
            }
        }
        // An annotation names its key itself.
        if !self.key.is_empty() && !matches!(self.place, Place::Service { .. }) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)?;
        if let Some(excerpt) = &self.excerpt {
            // Tabs stay tabs, so that the caret stands below its text at any tab width.
            let lead: String = excerpt
                .line
                .chars()
                .take(excerpt.before)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let blank = " ".repeat(gutter.len());
            write!(f, "\n  {gutter} | {}", excerpt.line)?;
            write!(f, "\n  {blank} | {lead}{}", "^".repeat(excerpt.marked))?;
        }
        write!(f, "\n  fix: {}", self.fix)
    }
}

/// What is wrong with a value and what to do about it; the place is added by who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) reason: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fix: fix.into(),
        }
    }
}

/// Where a value was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Bytes of the file.
    Span { start: usize, end: usize },
    /// An environment variable.
    Variable(&'static str),
    /// An annotation of the Kubernetes Service that it is about.
    Annotation(&'static str),
    /// That Service as a whole.
    Service,
}

impl From<std::ops::Range<usize>> for At {
    fn from(span: std::ops::Range<usize>) -> Self {
        Self::Span {
            start: span.start,
            end: span.end,
        }
    }
}

/// Collects mistakes and knows where in the file each is.
pub(super) struct Findings<'a> {
    file: &'a Path,
    text: &'a str,
    environment: &'a BTreeMap<String, String>,
    line_starts: Vec<usize>,
    /// Lines with a syntax error. What else seems wrong there is most likely its consequence.
    broken_lines: BTreeSet<usize>,
    found: Vec<Found>,
}

/// A mistake, and by what it is sorted: its byte in the file.
pub(super) type Found = (usize, Problem);

/// Sorts what is wrong in the environment, or in the cluster, behind the file.
const AFTER_THE_FILE: usize = usize::MAX;

impl<'a> Findings<'a> {
    pub(super) fn new(
        file: &'a Path,
        text: &'a str,
        environment: &'a BTreeMap<String, String>,
    ) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            file,
            text,
            environment,
            line_starts: std::iter::once(0)
                .chain(newlines.map(|(at, _)| at + 1))
                .collect(),
            broken_lines: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    /// Records a mistake.
    pub(super) fn report(&mut self, at: At, key: impl Into<String>, wrong: Wrong) {
        self.found.extend(self.problem(at, key, wrong, None));
    }

    /// A mistake with its place, not recorded: for those that concern one service alone. `service`
    /// is the Kubernetes Service whose annotations are spoken of.
    pub(super) fn problem(
        &self,
        at: At,
        key: impl Into<String>,
        wrong: Wrong,
        service: Option<&ServiceObject>,
    ) -> Option<Found> {
        let (start, end) = match (at, service) {
            (At::Span { start, end }, _) => (start, end),
            (At::Variable(variable), _) => return Some(self.in_variable(variable, key, wrong)),
            (At::Annotation(name), Some(service)) => {
                return Some(in_annotation(service, name, key, wrong));
            }
            (At::Service, Some(service)) => {
                return Some(in_service(&service.object, key, wrong));
            }
            (At::Annotation(_) | At::Service, None) => {
                unreachable!("an annotation of no Service");
            }
        };
        (!self.broken_lines.contains(&self.line(start)))
            .then(|| self.in_file(start, end, key.into(), wrong))
    }

    /// Leaves mistakes on the line of this byte out from now on, but for those of TOML itself.
    pub(super) fn distrust_line(&mut self, offset: usize) {
        self.broken_lines.insert(self.line(offset));
    }

    /// Records a mistake of TOML itself.
    pub(super) fn report_syntax(&mut self, start: usize, end: usize, key: String, wrong: Wrong) {
        self.found.push(self.in_file(start, end, key, wrong));
    }

    /// Records a mistake in an environment variable.
    pub(super) fn report_variable(&mut self, variable: &str, key: impl Into<String>, wrong: Wrong) {
        self.found.push(self.in_variable(variable, key, wrong));
    }

    fn in_variable(&self, variable: &str, key: impl Into<String>, wrong: Wrong) -> Found {
        let key: String = key.into();
        // The value of a variable that we do not know may be somebody's secret.
        let value = match self.environment.get(variable) {
            Some(value) if !key.is_empty() => value,
            _ => "",
        };
        let place = Place::Variable {
            variable: variable.to_owned(),
        };
        outside(place, key, value, wrong)
    }

    /// The line, from 1, of a byte of the file.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// `line 12`, or the variable's name: for reasons that speak of a second place.
    pub(super) fn describe(&self, at: At) -> String {
        match at {
            At::Span { start, .. } => format!("line {}", self.line(start)),
            At::Variable(variable) => variable.to_owned(),
            At::Annotation(name) => format!("annotation {name}"),
            At::Service => "the Service".to_owned(),
        }
    }

    /// The text of the file at a place; empty for one that is not in the file.
    pub(super) fn source(&self, at: At) -> &'a str {
        match at {
            At::Span { start, end } => self.text.get(start..end).unwrap_or_default(),
            At::Variable(_) | At::Annotation(_) | At::Service => "",
        }
    }

    /// All that was recorded, or `None` if nothing was.
    pub(super) fn into_problems(self) -> Option<Problems> {
        in_order(self.found)
    }

    fn in_file(&self, start: usize, end: usize, key: String, wrong: Wrong) -> Found {
        let line = self.line(start);
        let line_start = self.line_starts[line - 1];
        let rest = &self.text[line_start..];
        let whole = rest.split('\n').next().unwrap_or_default();
        let whole = whole.strip_suffix('\r').unwrap_or(whole);

        // A span may end on a later line, and begin behind the last character of its own.
        let from = floor(whole, start - line_start);
        let to = floor(whole, end.saturating_sub(line_start)).max(from);
        let before = whole[..from].chars().count();
        let text = &whole[from..to];

        // A window, so that one long line does not fill the terminal.
        let skipped = before.saturating_sub(MAX_LEAD);
        let window: String = whole.chars().skip(skipped).take(MAX_SHOWN).collect();
        let room = window.chars().count().saturating_sub(before - skipped);
        let excerpt = Excerpt {
            marked: text.chars().count().min(room).max(1),
            before: before - skipped,
            line: shown(&window),
        };
        let problem = Problem {
            place: Place::File {
                file: self.file.to_owned(),
                line,
                column: before + 1,
            },
            key,
            text: shown(text),
            reason: wrong.reason,
            fix: wrong.fix,
            excerpt: Some(excerpt),
        };
        (start, problem)
    }
}

/// A mistake in an annotation, whatever its name.
pub(super) fn in_annotation(
    service: &ServiceObject,
    name: &str,
    key: impl Into<String>,
    wrong: Wrong,
) -> Found {
    let place = Place::Service {
        service: service.object.to_string(),
        annotation: Some(shown(name)),
    };
    let value = service.annotations.get(name);
    outside(
        place,
        key.into(),
        value.map_or("", String::as_str),
        shortened(wrong),
    )
}

/// A mistake in a Service as a whole.
pub(super) fn in_service(object: &ObjectRef, key: impl Into<String>, wrong: Wrong) -> Found {
    let place = Place::Service {
        service: object.to_string(),
        annotation: None,
    };
    outside(place, key.into(), "", shortened(wrong))
}

/// All of these in order, or `None` if there are none.
pub(super) fn in_order(mut found: Vec<Found>) -> Option<Problems> {
    found.sort_by_key(|(start, _)| *start);
    let mut problems: Vec<Problem> = found.into_iter().map(|(_, problem)| problem).collect();
    // The TOML parser says some things twice.
    problems.dedup();
    (!problems.is_empty()).then_some(Problems(problems))
}

fn outside(place: Place, key: String, value: &str, wrong: Wrong) -> Found {
    let problem = Problem {
        place,
        key,
        text: shown(value.lines().next().unwrap_or_default()),
        reason: wrong.reason,
        fix: wrong.fix,
        excerpt: None,
    };
    (AFTER_THE_FILE, problem)
}

/// What quotes an annotation may be as long as that: up to 256 KiB (the API server's limit).
fn shortened(wrong: Wrong) -> Wrong {
    const MOST: usize = 400;
    let short = |text: String| match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    Wrong::new(short(wrong.reason), short(wrong.fix))
}

/// Characters of a source line that are shown, and how many of them before the caret.
const MAX_SHOWN: usize = 160;
const MAX_LEAD: usize = 100;

/// The largest character boundary of `text` that is not behind `index`.
fn floor(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// Source text for a terminal: control characters could move the cursor or change colours.
fn shown(text: &str) -> String {
    text.chars()
        .take(MAX_SHOWN)
        .map(|c| {
            if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, start: usize, end: usize) -> Problem {
        let environment = BTreeMap::new();
        let mut findings = Findings::new(Path::new("/etc/c.toml"), text, &environment);
        findings.report(At::Span { start, end }, "a.b", Wrong::new("bad", "do this"));
        findings.into_problems().unwrap().0.remove(0)
    }

    #[test]
    fn a_problem_shows_place_key_reason_source_with_caret_and_fix() {
        let text = "one = 1\n\ttwo = \"ü\"\r\n";
        let start = text.find("\"ü").unwrap();
        assert_eq!(
            one(text, start, start + 4).to_string(),
            "/etc/c.toml:2:8: a.b: bad\n  2 | \ttwo = \"ü\"\n    | \t      ^^^\n  fix: do this"
        );
    }

    #[test]
    fn a_problem_behind_the_last_character_or_over_two_lines_is_marked_on_its_own_line() {
        let behind = one("ab", 2, 2);
        assert!(behind.to_string().contains("\n    |   ^\n"), "{behind}");
        let over = one("a = [\n1]", 4, 8);
        assert_eq!(over.text, "[");
        assert!(over.to_string().contains("\n    |     ^\n"), "{over}");
    }

    #[test]
    fn control_characters_of_the_file_do_not_reach_the_terminal() {
        assert!(
            !one("a = '\u{1b}[31m'", 4, 12)
                .to_string()
                .contains('\u{1b}')
        );
    }

    #[test]
    fn of_a_long_line_the_part_around_the_mistake_is_shown() {
        let text = format!("{}X{}", "a".repeat(5_000), "b".repeat(5_000));
        let shown = one(&text, 5_000, 5_001).to_string();
        assert!(shown.contains("aXb") && shown.len() < 600, "{shown}");
        assert!(shown.contains(":1:5001:"));
    }

    #[test]
    fn as_json_a_problem_has_flat_fields() {
        assert_eq!(
            serde_json::to_value(one("a = 1", 4, 5)).unwrap(),
            serde_json::json!({
                "file": "/etc/c.toml", "line": 1, "column": 5, "key": "a.b", "text": "1",
                "reason": "bad", "fix": "do this",
            })
        );
    }
}
