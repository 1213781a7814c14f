//! What is not TOML: every syntax error of a file, in words, and what can be read in spite of it.

use std::borrow::Cow;

use toml::de::DeTable;

use super::keys::{Key, Kind};
use super::problem::{At, Findings, Wrong};
use super::reader::Written;

/// How often a line that stops the parser is blanked. Who has more of them corrects these first.
const MAX_REPAIRS: usize = 16;

/// The syntax errors of a file, in its order.
pub(super) struct Syntax(Vec<SyntaxError>);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SyntaxError {
    start: usize,
    end: usize,
    message: String,
    /// It lies in the value of a known key and was reported with it.
    claimed: bool,
}

impl SyntaxError {
    /// TOML's rules on repeated keys: all keys are there nevertheless.
    fn is_repetition(&self) -> bool {
        self.message.starts_with(DUPLICATE)
    }
}

// The messages of the toml crate, as tests/config/invalid/syntax-*.toml pin them.
const DUPLICATE: &str = "duplicate key";
const NO_VALUE: &str = "key with no value";
const NO_KEY: &str = "invalid key-value pair";
const UNCLOSED_HEADER: &str = "unclosed table";
const UNQUOTED: &str = "string values must be quoted";

/// The text with the lines blanked that stop the parser, so that what follows them is read too,
/// and all syntax errors. Places in the two texts are the same.
pub(super) fn repair(text: &str) -> (Cow<'_, str>, Syntax) {
    let mut repaired = Cow::Borrowed(text);
    let mut errors = Vec::new();
    for round in 0.. {
        let (_, found) = DeTable::parse_recoverable(&repaired);
        let stop = found
            .iter()
            .filter(|error| {
                [NO_VALUE, NO_KEY, UNCLOSED_HEADER]
                    .iter()
                    .any(|m| error.message().starts_with(m))
            })
            .filter_map(|error| {
                error
                    .span()
                    .map(|span| (span.start, error.message().starts_with(UNCLOSED_HEADER)))
            })
            .min();
        let blank = match stop {
            Some((at, is_header)) if round < MAX_REPAIRS => {
                Some(blank_range(&repaired, at, is_header)).filter(|blank| !blank.is_empty())
            }
            _ => None,
        };
        let kept = found.iter().filter_map(|error| {
            let span = error.span().unwrap_or(text.len()..text.len());
            // The others are found again in the next round.
            let keep = blank
                .as_ref()
                .is_none_or(|blank| blank.contains(&span.start) || blank.end == span.start);
            keep.then(|| SyntaxError {
                start: span.start,
                end: span.end,
                message: error.message().to_owned(),
                claimed: false,
            })
        });
        errors.extend(kept);
        let Some(blank) = blank else {
            break;
        };
        let spaces: String = repaired[blank.clone()]
            .bytes()
            .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
            .collect();
        repaired.to_mut().replace_range(blank, &spaces);
    }
    errors.sort();
    errors.dedup();
    (repaired, Syntax(errors))
}

/// The line around `at`; with a broken header also the keys below it, which would otherwise count
/// as keys of the table before.
fn blank_range(text: &str, at: usize, is_header: bool) -> std::ops::Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let mut end = start;
    for line in text[start..].split_inclusive('\n') {
        if end > start && (!is_header || line.trim_start().starts_with('[')) {
            break;
        }
        end += line.len();
    }
    start..end
}

impl Syntax {
    /// A file without syntax errors.
    pub(super) fn intact() -> Self {
        Self(Vec::new())
    }

    /// Keeps follow-up mistakes on the lines of syntax errors out of the report.
    pub(super) fn mark_lines(&self, findings: &mut Findings<'_>) {
        for error in self.0.iter().filter(|error| !error.is_repetition()) {
            findings.distrust_line(error.start);
        }
    }

