//! The paper's tables as data (`pipelines/published.json`), in the shape of ours.
//!
//! A cell is marked `*` when it is one of the published tables' errata: no whole count gives it, or it does not follow from
//! the other cells.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table::{Cell, Table};

const DATA: &str = include_str!("../../../pipelines/published.json");

/// Difficulties in the paper's order.
pub(super) const SUBSETS: [&str; 3] = ["hard", "moderate", "easy"];

/// A table of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PaperTable {
    /// Models by difficulty.
    Table2,
    /// True/false accuracy.
    Table3,
    /// Methods in and out of distribution.
    Table4,
    /// Cross-task generalisation.
    Table5,
}

/// Published numbers: rows in the paper's order, columns named as ours.
pub(super) struct Published {
    table: PaperTable,
    /// Column names.
    pub(super) columns: Vec<String>,
    /// Rows: name and one number a column.
    pub(super) rows: Vec<(String, Vec<f64>)>,
    errata: BTreeSet<(String, String)>,
}

#[derive(Deserialize)]
struct File {
    table2: BySubset,
    table3: BySubset,
    table4: Plain,
    table5: CrossTask,
    errata: Vec<String>,
}

/// Rows are kept in the order of the file.
#[derive(Deserialize)]
struct BySubset {
    columns: Vec<String>,
    rows: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Plain {
    columns: Vec<String>,
    rows: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct CrossTask {
    columns: Vec<String>,
    rows: Vec<CrossTaskRow>,
}

#[derive(Deserialize)]
struct CrossTaskRow {
    name: String,
    base: Option<String>,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct SubsetRow {
    #[serde(flatten)]
    subsets: BTreeMap<String, Vec<f64>>,
    sum: Option<f64>,
}

impl Published {
    /// The numbers of `table`.
    pub(super) fn load(table: PaperTable) -> Self {
        let file: File = serde_json::from_str(DATA).expect("the published tables are checked by a test");
        let (columns, rows) = match table {
            PaperTable::Table2 => by_subset(&file.table2, true),
            PaperTable::Table3 => by_subset(&file.table3, false),
            PaperTable::Table4 => {
                (file.table4.columns, file.table4.rows.into_iter().map(|(name, row)| (name, parsed(row))).collect())
            }
            PaperTable::Table5 => (file.table5.columns, cross_task(file.table5.rows)),
        };
        let errata = errata(table, &file.errata, &columns);
        Self { table, columns, rows, errata }
    }

    /// The published number for our row `row`, letter case aside.
    pub(super) fn value(&self, row: &str, column: &str) -> Option<f64> {
        let column = self.columns.iter().position(|name| name == column)?;
        let row = if self.table == PaperTable::Table5 && row == "base" { "Qwen2.5-VL-3B" } else { row };
        self.rows.iter().find(|(name, _)| name.eq_ignore_ascii_case(row))?.1.get(column).copied()
    }

    /// Whether the number is an erratum.
    pub(super) fn doubtful(&self, row: &str, column: &str) -> bool {
        self.errata.iter().any(|(name, doubtful)| name.eq_ignore_ascii_case(row) && doubtful == column)
    }

    /// The numbers as a table, titled as the paper's and as no measurement of ours.
    pub(super) fn table(&self) -> Table {
        let number = match self.table {
            PaperTable::Table2 => 2,
            PaperTable::Table3 => 3,
            PaperTable::Table4 => 4,
            PaperTable::Table5 => 5,
        };
        let title = format!(
            "Table {number} as published (arXiv 2510.21807: MPCC-Eval on COCO; not comparable with the numbers above)"
        );
        let mut table = Table::new(title, "", self.columns.iter().cloned());
        for (name, values) in &self.rows {
            let cell = |(column, value): (&String, &f64)| Cell::text(format!("{value:.2}{}", self.mark(name, column)));
            table.row(name.as_str(), self.columns.iter().zip(values).map(cell));
        }
        if !self.errata.is_empty() {
            table.note("* an erratum: no whole count gives this number, or it does not follow from the other cells.");
        }
        table
    }

    /// `*` for an erratum.
    pub(super) fn mark(&self, row: &str, column: &str) -> &'static str {
        if self.doubtful(row, column) { "*" } else { "" }
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("the published tables are checked by a test")
}

fn by_subset(table: &BySubset, averages: bool) -> (Vec<String>, Vec<(String, Vec<f64>)>) {
    let mut groups: Vec<(&str, &str)> = SUBSETS.iter().map(|subset| (*subset, *subset)).collect();
    groups.extend(averages.then_some(("Ave.", "ave")));
    let mut columns: Vec<String> = groups
        .iter()
        .flat_map(|(shown, _)| table.columns.iter().map(move |column| format!("{shown} {column}")))
        .collect();
    columns.extend(averages.then(|| "Sum".to_owned()));
    let rows = table.rows.iter().map(|(name, row)| {
        let row: SubsetRow = parsed(row.clone());
        let mut values: Vec<f64> = groups.iter().flat_map(|(_, key)| row.subsets[*key].clone()).collect();
        values.extend(row.sum);
        (name.clone(), values)
    });
    (columns, rows.collect())
}

/// Names that occur twice get their base in brackets.
fn cross_task(rows: Vec<CrossTaskRow>) -> Vec<(String, Vec<f64>)> {
    let twice = |name: &str| rows.iter().filter(|row| row.name == name).count() > 1;
    let named = |row: &CrossTaskRow| match &row.base {
        Some(base) if twice(&row.name) => format!("{} ({base})", row.name),
        _ => row.name.clone(),
    };
    rows.iter().map(|row| (named(row), row.values.clone())).collect()
}

/// Lines such as `table2 GPT-4o easy Cho.H 72.5: no count of 451 gives it`.
fn errata(table: PaperTable, lines: &[String], columns: &[String]) -> BTreeSet<(String, String)> {
    let key = serde_json::to_value(table).expect("a name");
    let key = key.as_str().expect("a name");
    let parse = |line: &String| {
        let rest = line.strip_prefix(key)?.strip_prefix(' ')?;
        let (row, rest) = rest.split_once(' ')?;
        let column = columns
            .iter()
            .find(|column| rest.strip_prefix(column.as_str()).is_some_and(|after| after.starts_with([' ', ':'])))?;
        Some((row.to_owned(), column.clone()))
    };
    lines.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_whole() {
        for (table, rows, columns, errata) in [
            (PaperTable::Table2, 10, 9, 6),
            (PaperTable::Table3, 8, 12, 10),
            (PaperTable::Table4, 6, 4, 1),
            (PaperTable::Table5, 17, 4, 7),
        ] {
            let published = Published::load(table);
            assert_eq!((published.rows.len(), published.columns.len()), (rows, columns), "{table:?}");
            assert!(published.rows.iter().all(|(_, values)| values.len() == columns), "{table:?}");
            assert_eq!(published.errata.len(), errata, "{table:?}");
        }
    }

    #[test]
    fn numbers_are_found_by_our_names() {
        let table4 = Published::load(PaperTable::Table4);
        assert_eq!(table4.value("rft+prior", "OOD Cho.H"), Some(56.23));
        assert!(table4.doubtful("sft+rft", "OOD Cho.E") && !table4.doubtful("sft", "OOD Cho.E"));
        assert_eq!(Published::load(PaperTable::Table2).value("GPT-4o", "Sum"), Some(389.0));
        assert_eq!(Published::load(PaperTable::Table5).value("base", "Sem."), Some(29.89));
    }
}
