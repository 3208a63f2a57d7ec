//! Model directories: the forms that exist, all giving the same model, and damaged ones, each refused with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use image::RgbImage;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::checkpoint::write_tensors;
use mpcc_models::generate::GenerateRequest;
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::{LoadOptions, Vlm};
use serde_json::{Value, json};
use tempfile::TempDir;

const FAMILIES: [&str; 4] = ["qwen2_vl", "llava_next_vicuna", "llava_next_mistral", "internvl"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name)
}

/// A copy of a fixture to change.
struct Copy(TempDir);

impl Copy {
    fn of(name: &str) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        Copy(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    fn edit(&self, file: &str, change: impl Fn(&mut Value)) {
        let mut value = self.json(file);
        change(&mut value);
        std::fs::write(self.path(file), value.to_string()).unwrap();
    }

    #[allow(unsafe_code, reason = "maps a file that nothing changes while it is mapped")]
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let files = unsafe { MmapedSafetensors::new(self.path("model.safetensors")) }.unwrap();
        let load = |(name, _): (String, _)| {
            let tensor = files.load(&name, &Device::Cpu).unwrap();
            (name, tensor)
        };
        files.tensors().into_iter().map(load).collect()
    }

    fn rewrite(&self, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let mut tensors = self.tensors();
        change(&mut tensors);
        write_tensors(&self.path("new.safetensors"), &tensors).unwrap();
        std::fs::rename(self.path("new.safetensors"), self.path("model.safetensors")).unwrap();
    }

    fn rename(&self, name: impl Fn(&str) -> String) {
        self.rewrite(|tensors| *tensors = tensors.iter().map(|(old, tensor)| (name(old), tensor.clone())).collect());
    }

    fn load(&self) -> mpcc_models::Result<Vlm> {
        Vlm::load(self.0.path(), &LoadOptions::default())
    }

    fn refused(&self) -> String {
        self.load().expect_err("the directory is damaged").to_string()
    }
}

fn picture() -> RgbImage {
    RgbImage::from_fn(90, 61, |x, y| image::Rgb([(x * 3) as u8, (y * 4) as u8, (x * y) as u8]))
}

fn turns() -> [Turn; 1] {
    [Turn { role: Role::User, parts: vec![Part::Image, Part::Text("What is hidden?".into())] }]
}

fn answer(vlm: &Vlm) -> Vec<u32> {
    let prompt = vlm.prompt(&turns(), &[picture()], true).unwrap();
    let request = GenerateRequest { prompt: prompt.into(), sampling: Sampling::greedy(16), seeds: vec![0] };
    vlm.complete(request).unwrap().remove(0).ids
}

#[test]
fn llava_is_read_under_every_name_it_ever_had() {
    for name in ["llava_next_vicuna", "llava_next_mistral"] {
        let expected = answer(&Copy::of(name).load().unwrap());
        // As transformers 5 names the modules in memory; as published, CLIP's wrapper in the name.
        let later = Copy::of(name);
        later.rename(|old| match old.strip_prefix("language_model.") {
            Some("lm_head.weight") => "lm_head.weight".into(),
            Some(rest) => format!("model.language_model.{}", rest.trim_start_matches("model.")),
            None => format!("model.{old}"),
        });
        assert_eq!(answer(&later.load().unwrap()), expected, "{name}");
        let published = Copy::of(name);
        published.rename(|old| old.replace("vision_tower.", "vision_tower.vision_model."));
        published.rewrite(|tensors| {
            let ids = Tensor::new(&[0u32, 1, 2], &Device::Cpu).unwrap();
            tensors.insert("vision_tower.vision_model.embeddings.position_ids".into(), ids);
        });
        published.edit("config.json", |config| {
            config["text_config"].as_object_mut().unwrap().retain(|key, _| key != "rope_parameters");
            let rope = if name == "llava_next_vicuna" {
                json!({ "type": "linear", "factor": 2.0 })
            } else {
                config["text_config"]["rope_theta"] = 1e6.into();
                Value::Null
            };
            config["text_config"]["rope_scaling"] = rope;
        });
        assert_eq!(answer(&published.load().unwrap()), expected, "{name}");
    }
}