    /// Whether the value holds a syntax error, which is then reported as this key's. A value over
    /// several lines is not claimed: it may have swallowed what follows.
    pub(super) fn claim(&mut self, written: &Written<'_>, findings: &mut Findings<'_>) -> bool {
        let span = written.value.span();
        let first = self.0.partition_point(|error| error.start < span.start);
        let inside = self.0[first..]
            .iter_mut()
            .take_while(|error| error.start <= span.end);
        let source = findings.source(span.clone().into());
        let mut is_broken = false;
        for error in inside.filter(|error| !error.is_repetition()) {
            is_broken = true;
            if error.claimed || source.contains('\n') {
                continue;
            }
            error.claimed = true;
            match bare_value(written.key, source) {
                Some(wrong) => {
                    findings.report_syntax(span.start, span.end, written.path.to_owned(), wrong)
                }
                None => {
                    let wrong = explain(
                        &error.message,
                        findings.source(At::from(error.start..error.end)),
                    );
                    findings.report_syntax(error.start, error.end, written.path.to_owned(), wrong);
                }
            }
        }
        is_broken
    }

    /// Reports the errors that no value has claimed. Says whether all keys of the file were read.
    pub(super) fn report_rest(&self, findings: &mut Findings<'_>) -> bool {
        let mut intact = true;
        for error in self.0.iter().filter(|error| !error.claimed) {
            intact &= error.is_repetition();
            let wrong = explain(
                &error.message,
                findings.source(At::from(error.start..error.end)),
            );
            findings.report_syntax(error.start, error.end, String::new(), wrong);
        }
        intact
    }
}

/// A value without its quotes, such as `10s` or `127.0.0.1:7001`, or a switch such as `yes`.
fn bare_value(key: &Key, source: &str) -> Option<Wrong> {
    let source = source.trim();
    if source.is_empty() {
        return Some(Wrong::new(
            "the value is missing",
            format!(
                "write a value behind \"{} =\", or remove the line",
                key.name
            ),
        ));
    }
    if source.contains(['"', '\'', '[', '{', '=', '#']) {
        return None;
    }
    match (&key.kind, source) {
        (Kind::Bool, "yes" | "on" | "True" | "TRUE") => Some(switch(source, "true")),
        (Kind::Bool, "no" | "off" | "False" | "FALSE") => Some(switch(source, "false")),
        (Kind::Bool | Kind::Integer { off: false, .. }, _) => None,
        (Kind::Texts(..) | Kind::Choices(_), _) => Some(Wrong::new(
            "a list stands in brackets and its strings in quotes",
            format!("write [\"{source}\"]"),
        )),
        _ => Some(Wrong::new(
            "a string stands in quotes",
            format!("write \"{source}\""),
        )),
    }
}

fn switch(source: &str, word: &str) -> Wrong {
    Wrong::new(
        format!("{source} is not true or false"),
        format!("write {word}"),
    )
}

fn explain(message: &str, source: &str) -> Wrong {
    let source = source.trim();
    let (reason, fix) = match message {
        _ if message.starts_with(DUPLICATE) => {
            return Wrong::new(
                format!("{source} is here for the second time"),
                "keep one of the two: a key stands once in its table, and a table's header once in the file",
            );
        }
        _ if message.starts_with(UNQUOTED) && source.is_empty() => {
            ("a value is missing", "write the value, or remove the line")
        }
        _ if message.starts_with(UNQUOTED) => {
            return Wrong::new("a string stands in quotes", format!("write \"{source}\""));
        }
        _ if message.starts_with(NO_VALUE) || message.starts_with(NO_KEY) => (
            "this is not KEY = VALUE",
            "write key = \"value\", or [table] for a table's header",
        ),
        _ if message.starts_with(UNCLOSED_HEADER) => {
            ("the table's header is not closed", "write ] at its end")
        }
        _ if message.starts_with("missing escaped value") => (
            "in double quotes a backslash begins an escape",
            "put text with backslashes into 'single quotes'",
        ),
        _ if message.contains("basic string, expected `\"`") => {
            ("the string is not closed", "write \" at its end")
        }
        _ if message.contains("literal string, expected `'`") => {
            ("the string is not closed", "write ' at its end")
        }
        _ if message.starts_with("unclosed array") => {
            ("the list is not closed", "write ] at its end")
        }
        _ if message.starts_with("missing comma") => (
            "a comma is missing between the elements",
            "write a comma after each element",
        ),
        _ => (
            message,
            "correct the TOML; https://toml.io/en/v1.0.0 shows the syntax",
        ),
    };
    Wrong::new(reason, fix)
}
