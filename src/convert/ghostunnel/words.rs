//! Words as a shell splits them.

use super::commands::Environment;
use crate::convert::sources::{Mistake, Place, Source};

/// A word, and the line that it begins on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Without quotes. `$NAME` and `${NAME}` stand for variables, unless it is literal.
    pub(super) text: String,
    pub(super) place: Place,
    /// A `$` in it is a dollar sign.
    pub(super) is_literal: bool,
}

/// The words up to an end of line, `;`, `&` or `|`.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) words: Vec<Word>,
}

/// The longest that a value grows by variables, in bytes.
const LONGEST: usize = 4096;

/// Stands for a dollar sign that a quote or backslash protects.
const DOLLAR: char = '\u{e000}';

impl Word {
    /// With the variables that are known put in; others stay as they are. Where that would become too
    /// long, the word depends on a variable that nobody knows.
    pub(super) fn resolved(&self, variables: &Environment) -> Self {
        if self.is_literal {
            return self.clone();
        }
        let mut text = String::new();
        let mut rest = &*self.text;
        while let Some(at) = rest.find('$') {
            text.push_str(&rest[..at]);
            let reference = &rest[at..];
            let (name, length) = name_of(reference);
            match variables.get(name) {
                Some(value) if !value.depends_on_others() => text.push_str(&value.text),
                _ => text.push_str(&reference[..length]),
            }
            rest = &reference[length..];
            // No value of a person's hand is longer; variables that double each other are.
            if text.len() > LONGEST {
                text = "${too_long}".to_owned();
                rest = "";
            }
        }
        text.push_str(rest);
        Self {
            text,
            ..self.clone()
        }
    }

    /// Whether a variable is left in it that nobody knows.
    pub(super) fn depends_on_others(&self) -> bool {
        !self.is_literal && self.text.contains(['$', '`'])
    }

    /// The text, with protected dollar signs as such.
    pub(super) fn plain(&self) -> String {
        self.text.replace(DOLLAR, "$")
    }
}

/// The name of the variable that `text` begins with, and the length of the reference in bytes.
fn name_of(text: &str) -> (&str, usize) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = &text[1..];
    if let Some(braced) = rest.strip_prefix('{') {
        return match braced.find('}') {
            Some(end) => (&braced[..end], end + 3),
            None => ("", 1),
        };
    }
    let length = rest.len() - rest.trim_start_matches(is_name).len();
    (&rest[..length], length + 1)
}

/// The statements of a script.
///
/// # Errors
/// A quote that never ends.
pub(super) fn statements(source: &Source) -> Result<Vec<Statement>, Mistake> {
    Splitter::new(&source.text, source.at(1)).run()
}

/// The words of one line.
///
/// # Errors
/// A quote that never ends.
pub(super) fn of_line(text: &str, place: &Place) -> Result<Vec<Word>, Mistake> {
    let statements = Splitter::new(text, place.clone()).run()?;
    let words = statements.into_iter().flat_map(|it| it.words);
    // However it is broken: it is one line of the file.
    Ok(words
        .map(|word| Word {
            place: place.clone(),
            ..word
        })
        .collect())
}

struct Splitter<'t> {
    rest: std::iter::Peekable<std::str::Chars<'t>>,
    place: Place,
    statements: Vec<Statement>,
    words: Vec<Word>,
    word: Option<Word>,
}

impl<'t> Splitter<'t> {
    fn new(text: &'t str, place: Place) -> Self {
        Self {
            rest: text.chars().peekable(),
            place,
            statements: Vec::new(),
            words: Vec::new(),
            word: None,
        }
    }

