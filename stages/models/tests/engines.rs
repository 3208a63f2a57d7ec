//! The two engines of inference side by side: what tensors compute (on the CPU here, as on a GPU) is what the host's kernels do, for
//! every family, in any batch, behind kept prefixes and fresh.

mod common;

use std::sync::Arc;

use common::{FAMILIES, answers, ask, fixtures};
use mpcc_models::generate::GenerateRequest;
use mpcc_models::lora::LoraConfig;
use mpcc_models::sample::Sampling;
use mpcc_models::score::ScoreRequest;
use mpcc_models::vlm::infer::{Engine, EngineChoice, Host, Joining, PrefixesOf, Tensors};
use mpcc_models::vlm::prefill::prefill;
use mpcc_models::vlm::prefix::Prefixes;
use mpcc_models::vlm::qwen::Config;
use mpcc_models::vlm::{Form, LoadOptions, Prompt, Vlm};

/// How far logits may be from the host's.
const LOGITS: f32 = 1e-4;
/// How far logits of bf16 weights may be from the host's, which computes with the same weights in f32: at most, and in the mean square
/// relative to that of the logits. transformers differs from itself by up to 0.47 and 0.020 in the same models.
const LOGITS_BF16: [f32; 2] = [0.75, 0.03];

fn options(kept_bytes: usize, engine: EngineChoice) -> LoadOptions {
    LoadOptions { kept_bytes, engine, ..LoadOptions::default() }
}

/// A fixture on the host's engine and on tensors, keeping so much.
fn both(family: &str, kept_bytes: usize) -> [Vlm; 2] {
    [EngineChoice::ByDevice, EngineChoice::Tensors]
        .map(|engine| Vlm::load(&fixtures().join(family), &options(kept_bytes, engine)).unwrap())
}

/// Eight prompts: with none, one and two pictures, alike at the beginning and not, short and long.
fn prompts(vlm: &Vlm) -> Vec<Arc<Prompt>> {
    let long = "a bus, a car, a tram, a boat, ".repeat(4);
    let cases: [(&[u32], &str); 8] = [
        (&[1], "Which one is it? a bus"),
        (&[1], "Which one is it? a bus, a car"),
        (&[], "What?"),
        (&[1, 2], "Compare them."),
        (&[2], "Which one is it? a bus"),
        (&[1], "Is it true?"),
        (&[], &long),
        (&[2, 1], &long),
    ];
    cases.iter().map(|(pictures, words)| ask(vlm, pictures, words)).collect()
}

/// What one engine says in a fixed play: prompts, rows behind them that decode together, some of which leave, others that join.
fn play<E: Engine>(engine: &E, prefixes: &PrefixesOf<E>, prompts: &[Arc<Prompt>]) -> Vec<Vec<f32>> {
    let mut said = Vec::new();
    let (early, late) = prompts.split_at(prompts.len() / 2);
    let (mut lanes, mut rows) = (E::Lanes::default(), Vec::new());
    for (act, some) in [early, late].into_iter().enumerate() {
        let done = prefill(engine, &some.iter().collect::<Vec<_>>(), prefixes).unwrap();
        let lasts: Vec<&E::Rows> = done.iter().map(|done| &*done.last).collect();
        let lasts = engine.pick(&lasts, &(0..lasts.len()).collect::<Vec<_>>()).unwrap();
        said.push(engine.logits(&lasts).unwrap());
        let mut joining = Vec::new();
        for (at, (prompt, done)) in some.iter().zip(&done).enumerate() {
            for sample in 0..[3, 1, 1, 2][at % 4] {
                joining.push(Joining { context: done.context.clone(), room: 8 });
                rows.push((prompt.next_position(), (40 + 7 * at + 3 * sample + act) as u32, 0));
            }
        }
        engine.join(&mut lanes, joining).unwrap();
        for step in 0..4 {
            said.push(decode(engine, &mut lanes, &mut rows));
            if step == 1 {
                let stays: Vec<bool> = (0..rows.len()).map(|row| row % 3 != 1).collect();
                engine.stay(&mut lanes, &stays).unwrap();
                rows = rows.into_iter().zip(&stays).filter(|(_, stays)| **stays).map(|(row, _)| row).collect();
            }
        }
    }
    // The last row stays alone.
    let stays: Vec<bool> = (1..=rows.len()).map(|row| row == rows.len()).collect();
    engine.stay(&mut lanes, &stays).unwrap();
    rows.drain(..rows.len() - 1);
    said.push(decode(engine, &mut lanes, &mut rows));
    said
}

