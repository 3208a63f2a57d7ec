//! What requests share changes how much is computed and never what comes out: every family, every order, any budget.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;
use common::{FAMILIES, answers, ask, fixtures, odd_picture};
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::image::Patches;
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::{LoadOptions, PrefixCounts, Prompt, Vlm};

/// What one item is asked: two choices and seven statements.
const QUESTIONS: usize = 9;

fn load(family: &str, kept_bytes: usize) -> Vlm {
    Vlm::load(&fixtures().join(family), &LoadOptions { kept_bytes, ..LoadOptions::default() }).unwrap()
}

fn families() -> impl Iterator<Item = (&'static str, Vlm)> {
    FAMILIES.into_iter().map(|name| (name, load(name, 256 << 20)))
}

fn questions(vlm: &Vlm, pictures: &[u32]) -> Vec<Arc<Prompt>> {
    let words = |at: usize| match at {
        0 | 1 => format!("Which one is it? {}", ["a bus, a car", "a bus, a truck, a tram"][at]),
        _ => format!("Is it true that number {at} is there?"),
    };
    (0..QUESTIONS).map(|at| ask(vlm, pictures, &words(at))).collect()
}

fn generate(vlm: &Vlm, prompts: &[Arc<Prompt>]) -> Vec<Vec<Completion>> {
    let sampling = Sampling::at(1.0, 10);
    let requests: Vec<GenerateRequest> =
        prompts.iter().map(|prompt| GenerateRequest { prompt: prompt.clone(), sampling, seeds: vec![3, 4] }).collect();
    answers(vlm, &requests)
}

fn score(vlm: &Vlm, prompts: &[Arc<Prompt>]) -> Vec<Vec<u64>> {
    let request = |prompt: &Arc<Prompt>| ScoreRequest {
        prompt: prompt.clone(),
        prefix: vec![40, 41],
        continuations: vec![vec![9, 10, 11], vec![20], vec![30, 31]],
    };
    let scores = vlm.score(&prompts.iter().map(request).collect::<Vec<_>>()).unwrap();
    scores.into_iter().map(|row| row.into_iter().map(f64::to_bits).collect()).collect()
}

/// The bits of every picture of a prompt.
fn pixels(prompt: &Prompt) -> Vec<Vec<u32>> {
    let bits = |image: &Patches| image.pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    prompt.images.iter().map(|image| bits(image).into_iter().map(f32::to_bits).collect()).collect()
}

/// Answers and scores of each prompt alone, by a model that keeps nothing.
fn alone(family: &str, prompts: &[Arc<Prompt>]) -> (Vec<Vec<Completion>>, Vec<Vec<u64>>) {
    let vlm = load(family, 0);
    let each = prompts.iter().map(std::slice::from_ref);
    let answers = each.clone().flat_map(|prompt| generate(&vlm, prompt)).collect();
    let scores = each.flat_map(|prompt| score(&vlm, prompt)).collect();
    let shown: usize = prompts.iter().map(|prompt| prompt.images.len()).sum();
    let distinct: usize = prompts.iter().map(|prompt| pixels(prompt).into_iter().collect::<BTreeSet<_>>().len()).sum();
    let counts = vlm.prefix_counts();
    let expected = (2 * distinct as u64, 2 * (shown - distinct) as u64);
    assert_eq!((counts.pictures_encoded, counts.pictures_reused), expected, "{family}");
    assert_eq!((counts.tokens_reused, vlm.kept_bytes()), (0, 0), "{family}");
    (answers, scores)
}

#[test]
fn nine_questions_together_encode_their_picture_once() {
    for (name, vlm) in families() {
        let prompts = questions(&vlm, &[1]);
        let (answers, scores) = alone(name, &prompts);
        let tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        assert_eq!(generate(&vlm, &prompts), answers, "{name}");
        let counts = vlm.prefix_counts();
        assert_eq!((counts.pictures_encoded, counts.pictures_reused), (1, 8), "{name}");
        assert_eq!(counts.tokens_computed + counts.tokens_reused, tokens as u64, "{name}");
        let pictures = prompts[0].images[0].tokens as u64;
        assert!(counts.tokens_reused >= 8 * pictures, "{name}: {counts:?}, {pictures} tokens a picture");
        assert_eq!(score(&vlm, &prompts), scores, "{name}");
        let counts = vlm.prefix_counts();
        assert_eq!((counts.pictures_encoded, counts.pictures_reused), (1, 17), "{name}");
    }
}

#[test]
fn nine_questions_one_after_another_do_too() {
    for (name, vlm) in families() {
        let prompts = questions(&vlm, &[1]);
        let (answers, scores) = alone(name, &prompts);
        for (index, prompt) in prompts.iter().enumerate() {
            let prompt = std::slice::from_ref(prompt);
            assert_eq!(generate(&vlm, prompt)[0], answers[index], "{name}, question {index}");
            assert_eq!(score(&vlm, prompt)[0], scores[index], "{name}, question {index}");
        }
        let counts = vlm.prefix_counts();
        assert_eq!((counts.pictures_encoded, counts.pictures_reused), (1, 17), "{name}");
    }
}

