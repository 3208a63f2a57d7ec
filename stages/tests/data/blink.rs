//! The free parser against what BLINK's authors extracted from 19,010 answers of ten models.

use std::io::Read;
use std::process::{Command, Stdio};

use mpcc_stages::record::{Form, Question};
use mpcc_stages::score::Parser;

use crate::support::shared;

#[derive(serde::Deserialize)]
struct Line {
    full_prediction: String,
    prediction: String,
}

fn question(options: usize) -> Question {
    let options: Vec<String> =
        ('A'..).take(options).map(|letter| format!("option number {letter} of the list")).collect();
    let kinds = vec!["choice".to_owned(); options.len()];
    Question {
        id: "q".into(),
        item: None,
        form: Form::Blink,
        group: "g".into(),
        images: vec![],
        prompt: String::new(),
        options,
        kinds,
        answer: 0,
        seed: 0,
    }
}

#[test]
fn free_reads_what_blinks_authors_read() {
    let Some(path) = shared("blink/raw_responses.jsonl.gz") else { return };
    let Ok(mut child) = Command::new("gzip").arg("-dc").arg(path).stdout(Stdio::piped()).spawn() else {
        println!("skipped: needs gzip");
        return;
    };
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let question = question(4);
    let (mut both, mut same, mut ours) = (0, 0, 0);
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        let text = line.full_prediction.trim_start_matches("<s>").trim_end_matches("</s>");
        let theirs =
            line.prediction.chars().nth(1).map_or(usize::MAX, |letter| (letter as usize).wrapping_sub('A' as usize));
        let chosen = Parser::Free.read(&question, text);
        ours += usize::from(chosen.is_some());
        if let (Some(chosen), true) = (chosen, theirs < 4) {
            both += 1;
            same += usize::from(chosen == theirs);
        }
    }
    println!("read {ours}, both read {both}, the same {same}");
    assert!(both > 14_000 && same as f64 > 0.97 * both as f64, "read {ours}, both read {both}, the same {same}");
}