/// One more token for every row: where it stands, its token, and how many it has.
fn decode<E: Engine>(engine: &E, lanes: &mut E::Lanes, rows: &mut [(u32, u32, u32)]) -> Vec<f32> {
    let ids: Vec<u32> = rows.iter().map(|(_, id, count)| 20 + (id * 5 + count * 11) % 200).collect();
    let places: Vec<u32> = rows.iter().map(|(place, _, count)| place + count).collect();
    rows.iter_mut().for_each(|(_, _, count)| *count += 1);
    let x = engine.embed_text(&ids).unwrap();
    let places = [places.clone(), places.clone(), places];
    engine.logits(&engine.extend(lanes, &vec![1; ids.len()], x, &places).unwrap()).unwrap()
}

fn on_host(vlm: &Vlm, prompts: &[Arc<Prompt>], rounds: usize) -> Vec<Vec<Vec<f32>>> {
    let prefixes = Prefixes::new(64 << 20);
    let found = vlm.weights().with_slices(|slices| {
        let engine = Host::new(vlm.config(), slices, 1)?;
        Ok((0..rounds).map(|_| play(&engine, &prefixes, prompts)).collect())
    });
    found.unwrap()
}

fn on_tensors(engine: &Tensors, prompts: &[Arc<Prompt>], rounds: usize) -> Vec<Vec<Vec<f32>>> {
    let prefixes = Prefixes::new(64 << 20);
    (0..rounds).map(|_| play(engine, &prefixes, prompts)).collect()
}

/// The largest difference of two plays, and the largest number in the first.
fn apart(one: &[Vec<Vec<f32>>], other: &[Vec<Vec<f32>>]) -> (f32, f32) {
    let flat = |all: &[Vec<Vec<f32>>]| all.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (one, other) = (flat(one), flat(other));
    assert_eq!(one.len(), other.len());
    assert!(other.iter().all(|value| value.is_finite()));
    let most = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (most, one.iter().fold(0.0, |most, value| value.abs().max(most)))
}

/// The root mean square of the difference of two plays, relative to the first's.
fn spread(one: &[Vec<Vec<f32>>], other: &[Vec<Vec<f32>>]) -> f32 {
    let pairs = || one.iter().flatten().flatten().zip(other.iter().flatten().flatten());
    let sum = |value: fn((&f32, &f32)) -> f32| pairs().map(value).sum::<f32>();
    (sum(|(a, b)| (a - b).powi(2)) / sum(|(a, _)| a * a)).sqrt()
}

#[test]
fn logits_are_the_hosts_while_rows_come_and_go() {
    for family in FAMILIES {
        let [vlm, _] = both(family, 0);
        let prompts = prompts(&vlm);
        // The second round finds its prompts kept.
        let (most, top) =
            apart(&on_host(&vlm, &prompts, 2), &on_tensors(&Tensors::new(vlm.model().clone()), &prompts, 2));
        println!("{family}: {most:e} of {top}");
        assert!(most < LOGITS, "{family}: logits differ by {most}");
    }
}

