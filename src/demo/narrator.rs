//! Tells the demo to people: numbered steps, colour on a terminal only.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

const STEP: Style = AnsiColor::Cyan.on_default().bold();
const SEEN: Style = AnsiColor::Green.on_default();
const COMMAND: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();

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
        writeln!(
            self.out,
            "   {QUIET}{what:>20}{QUIET:#}  {SEEN}{text}{SEEN:#}"
        )
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
