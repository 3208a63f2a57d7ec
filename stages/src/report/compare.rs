//! Comparisons: paired tests between rows, and the paper's orderings.
//!
//! An ordering is *held* when our difference has the paper's sign and is significant (p < .05), *reversed* when it has the other
//! sign and is significant, else *tied*. Rows are compared by McNemar's exact test on the questions that both answered,
//! columns by a z test on the difference of two shares (which treats them as independent).

use super::cells::Observations;
use super::layout::{Column, Layout};
use super::published::Published;
use super::table::{Cell, Table};
use crate::stats;

/// Below this a difference is significant.
const ALPHA: f64 = 0.05;

/// McNemar's test of two rows in one column.
struct Paired {
    /// Pairs that only the first, and only the second, got right.
    only: (u64, u64),
    n: u64,
    p: f64,
}

impl Paired {
    fn new(observations: &Observations, a: &str, b: &str, column: &Column) -> Option<Self> {
        let (first, second) = (observations.answers(a, column), observations.answers(b, column));
        let (mut only, mut n) = ((0, 0), 0);
        for (key, right) in &first {
            let Some(other) = second.get(key) else { continue };
            n += 1;
            only.0 += u64::from(*right && !*other);
            only.1 += u64::from(!*right && *other);
        }
        (n > 0).then(|| Self { only, n, p: stats::mcnemar(only.0, only.1) })
    }

    /// The difference in percentage points over the pairs.
    fn difference(&self) -> f64 {
        100.0 * (self.only.0 as f64 - self.only.1 as f64) / self.n as f64
    }
}

/// `p<.001`, `p=.034`.
fn shown(p: f64) -> String {
    match p {
        p if p < 0.001 => "p<.001".to_owned(),
        p if p > 0.999 => "p=1".to_owned(),
        p => format!("p={}", format!("{p:.3}").trim_start_matches('0')),
    }
}

/// Every pair of rows: difference in points, p, and the discordant counts.
pub(super) fn paired(observations: &Observations, rows: &[String], columns: &[Column]) -> Table {
    let columns: Vec<&Column> = columns.iter().filter(|column| column.compared).collect();
    let mut table = Table::new(
        "Paired differences (McNemar's exact test)",
        "Pair",
        columns.iter().map(|column| column.name.as_str()),
    );
    for (index, a) in rows.iter().enumerate() {
        for b in &rows[index + 1..] {
            let cells: Vec<Cell> = columns.iter().map(|column| paired_cell(observations, b, a, column)).collect();
            if cells.iter().any(|cell| !cell.text.is_empty()) {
                table.row(format!("{b} - {a}"), cells);
            }
        }
    }
    table.note("Percentage points on the questions that both answered; in brackets how many only the first and only the second got right.");
    table
}

fn paired_cell(observations: &Observations, a: &str, b: &str, column: &Column) -> Cell {
    let Some(paired) = Paired::new(observations, a, b, column) else { return Cell::default() };
    Cell::text(format!("{:+.1} {} ({}/{})", paired.difference(), shown(paired.p), paired.only.0, paired.only.1))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Held,
    Tied,
    Reversed,
}

impl Verdict {
    /// `paper` and `ours` are differences; `p` is that of ours.
    fn of(paper: f64, ours: f64, p: f64) -> Self {
        match (p < ALPHA, (paper > 0.0) == (ours > 0.0)) {
            (true, true) => Self::Held,
            (true, false) => Self::Reversed,
            (false, _) => Self::Tied,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Tied => "tied",
            Self::Reversed => "reversed",
        }
    }
}

/// How often each verdict fell in a column.
fn tally(column: &str, verdicts: &[Verdict]) -> String {
    let count = |wanted: Verdict| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    format!(
        "{column}: {} held, {} tied, {} reversed",
        count(Verdict::Held),
        count(Verdict::Tied),
        count(Verdict::Reversed)
    )
}