#[test]
fn a_window_in_some_layers_and_queries_in_blocks_change_nothing() {
    let tiny = Vlm::load(&fixtures().join("tiny"), &LoadOptions::default()).unwrap();
    let mut config = tiny.config().to_json();
    let text = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    for (key, value) in
        [("use_sliding_window", true.into()), ("sliding_window", 19.into()), ("max_window_layers", 1.into())]
    {
        text[key] = value;
    }
    text.as_object_mut().unwrap().remove("layer_types");
    let config = Config::from_json(&config).unwrap();
    let vlm = Vlm::init(config, tiny.assets().clone(), 5, &LoadOptions::default()).unwrap();
    let windows: Vec<Option<usize>> = (0..2).map(|layer| vlm.config().text().window(layer)).collect();
    assert_eq!(windows, [None, Some(19)]);
    let prompts = prompts(&vlm);
    let host = on_host(&vlm, &prompts, 1);
    for scores in [1 << 26, 3000, 1] {
        let engine = Tensors::new(vlm.model().clone()).with_scores_at_once(scores);
        let (most, _) = apart(&host, &on_tensors(&engine, &prompts, 1));
        assert!(most < LOGITS, "{scores} scores at once: logits differ by {most}");
    }
}

#[test]
fn bf16_is_as_near_as_bf16_is() {
    for family in FAMILIES {
        let load = LoadOptions { form: Form::Bf16, ..LoadOptions::default() };
        let vlm = Vlm::load(&fixtures().join(family), &load).unwrap();
        let prompts = prompts(&vlm);
        let engine = Tensors::new(vlm.model().clone());
        let (host, tensors) = (on_host(&vlm, &prompts, 1), on_tensors(&engine, &prompts, 1));
        let (most, top) = apart(&host, &tensors);
        let mean = spread(&host, &tensors);
        println!("{family}, bf16: at most {most:e} of {top}, mean square {mean:e}");
        assert!(most < LOGITS_BF16[0] && mean < LOGITS_BF16[1], "{family}: logits differ by {most}, {mean}");
        let bytes = engine.token_bytes();
        let text = vlm.config().text();
        assert_eq!(bytes, 2 * text.layers * text.heads.kv_heads * text.heads.head_dim * 2, "two bytes a value");
    }
}

fn greedy(prompts: &[Arc<Prompt>], samples: u64) -> Vec<GenerateRequest> {
    let request = |(at, prompt): (usize, &Arc<Prompt>)| GenerateRequest {
        prompt: prompt.clone(),
        sampling: Sampling::greedy(6 + 5 * (at % 4)),
        seeds: (0..samples).collect(),
    };
    prompts.iter().enumerate().map(request).collect()
}

#[test]
fn greedy_answers_are_the_hosts_with_one_row_and_with_many() {
    for family in FAMILIES {
        for kept_bytes in [256 << 20, 0] {
            let [host, tensors] = both(family, kept_bytes);
            assert!(!host.on_tensors() && tensors.on_tensors());
            let prompts = prompts(&host);
            let requests = greedy(&prompts, 1);
            let expected = answers(&host, &requests);
            for size in [1, 3, 8] {
                let found: Vec<_> = requests.chunks(size).flat_map(|some| answers(&tensors, some)).collect();
                assert_eq!(found, expected, "{family}, {size} together, {kept_bytes} bytes");
            }
            // Eight samples behind each prompt, all of which say the same.
            let found = answers(&tensors, &greedy(&prompts, 8));
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(*found, vec![expected[0].clone(); 8], "{family}, {kept_bytes} bytes");
            }
            assert!(tensors.kept_bytes() <= kept_bytes);
        }
    }
}

#[test]
fn what_is_shared_does_not_depend_on_the_engine() {
    for family in FAMILIES {
        let counts = both(family, 256 << 20).map(|vlm| {
            let requests = greedy(&prompts(&vlm), 2);
            for size in [1, 3, 8] {
                requests.chunks(size).for_each(|some| drop(answers(&vlm, some)));
            }
            vlm.prefix_counts()
        });
        assert_eq!(counts[0], counts[1], "{family}");
        assert!(counts[1].pictures_encoded == 2 && counts[1].tokens_reused > counts[1].tokens_computed, "{family}");
    }
}

