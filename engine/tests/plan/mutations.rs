//! Sound pipelines damaged at random: whatever comes out, it is a plan or a list of problems, never a panic.

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::{compile_text, fixtures, options};

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