#[test]
fn several_pictures_and_beginnings_in_any_order_and_budget() {
    for name in FAMILIES {
        let vlm = load(name, 256 << 20);
        let mut prompts: Vec<Arc<Prompt>> = Vec::new();
        for pictures in [&[1][..], &[2], &[1, 2], &[1, 3], &[1, 1], &[]] {
            prompts.extend(questions(&vlm, pictures).into_iter().take(3));
        }
        // Apart from one another, so that like does not lie beside like.
        let order: Vec<Arc<Prompt>> = (0..prompts.len()).map(|at| prompts[at * 7 % prompts.len()].clone()).collect();
        let (answers, scores) = alone(name, &order);
        for budget in [256 << 20, 200_000, 30_000, 0] {
            let vlm = load(name, budget);
            for size in [order.len(), 5, 2] {
                let all: Vec<_> = order.chunks(size).flat_map(|some| generate(&vlm, some)).collect();
                assert_eq!(all, answers, "{name}, {budget} bytes, {size} together");
                assert!(vlm.kept_bytes() <= budget, "{name}: {} bytes of {budget}", vlm.kept_bytes());
                let all: Vec<_> = order.chunks(size).flat_map(|some| score(&vlm, some)).collect();
                assert_eq!(all, scores, "{name}, {budget} bytes, {size} together");
                assert!(vlm.kept_bytes() <= budget, "{name}: {} bytes of {budget}", vlm.kept_bytes());
            }
            if budget == 256 << 20 {
                assert_eq!(vlm.prefix_counts().pictures_encoded, 3, "{name}");
            }
        }
    }
}

#[test]
fn threads_that_ask_one_model_get_the_same() {
    for (name, vlm) in families() {
        let prompts: Vec<Arc<Prompt>> = [1, 2].iter().flat_map(|salt| questions(&vlm, &[*salt])).collect();
        let (answers, _) = alone(name, &prompts);
        std::thread::scope(|scope| {
            for offset in 0..3 {
                let (vlm, prompts, answers) = (&vlm, &prompts, &answers);
                scope.spawn(move || {
                    for step in 0..prompts.len() {
                        let at = (step * 5 + offset * 7) % prompts.len();
                        assert_eq!(generate(vlm, &prompts[at..=at])[0], answers[at], "{name}");
                    }
                });
            }
        });
    }
}

#[test]
fn nothing_outlives_a_change_of_the_weights() {
    let (vlm, fresh) = (common::tiny(1, 1), common::tiny(1, 1));
    let prompt = Arc::new(vlm.prompt(&common::question(1, 40), &[common::picture(1)], true).unwrap());
    let first = score(&vlm, std::slice::from_ref(&prompt));
    assert!(vlm.kept_bytes() > 0);
    let double = |vlm: &Vlm| {
        for (name, var) in vlm.weights().vars() {
            if name.contains("qkv") {
                var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
            }
        }
    };
    double(&vlm);
    double(&fresh);
    let changed = score(&vlm, std::slice::from_ref(&prompt));
    assert_ne!(changed, first);
    assert_eq!(changed, score(&fresh, std::slice::from_ref(&prompt)));
}

#[test]
fn a_copy_of_a_model_begins_with_nothing() {
    let vlm = common::tiny(1, 1);
    let prompt = Arc::new(vlm.prompt(&common::question(1, 40), &[common::picture(1)], true).unwrap());
    let first = score(&vlm, std::slice::from_ref(&prompt));
    let copy = vlm.deep_copy().unwrap();
    assert_eq!((copy.kept_bytes(), copy.prefix_counts()), (0, PrefixCounts::default()));
    assert_eq!(score(&copy, std::slice::from_ref(&prompt)), first);
}

#[test]
fn a_picture_that_differs_in_one_value_is_another() {
    for (name, vlm) in families() {
        let prompt = ask(&vlm, &[1], "What is it?");
        let mut other = Prompt::clone(&prompt);
        let pixels = &other.images[0].pixels;
        let mut values: Vec<f32> = pixels.flatten_all().unwrap().to_vec1().unwrap();
        values[0] = f32::from_bits(values[0].to_bits() ^ 1 << 20);
        other.images[0].pixels = Tensor::from_vec(values, pixels.dims(), pixels.device()).unwrap();
        generate(&vlm, &[prompt, Arc::new(other)]);
        assert_eq!(vlm.prefix_counts().pictures_encoded, 2, "{name}");
    }
}

#[test]
fn equal_pictures_are_processed_alike_into_tensors_of_their_own() {
    for (name, vlm) in families() {
        let fresh = vlm.assets().processor.process(&odd_picture(1)).unwrap();
        let prompts = [ask(&vlm, &[1], "Once."), ask(&vlm, &[1], "Again."), ask(&load(name, 0), &[1], "Elsewhere.")];
        let values = |pixels: &Tensor| pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for prompt in &prompts {
            assert_eq!(values(&prompt.images[0].pixels), values(&fresh.pixels), "{name}");
            assert_eq!(prompt.images[0].pixels.dims(), fresh.pixels.dims(), "{name}");
        }
        // Training tells pictures apart by their tensors: what happens to be kept must not decide what it sums together.
        assert_ne!(prompts[0].images[0].pixels.id(), prompts[1].images[0].pixels.id(), "{name}");
    }
}