#[test]
fn drawn_answers_are_the_hosts_but_for_draws_on_the_edge() {
    for family in FAMILIES {
        let [host, tensors] = both(family, 256 << 20);
        let sampling = Sampling { top_p: 0.95, top_k: Some(40), repetition_penalty: 1.1, ..Sampling::at(1.0, 12) };
        let requests: Vec<GenerateRequest> = prompts(&host)
            .into_iter()
            .map(|prompt| GenerateRequest { prompt, sampling, seeds: (0..5).collect() })
            .collect();
        let (host, tensors) = (answers(&host, &requests), answers(&tensors, &requests));
        let pairs = host.iter().flatten().zip(tensors.iter().flatten());
        let same = pairs.filter(|(a, b)| a == b).count();
        assert!(same >= 38, "{family}: {same} of 40 answers are the same");
    }
}

#[test]
fn scores_are_the_hosts() {
    for family in FAMILIES {
        let [host, tensors] = both(family, 1 << 20);
        let request = |(row, prompt): (usize, Arc<Prompt>)| ScoreRequest {
            prompt,
            prefix: (0..(row % 5) as u32 * 3).map(|id| 40 + id).collect(),
            continuations: vec![vec![9, 10, 11], vec![20 + row as u32 % 7], vec![], vec![30; 9]],
        };
        let requests: Vec<ScoreRequest> = prompts(&host).into_iter().enumerate().map(request).collect();
        let expected = host.score(&requests).unwrap();
        for size in [1, 3, 8] {
            let found: Vec<_> = requests.chunks(size).flat_map(|some| tensors.score(some).unwrap()).collect();
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{family}: {found} {expected}");
            }
        }
        let outside = ScoreRequest { continuations: vec![vec![5000]], ..requests[0].clone() };
        assert!(tensors.score(&[outside]).is_err());
    }
}

#[test]
fn an_adapter_in_training_counts_as_it_stands() {
    let [host, tensors] = both("families/qwen2_vl", 1 << 20);
    let config = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["q_proj".into(), "down_proj".into()] };
    let [host, tensors] = [host, tensors].map(|vlm| vlm.with_new_adapter(&config, 3).unwrap());
    assert!(tensors.on_tensors());
    let prompt = ask(&host, &[1], "What is it?");
    let request = ScoreRequest { prompt, prefix: vec![], continuations: vec![vec![9, 10, 11]] };
    let score = |vlm: &Vlm| vlm.score(std::slice::from_ref(&request)).unwrap()[0][0];
    let before = score(&tensors);
    assert!((score(&host) - before).abs() < 1e-4 * before.abs());
    for vlm in [&host, &tensors] {
        for (at, var) in vlm.weights().state().values().enumerate() {
            let values = (0..var.elem_count()).map(|i| ((i * 7 + at) as f32).sin() * 0.3).collect::<Vec<_>>();
            var.set(&candle_core::Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
        }
    }
    let after = score(&tensors);
    assert!((after - before).abs() > 1e-3, "{before} {after}");
    assert!((score(&host) - after).abs() < 1e-4 * after.abs());
}

#[test]
fn weights_that_change_count_at_once() {
    let [host, tensors] = both("tiny", 1 << 20);
    let request =
        ScoreRequest { prompt: ask(&host, &[1], "What is it?"), prefix: vec![], continuations: vec![vec![9, 10, 11]] };
    let score = |vlm: &Vlm| vlm.score(std::slice::from_ref(&request)).unwrap()[0][0];
    let before = score(&tensors);
    for vlm in [&host, &tensors] {
        for (_, var) in vlm.weights().vars().iter().filter(|(name, _)| name.contains("qkv")) {
            var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
        }
    }
    let after = score(&tensors);
    assert!((after - before).abs() > 1e-3, "{before} {after}");
    assert!((score(&host) - after).abs() < 1e-4 * after.abs());
}
