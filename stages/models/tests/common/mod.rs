//! The committed models, questions to them and their answers; a model of the embedded world's shape with a word tokenizer, and pictures
//! for it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use mpcc_models::chat::{ChatTemplate, Part, Role, Turn};
use mpcc_models::generate::{Completion, GenerateRequest};
use mpcc_models::image::ImageProcessor;
use mpcc_models::tokenizer::TextTokenizer;
use mpcc_models::vlm::qwen::Config;
use mpcc_models::vlm::{Assets, GenerationConfig, LoadOptions, Prompt, Vlm};
use serde_json::{Map, Value, json};

/// A committed model of every kind, by its folder among the fixtures.
pub const FAMILIES: [&str; 5] =
    ["tiny", "families/qwen2_vl", "families/llava_next_vicuna", "families/llava_next_mistral", "families/internvl"];

/// The folder of what is committed for tests.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A picture of an odd size, 120 to 148 by 90 pixels.
pub fn odd_picture(salt: u32) -> RgbImage {
    RgbImage::from_fn(120 + 14 * (salt % 3), 90, |x, y| {
        let byte = |k: u32| ((x * (3 + k) + y * (5 + salt) + salt * 31) % 256) as u8;
        image::Rgb([byte(0), byte(1), byte(salt)])
    })
}

/// One question about odd pictures, processed anew: nothing is shared but what the pictures and words are.
pub fn ask(vlm: &Vlm, pictures: &[u32], words: &str) -> Arc<Prompt> {
    let shown = pictures.iter().map(|_| Part::Image);
    let parts = shown.chain([Part::Text(format!("The object in the masked part. {words}"))]).collect();
    let pictures: Vec<RgbImage> = pictures.iter().map(|salt| odd_picture(*salt)).collect();
    Arc::new(vlm.prompt(&[Turn { role: Role::User, parts }], &pictures, true).unwrap())
}

/// The completions of every request, each of which is reported once.
pub fn answers(vlm: &Vlm, requests: &[GenerateRequest]) -> Vec<Vec<Completion>> {
    let mut found = vec![vec![]; requests.len()];
    vlm.generate(requests, &mut |index, completions| {
        assert!(found[index].is_empty(), "request {index} reported twice");
        found[index] = completions;
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

const SPECIAL: [&str; 7] =
    ["<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<unk>"];
const WORDS: usize = 113;

/// A word-level tokenizer of 120 tokens.
pub fn tokenizer() -> TextTokenizer {
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, token) in SPECIAL.iter().enumerate() {
        vocabulary.insert((*token).into(), id.into());
        added.push(json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }));
    }
    for word in 0..WORDS {
        vocabulary.insert(format!("w{word}"), (SPECIAL.len() + word).into());
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": Value::Object(vocabulary), "unk_token": "<unk>" },
    });
    TextTokenizer::new(file.to_string().into_bytes(), Value::Null).unwrap()
}

/// The configuration of the embedded world's model.
pub fn config() -> Config {
    Config::from_json(&json!({
        "model_type": "qwen2_5_vl", "vocab_size": 120, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "rope_scaling": { "type": "mrope", "mrope_section": [3, 4, 5] },
        "tie_word_embeddings": true, "image_token_id": 5, "video_token_id": 5, "vision_start_token_id": 3,
        "vision_end_token_id": 4, "eos_token_id": 2,
        "vision_config": { "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
            "out_hidden_size": 96 },
    }))
    .unwrap()
}

/// A freshly drawn model on so many threads.
pub fn tiny(seed: u64, threads: usize) -> Vlm {
    let template = "{% for m in messages %}<|im_start|> {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ p.text }} {% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}";
    let assets = Assets {
        tokenizer: tokenizer(),
        chat: ChatTemplate::new(template).unwrap(),
        processor: ImageProcessor { min_pixels: 12_544, max_pixels: 12_544, ..ImageProcessor::default() }.into(),
        generation: GenerationConfig::new(vec![2], 0),
    };
    Vlm::init(config(), assets, seed, &LoadOptions { threads, ..LoadOptions::default() }).unwrap()
}

/// A picture of 112 by 112 pixels.
pub fn picture(salt: u32) -> RgbImage {
    RgbImage::from_fn(112, 112, |x, y| {
        let byte = |k: u32| ((x * (3 + k) + y * (5 + salt) + salt * 31) % 256) as u8;
        image::Rgb([byte(0), byte(1), byte(salt)])
    })
}

/// A question of so many words about one picture.
pub fn question(salt: u32, words: u32) -> Vec<Turn> {
    let text: Vec<String> = (0..words).map(|i| format!("w{}", (i * 7 + salt * 13) % WORDS as u32)).collect();
    vec![Turn { role: Role::User, parts: vec![Part::Image, Part::Text(text.join(" "))] }]
}