/// Every ordering of two rows that the paper prints, for rows that are in both tables. `measured` has the values.
pub(super) fn row_orders(
    observations: &Observations,
    measured: &Table,
    columns: &[Column],
    published: &Published,
) -> Option<Table> {
    let rows: Vec<&str> = measured
        .rows
        .iter()
        .map(|row| row.name.as_str())
        .filter(|row| columns.iter().any(|column| published.value(row, &column.name).is_some()))
        .collect();
    let columns: Vec<&Column> = columns.iter().filter(|column| published.columns.contains(&column.name)).collect();
    let mut table =
        Table::new("The paper's orderings of rows", "Pair", columns.iter().map(|column| column.name.as_str()));
    let mut verdicts = vec![Vec::new(); columns.len()];
    for (index, a) in rows.iter().enumerate() {
        for b in &rows[index + 1..] {
            let cell = |(column, verdicts): (&&Column, &mut Vec<Verdict>)| {
                let order = row_order(observations, measured, published, (b, a), column);
                order.map_or(Cell::default(), |(sign, verdict)| {
                    verdicts.push(verdict);
                    Cell::text(format!("{sign} {}", verdict.word()))
                })
            };
            let cells: Vec<Cell> = columns.iter().zip(&mut verdicts).map(cell).collect();
            table.row(format!("{b} : {a}"), cells);
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    columns.iter().zip(&verdicts).for_each(|(column, verdicts)| table.note(tally(&column.name, verdicts)));
    table.note("> or < is the paper's order of the pair, = an equal number there; held, tied, reversed is ours (McNemar, p < .05).");
    Some(table)
}

fn row_order(
    observations: &Observations,
    measured: &Table,
    published: &Published,
    (a, b): (&str, &str),
    column: &Column,
) -> Option<(&'static str, Verdict)> {
    let paper = published.value(a, &column.name)? - published.value(b, &column.name)?;
    let value = |row: &str| measured.cell(row, &column.name)?.value;
    let ours = value(a)? - value(b)?;
    let paired = Paired::new(observations, a, b, column)?;
    let sign = if paper > 0.0 {
        ">"
    } else if paper < 0.0 {
        "<"
    } else {
        "="
    };
    // Where weights differ, the mean of means and the pairs may disagree in sign: that is a tie.
    let agree = ours == 0.0 || (ours > 0.0) == (paired.difference() > 0.0);
    let p = if agree { paired.p } else { 1.0 };
    let verdict = match (paper == 0.0, p < ALPHA) {
        (true, true) => Verdict::Reversed,
        (true, false) => Verdict::Held,
        (false, _) => Verdict::of(paper, ours, p),
    };
    Some((sign, verdict))
}

/// The orders of columns that most of the paper's models share, for each of our rows.
pub(super) fn column_orders(
    layout: Layout,
    measured: &Table,
    published: &Published,
    skipped: &[&str],
) -> Option<Table> {
    let orders: Vec<(String, String, f64)> =
        layout.column_orders().into_iter().filter_map(|(a, b)| majority(published, a, b)).collect();
    let rows: Vec<&str> =
        measured.rows.iter().map(|row| row.name.as_str()).filter(|row| !skipped.contains(row)).collect();
    let mut table = Table::new("The paper's orderings of columns", "Order", rows.iter().copied());
    let mut verdicts = vec![Vec::new(); rows.len()];
    for (a, b, paper) in &orders {
        let sign = if *paper > 0.0 { ">" } else { "<" };
        let cell = |(row, verdicts): (&&str, &mut Vec<Verdict>)| {
            let verdict =
                measured.cell(row, a).zip(measured.cell(row, b)).and_then(|(a, b)| column_order(a, b, *paper));
            verdict.map_or(Cell::default(), |verdict| {
                verdicts.push(verdict);
                Cell::text(verdict.word())
            })
        };
        let cells: Vec<Cell> = rows.iter().zip(&mut verdicts).map(cell).collect();
        table.row(format!("{a} {sign} {b}"), cells);
    }
    if rows.is_empty() || orders.is_empty() {
        return None;
    }
    rows.iter().zip(&verdicts).for_each(|(row, verdicts)| table.note(tally(row, verdicts)));
    table.note("The order is that of most of the paper's models; held, tied, reversed is ours (z test, p < .05).");
    Some(table)
}

/// The sign of `a` - `b` in most published rows; none when it is even.
fn majority(published: &Published, a: String, b: String) -> Option<(String, String, f64)> {
    let measured = published.rows.iter().filter(|(name, _)| name != "Random" && name != "Human");
    let signs =
        measured.filter_map(|(name, _)| Some((published.value(name, &a)? - published.value(name, &b)?).signum()));
    let sum: f64 = signs.sum();
    (sum != 0.0).then_some((a, b, sum))
}

fn column_order(a: &Cell, b: &Cell, paper: f64) -> Option<Verdict> {
    let error = |cell: &Cell| Some(stats::standard_error((cell.low?, cell.high?)));
    let (first, second) = (a.value?, b.value?);
    Some(Verdict::of(paper, first - second, stats::difference(first, error(a)?, second, error(b)?)))
}
