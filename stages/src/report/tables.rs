//! `report.tables`: the paper's tables from scores.
//!
//! Rows and columns come from the matrix coordinates of the nodes that made the scores: `method` or `model` names the row,
//! `split` the column (`full` = in distribution, `ood` = out of distribution). Nodes that differ in other coordinates only
//! (seeds) are pooled. Differences to the published numbers are shown only where the data are the paper's (`dataset:
//! mpcc-eval-coco`); elsewhere the published table stands apart, titled as such.

use std::collections::{BTreeMap, BTreeSet};

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Coordinates, Input, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cells::{Observations, Observed};
use super::compare;
use super::layout::{Column, Layout};
use super::published::{PaperTable, Published};
use super::table::{Cell, Table};
use crate::records;

/// The name of the paper's own data.
const PAPER_DATA: &str = "mpcc-eval-coco";

/// Parameters of `report.tables`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportTables {
    /// The shape of the table.
    pub layout: Layout,
    /// The published table to show beside it; null for none.
    #[serde(default)]
    pub published: Option<PaperTable>,
    /// What the scores were measured on; `mpcc-eval-coco` allows differences to the published numbers.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The title.
    #[serde(default)]
    pub title: Option<String>,
    /// The matrix key that names the rows; by default `method` or `model`, as the layout has it.
    #[serde(default)]
    pub rows: Option<String>,
    /// The matrix key that names the split.
    #[serde(default = "split")]
    pub splits: String,
    /// Row names to show in place of coordinates.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
}

fn split() -> String {
    "split".to_owned()
}

impl Stage for ReportTables {
    const KIND: &'static str = "report.tables";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Makes the paper's tables: numbers, intervals, tests, orderings";

    fn signature() -> Signature {
        Signature::new()
            .takes_many("scores", PortType::Scores)
            .takes_optional_many("tables", PortType::Table)
            .gives("table", PortType::Table)
    }

    fn check(&self) -> Result<(), ParamError> {
        let fits = match self.published {
            None => true,
            Some(PaperTable::Table2) => self.layout == Layout::ModelsByDifficulty,
            Some(PaperTable::Table3) => self.layout == Layout::TrueFalse,
            Some(PaperTable::Table4) => self.layout == Layout::MethodsBySplit,
            Some(PaperTable::Table5) => self.layout == Layout::CrossTask,
        };
        match fits {
            true => Ok(()),
            false => Err(ParamError::new(
                "published",
                "the published table has another layout: table2 is models-by-difficulty, table3 true-false, table4 methods-by-split, table5 cross-task",
            )),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let observed =
            ctx.artifacts("scores")?.into_iter().map(|input| self.observe(input)).collect::<Result<_, _>>()?;
        let mut table = self.build(&Observations(observed))?;
        for input in ctx.artifacts("tables")? {
            let mut beneath = Table::read(&input.path)?;
            let sections = std::mem::take(&mut beneath.sections);
            table.sections.push(beneath);
            table.sections.extend(sections);
        }
        table.output(ctx, "table")
    }
}

impl ReportTables {
    fn observe(&self, input: &Input) -> Result<Observed, StageError> {
        let key = self.rows.as_deref().unwrap_or(self.layout.row_key());
        let found = |key: &str| input.matrix.iter().find(|(name, _)| name == key).map(|(_, value)| plain(value));
        let row = found(key).unwrap_or_else(|| input.node.clone());
        let stratum: Coordinates =
            input.matrix.iter().filter(|(name, _)| *name != key && *name != self.splits).cloned().collect();
        let stratum =
            stratum.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect::<Vec<_>>().join(",");
        Ok(Observed {
            row: self.names.get(&row).cloned().unwrap_or(row),
            split: found(&self.splits).unwrap_or_default(),
            stratum,
            scores: records::read(&input.path)?,
        })
    }

    /// The table and its sections.
    pub(super) fn build(&self, observations: &Observations) -> Result<Table, StageError> {
        unambiguous(observations)?;
        let columns = self.layout.columns(&observations.splits(), &observations.groups());
        let published = self.published.map(Published::load);
        let rows = observations.rows();
        let mut table = self.measured(observations, &rows, &columns);
        table.sections.push(compare::paired(observations, &rows, &columns));
        if let Some(published) = &published {
            table.sections.extend(compare::row_orders(observations, &table, &columns, published));
            table.sections.extend(compare::column_orders(self.layout, &table, published, &["Random"]));
            table.sections.push(match self.dataset.as_deref() == Some(PAPER_DATA) {
                true => differences(&table, published),
                false => published.table(),
            });
        }
        Ok(table)
    }

