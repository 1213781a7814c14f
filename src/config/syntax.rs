//! What is not TOML: every syntax error of a file, in words, and what can be read in spite of it.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::DeTable;

use super::keys::{Key, Kind, quoted};
use super::problem::{At, Findings, Wrong};
use super::reader::Written;

/// How often a line that stops the parser is blanked. Who has more of them corrects these first.
const MAX_REPAIRS: usize = 16;

/// The syntax errors of a file, in its order.
pub(super) struct Syntax {
    errors: Vec<SyntaxError>,
    /// Whether keys may be hidden behind the errors.
    hides_keys: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SyntaxError {
    start: usize,
    end: usize,
    message: String,
    /// It lies in the value of a known key and was reported with it.
    claimed: bool,
}

impl SyntaxError {
    fn new(span: Range<usize>, message: &str) -> Self {
        Self {
            start: span.start,
            end: span.end,
            message: message.to_owned(),
            claimed: false,
        }
    }

    /// TOML's rules on repeated keys: all keys are there nevertheless.
    fn is_repetition(&self) -> bool {
        self.message.starts_with(DUPLICATE)
    }

    fn explain(&self, findings: &Findings<'_>) -> Wrong {
        explain(
            &self.message,
            findings.source(At::from(self.start..self.end)),
        )
    }
}

// The messages of the toml crate, as tests/config/invalid/syntax-*.toml pin them.
const DUPLICATE: &str = "duplicate key";
const NO_VALUE: &str = "key with no value";
const NO_KEY: &str = "invalid key-value pair";
const UNCLOSED_HEADER: &str = "unclosed table";
const UNCLOSED_LIST: &str = "unclosed array";
const UNQUOTED: &str = "string values must be quoted";
const ESCAPE: &str = "missing escaped value";

/// The text with the lines blanked that stop the parser, so that what follows them is read too,
/// and all syntax errors. Places in the two texts are the same.
pub(super) fn repair(text: &str) -> (Cow<'_, str>, Syntax) {
    let mut repaired = Cow::Borrowed(text);
    let mut errors = Vec::new();
    for round in 0..=MAX_REPAIRS {
        let (_, found) = DeTable::parse_recoverable(&repaired);
        let found = found.iter().map(|error| {
            SyntaxError::new(
                error.span().unwrap_or(text.len()..text.len()),
                error.message(),
            )
        });
        let mut found: Vec<SyntaxError> = found.collect();
        found.sort();
        let stop = found.iter().find(|error| {
            [NO_VALUE, NO_KEY, UNCLOSED_HEADER]
                .iter()
                .any(|message| error.message.starts_with(message))
        });
        let broken = stop
            .map(|stop| line_around(&repaired, stop.start))
            .filter(|line| !line.is_empty());
        let (Some(stop), Some(line)) = (stop, broken) else {
            errors.append(&mut found);
            break;
        };
        if round == MAX_REPAIRS {
            errors.append(&mut found);
            break;
        }
        // One error for the whole line; those elsewhere are found again in the next round.
        let shown = repaired[line.clone()].trim();
        let start = line.start + repaired[line.clone()].find(shown).unwrap_or(0);
        errors.push(SyntaxError::new(start..start + shown.len(), &stop.message));
        let is_header = stop.message.starts_with(UNCLOSED_HEADER);
        let end = if is_header {
            end_of_table(&repaired, line.end)
        } else {
            line.end
        };
        blank(repaired.to_mut(), line.start..end);
    }
    errors.sort();
    errors.dedup();
    let syntax = Syntax {
        errors,
        hides_keys: false,
    };
    (repaired, syntax)
}

/// The line of a byte, its newline included.
fn line_around(text: &str, at: usize) -> Range<usize> {
    let bytes = text.as_bytes();
    let start = bytes[..at]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let end = bytes[at..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |newline| at + newline + 1);
    start..end
}

/// Where the next header begins. The keys below a broken one would otherwise count as keys of the
/// table before it.
fn end_of_table(text: &str, from: usize) -> usize {
    let lines = text[from..].split_inclusive('\n');
    from + lines
        .take_while(|line| !line.trim_start().starts_with('['))
        .map(str::len)
        .sum::<usize>()
}

fn blank(text: &mut String, range: Range<usize>) {
    let spaces: String = text[range.clone()]
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(range, &spaces);
}

impl Syntax {
    /// A file without syntax errors.
    pub(super) fn intact() -> Self {
        Self {
            errors: Vec::new(),
            hides_keys: false,
        }
    }

