//! Tables for people: lines where the terminal is wide enough for them, else a block for each
//! row. Wrapped cells would break names and addresses in the middle, where they cannot be copied.

use std::fmt::Write as _;

use anstream::adapter::strip_str;
use comfy_table::{Row, Table};

/// The table as text that ends in a newline. Where standard output is no terminal, whoever reads
/// it has lines as long as they come.
pub(crate) fn render(table: &Table) -> String {
    render_within(table, table.width().map(usize::from))
}

fn render_within(table: &Table, columns: Option<usize>) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let is_wide = |columns| text.lines().any(|line| width(line) > columns);
    match table.header() {
        Some(header) if columns.is_some_and(is_wide) => blocks(table, header),
        Some(_) | None => text,
    }
}

fn width(line: &str) -> usize {
    strip_str(line).to_string().chars().count()
}

/// The first cell alone, under it the others with their titles.
fn blocks(table: &Table, header: &Row) -> String {
    let titles: Vec<String> = header.cell_iter().map(|cell| cell.content()).collect();
    let widest = titles.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for row in table.row_iter() {
        for (n, (title, cell)) in titles.iter().zip(row.cell_iter()).enumerate() {
            let content = cell.content().replace('\n', ", ");
            // Writing to a String cannot fail.
            let _ = match n {
                0 => writeln!(text, " {content}"),
                _ => writeln!(text, "   {title:widest$}  {content}"),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use comfy_table::presets;

    use super::*;

    fn table() -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["SERVICE", "LISTEN", "UPSTREAM"]);
        table.add_row(["billing", "127.0.0.1:7001", "one:1\ntwo:2"]);
        table
    }

    #[test]
    fn a_table_that_fits_has_a_line_for_each_row() {
        let text = render_within(&table(), Some(40));
        assert_eq!(
            text,
            " SERVICE  LISTEN          UPSTREAM\n \
             billing  127.0.0.1:7001  one:1\n                          two:2\n"
        );
        assert_eq!(render_within(&table(), None), text);
    }

    #[test]
    fn on_a_narrow_terminal_names_and_addresses_stay_whole() {
        assert_eq!(
            render_within(&table(), Some(30)),
            " billing\n   LISTEN    127.0.0.1:7001\n   UPSTREAM  one:1, two:2\n"
        );
    }
}
