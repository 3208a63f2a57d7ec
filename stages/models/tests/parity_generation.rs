//! Generation and likelihoods: against PyTorch's greedy answers, against the differentiable forward, and against themselves in
//! other company.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::D;
use common::{answers, fixtures};
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::GenerateRequest;
use mpcc_models::ops::Segments;
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::{LoadOptions, Packed, Prompt, Vlm};
use serde_json::Value;

fn prompts(vlm: &Vlm, count: u32) -> Vec<Arc<Prompt>> {
    let one = |salt| vlm.prompt(&common::question(salt, 5 + salt % 7), &[common::picture(salt)], true).unwrap();
    (0..count).map(|salt| Arc::new(one(salt))).collect()
}

#[test]
fn greedy_answers_are_pytorchs() {
    let vlm = Vlm::load(&fixtures().join("tiny"), &LoadOptions::default()).unwrap();
    let cases: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    let requests = cases.iter().map(|case| {
        let mut images = vec![];
        let turns: Vec<Turn> =
            case["turns"].as_array().unwrap().iter().map(|turn| turn_of(turn, &mut images)).collect();
        let prompt = Arc::new(vlm.prompt(&turns, &images, true).unwrap());
        GenerateRequest { prompt, sampling: Sampling::greedy(14), seeds: vec![0] }
    });
    let requests: Vec<GenerateRequest> = requests.collect();
    for (case, completions) in cases.iter().zip(answers(&vlm, &requests)) {
        let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone()).unwrap();
        assert_eq!(completions[0].ids, greedy, "{}", case["name"]);
        assert_eq!(completions[0].text, case["decoded"].as_str().unwrap());
    }
}

