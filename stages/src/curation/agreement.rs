//! How far curators agree: counts per curator, kappas per pair and over all.

use std::collections::BTreeMap;

use super::ballot::Vote;
use crate::report::{Cell, Table};
use crate::stats;

/// Votes of one region by curator.
pub(super) type Votes = BTreeMap<String, Vote>;

/// The table of `regions`' votes.
pub(super) fn table(regions: &[Votes]) -> Table {
    let mut table =
        Table::new("Curation", "Curator", ["decisions", "accepted", "hard", "moderate", "easy", "rejected"]);
    let mut curators: Vec<&String> = regions.iter().flat_map(BTreeMap::keys).collect();
    curators.sort();
    curators.dedup();
    for curator in &curators {
        let mut counts = [0_u64; 4];
        regions.iter().filter_map(|votes| votes.get(*curator)).for_each(|vote| counts[vote.index()] += 1);
        let [rejected, hard, moderate, easy] = counts;
        let all = [rejected + hard + moderate + easy, hard + moderate + easy, hard, moderate, easy, rejected];
        table.row(curator.as_str(), all.map(Cell::count));
    }
    match curators.len() {
        0 | 1 => table.note("One curator: agreement is not defined."),
        _ => table.sections.push(kappas(regions, &curators)),
    }
    table
}

fn kappas(regions: &[Votes], curators: &[&String]) -> Table {
    let columns =
        ["boxes of both", "same decision", "kappa (accept or reject)", "kappa (reject, hard, moderate, easy)"];
    let mut table = Table::new("Agreement", "Curators", columns);
    for (index, a) in curators.iter().enumerate() {
        for b in &curators[index + 1..] {
            let pairs: Vec<(Vote, Vote)> =
                regions.iter().filter_map(|votes| Some((*votes.get(*a)?, *votes.get(*b)?))).collect();
            let same = pairs.iter().filter(|(a, b)| a == b).count() as u64;
            let kappa = |key: fn(Vote) -> usize| {
                let keys: Vec<(usize, usize)> = pairs.iter().map(|(a, b)| (key(*a), key(*b))).collect();
                number((!keys.is_empty()).then(|| stats::cohen(&keys, 4)).flatten())
            };
            let n = pairs.len() as u64;
            table.row(
                format!("{a}, {b} (Cohen)"),
                [Cell::count(n), Cell::share(same, n), kappa(accepts), kappa(Vote::index)],
            );
        }
    }
    if curators.len() > 2 {
        let full: Vec<&Votes> = regions.iter().filter(|votes| votes.len() == curators.len()).collect();
        let same =
            full.iter().filter(|votes| votes.values().all(|vote| Some(vote) == votes.values().next())).count() as u64;
        let kappa = |key: fn(Vote) -> usize| {
            let rows: Vec<Vec<u32>> = full.iter().map(|votes| counts(votes, key)).collect();
            number(stats::fleiss(&rows))
        };
        let n = full.len() as u64;
        table.row("all (Fleiss)", [Cell::count(n), Cell::share(same, n), kappa(accepts), kappa(Vote::index)]);
    }
    table
}

fn accepts(vote: Vote) -> usize {
    usize::from(vote != Vote::Reject)
}

fn counts(votes: &Votes, key: fn(Vote) -> usize) -> Vec<u32> {
    let mut counts = vec![0; 4];
    votes.values().for_each(|vote| counts[key(*vote)] += 1);
    counts
}

/// A kappa with two decimals.
fn number(kappa: Option<f64>) -> Cell {
    kappa.map_or(Cell::text("not defined"), |kappa| Cell::text(format!("{kappa:.2}")))
}
