//! Tables: what the `table` port holds. A folder with one table, and the tables beneath it, in five formats.
//!
//! | file | for | holds |
//! |---|---|---|
//! | `table.md` | terminals and readers | aligned columns; `value [low, high]`, or `value ±half` where there are many columns |
//! | `table.csv` | analysis | one line a cell: section, row, column, value, n, low, high, text |
//! | `table.tex` | papers | one `tabular` a section (package booktabs) |
//! | `table.html` | browsers | one self-contained page; the interval and n under every number |
//! | `table.json` | programs, and stages that read tables | [`Table`] itself |

use std::path::{Path, PathBuf};

use mpcc_engine::stage::{Context, StageError};
use serde::{Deserialize, Serialize};

use super::{html, latex, markdown};
use crate::stats;

/// A table with the tables beneath it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Title.
    pub title: String,
    /// What the row names are: `Method`, `Model`.
    #[serde(default)]
    pub corner: String,
    /// Names of the columns right of the row names.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<Row>,
    /// Remarks shown beneath.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Further tables shown beneath: tests, orderings, published numbers.
    #[serde(default)]
    pub sections: Vec<Table>,
}

/// A row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// One cell a column.
    pub cells: Vec<Cell>,
}

/// A cell. An empty one has neither value nor text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The number; per cent for accuracies.
    pub value: Option<f64>,
    /// How many observations are behind it.
    pub n: Option<u64>,
    /// Lower end of the 95 % interval, in the unit of `value`.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// What is shown in place of the number, or after it (a mark, a difference).
    #[serde(default)]
    pub text: String,
}

impl Cell {
    /// A number alone.
    pub fn number(value: f64) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A whole count.
    pub fn count(count: u64) -> Self {
        Self::text(count.to_string())
    }

    /// A number with its 95 % interval.
    pub fn interval(value: f64, n: u64, (low, high): (f64, f64)) -> Self {
        Self { value: Some(value), n: Some(n), low: Some(low), high: Some(high), text: String::new() }
    }

    /// `right` of `n` in per cent with Wilson's interval; empty for `n` = 0.
    pub fn share(right: u64, n: u64) -> Self {
        if n == 0 {
            return Self::default();
        }
        let (low, high) = stats::wilson(right, n);
        Self::interval(100.0 * right as f64 / n as f64, n, (100.0 * low, 100.0 * high))
    }

    /// The cell with `text` added.
    pub fn marked(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>, corner: &str, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let columns = columns.into_iter().map(Into::into).collect();
        Self { title: title.into(), corner: corner.to_owned(), columns, ..Self::default() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        cells.resize(self.columns.len(), Cell::default());
        self.rows.push(Row { name: name.into(), cells });
    }

    /// Adds a remark.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The cell in row `row` and column `column`.
    pub fn cell(&self, row: &str, column: &str) -> Option<&Cell> {
        let column = self.columns.iter().position(|name| name == column)?;
        self.rows.iter().find(|candidate| candidate.name == row)?.cells.get(column)
    }

    /// The table and those beneath it.
    pub fn all(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(self).chain(&self.sections)
    }

    /// The table as Markdown with aligned columns.
    pub fn markdown(&self) -> String {
        self.all().map(markdown::table).collect::<Vec<_>>().join("\n")
    }

    /// The table as CSV, one line a cell.
    pub fn csv(&self) -> String {
        let mut out = csv::Writer::from_writer(Vec::new());
        let mut write = |fields: &[&str]| out.write_record(fields).expect("writing to memory does not fail");
        write(&["section", "row", "column", "value", "n", "low", "high", "text"]);
        let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for table in self.all() {
            for row in &table.rows {
                for (column, cell) in table.columns.iter().zip(&row.cells) {
                    let n = cell.n.map_or(String::new(), |n| n.to_string());
                    let [value, low, high] = [cell.value, cell.low, cell.high].map(number);
                    write(&[&table.title, &row.name, column, &value, &n, &low, &high, &cell.text]);
                }
            }
        }
        String::from_utf8(out.into_inner().expect("flushing memory does not fail")).expect("every field is text")
    }

    /// Writes the five files into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), TableError> {
        let json = serde_json::to_string_pretty(self).expect("a table is plain data") + "\n";
        let files = [
            ("table.md", self.markdown()),
            ("table.csv", self.csv()),
            ("table.tex", latex::document(self)),
            ("table.html", html::page(self)),
            ("table.json", json),
        ];
        files.into_iter().try_for_each(|(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|source| TableError::Io { path, source })
        })
    }

    /// Reads `table.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        let path = folder.join("table.json");
        let text = std::fs::read(&path).map_err(|source| TableError::Io { path: path.clone(), source })?;
        serde_json::from_slice(&text).map_err(|source| TableError::Json { path, source })
    }

    /// Writes the table to output `port`.
    pub fn output(&self, ctx: &Context, port: &str) -> Result<(), StageError> {
        Ok(self.write(ctx.output(port)?)?)
    }
}

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// `table.json` is no table.
    #[error("{path}: no table: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

impl From<TableError> for StageError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Io { .. } => Self::Machine(error.to_string()),
            other => Self::Invalid(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Accuracy", "Method", ["easy", "hard"]);
        table.row("sft & <rft>", [Cell::share(30, 40), Cell::text("held")]);
        table.row("x", [Cell::number(5.0)]);
        table.note("n differs");
        table
    }

    #[test]
    fn comes_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        table().write(folder.path()).unwrap();
        assert_eq!(Table::read(folder.path()).unwrap(), table());
        for name in ["table.md", "table.csv", "table.tex", "table.html"] {
            assert!(folder.path().join(name).metadata().unwrap().len() > 50, "{name}");
        }
    }

    #[test]
    fn markdown_lines_up() {
        let text = table().markdown();
        let widths: Vec<usize> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.chars().count()).collect();
        assert!(widths.len() == 4 && widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains("75.0 [59.8, 85.8]"), "{text}");
    }

    #[test]
    fn other_formats_escape() {
        assert!(html::page(&table()).contains("sft &amp; &lt;rft&gt;"));
        assert!(latex::document(&table()).contains(r"sft \& $<$rft$>$"));
        assert!(table().csv().contains("Accuracy,sft & <rft>,easy,75,40,"));
    }
}