fn turn_of(turn: &Value, images: &mut Vec<image::RgbImage>) -> Turn {
    let parts = turn["parts"].as_array().unwrap().iter().map(|part| match part["image"].as_str() {
        Some(name) => {
            images.push(image::open(fixtures().join("images").join(name)).unwrap().to_rgb8());
            Part::Image
        }
        None => Part::Text(part["text"].as_str().unwrap().into()),
    });
    let role = match turn["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    Turn { role, parts: parts.collect() }
}

#[test]
fn an_answer_depends_on_its_prompt_and_seed_alone() {
    let vlm = common::tiny(3, 1);
    let threaded = common::tiny(3, 2);
    let sampling = Sampling { top_p: 0.95, repetition_penalty: 1.1, ..Sampling::at(1.0, 24) };
    let requests: Vec<GenerateRequest> = prompts(&vlm, 12)
        .into_iter()
        .enumerate()
        .map(|(index, prompt)| GenerateRequest { prompt, sampling, seeds: (0..1 + index as u64 % 5).collect() })
        .collect();
    let together = answers(&vlm, &requests);
    assert_eq!(answers(&threaded, &requests), together);
    for (request, expected) in requests.iter().zip(&together) {
        assert_eq!(&vlm.complete(request.clone()).unwrap(), expected);
        for (seed, expected) in request.seeds.iter().zip(expected) {
            let alone = GenerateRequest { seeds: vec![*seed], ..request.clone() };
            assert_eq!(&vlm.complete(alone).unwrap()[0], expected);
        }
    }
    let lengths: Vec<usize> = together.iter().flatten().map(|completion| completion.ids.len()).collect();
    assert!(lengths.iter().any(|length| *length < 24) && lengths.contains(&24), "rows end early and late: {lengths:?}");
    assert!(together.iter().flatten().all(|c| !c.ids.contains(&5)), "no answer holds a picture's placeholder");
    assert!(together.iter().flatten().all(|c| c.finished == (*c.ids.last().unwrap() == 2)));
}

#[test]
fn more_rows_than_fit_are_taken_in_turns() {
    let vlm = common::tiny(5, 1);
    let request = |prompt: &Arc<Prompt>, seeds: u64| GenerateRequest {
        prompt: prompt.clone(),
        sampling: Sampling::at(1.0, 4),
        seeds: (0..seeds).collect(),
    };
    let prompt = &prompts(&vlm, 1)[0];
    let many: Vec<GenerateRequest> = [300, 90, 1, 0, 120, 80].map(|seeds| request(prompt, seeds)).into();
    let found = answers(&vlm, &many);
    for (request, completions) in many.iter().zip(&found) {
        assert_eq!(completions.len(), request.seeds.len());
        assert_eq!(completions[..], found[0][..completions.len()]);
    }
}

#[test]
fn the_caller_may_stop() {
    let vlm = common::tiny(5, 1);
    let request = |prompt| GenerateRequest { prompt, sampling: Sampling::at(1.0, 3), seeds: (0..200).collect() };
    let requests: Vec<GenerateRequest> = prompts(&vlm, 4).into_iter().map(request).collect();
    let mut calls = 0;
    vlm.generate(&requests, &mut |_, _| {
        calls += 1;
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(calls, 1);
    let none = GenerateRequest { sampling: Sampling::greedy(0), ..requests[0].clone() };
    assert!(vlm.complete(none).unwrap().iter().all(|completion| completion.ids.is_empty() && !completion.finished));
}

/// Log-probability of `ids` behind a prompt by the differentiable forward.
fn by_forward(vlm: &Vlm, prompt: &Prompt, ids: &[u32]) -> f64 {
    let mut packed = Packed {
        ids: [&prompt.ids, ids].concat(),
        positions: prompt.positions.clone(),
        segments: Arc::new(Segments::causal([prompt.ids.len() + ids.len()]).unwrap()),
        images: prompt.images.clone(),
    };
    for axis in &mut packed.positions {
        axis.extend(prompt.next_position()..prompt.next_position() + ids.len() as u32);
    }
    let hidden = vlm.model().forward(&packed, None).unwrap();
    let logits = hidden.matmul(&vlm.model().head().t().unwrap()).unwrap();
    let rows = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().to_vec2::<f32>().unwrap();
    ids.iter().enumerate().map(|(at, id)| f64::from(rows[prompt.ids.len() - 1 + at][*id as usize])).sum()
}

#[test]
fn scores_are_the_forwards_log_probabilities_in_any_company() {
    let vlm = common::tiny(7, 1);
    let prompts = prompts(&vlm, 5);
    let continuations = vec![vec![9, 10, 11], vec![20], vec![9, 10, 11, 40, 41, 42, 2], vec![]];
    let request = |(index, prompt): (usize, &Arc<Prompt>)| ScoreRequest {
        prompt: prompt.clone(),
        prefix: (0..3 * index as u32 % 7).map(|i| 30 + i).collect(),
        continuations: continuations.clone(),
    };
    let requests: Vec<ScoreRequest> = prompts.iter().enumerate().map(request).collect();
    let together = vlm.score(&requests).unwrap();
    for (request, scores) in requests.iter().zip(&together) {
        assert_eq!(&vlm.score(std::slice::from_ref(request)).unwrap()[0], scores);
        let prefix = by_forward(&vlm, &request.prompt, &request.prefix);
        for (ids, score) in request.continuations.iter().zip(scores) {
            let whole = by_forward(&vlm, &request.prompt, &[&request.prefix[..], ids].concat());
            assert!((whole - prefix - score).abs() < 1e-4 * (1.0 + score.abs()), "{whole} - {prefix} against {score}");
        }
        assert_eq!(scores[3], 0.0);
    }
}

#[test]
fn a_bad_request_is_refused() {
    let vlm = common::tiny(1, 1);
    let prompt = prompts(&vlm, 1).remove(0);
    let bad = Sampling { top_p: 2.0, ..Sampling::greedy(2) };
    assert!(vlm.complete(GenerateRequest { prompt: prompt.clone(), sampling: bad, seeds: vec![1] }).is_err());
    let outside = ScoreRequest { prompt, prefix: vec![], continuations: vec![vec![5000]] };
    assert!(vlm.score(&[outside]).is_err());
    let counted = vlm.prompt(&common::question(0, 3), &[], true).unwrap_err();
    assert!(counted.to_string().contains("show 1 pictures"), "{counted}");
}
