//! Tells the demo to people: numbered steps, colour on a terminal only.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

const STEP: Style = AnsiColor::Cyan.on_default().bold();
const SEEN: Style = AnsiColor::Green.on_default();
const COMMAND: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();

/// Of what was seen, beside the 25 columns that say where: together about a terminal of 120.
const WIDTH: usize = 95;

/// Where the story goes. Errors of writing are the caller's: a closed pipe ends the demo.
pub(super) struct Narrator<W> {
    out: W,
    steps: usize,
}

impl<W: Write> Narrator<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, steps: 0 }
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) -> io::Result<()> {
        self.steps += 1;
        let number = self.steps;
        writeln!(self.out, "\n{STEP}{number}. {title}{STEP:#}")?;
        self.out.flush()
    }

    pub(super) fn say(&mut self, text: impl Display) -> io::Result<()> {
        writeln!(self.out, "   {text}")
    }

    /// Something that was seen, and that the demo checked.
    pub(super) fn saw(&mut self, what: &str, text: impl Display) -> io::Result<()> {
        let text = text.to_string();
        let mut lines = wrap(&text, WIDTH).into_iter();
        let first = lines.next().unwrap_or_default();
        writeln!(
            self.out,
            "   {QUIET}{what:>20}{QUIET:#}  {SEEN}{first}{SEEN:#}"
        )?;
        for line in lines {
            writeln!(self.out, "{:25}{SEEN}{line}{SEEN:#}", "")?;
        }
        Ok(())
    }

    /// Something to try, with what it does.
    pub(super) fn suggest(&mut self, command: impl Display, what: &str) -> io::Result<()> {
        writeln!(self.out, "   {COMMAND}{command}{COMMAND:#}")?;
        writeln!(self.out, "       {QUIET}{what}{QUIET:#}")
    }

    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n{COMMAND}{text}{COMMAND:#}")
    }
}

/// Breaks at spaces; a word that is longer than a line stays whole, so that it can be copied.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_spaces_and_no_word_is_lost_or_cut() {
        let text = "a certificate of 0123456789abcdef0123456789abcdef is not ours";
        let lines = wrap(text, 16);
        assert_eq!(lines.join(" "), text);
        assert_eq!(
            lines,
            [
                "a certificate of",
                "0123456789abcdef0123456789abcdef",
                "is not ours"
            ]
        );
    }

    #[test]
    fn steps_are_numbered_and_what_follows_the_first_line_is_indented() {
        let mut out = Vec::new();
        let mut tell = Narrator::new(&mut out);
        tell.step("first").expect("memory takes it");
        tell.step("second").expect("memory takes it");
        tell.saw("server", "word ".repeat(30).trim_end())
            .expect("memory takes it");
        let mut plain = anstream::StripStream::new(Vec::new());
        plain.write_all(&out).expect("memory takes it");
        let text = String::from_utf8(plain.into_inner()).expect("UTF-8");
        assert!(
            text.contains("1. first") && text.contains("2. second"),
            "{text}"
        );
        let wrapped = text.lines().last().expect("the wrapped line");
        assert!(wrapped.starts_with(&" ".repeat(25)), "{text}");
    }
}
