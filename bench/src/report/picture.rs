//! A report as a picture: a panel of bars for each headline, in SVG.

use std::fmt::Write as _;

use super::headlines::{HEADLINES, Headline};
use super::{Line, Report, number};
use crate::proxy::Role;

/// A README's column on common forges.
const WIDTH: f64 = 830.0;
const MARGIN: f64 = 12.0;
const COLUMNS: usize = 2;
const GAP: f64 = 30.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN - GAP) / COLUMNS as f64;

const TITLE: f64 = 58.0;
const PANEL_HEAD: f64 = 26.0;
const ROW: f64 = 19.0;
const BAR: f64 = 13.0;
const PANEL_FOOT: f64 = 18.0;
const FOOTER_LINE: f64 = 15.0;

/// Of a panel: names to the left of the bars, values to their right.
const NAMES: f64 = 98.0;
const VALUES: f64 = 58.0;

/// Letters of the footer's size in the picture's width, by the widest usual fonts.
const FOOTER_LETTERS: usize = 138;

/// A bar this many times as long as the middle one is cut: it would make the others
/// indistinguishable.
const CUT: f64 = 3.0;

/// Middle tones, legible on white and on black; where the reader's scheme is known, clearer ones.
const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px;fill:#6e7781}.title{font-size:17px;font-weight:600}.head{font-size:13px;font-weight:600}.small{font-size:11px}.own{font-weight:700;fill:#d9480f}.right{text-anchor:end}rect{fill:#8c959f}rect.own{fill:#e8590c}rect.floor{fill:none;stroke:#8c959f;stroke-dasharray:3 2}path{stroke:#8c959f;stroke-width:1;fill:none}@media(prefers-color-scheme:light){text{fill:#424a53}.own{fill:#c2410c}}@media(prefers-color-scheme:dark){text{fill:#b1bac4}.own{fill:#ff8a4c}}";

impl Report {
    /// Panels of the headlines that were measured; within one the cheapest comes first.
    pub(crate) fn picture(&self) -> String {
        let panels: Vec<_> = HEADLINES
            .iter()
            .filter(|headline| headline.drawn)
            .map(|headline| (headline, self.bars(headline.metric)))
            .filter(|(_, bars)| !bars.is_empty())
            .collect();
        let mut drawing = String::new();
        let mut top = TITLE;
        for row in panels.chunks(COLUMNS) {
            for (column, (headline, bars)) in row.iter().enumerate() {
                let left = MARGIN + column as f64 * (PANEL + GAP);
                draw_panel(&mut drawing, left, top, headline, bars);
            }
            let longest = row.iter().map(|(_, bars)| bars.len()).max().unwrap_or(0);
            top += PANEL_HEAD + longest as f64 * ROW + PANEL_FOOT;
        }
        top += FOOTER_LINE;
        for line in self.footer() {
            text(&mut drawing, MARGIN, top, "small", &line);
            top += FOOTER_LINE;
        }
        let height = top;
        let mut heading = String::new();
        text(
            &mut heading,
            MARGIN,
            24.0,
            "title",
            "What a TLS-originating proxy costs",
        );
        text(
            &mut heading,
            MARGIN,
            43.0,
            "",
            "Mutual TLS to the upstream, plain TCP from the caller; the proxy's processes alone. Shorter is better.",
        );
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"What tlsward and its peers cost\">\n<style>{STYLE}</style>\n{heading}{drawing}</svg>\n"
        )
    }

    fn bars(&self, metric: &str) -> Vec<&Line> {
        let mut bars: Vec<_> = self
            .lines
            .iter()
            .filter(|line| line.metric == metric)
            .collect();
        bars.sort_by(|a, b| a.median.total_cmp(&b.median));
        bars
    }

    fn footer(&self) -> Vec<String> {
        let conditions = &self.conditions;
        let machine = &conditions.machine;
        let versions: Vec<_> = conditions
            .proxies
            .iter()
            // Variants are of the same program.
            .filter(|(name, _)| !name.contains('-') && *name != "direct")
            .map(|(_, version)| version.as_str())
            .collect();
        let sentences = [
            format!("{}.", versions.join("; ")),
            format!(
                "{}, {}, {}, {}; chain and name verified; medians of up to {} rounds in turns; tuned variants by their documentation; broken lines: no TLS.",
                conditions.tls,
                conditions.suite,
                conditions.group,
                conditions.keys,
                conditions.rounds,
            ),
            format!(
                "{}, Linux {}, loopback; {}. KB are 1,000 bytes of user memory (PSS).",
                machine.cpu, machine.kernel, conditions.pinning
            ),
        ];
        let disturbed = self.lines.iter().filter(|line| line.disturbed).count();
        let doubt = (disturbed > 0).then(|| {
            let all = self.lines.len();
            format!(
                "Other programs disturbed this run: {disturbed} of its {all} values say little."
            )
        });
        sentences
            .iter()
            .chain(&doubt)
            .flat_map(|sentence| wrapped(sentence, FOOTER_LETTERS))
            .collect()
    }
}

