//! Tables for people and JSON for programs. Pure.

use serde::Serialize;

use super::text;

/// Most characters of a cell that is not in the last column.
const WIDEST: usize = 60;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// One value as JSON, ended by a line feed.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("keys are text and values are plain");
    inert(&text) + "\n"
}

/// One value as JSON on one line, for a sequence of them.
#[must_use]
pub fn json_line(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("keys are text and values are plain");
    inert(&text) + "\n"
}

/// The same JSON without characters beyond ASCII that a terminal might obey: they occur in strings only, and have an
/// escape there.
fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let code = u32::from(c);
        if (0x7f..=0xffff).contains(&code) && c.escape_debug().len() > 1 {
            out.push_str(&format!("\\u{code:04x}"));
        } else {
            out.push(c);
        }
    }
    out
}

/// One line for each pair of a name and a value, which has to be safe already.
#[must_use]
pub fn pairs(lines: &[(&str, String)]) -> String {
    let width = lines
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{}{value}\n", text::padded(name, width + 2));
    lines.iter().map(line).collect()
}

/// Rows below a head. Every cell is made safe for a terminal.
#[derive(Debug)]
pub struct Table {
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows. A name that begins with `>` heads a column of numbers, which are aligned right.
    #[must_use]
    pub fn new(head: &'static [&'static str]) -> Self {
        Self {
            head,
            rows: Vec::new(),
        }
    }

    /// Adds a row, one cell for each column. Only the last may be long.
    pub fn row<const N: usize>(&mut self, cells: [&str; N]) {
        debug_assert_eq!(N, self.head.len());
        let mut cells = cells.map(text::cell);
        if let Some((_, others)) = cells.split_last_mut() {
            for cell in others {
                *cell = text::cut(cell, WIDEST);
            }
        }
        self.rows.push(cells.to_vec());
    }

    /// The text: the last column takes what is left of `width`, where there is one.
    #[must_use]
    pub fn render(&self, width: Option<usize>) -> String {
        let names: Vec<String> = self
            .head
            .iter()
            .map(|h| h.trim_start_matches('>').to_owned())
            .collect();
        let rows = || std::iter::once(&names).chain(&self.rows);
        let mut widths = vec![0; names.len()];
        for row in rows() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in rows() {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[at] - cell.chars().count());
                match self.head[at].starts_with('>') {
                    true => line.extend([pad.as_str(), cell]),
                    false => line.extend([cell, pad.as_str()]),
                }
                line.push_str("  ");
            }
            let line = line.trim_end();
            out.push_str(&width.map_or_else(|| line.to_owned(), |width| text::cut(line, width)));
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_inert_and_the_same() {
        let odd = "a\u{9b}2J\u{7f}\u{202e}\x1b\"ü日e\u{301}";
        for text in [json(&[odd]), json_line(&[odd])] {
            assert!(!text.contains(['\u{9b}', '\u{7f}', '\u{202e}', '\x1b']), "{text}");
            assert!(text.contains('ü') && text.contains('日'), "{text}");
            let back: Vec<String> = serde_json::from_str(&text).unwrap();
            assert_eq!(back, [odd]);
        }
    }

    #[test]
    fn columns_are_aligned_and_safe() {
        let mut table = Table::new(&["NAME", ">PID", "COMMAND"]);
        table.row(["a", "7", "sleep 1000"]);
        table.row(["long\x1bname", "12345", ""]);
        assert_eq!(
            table.render(None),
            "NAME              PID  COMMAND\n\
             a                   7  sleep 1000\n\
             long\\u{1b}name  12345  -\n"
        );
        let narrow = table.render(Some(28));
        assert!(narrow.lines().all(|l| l.chars().count() <= 28), "{narrow}");
        assert!(narrow.contains("slee…"), "{narrow}");
        table.row([&"x".repeat(100), "1", &"y".repeat(100)]);
        let wide = table.render(None);
        assert_eq!(
            wide.lines().last().map(|l| l.chars().count()),
            Some(WIDEST + 2 + 5 + 2 + 100),
            "{wide}"
        );
        assert_eq!(Table::new(&["ID"]).render(None), "ID\n");
    }
}