    fn measured(&self, observations: &Observations, rows: &[String], columns: &[Column]) -> Table {
        let by_difficulty = self.layout == Layout::ModelsByDifficulty;
        let names = columns.iter().map(|column| column.name.clone()).chain(by_difficulty.then(|| "Sum".to_owned()));
        let title = self.title.clone().unwrap_or_else(|| self.layout.title().to_owned());
        let mut table = Table::new(title, self.layout.corner(), names);
        if by_difficulty {
            let chances: Vec<Option<f64>> = columns.iter().map(|column| observations.chance(column)).collect();
            let sum: Option<f64> = chances[..6].iter().copied().sum();
            table.row(
                "Random",
                chances.into_iter().chain([sum]).map(|chance| chance.map_or(Cell::default(), Cell::number)),
            );
        }
        for row in rows {
            let cells = columns.iter().map(|column| observations.cell(row, column));
            table.row(row.as_str(), cells.chain(by_difficulty.then(|| observations.sum(row))).collect::<Vec<_>>());
        }
        self.notes(observations, rows, columns).into_iter().for_each(|note| table.note(note));
        table
    }

    fn notes(&self, observations: &Observations, rows: &[String], columns: &[Column]) -> Vec<String> {
        let mut notes = vec!["Brackets and ± are 95 % intervals: Wilson's, or a bootstrap over items where an item has several questions or a column several parts.".to_owned()];
        if columns.iter().any(|column| column.parts.len() > 1) {
            let name = if self.layout == Layout::MethodsBySplit { "ID columns" } else { "Ave. columns" };
            notes.push(format!("{name} are the mean of the accuracies on hard, moderate and easy items."));
        }
        let pooled: BTreeSet<usize> = rows.iter().map(|row| observations.strata(row).len()).collect();
        if pooled.iter().any(|count| *count > 1) {
            let strata: BTreeSet<&str> = rows.iter().flat_map(|row| observations.strata(row)).collect();
            notes.push(format!("Pooled over {}.", strata.into_iter().collect::<Vec<_>>().join("; ")));
        }
        let unparsed: Vec<String> = rows.iter().filter_map(|row| unparsed(observations, row)).collect();
        if !unparsed.is_empty() {
            notes.push(format!("Answers that could not be parsed count as wrong: {}.", unparsed.join(", ")));
        }
        notes
    }
}

fn unparsed(observations: &Observations, row: &str) -> Option<String> {
    let scores = || observations.0.iter().filter(|observed| observed.row == row).flat_map(|observed| &observed.scores);
    let count = scores().filter(|score| score.chosen.is_none()).count();
    (count > 0).then(|| format!("{row} {count} of {}", scores().count()))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Two nodes with the same row, split and other coordinates would be counted twice.
fn unambiguous(observations: &Observations) -> Result<(), StageError> {
    let mut seen = BTreeSet::new();
    match observations.0.iter().find(|observed| !seen.insert((&observed.row, &observed.split, &observed.stratum))) {
        None => Ok(()),
        Some(twice) => Err(StageError::invalid(format!(
            "two `scores` inputs are both row `{}`, split `{}`{}; give their nodes different matrix coordinates, or set `rows` to the key that tells them apart",
            twice.row,
            twice.split,
            if twice.stratum.is_empty() { String::new() } else { format!(" ({})", twice.stratum) }
        ))),
    }
}

/// Our numbers against the published ones.
fn differences(measured: &Table, published: &Published) -> Table {
    let mut table =
        Table::new("Published numbers and our difference to them", &measured.corner, measured.columns.iter().cloned());
    for row in &measured.rows {
        let cell = |(column, cell): (&String, &Cell)| {
            let (Some(ours), Some(theirs)) = (cell.value, published.value(&row.name, column)) else {
                return Cell::default();
            };
            Cell::text(format!("{theirs:.2}{} ({:+.2})", published.mark(&row.name, column), ours - theirs))
        };
        let cells: Vec<Cell> = measured.columns.iter().zip(&row.cells).map(cell).collect();
        if cells.iter().any(|cell| !cell.text.is_empty()) {
            table.row(row.name.as_str(), cells);
        }
    }
    table.note(
        "* an erratum of the paper: no whole count gives this number, or it does not follow from the other cells.",
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Form, Score};

    /// `right` of `n` items in each difficulty, for both forms.
    fn observed(row: &str, split: &str, n: usize, right: usize) -> Observed {
        let mut scores = Vec::new();
        for group in ["hard", "moderate", "easy"] {
            for k in 0..n {
                for (form, options) in [(Form::ChoiceEasy, 4), (Form::ChoiceHard, 7)] {
                    let chosen = Some(usize::from(k >= right));
                    let (item, question) = (format!("{group}{k}"), format!("{group}{k}{options}"));
                    scores.push(Score {
                        question,
                        item,
                        form,
                        group: group.into(),
                        kind: None,
                        options,
                        chosen,
                        correct: k < right,
                        formatted: true,
                        repeat: 0,
                    });
                }
            }
        }
        Observed { row: row.into(), split: split.into(), stratum: String::new(), scores }
    }

    fn stage(layout: Layout, published: PaperTable, dataset: Option<&str>) -> ReportTables {
        let names = BTreeMap::new();
        ReportTables {
            layout,
            published: Some(published),
            dataset: dataset.map(str::to_owned),
            title: None,
            rows: None,
            splits: split(),
            names,
        }
    }

    fn methods() -> Observations {
        let splits = ["full", "ood"];
        let rights = [("base", 10), ("prompt", 10), ("sft", 60), ("rft", 30)];
        Observations(
            splits.iter().flat_map(|split| rights.map(|(row, right)| observed(row, split, 100, right))).collect(),
        )
    }

    #[test]
    fn methods_by_split_has_means_tests_and_orderings() {
        let table = stage(Layout::MethodsBySplit, PaperTable::Table4, None).build(&methods()).unwrap();
        assert_eq!(table.columns, ["ID Cho.E", "ID Cho.H", "OOD Cho.E", "OOD Cho.H"]);
        let cell = table.cell("sft", "ID Cho.E").unwrap();
        assert_eq!((cell.value, cell.n), (Some(60.0), Some(300)));
        assert!(cell.low.unwrap() > 53.0 && cell.high.unwrap() < 67.0, "{cell:?}");
        let [paired, orders, published] = &table.sections[..] else { panic!("three sections") };
        assert_eq!(paired.cell("sft - base", "OOD Cho.H").unwrap().text, "+50.0 p<.001 (150/0)");
        assert_eq!(paired.cell("prompt - base", "ID Cho.E").unwrap().text, "+0.0 p=1 (0/0)");
        assert_eq!(orders.cell("prompt : base", "ID Cho.E").unwrap().text, "> tied");
        assert_eq!(orders.cell("rft : sft", "ID Cho.H").unwrap().text, "< held");
        assert_eq!(orders.cell("rft : sft", "OOD Cho.E").unwrap().text, "> reversed");
        assert!(orders.notes[2].starts_with("OOD Cho.E: 4 held, 1 tied, 1 reversed"), "{:?}", orders.notes);
        assert!(published.title.contains("as published") && published.cell("sft", "ID Cho.E").unwrap().text == "74.10");
    }

    #[test]
    fn the_markdown_reads_well() {
        let table = stage(Layout::MethodsBySplit, PaperTable::Table4, None).build(&methods()).unwrap();
        insta::assert_snapshot!("table4", table.markdown());
        let observations = Observations(vec![observed("base", "", 100, 40), observed("Bayes ceiling", "", 100, 90)]);
        let table = stage(Layout::ModelsByDifficulty, PaperTable::Table2, None).build(&observations).unwrap();
        insta::assert_snapshot!("table2", table.markdown());
    }

    #[test]
    fn differences_are_shown_on_the_papers_data_only() {
        let table =
            stage(Layout::MethodsBySplit, PaperTable::Table4, Some("mpcc-eval-coco")).build(&methods()).unwrap();
        let last = table.sections.last().unwrap();
        assert_eq!(last.cell("sft", "ID Cho.E").unwrap().text, "74.10 (-14.10)");
        assert!(!table.sections.iter().any(|section| section.title.contains("as published")));
    }

    #[test]
    fn models_by_difficulty_has_chance_and_sum() {
        let observations = Observations(vec![observed("base", "", 100, 40), observed("Bayes ceiling", "", 100, 90)]);
        let table = stage(Layout::ModelsByDifficulty, PaperTable::Table2, None).build(&observations).unwrap();
        assert_eq!(table.rows[0].name, "Random");
        assert!((table.cell("Random", "Sum").unwrap().value.unwrap() - 117.857).abs() < 1e-3);
        assert!((table.cell("base", "Sum").unwrap().value.unwrap() - 240.0).abs() < 1e-9);
        let cell = table.cell("base", "hard Cho.E").unwrap();
        assert_eq!((cell.value, cell.n), (Some(40.0), Some(100)));
        let orders = table.sections.iter().find(|section| section.title.contains("columns")).unwrap();
        assert_eq!(orders.cell("hard Cho.E < moderate Cho.E", "base").unwrap().text, "tied");
    }

    #[test]
    fn two_nodes_of_one_cell_are_refused() {
        let observations = Observations(vec![observed("base", "full", 3, 1), observed("base", "full", 3, 1)]);
        let error = stage(Layout::MethodsBySplit, PaperTable::Table4, None).build(&observations).unwrap_err();
        assert!(error.to_string().contains("both row `base`, split `full`"), "{error}");
    }
}
