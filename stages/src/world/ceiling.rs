//! The ceiling: how often the best guess that the visible scene allows is right.

use std::path::Path;

use mpcc_engine::stage::StageError;
use serde::Serialize;

use super::curate;
use super::part::Scenes;
use crate::record::Difficulty;

/// A number of a table.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    value: Option<f64>,
    n: usize,
    low: Option<f64>,
    high: Option<f64>,
    text: String,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: &'static str,
    cells: Vec<Cell>,
}

/// `table.json`.
#[derive(Clone, Debug, Serialize)]
struct Ceiling {
    title: String,
    columns: [&'static str; 2],
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One accepted item: its difficulty, whether the likeliest category is the true one, and how probable the likeliest is.
type Judged = (Difficulty, bool, f64);

/// Writes `table.json` and `table.md` for the accepted things of a part into `folder`.
pub fn write(scenes: &Scenes, folder: &Path) -> Result<(), StageError> {
    let table = ceiling(scenes);
    let json = serde_json::to_vec_pretty(&table).expect("plain data");
    for (name, bytes) in [("table.json", json), ("table.md", markdown(&table).into_bytes())] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|error| StageError::io(&path, error))?;
    }
    Ok(())
}

fn ceiling(scenes: &Scenes) -> Ceiling {
    let judged: Vec<Judged> = scenes.things().filter_map(|(placed, index, _)| judge(placed.scene, index)).collect();
    let of = |wanted| judged.iter().filter(|item| item.0 == wanted).copied().collect::<Vec<_>>();
    let rows = vec![
        row("easy", &of(Difficulty::Easy)),
        row("moderate", &of(Difficulty::Moderate)),
        row("hard", &of(Difficulty::Hard)),
        row("all", &judged),
    ];
    Ceiling {
        title: format!("Bayes ceiling of the world's {} part", scenes.part().name()),
        columns: ["right", "expected"],
        rows,
        notes: vec![
            "Over the boxes that the world's author accepted, in per cent, with 95 % Wilson intervals.".to_owned(),
            "right: the category with the highest exact posterior is the true one. expected: the mean of that posterior."
                .to_owned(),
        ],
    }
}

fn judge(scene: &super::scene::Scene, index: usize) -> Option<Judged> {
    let difficulty = curate::judge(scene, index)?;
    let posterior = scene.posterior(index);
    let best = posterior.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    Some((difficulty, best.0 == scene.things[index].category, best.1))
}

fn row(name: &'static str, judged: &[Judged]) -> Row {
    let n = judged.len();
    let right = judged.iter().filter(|item| item.1).count();
    let interval = wilson(right, n);
    let share = (n > 0).then(|| right as f64 / n as f64);
    let expected = (n > 0).then(|| judged.iter().map(|item| item.2).sum::<f64>() / n as f64);
    Row { name, cells: vec![cell(share, n, interval), cell(expected, n, None)] }
}

fn cell(share: Option<f64>, n: usize, interval: Option<[f64; 2]>) -> Cell {
    let percent = |share: f64| (share * 1e4).round() / 100.0;
    let text = share.map_or("-".to_owned(), |share| format!("{:.1}", 100.0 * share));
    let [low, high] = [0, 1].map(|end| interval.map(|interval| percent(interval[end])));
    Cell { value: share.map(percent), n, low, high, text }
}

/// The 95 % Wilson interval of `right` of `n`.
fn wilson(right: usize, n: usize) -> Option<[f64; 2]> {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return None;
    }
    let (p, n) = (right as f64 / n as f64, n as f64);
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some([(middle - half).max(0.0), (middle + half).min(1.0)])
}

fn markdown(table: &Ceiling) -> String {
    let mut text = format!("# {}\n\n| | n | {} |\n|---|---|---|---|\n", table.title, table.columns.join(" | "));
    for row in &table.rows {
        let cells: Vec<String> = row.cells.iter().map(shown).collect();
        text.push_str(&format!("| {} | {} | {} |\n", row.name, row.cells[0].n, cells.join(" | ")));
    }
    text.push('\n');
    table.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
    text
}

fn shown(cell: &Cell) -> String {
    match (cell.low, cell.high) {
        (Some(low), Some(high)) => format!("{} [{low:.1}, {high:.1}]", cell.text),
        _ => cell.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::part::Part;

    #[test]
    fn the_interval_is_wilsons() {
        let [low, high] = wilson(8, 10).unwrap();
        assert!((low - 0.490_16).abs() < 1e-4 && (high - 0.943_32).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn easier_items_have_higher_ceilings() {
        let table = ceiling(&Scenes::draw(Part::Test, 400, 1));
        let right: Vec<f64> = table.rows.iter().map(|row| row.cells[0].value.unwrap()).collect();
        assert!(right[0] > 99.0 && right[0] >= right[1] && right[1] > right[2] && right[2] > 25.0, "{right:?}");
        assert_eq!(table.rows[3].cells[0].n, table.rows[..3].iter().map(|row| row.cells[0].n).sum::<usize>());
    }
}
