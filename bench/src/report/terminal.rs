//! A report for people at a terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::{Report, number};
use crate::budget::Verdict;

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for (name, version) in &self.conditions.proxies {
            let _ = writeln!(text, "{name:<13} {version}");
        }
        for (name, value) in self.conditions.describe() {
            let _ = writeln!(text, "{name:<13} {value}");
        }
        let [cheapest, median, dearest] = self.plain_copy;
        let [low, usual, high] = self.load;
        let _ = writeln!(
            text,
            "plain copy    {cheapest:.3} / {median:.3} / {dearest:.3} CPU-s/GiB without TLS, the floor of this run (least / median / most)\nload          {low:.2} / {usual:.2} / {high:.2}\n"
        );
        let _ = writeln!(text, "{}\n", self.table());
        if !self.verdicts.is_empty() {
            let _ = writeln!(text, "Limits (bench/budget.toml)\n\n{}\n", self.limits());
        }
        for absence in self.absences() {
            let _ = writeln!(text, "Left out: {absence}");
        }
        let missed = self.verdicts.iter().filter(|v| !v.met).count();
        let _ = match missed {
            0 => writeln!(text, "\nEvery limit that could be judged is met."),
            _ => writeln!(text, "\n{missed} limits are not met."),
        };
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "metric",
            "proxy",
            "median",
            "x tlsward",
            "min",
            "max",
            "unit",
            "busy",
            "waited",
            "generator",
            "resumed",
            "rounds",
        ]);
        for line in &self.lines {
            table.add_row([
                line.metric.to_owned(),
                line.proxy.to_owned(),
                number(line.median),
                line.ratio_to_tlsward
                    .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                number(line.min),
                number(line.max),
                line.unit.to_owned(),
                format!("{:.0} %", line.busy_percent),
                format!("{:.0} %", line.waited_percent),
                format!("{:.0} %", line.generator_percent),
                line.resumed_percent
                    .map_or_else(String::new, |percent| format!("{percent:.0} %")),
                if line.disturbed {
                    format!("{} (disturbed)", line.rounds)
                } else {
                    format!("{}/{}", line.rounds_used, line.rounds)
                },
            ]);
        }
        align_right(&mut table, &[2, 3, 4, 5, 7, 8, 9, 10, 11]);
        table
    }

    fn limits(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["metric", "measured", "limit", "met", ""]);
        for verdict in &self.verdicts {
            let Verdict {
                metric,
                measured,
                limit,
                at_least,
                other,
                met,
                disturbed,
            } = verdict;
            let bound = if *at_least { "at least" } else { "at most" };
            let of = other.map_or_else(String::new, |other| format!("x {other}"));
            let doubt = if *disturbed { "disturbed" } else { "" };
            table.add_row([
                (*metric).to_owned(),
                number(*measured),
                format!("{bound} {} {of}", number(*limit)).trim().to_owned(),
                if *met { "yes" } else { "NO" }.to_owned(),
                doubt.to_owned(),
            ]);
        }
        align_right(&mut table, &[1]);
        table
    }
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
