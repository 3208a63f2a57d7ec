//! Tables as Markdown that reads well on a terminal.

use super::table::{Cell, Table};

/// With more columns than this an interval is shown as half its width.
const WIDE: usize = 4;

/// One table: title, aligned columns, notes.
pub(super) fn table(table: &Table) -> String {
    let short = table.columns.len() > WIDE;
    let shared = shared_counts(table);
    let mut grid = vec![header(table, &shared, short)];
    if short && shared.iter().any(Option::is_some) {
        let counts = shared.iter().map(|n| n.map_or(String::new(), |n| n.to_string()));
        grid.push(std::iter::once("n".to_owned()).chain(counts).collect());
    }
    for row in &table.rows {
        let cells = row.cells.iter().zip(&shared).map(|(cell, shared)| escape(&show(cell, short, shared.is_none())));
        grid.push(std::iter::once(escape(&row.name)).chain(cells).collect());
    }
    let mut text = format!("## {}\n\n{}", table.title, align(&grid));
    if short && table.rows.iter().flat_map(|row| &row.cells).any(|cell| cell.low.is_some()) {
        text.push_str("\n± is half the width of the 95 % interval; its ends are in table.csv.\n");
    }
    if !table.notes.is_empty() {
        text.push('\n');
    }
    table.notes.iter().for_each(|note| text.push_str(&format!("- {note}\n")));
    text
}

/// For each column the n that all its cells share, if they do.
fn shared_counts(table: &Table) -> Vec<Option<u64>> {
    let column = |index: usize| {
        let mut counts = table.rows.iter().filter_map(|row| row.cells[index].n);
        let first = counts.next()?;
        counts.all(|n| n == first).then_some(first)
    };
    (0..table.columns.len()).map(column).collect()
}

/// Column names, with the n that a column's cells share; in a short table n is a row of its own.
fn header(table: &Table, shared: &[Option<u64>], short: bool) -> Vec<String> {
    let names = table.columns.iter().zip(shared).map(|(name, shared)| match shared {
        Some(n) if !short => format!("{} (n {n})", escape(name)),
        _ => escape(name),
    });
    std::iter::once(escape(&table.corner)).chain(names).collect()
}

/// A cell as text: the number with its interval, then the words.
pub(super) fn show(cell: &Cell, short: bool, with_n: bool) -> String {
    let Some(value) = cell.value else { return cell.text.clone() };
    let mut text = format!("{value:.1}");
    if let (Some(low), Some(high)) = (cell.low, cell.high) {
        match short {
            true => text.push_str(&format!(" ±{:.1}", (high - low) / 2.0)),
            false => text.push_str(&format!(" [{low:.1}, {high:.1}]")),
        }
    }
    if let (true, Some(n)) = (with_n, cell.n) {
        text.push_str(&format!(" n {n}"));
    }
    if !cell.text.is_empty() {
        text.push(' ');
        text.push_str(&cell.text);
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}

fn align(grid: &[Vec<String>]) -> String {
    let width = |column: usize| grid.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..grid[0].len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| match column {
        0 => "-".repeat(width + 2),
        _ => format!("{}:", "-".repeat(width + 1)),
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    std::iter::once(line(&grid[0])).chain([rule]).chain(grid[1..].iter().map(|row| line(row))).collect()
}