    /// Whether something in the file may not have been read.
    pub(super) fn is_broken(&self) -> bool {
        !self.errors.iter().all(SyntaxError::is_repetition)
    }

    /// Keeps follow-up mistakes on the lines of syntax errors out of the report.
    pub(super) fn mark_lines(&self, findings: &mut Findings<'_>) {
        for error in self.errors.iter().filter(|error| !error.is_repetition()) {
            findings.distrust_line(error.start);
        }
    }

    /// Whether the value holds a syntax error, which is then reported as this key's.
    pub(super) fn claim(&mut self, written: &Written<'_>, findings: &mut Findings<'_>) -> bool {
        let span = written.value.span();
        let source = findings.source(span.clone().into());
        let first = self
            .errors
            .partition_point(|error| error.start < span.start);
        let mut inside: Vec<&mut SyntaxError> = self.errors[first..]
            .iter_mut()
            .take_while(|error| error.start <= span.end)
            .filter(|error| !error.is_repetition())
            .collect();
        if inside.is_empty() {
            return false;
        }
        // A value over several lines may have swallowed the keys that follow it.
        self.hides_keys |= source.contains('\n');
        let report_once = match bare_value(written.key, source) {
            Some(wrong) => Some((span, wrong)),
            None => inside
                .iter()
                .find(|error| error.message.starts_with(UNCLOSED_LIST))
                .map(|error| (span.start..span.start + 1, error.explain(findings))),
        };
        if let Some((at, wrong)) = report_once {
            if inside.iter().any(|error| !error.claimed) {
                findings.report_syntax(at.start, at.end, written.path.to_owned(), wrong);
            }
            inside.iter_mut().for_each(|error| error.claimed = true);
            return true;
        }
        let mut said = "";
        for error in inside.into_iter().filter(|error| !error.claimed) {
            error.claimed = true;
            // Each backslash of a Windows path is the same mistake.
            if !(said == error.message && said.starts_with(ESCAPE)) {
                let wrong = error.explain(findings);
                findings.report_syntax(error.start, error.end, written.path.to_owned(), wrong);
            }
            said = &error.message;
        }
        true
    }

    /// Reports the errors that no value has claimed. Says whether all keys of the file were read.
    pub(super) fn report_rest(&self, findings: &mut Findings<'_>) -> bool {
        let mut intact = !self.hides_keys;
        for error in self.errors.iter().filter(|error| !error.claimed) {
            intact &= error.is_repetition();
            let wrong = error.explain(findings);
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
    let wrong = match (&key.kind, source) {
        (Kind::Bool, "yes" | "on" | "True" | "TRUE") => switch(source, "true"),
        (Kind::Bool, "no" | "off" | "False" | "FALSE") => switch(source, "false"),
        (Kind::Bool, _) => switch(source, "true or false"),
        (Kind::Integer { min, max, off }, _) if !(*off && source == "off") => Wrong::new(
            format!("{source} is not a number"),
            format!("write a number from {min} to {max}"),
        ),
        (Kind::Choice(words), _) if !words.contains(&source) => Wrong::new(
            format!("{source} is not a possible value"),
            format!("write {}", quoted(words)),
        ),
        (Kind::Ports, _)
            if source
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'-') =>
        {
            Wrong::new(
                "a list of ports stands in brackets, and ranges in quotes",
                format!("write [\"{source}\"]"),
            )
        }
        (Kind::Texts(..) | Kind::Choices(_), _) => Wrong::new(
            "a list stands in brackets and its strings in quotes",
            format!("write [\"{source}\"]"),
        ),
        _ => Wrong::new("a string stands in quotes", format!("write \"{source}\"")),
    };
    Some(wrong)
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
        _ if message.starts_with(ESCAPE) => (
            "in double quotes a backslash begins an escape",
            "put text with backslashes into 'single quotes'",
        ),
        _ if message.contains("basic string, expected `\"`") => {
            ("the string is not closed", "write \" at its end")
        }
        _ if message.contains("literal string, expected `'`") => {
            ("the string is not closed", "write ' at its end")
        }
        _ if message.starts_with(UNCLOSED_LIST) => ("the list is not closed", "write ] at its end"),
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