fn draw_panel(drawing: &mut String, left: f64, top: f64, headline: &Headline, bars: &[&Line]) {
    let title = format!("{}, {}", headline.title, headline.unit);
    text(drawing, left, top + 13.0, "head", &title);
    let values: Vec<_> = bars.iter().map(|line| line.median).collect();
    let full = full_length(&values);
    let room = PANEL - NAMES - VALUES;
    for (number_of, line) in bars.iter().enumerate() {
        let y = top + PANEL_HEAD + number_of as f64 * ROW;
        let baseline = y + BAR - 2.5;
        let (text_class, bar_class) = match line.role {
            Role::Subject => ("own", "own"),
            Role::Floor => ("", "floor"),
            Role::Peer => ("", ""),
        };
        let names = format!("right {text_class}");
        text(
            drawing,
            left + NAMES - 8.0,
            baseline,
            names.trim(),
            line.proxy,
        );
        let length = room * (line.median / full).min(1.0);
        let x = left + NAMES;
        let width = length.max(1.0);
        // Writing to a String cannot fail.
        let _ = writeln!(
            drawing,
            "<rect class=\"{bar_class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"1.5\"/>"
        );
        if line.median > full {
            draw_cut(drawing, x + length - 14.0, y);
        }
        let value = number(line.median);
        text(drawing, x + length + 6.0, baseline, text_class, &value);
    }
}

/// Two slanted lines through a bar that is longer than it is drawn.
fn draw_cut(drawing: &mut String, x: f64, y: f64) {
    for shift in [0.0, 4.0] {
        let (from, to) = (x + shift, x + shift + 4.0);
        let (below, above) = (y + BAR + 2.0, y - 2.0);
        let _ = writeln!(
            drawing,
            "<path style=\"stroke:#fff;stroke-width:2\" d=\"M{from:.1} {below:.1}L{to:.1} {above:.1}\"/>"
        );
    }
}

/// The value whose bar fills the room.
fn full_length(ascending: &[f64]) -> f64 {
    let most = ascending.last().copied().unwrap_or(1.0);
    let middle = ascending.get(ascending.len() / 2).copied().unwrap_or(most);
    let full = most.min(middle * CUT);
    if full > 0.0 { full } else { 1.0 }
}

fn text(drawing: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escaped(text);
    let _ = writeln!(
        drawing,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= letters
        });
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::Conditions;
    use super::*;

    fn report(lines: Vec<Line>) -> Report {
        Report {
            conditions: Conditions::example(),
            lines,
            verdicts: Vec::new(),
            left_out: Vec::new(),
            plain_copy: [0.2; 3],
            load: [0.0; 3],
        }
    }

    #[test]
    fn the_cheapest_comes_first_and_tlsward_stands_out() {
        let picture = report(vec![
            Line::of_median("bulk-up-8", "envoy", Role::Peer, 0.9),
            Line::of_median("bulk-up-8", "tlsward", Role::Subject, 0.3),
        ])
        .picture();
        let own = picture.find(">tlsward<").unwrap();
        assert!(own < picture.find(">envoy<").unwrap());
        assert_eq!(picture.matches("<rect class=\"own\"").count(), 1);
        assert_eq!(picture.matches("<rect").count(), 2);
    }

    #[test]
    fn what_programs_say_cannot_break_the_picture() {
        let picture = report(Vec::new()).picture();
        assert!(picture.contains("Some &lt;CPU&gt; &amp; Co"));
        assert!(!picture.contains("<CPU>"));
    }

    #[test]
    fn a_picture_of_a_disturbed_run_says_so() {
        let quiet = Line::of_median("bulk-up-8", "tlsward", Role::Subject, 0.3);
        let disturbed = Line {
            disturbed: true,
            ..quiet.clone()
        };
        assert!(!report(vec![quiet.clone()]).picture().contains("disturbed"));
        let picture = report(vec![quiet, disturbed]).picture();
        assert!(picture.contains("1 of its 2 values"));
    }

    #[test]
    fn one_very_long_bar_does_not_make_the_others_unreadable() {
        assert_eq!(full_length(&[1.0, 2.0, 3.0]), 3.0);
        assert_eq!(full_length(&[1.0, 2.0, 50.0]), 6.0);
        assert_eq!(full_length(&[0.0]), 1.0);
        assert_eq!(full_length(&[]), 1.0);
    }

    #[test]
    fn lines_are_broken_between_words_and_none_is_lost() {
        assert_eq!(wrapped("aa bbb c", 6), ["aa bbb", "c"]);
        assert_eq!(wrapped("a-very-long-word b", 6), ["a-very-long-word", "b"]);
    }
}