#[test]
fn internvl_is_read_as_published() {
    let expected = answer(&Copy::of("internvl").load().unwrap());
    let published = Copy::of("internvl");
    published.rename(|old| {
        let name = old
            .replace("multi_modal_projector.layer_norm", "mlp1.0")
            .replace("multi_modal_projector.linear_1", "mlp1.1")
            .replace("multi_modal_projector.linear_2", "mlp1.3")
            .replace("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding")
            .replace("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding")
            .replace("vision_tower.embeddings.patch_embeddings.projection", "vision_model.embeddings.patch_embedding")
            .replace("vision_tower.encoder.layer.", "vision_model.encoder.layers.")
            .replace("attention.projection_layer", "attn.proj")
            .replace(".attention.", ".attn.")
            .replace("layernorm_before", "norm1")
            .replace("layernorm_after", "norm2");
        name.replace("lambda_1", "ls1").replace("lambda_2", "ls2")
    });
    published.rewrite(|tensors| {
        for layer in 0..2 {
            for kind in ["weight", "bias"] {
                let front = format!("vision_model.encoder.layers.{layer}.attn");
                let parts = ["q", "k", "v"].map(|part| tensors.remove(&format!("{front}.{part}_proj.{kind}")).unwrap());
                tensors.insert(format!("{front}.qkv.{kind}"), Tensor::cat(&parts, 0).unwrap());
            }
        }
    });
    let config = published.json("config.json");
    let mut language = config["text_config"].clone();
    language["rope_theta"] = language["rope_parameters"]["rope_theta"].clone();
    language["rope_scaling"] = json!({ "type": "dynamic", "factor": 2.0 });
    language.as_object_mut().unwrap().retain(|key, _| key != "rope_parameters");
    let mut vision = config["vision_config"].clone();
    (vision["image_size"], vision["patch_size"], vision["qkv_bias"]) = (56.into(), 14.into(), true.into());
    let written = json!({
        "model_type": "internvl_chat", "llm_config": language, "vision_config": vision, "downsample_ratio": 0.5, "ps_version": "v2",
        "select_layer": -1, "force_image_size": 56, "dynamic_image_size": true, "min_dynamic_patch": 1, "max_dynamic_patch": 6,
        "use_thumbnail": true,
    });
    std::fs::write(published.path("config.json"), written.to_string()).unwrap();
    std::fs::remove_file(published.path("processor_config.json")).unwrap();
    assert_eq!(answer(&published.load().unwrap()), expected);
    // A template made for text shows a picture as its placeholder and a line break.
    let text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    std::fs::write(published.path("chat_template.jinja"), text).unwrap();
    let vlm = published.load().unwrap();
    let prompt = vlm.prompt(&turns(), &[picture()], true).unwrap();
    assert_eq!(prompt.text, "<|im_start|>user\n<IMG_CONTEXT>\nWhat is hidden?<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(answer(&vlm), expected);
    // Saved, it is a directory of transformers.
    let saved = tempfile::tempdir().unwrap();
    vlm.save(saved.path()).unwrap();
    assert_eq!(answer(&Vlm::load(saved.path(), &LoadOptions::default()).unwrap()), expected);
}

#[test]
fn weights_may_lie_in_several_files() {
    let copy = Copy::of("qwen2_vl");
    let expected = answer(&copy.load().unwrap());
    let (mut first, mut second) = (copy.tensors(), BTreeMap::new());
    let names: Vec<String> = first.keys().cloned().collect();
    let mut map = serde_json::Map::new();
    for (place, name) in names.iter().enumerate() {
        let file = if place % 2 == 0 { "model-00001-of-00002.safetensors" } else { "model-00002-of-00002.safetensors" };
        map.insert(name.clone(), file.into());
        if place % 2 == 1 {
            second.insert(name.clone(), first.remove(name).unwrap());
        }
    }
    write_tensors(&copy.path("model-00001-of-00002.safetensors"), &first).unwrap();
    write_tensors(&copy.path("model-00002-of-00002.safetensors"), &second).unwrap();
    std::fs::write(copy.path("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    std::fs::remove_file(copy.path("model.safetensors")).unwrap();
    assert_eq!(answer(&copy.load().unwrap()), expected);
    std::fs::remove_file(copy.path("model-00002-of-00002.safetensors")).unwrap();
    assert!(!copy.refused().is_empty());
}

#[test]
fn a_tensor_too_few_too_many_or_misshapen_is_named() {
    for name in FAMILIES {
        let vision = if name == "qwen2_vl" { "visual.blocks.1.norm1.weight" } else { "vision_tower" };
        let copy = Copy::of(name);
        let found = copy.tensors();
        let victim = found.keys().find(|key| key.starts_with(vision)).unwrap().clone();
        copy.rewrite(|tensors| drop(tensors.remove(&victim)));
        let message = copy.refused();
        assert!(message.contains("missing") && message.contains(&victim[victim.len() - 12..]), "{name}: {message}");

        let copy = Copy::of(name);
        copy.rewrite(|tensors| {
            tensors.insert("model.surplus.weight".into(), tensors[&victim].clone());
        });
        let message = copy.refused();
        assert!(message.contains("`model.surplus.weight`") && message.contains("no weight"), "{name}: {message}");

        let copy = Copy::of(name);
        copy.rewrite(|tensors| {
            let wide = Tensor::cat(&[&tensors[&victim], &tensors[&victim]], 0).unwrap();
            tensors.insert(victim.clone(), wide);
        });
        let message = copy.refused();
        assert!(message.contains(&victim) && message.contains("has shape"), "{name}: {message}");
    }
}

#[test]
fn a_header_that_lies_is_an_error() {
    let copy = Copy::of("internvl");
    let bytes = std::fs::read(copy.path("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    let write = |header: &str, declared: u64, body: &[u8]| {
        let all = [&declared.to_le_bytes(), header.as_bytes(), body].concat();
        std::fs::write(copy.path("model.safetensors"), all).unwrap();
    };
    let body = &bytes[8 + length..];
    let lies: [(String, u64, &[u8]); 6] = [
        (header.clone(), u64::MAX, body),
        (header.clone(), length as u64 + 9, body),
        (header.clone(), length as u64, &body[..body.len() / 2]),
        (header.replacen("\"F32\"", "\"F64\"", 1), length as u64, body),
        (header.replacen("[16,", "[17,", 1), length as u64, body),
        (String::new(), 0, &[]),
    ];
    for (header, declared, body) in &lies {
        write(header, *declared, body);
        assert!(!copy.refused().is_empty());
    }
    std::fs::write(copy.path("model.safetensors"), [1, 2, 3]).unwrap();
    assert!(!copy.refused().is_empty());
}

#[test]
fn parts_that_were_not_made_for_each_other_are_refused() {
    let copy = Copy::of("qwen2_vl");
    copy.edit("tokenizer.json", |tokenizer| {
        let mut token = tokenizer["added_tokens"][0].clone();
        (token["id"], token["content"]) = (9000.into(), "<far>".into());
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
        tokenizer["model"]["vocab"]["<far>"] = 9000.into();
    });
    let message = copy.refused();
    assert!(message.contains("id 9000") && message.contains("rows"), "{message}");
    let copy = Copy::of("llava_next_vicuna");
    copy.edit("processor_config.json", |value| {
        value["image_processor"]["image_grid_pinpoints"] = json!([[42, 84]]);
    });
    assert!(copy.refused().contains("resolutions"));
    let copy = Copy::of("internvl");
    copy.edit("config.json", |config| config["model_type"] = "paligemma".into());
    let message = copy.refused();
    assert!(message.contains("`paligemma`") && message.contains("`internvl_chat`"), "{message}");
    std::fs::remove_file(copy.path("config.json")).unwrap();
    assert!(copy.refused().contains("config.json"));
}

#[test]
fn odd_pictures_get_an_answer_or_a_reason() {
    for name in FAMILIES {
        let vlm = Copy::of(name).load().unwrap();
        for (width, height) in [(1, 1), (2, 300), (10_000, 1), (1, 10_000), (199, 1)] {
            let found = vlm.prompt(&turns(), &[RgbImage::from_pixel(width, height, image::Rgb([9, 80, 200]))], true);
            match found {
                Ok(prompt) => {
                    let shown = prompt.ids.iter().filter(|id| **id == vlm.config().image_token_id()).count();
                    assert_eq!(shown, prompt.images[0].tokens, "{name}");
                    let sampling = Sampling::greedy(2);
                    let request = GenerateRequest { prompt: prompt.into(), sampling, seeds: vec![0] };
                    assert_eq!(vlm.complete(request).unwrap().len(), 1, "{name}");
                }
                Err(error) => assert!(error.to_string().contains("200 times"), "{name} {width} x {height}: {error}"),
            }
        }
        assert!(vlm.prompt(&turns(), &[RgbImage::new(0, 5)], true).is_err());
    }
}

#[test]
fn nothing_is_ever_cut() {
    for name in FAMILIES {
        let copy = Copy::of(name);
        copy.edit("config.json", |config| config["text_config"]["max_position_embeddings"] = 20.into());
        let vlm = copy.load().unwrap();
        let message = vlm.prompt(&turns(), &[picture(); 1], true).unwrap_err().to_string();
        assert!(message.contains("of pictures, but the model sees 20 at most"), "{name}: {message}");
        let empty = vlm.prompt_of_text(String::new(), vec![]);
        let begins = vlm.assets().tokenizer.special("bos_token").is_some_and(|token| !token.is_empty());
        match empty {
            Ok(prompt) => assert!(begins && prompt.ids.len() == 1, "{name}"),
            Err(error) => assert!(error.to_string().contains("no token"), "{name}: {error}"),
        }
        let mismatch = vlm.prompt(&turns(), &[], true).unwrap_err().to_string();
        assert!(mismatch.contains("show 1 pictures, but 0"), "{mismatch}");
        let text = vlm.assets().tokenizer.token(vlm.config().image_token_id()).unwrap();
        let smuggled = [Turn::text(Role::User, format!("look: {text}"))];
        assert!(vlm.prompt(&smuggled, &[], true).unwrap_err().to_string().contains("1 picture placeholders for 0"));
    }
}