    fn run(mut self) -> Result<Vec<Statement>, Mistake> {
        while let Some(c) = self.bump() {
            match c {
                '\n' | ';' | '&' | '|' => self.end_statement(),
                c if c.is_whitespace() => self.end_word(),
                '#' if self.word.is_none() => {
                    while self.rest.peek().is_some_and(|c| *c != '\n') {
                        self.bump();
                    }
                }
                '\\' => match self.bump() {
                    // A line that goes on.
                    Some('\n') => self.end_word(),
                    Some(c) => self.push(protected(c)),
                    None => self.push('\\'),
                },
                '\'' => self.quoted('\'')?,
                '"' => self.quoted('"')?,
                c => self.push(c),
            }
        }
        self.end_statement();
        Ok(self.statements)
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.place.line += 1;
        }
        Some(c)
    }

    fn push(&mut self, c: char) {
        self.begin_word().push(c);
    }

    fn begin_word(&mut self) -> &mut String {
        let place = &self.place;
        let word = self.word.get_or_insert_with(|| Word {
            text: String::new(),
            place: place.clone(),
            is_literal: false,
        });
        &mut word.text
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }

    fn end_statement(&mut self) {
        self.end_word();
        if !self.words.is_empty() {
            let words = std::mem::take(&mut self.words);
            self.statements.push(Statement { words });
        }
    }

    fn quoted(&mut self, quote: char) -> Result<(), Mistake> {
        let opened = self.place.clone();
        self.begin_word();
        loop {
            match self.bump() {
                None => {
                    return Err(Mistake::new(
                        &opened,
                        format!("the text that begins with {quote} never ends"),
                        "write the closing quote",
                    ));
                }
                Some(c) if c == quote => return Ok(()),
                Some('\\') if quote == '"' => match self.bump() {
                    Some('\n') | None => {}
                    Some(c @ ('"' | '\\' | '$' | '`')) => self.push(protected(c)),
                    Some(c) => {
                        self.push('\\');
                        self.push(c);
                    }
                },
                Some(c) if quote == '\'' => self.push(protected(c)),
                Some(c) => self.push(c),
            }
        }
    }
}

/// A character that has lost its meaning.
fn protected(c: char) -> char {
    match c {
        '$' => DOLLAR,
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<Vec<String>> {
        let source = Source {
            name: "f".into(),
            path: "/f".into(),
            text: text.to_owned(),
        };
        let statements = statements(&source).unwrap();
        let words = |it: &Statement| it.words.iter().map(|it| it.text.clone()).collect();
        statements.iter().map(words).collect()
    }

    #[test]
    fn words_are_a_shell_s() {
        assert_eq!(
            split("a b\\\n  c # d\ne;f"),
            [vec!["a", "b", "c"], vec!["e"], vec!["f"]]
        );
        assert_eq!(
            split("a 'b c'd \"e\\\"f\" g\\ h ''"),
            [vec!["a", "b cd", "e\"f", "g h", ""]]
        );
        assert_eq!(split("a#b && c | d"), [vec!["a#b"], vec!["c"], vec!["d"]]);
    }

    #[test]
    fn variables_that_double_each_other_end_somewhere() {
        let place = Place {
            file: "f".into(),
            line: 1,
        };
        let mut variables = Environment::new();
        for n in 0..60 {
            let text = match n {
                0 => "xx".to_owned(),
                n => format!("$V{0}$V{0}", n - 1),
            };
            let word = of_line(&text, &place).unwrap().remove(0);
            variables.insert(format!("V{n}"), word.resolved(&variables));
        }
        let last = &variables["V59"];
        assert!(
            last.depends_on_others() && last.text.len() < 100,
            "{last:?}"
        );
        assert_eq!(variables["V10"].text.len(), 2048);
    }

    #[test]
    fn variables_are_put_in_where_they_are_known_and_not_quoted_away() {
        let place = Place {
            file: "f".into(),
            line: 1,
        };
        let known = of_line("x", &place).unwrap().remove(0);
        let variables = Environment::from([("A".to_owned(), known)]);
        for (text, resolved, depends) in [
            ("$A/${A}b", "x/xb", false),
            ("$B", "$B", true),
            ("'$A'", "$A", false),
            ("\\$A", "$A", false),
            ("${A", "${A", true),
            ("${A:-y}", "${A:-y}", true),
            ("$(cat x)", "$(cat", true),
        ] {
            let word = of_line(text, &place)
                .unwrap()
                .remove(0)
                .resolved(&variables);
            assert_eq!(
                (word.plain().as_str(), word.depends_on_others()),
                (resolved, depends),
                "{text}"
            );
        }
    }
}
