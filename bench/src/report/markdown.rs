//! A report as a table for a document.

use std::fmt::Write as _;

use super::headlines::{HEADLINES, Headline};
use super::{Report, number};
use crate::proxy::Role;

impl Report {
    /// A row for each headline that was measured, a column for each proxy; in brackets the multiple
    /// of tlsward's value.
    pub(crate) fn markdown(&self) -> String {
        let proxies: Vec<_> = self
            .conditions
            .proxies
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| self.lines.iter().any(|line| line.proxy == *name))
            .collect();
        let mut text = format!("| | {} |\n|---|", proxies.join(" | "));
        text.push_str(&"---:|".repeat(proxies.len()));
        text.push('\n');
        for Headline {
            metric,
            title,
            unit,
            ..
        } in &HEADLINES
        {
            if !self.lines.iter().any(|line| line.metric == *metric) {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "| {title} ({unit}) |");
            for proxy in &proxies {
                let _ = write!(text, " {} |", self.cell(metric, proxy));
            }
            text.push('\n');
        }
        text.push('\n');
        for (name, version) in &self.conditions.proxies {
            let _ = writeln!(text, "- {name}: {}", escaped(version));
        }
        for (name, value) in self.conditions.describe() {
            let _ = writeln!(text, "- {name}: {}", escaped(&value));
        }
        let [_, copy, _] = self.plain_copy;
        let _ = writeln!(
            text,
            "- plain copy, 128 KiB at a time, without TLS: {copy:.3} CPU-s/GiB"
        );
        for absence in self.absences() {
            let _ = writeln!(text, "- left out: {}", escaped(&absence));
        }
        text
    }

    fn cell(&self, metric: &str, proxy: &str) -> String {
        let Some(line) = self.line(metric, proxy) else {
            return String::new();
        };
        let value = number(line.median);
        match (line.role, line.ratio_to_tlsward) {
            (Role::Subject, _) => format!("**{value}**"),
            (_, Some(ratio)) => format!("{value} ({ratio:.1})"),
            (_, None) => value,
        }
    }
}

/// What programs say of themselves may hold what Markdown takes for its own.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '*' | '_' | '`' | '[' | ']' | '|' => escaped.extend(['\\', character]),
            '\n' => escaped.push(' '),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{Conditions, Line, compare};
    use super::*;

    fn report(lines: &[(&'static str, &'static str, f64)]) -> Report {
        let mut lines: Vec<_> = lines
            .iter()
            .map(|(metric, proxy, median)| {
                let role = if *proxy == "tlsward" {
                    Role::Subject
                } else {
                    Role::Peer
                };
                Line::of_median(metric, proxy, role, *median)
            })
            .collect();
        compare(&mut lines);
        let mut conditions = Conditions::example();
        conditions.proxies.push(("nginx", "nginx".to_owned()));
        conditions.proxies.push(("idler", "idler".to_owned()));
        Report {
            conditions,
            lines,
            verdicts: Vec::new(),
            left_out: Vec::new(),
            plain_copy: [0.1, 0.2, 0.3],
            load: [0.0; 3],
        }
    }

    #[test]
    fn a_row_has_each_proxy_s_value_and_multiple_and_stays_empty_where_there_is_none() {
        let text = report(&[
            ("bulk-up-8", "tlsward", 0.25),
            ("bulk-up-8", "nginx", 1.0),
            ("connect-full", "tlsward", 170.0),
        ])
        .markdown();
        let rows: Vec<_> = text.lines().take(4).collect();
        assert_eq!(
            rows,
            [
                "| | tlsward | nginx |",
                "|---|---:|---:|",
                "| Bulk to the upstream, 8 connections (CPU-s/GiB) | **0.250** | 1.00 (4.0) |",
                "| New connection, full handshake (us CPU) | **170** |  |",
            ]
        );
    }

    #[test]
    fn the_conditions_cannot_break_the_document() {
        let text = report(&[]).markdown();
        assert!(text.contains("Some &lt;CPU> & Co"), "{text}");
        assert!(text.contains("TLS\\_AES"), "{text}");
    }
}
