//! Sound pipelines damaged: in a known place, where the right thing must be said there; and at random, where whatever comes
//! out is a plan or a list of problems, never a panic and never a wait.

use std::time::{Duration, Instant};

use mpcc_engine::plan::{CompileOptions, compile_bytes};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::feed::feed;
use crate::mutate::{Rng as Dice, Tally, hold};
use crate::{compile_text, fixtures, kinds, options};

const ROUNDS: usize = 200;
const FRAGMENTS: [&str; 24] = [
    "${",
    "}",
    "[",
    "]",
    "{",
    "}",
    ":",
    ": null",
    "- ",
    "&a ",
    "*a",
    "<<: ",
    "\"",
    "'",
    "!!x ",
    "${matrix.",
    "[*]",
    ",",
    "\n",
    "  ",
    "é…",
    "null",
    "1e999",
    "%",
];

/// One random edit: delete a piece, insert a fragment, or copy a line elsewhere.
fn damage(text: &str, rng: &mut TestRng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut pick = |below: usize| rng.next_u32() as usize % below.max(1);
    let at = pick(chars.len());
    match pick(3) {
        0 => {
            let end = (at + 1 + pick(12)).min(chars.len());
            chars.drain(at..end);
        }
        1 => {
            let fragment = FRAGMENTS[pick(FRAGMENTS.len())];
            chars.splice(at..at, fragment.chars());
        }
        _ => {
            let lines: Vec<&str> = text.lines().collect();
            let (from, to) = (pick(lines.len()), pick(lines.len()));
            let mut lines = lines.clone();
            lines.insert(to, lines[from]);
            return lines.join("\n");
        }
    }
    chars.into_iter().collect()
}

#[test]
fn damaged_pipelines_never_panic() {
    let text = std::fs::read_to_string(fixtures().join("mini.yaml")).expect("the fixture");
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (mut sound, mut broken) = (0, 0);
    for _ in 0..ROUNDS {
        let mut damaged = text.clone();
        for _ in 0..1 + rng.next_u32() % 3 {
            damaged = damage(&damaged, &mut rng);
        }
        match compile_text(&damaged, &options()) {
            Ok(plan) => sound += usize::from(!plan.nodes.is_empty()),
            Err(found) => {
                assert!(!found.is_empty() && !found.to_string().is_empty());
                broken += 1;
            }
        }
    }
    assert!(broken > 50 && sound > 0, "{broken} broken, {sound} sound");
}

/// Every mutation of a fixture for a few seeds.
fn held(name: &str, seeds: std::ops::Range<u64>) -> Vec<Tally> {
    let file = fixtures().join(name);
    let text = std::fs::read_to_string(&file).expect("the fixture");
    let registry = kinds::registry();
    let tally = |seed| {
        hold(name, &text, seed, |bytes, profile| {
            let options = CompileOptions { profile: profile.map(str::to_owned), ..options() };
            compile_bytes(&file, bytes.to_vec(), &registry, &options)
        })
    };
    seeds.map(tally).collect()
}

#[test]
fn damage_in_a_known_place_is_reported_there_with_what_was_meant() {
    for tally in held("mini.yaml", 1..4) {
        assert!(tally.total() > 200 && tally.suggested > 100, "{tally:?}");
        assert!(tally.harmless * 10 < tally.total(), "{tally:?}");
        assert!(tally.classes.len() > 25, "{tally:?}");
    }
}

#[test]
fn an_unknown_profile_and_an_unknown_set_suggest_what_was_meant() {
    let file = fixtures().join("mini.yaml");
    let sets = |key: &str| vec![(key.to_owned(), "1".to_owned())];
    let table = [
        (CompileOptions { profile: Some("lagre".to_owned()), ..options() }, "did you mean `large`?"),
        (CompileOptions { sets: sets("sede"), ..options() }, "did you mean `seed`?"),
        (CompileOptions { sets: sets("extrra"), ..options() }, "did you mean `extra`?"),
    ];
    for (options, help) in table {
        let found = mpcc_engine::plan::compile(&file, &kinds::registry(), &options).unwrap_err();
        let first = found.iter().next().expect("a problem");
        assert_eq!((first.help.as_deref(), first.line), (Some(help), 0), "{found}");
        assert_eq!(first.file, std::path::Path::new("command line"));
    }
}

/// How many random files: 2,000, or 200,000 with `MPCC_HEAVY=1`.
fn random_files() -> usize {
    #[allow(clippy::disallowed_methods, reason = "the one variable that lengthens tests")]
    let heavy = std::env::var_os("MPCC_HEAVY").is_some();
    if heavy { 200_000 } else { 2_000 }
}

/// Up to four edits of bytes: flip, delete, repeat, overwrite, or take a piece of another file.
fn scrambled(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        let end = (at + 1 + dice.below(40)).min(bytes.len());
        match dice.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let times = 1 + dice.below(60);
                bytes.splice(at..at, piece.repeat(times));
            }
            3 if !bytes.is_empty() => bytes[at] = dice.below(256) as u8,
            _ => {
                let other = &seeds[dice.below(seeds.len())];
                let from = dice.below(other.len());
                let piece = other[from..(from + dice.below(200)).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

#[test]
fn random_bytes_never_panic_and_never_hang() {
    let mut files: Vec<_> =
        std::fs::read_dir(fixtures().join("bad")).expect("the folder").flatten().map(|f| f.path()).collect();
    files.push(fixtures().join("mini.yaml"));
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a fixture")).collect();
    let (registry, mut dice) = (kinds::registry(), Dice::new(7));
    let (mut sound, mut slowest) = (0, Duration::ZERO);
    for round in 0..random_files() {
        let bytes = scrambled(&seeds, &mut dice);
        let began = Instant::now();
        sound += usize::from(feed(&bytes, &fixtures(), &registry).is_some());
        slowest = slowest.max(began.elapsed());
        assert!(slowest < Duration::from_secs(10), "round {round} took {slowest:?}");
    }
    println!("{} random files, {sound} of them sound, the slowest took {slowest:?}", random_files());
    assert!(sound > 0);
}
