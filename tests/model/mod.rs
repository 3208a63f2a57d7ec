//! `mpcc model` from outside, on tiny models that are committed with what PyTorch computed with them.

mod company;
mod devices;
mod hub;
mod hub_server;
mod serve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::bench::{Bench, Ended, root};

const FAMILIES: [&str; 4] = ["qwen2_vl", "llava_next_vicuna", "llava_next_mistral", "internvl"];

fn fixtures() -> PathBuf {
    root().join("stages/models/tests/fixtures")
}

fn family(name: &str) -> String {
    fixtures().join("families").join(name).display().to_string()
}

fn picture(name: &str) -> String {
    fixtures().join("images").join(name).display().to_string()
}

/// `mpcc model` with these words.
fn model(bench: &Bench, words: &[&str]) -> Ended {
    bench.command("model").args(words).output().unwrap().into()
}

/// The one JSON object that a command prints.
fn told(ended: &Ended) -> Value {
    ended.json().pop().unwrap()
}

fn case(family: &str, name: &str) -> Value {
    let path = fixtures().join("families").join(family).join("cases.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    cases["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

/// The pictures of a case's turns, in order.
fn pictures(case: &Value) -> Vec<String> {
    let parts = case["turns"].as_array().unwrap().iter().flat_map(|turn| turn["parts"].as_array().unwrap());
    parts.filter_map(|part| part["image"].as_str()).map(picture).collect()
}

/// A safetensors file of whole numbers, each tensor one row.
fn write_numbers(path: &Path, tensors: &[(&str, &Value)]) {
    let (mut head, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, numbers) in tensors {
        let numbers = numbers.as_array().unwrap();
        let start = data.len();
        data.extend(numbers.iter().flat_map(|number| number.as_i64().unwrap().to_le_bytes()));
        let entry = json!({"dtype": "I64", "shape": [1, numbers.len()], "data_offsets": [start, data.len()]});
        head.insert((*name).to_owned(), entry);
    }
    let head = Value::Object(head).to_string();
    let bytes = [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

/// Shape and f32 values of each tensor of a safetensors file that has them.
fn read_values(path: &Path) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let (size, rest) = bytes.split_at(8);
    let (head, data) = rest.split_at(u64::from_le_bytes(size.try_into().unwrap()) as usize);
    let head: Value = serde_json::from_slice(head).unwrap();
    let tensors = head.as_object().unwrap().iter().filter(|(_, entry)| entry["dtype"] == "F32");
    tensors
        .map(|(name, entry)| {
            let list =
                |key: &str| entry[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
            let offsets = list("data_offsets");
            let values = data[offsets[0] as usize..offsets[1] as usize].chunks_exact(4);
            let values = values.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
            (name.clone(), (list("shape"), values))
        })
        .collect()
}

#[test]
fn every_family_agrees_with_what_pytorch_computed() {
    for name in FAMILIES {
        let bench = Bench::new("");
        let (dir, case) = (family(name), case(name, "four"));
        bench.write("prompt.txt", case["text"].as_str().unwrap());
        write_numbers(&bench.path("ref.safetensors"), &[("input_ids", &case["ids"]), ("gen_ids", &case["greedy"])]);
        let mut words = vec!["check", &dir, "--prompt", "prompt.txt", "--json", "--dump", "ours.safetensors"];
        let pictures = pictures(&case);
        words.extend(pictures.iter().flat_map(|path| ["--image", path]));
        words.extend(["--against", "ref.safetensors"]);
        let found = told(&model(&bench, &words).code(0));
        assert_eq!((&found["ok"], &found["greedy_ids_equal"]), (&json!(true), &json!(true)), "{found}");
        assert_eq!(found["compared"]["input_ids"]["largest_difference"], 0.0);

        let ours = read_values(&bench.path("ours.safetensors"));
        let theirs = read_values(&Path::new(&dir).join("reference.safetensors"));
        let ((shape, ours), (_, theirs)) = (&ours["logits"], &theirs["four.logits"]);
        assert_eq!(shape[..2], [1, case["ids"].as_array().unwrap().len() as u64]);
        let last = &ours[ours.len() - theirs.len()..];
        let worst = last.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{name}: logits differ by {worst}");

        // Against itself, all tensors; behind its own pixel values, the model alone.
        words.truncate(words.len() - 2);
        let against = |more: &[&str]| {
            told(&model(&bench, &[&words[..], &["--against", "ours.safetensors"], more].concat()).code(0))
        };
        let again = against(&[]);
        assert!(again["compared"].as_object().unwrap().len() >= 5, "{again}");
        assert_eq!(again["resize"], "pillow");
        // Torchvision's filter gives other values; it is found by itself.
        let other = told(&model(&bench, &[&words[..], &["--resize", "torchvision"]].concat()).code(0));
        assert_eq!((&other["resize"], &against(&[])["resize"]), (&json!("torchvision"), &json!("torchvision")));
        let alone = told(&model(&bench, &["check", &dir, "--against", "ours.safetensors", "--json"]).code(0));
        assert_eq!(alone["compared"]["logits"]["largest_difference"], 0.0, "{name}: {alone}");
        assert_eq!(alone["greedy_ids_equal"], true);
    }
}

#[test]
fn another_answer_is_told() {
    let (bench, dir) = (Bench::new(""), family("qwen2_vl"));
    let mut case = case("qwen2_vl", "text");
    bench.write("prompt.txt", case["text"].as_str().unwrap());
    case["greedy"][3] = json!(7);
    write_numbers(&bench.path("ref.safetensors"), &[("gen_ids", &case["greedy"])]);
    let run = model(&bench, &["check", &dir, "--prompt", "prompt.txt", "--against", "ref.safetensors"]).code(1);
    assert!(run.out.contains("greedy ids DIFFER") && run.out.contains("problem: gen_ids differs by"), "{}", run.out);
    let exact = ["check", &dir, "--prompt", "prompt.txt", "--min-new-tokens", "40", "--json"];
    assert_eq!(told(&model(&bench, &exact).code(0))["answer"]["ids"].as_array().unwrap().len(), 40);
    bench.write("other.safetensors", "no tensors");
    model(&bench, &["check", &dir, "--against", "other.safetensors"]).code(2);
}

/// A copy of a model whose weights' head is changed: JSON of the same length, padded with blanks.
fn with_head(bench: &Bench, name: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) {
    let (from, to) = (family(name), bench.path("copy"));
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let path = to.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut head: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    change(head.as_object_mut().unwrap());
    let head = head.to_string();
    let bytes = [&(head.len() as u64).to_le_bytes(), head.as_bytes(), &bytes[8 + size..]].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn missing_surplus_and_misshapen_tensors_are_all_named() {
    let bench = Bench::new("");
    with_head(&bench, "qwen2_vl", |head| {
        let norm = head.remove("model.norm.weight").unwrap();
        head.insert("model.nurm.weight".to_owned(), norm);
        let bias = &mut head["model.layers.0.self_attn.q_proj.bias"]["shape"];
        *bias = json!([1, bias[0]]);
    });
    let run = model(&bench, &["check", "copy", "--json"]).code(1);
    let tensors = &told(&run)["tensors"];
    assert_eq!(tensors["missing"], json!(["model.norm.weight"]));
    assert_eq!(tensors["surplus"], json!(["model.nurm.weight"]));
    assert_eq!(tensors["misshapen"][0]["name"], "model.layers.0.self_attn.q_proj.bias");
    let run = model(&bench, &["check", "copy"]).code(1);
    assert!(run.out.contains("problem: tensor model.norm.weight is missing"), "{}", run.out);
    std::fs::remove_file(bench.path("copy/tokenizer.json")).unwrap();
    let run = model(&bench, &["check", "copy"]).code(1);
    assert!(run.out.contains("tokenizer.json"), "{}", run.out);
}

#[test]
fn a_question_is_answered_as_tokens_come_and_the_same_way_each_time() {
    let (bench, dir, image) = (Bench::new(""), family("qwen2_vl"), picture("wide.png"));
    let ask = |more: &[&str]| {
        let words = ["ask", &dir, "--image", &image, "What is this?", "--max-new-tokens", "24"];
        model(&bench, &[&words[..], more].concat()).code(0)
    };
    let (plain, full) = (ask(&[]), told(&ask(&["--json", "--threads", "1"])));
    assert_eq!(plain.out.strip_suffix('\n'), full["text"].as_str());
    assert!(plain.err.contains("tokens/s"), "{}", plain.err);
    assert!(full["image_tokens"].as_u64().unwrap() > 0 && full["completion_tokens"].as_u64().unwrap() <= 24);
    let drawn = |seed: &str| told(&ask(&["--json", "--temperature", "1", "--seed", seed]))["ids"].clone();
    assert_eq!(drawn("5"), drawn("5"));
    assert_ne!(drawn("5"), drawn("6"));
    let two = told(&ask(&["--json", "--image", &image, "--system", "Be brief."]));
    assert_eq!(two["image_tokens"].as_u64(), full["image_tokens"].as_u64().map(|tokens| 2 * tokens));
    let run = model(&bench, &["ask", &dir, "--image", "none.png", "x"]).code(2);
    assert!(run.err.contains("none.png"), "{}", run.err);
    model(&bench, &["ask", &dir, "x", "--temperature", "nan"]).code(2);
}

/// Random models draw bytes that are no text: what comes in pieces must be the whole all the same.
#[test]
fn pieces_of_an_answer_are_the_whole_of_it() {
    for name in ["llava_next_vicuna", "qwen2_vl"] {
        let (bench, dir) = (Bench::new(""), family(name));
        for seed in ["0", "1", "2", "3", "4", "5", "6", "7"] {
            let words =
                ["ask", &dir, "x", "--max-new-tokens", "60", "--temperature", "2", "--threads", "1", "--seed", seed];
            let whole = told(&model(&bench, &[&words[..], &["--json"]].concat()).code(0));
            let pieces = model(&bench, &words).code(0).out;
            assert_eq!(pieces.strip_suffix('\n'), whole["text"].as_str(), "{name}, seed {seed}");
        }
    }
}

#[test]
fn speed_is_measured_for_the_work_asked_for() {
    let (bench, dir) = (Bench::new(""), family("internvl"));
    let words = "--prompt 40 --image 64x48 --decode 8 --batch 3 --threads 2 --repeat 1 --json";
    let words: Vec<&str> = ["bench", &dir].into_iter().chain(words.split(' ')).collect();
    let found = told(&model(&bench, &words).code(0));
    let of = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("{name} in {found}"));
    assert!(of("prompt_tokens") >= 3.0 * 40.0 + of("image_tokens") && of("image_tokens") > 0.0, "{found}");
    assert_eq!((of("batch"), of("threads"), of("decode_tokens")), (3.0, 2.0, 3.0 * 7.0));
    for name in ["load_s", "preprocess_ms_per_image", "prefill_s", "decode_s", "peak_memory_bytes"] {
        assert!(of(name) > 0.0, "{name} in {found}");
    }
    assert!((of("prefill_tokens_per_s") * of("prefill_s") / of("prompt_tokens") - 1.0).abs() < 1e-6);
    assert!((of("decode_tokens_per_s") * of("decode_s") / 21.0 - 1.0).abs() < 1e-6);
    model(&bench, &["bench", &dir, "--image", "640"]).code(2);
}

#[test]
fn a_converted_model_answers_alike_in_any_number_of_files() {
    for name in FAMILIES {
        let (bench, dir, image) = (Bench::new(""), family(name), picture("tall.png"));
        let answer = |dir: &str| {
            let words = ["check", dir, "--image", &image, "--dump", "out.safetensors"];
            model(&bench, &words).code(0);
            std::fs::read(bench.path("out.safetensors")).unwrap()
        };
        let written = told(&model(&bench, &["convert", &dir, "new", "--shard", "40KB", "--json"]).code(0));
        assert!(written["weight_files"].as_u64().unwrap() > 1, "{written}");
        assert_eq!(answer(&dir), answer("new"), "{name}");
        model(&bench, &["convert", "new", "half", "--dtype", "bf16"]).code(0);
        let half = told(&model(&bench, &["check", "half", "--json"]).code(0));
        assert_eq!(half["tensors"]["dtypes"]["F32"], Value::Null, "{half}");
        let run = model(&bench, &["convert", &dir, "new"]).code(2);
        assert!(run.err.contains("is there already"), "{}", run.err);
    }
}

#[test]
fn an_adapter_is_merged_whole_or_not_at_all() {
    for name in FAMILIES {
        let (bench, dir, prompt) = (Bench::new(""), family(name), case(name, "text"));
        let adapter = format!("{dir}/adapter");
        let merged = told(&model(&bench, &["merge-adapter", &dir, &adapter, "new", "--json"]).code(0));
        assert!(merged["merged_pairs"].as_u64().unwrap() > 0, "{merged}");
        bench.write("prompt.txt", prompt["text"].as_str().unwrap());
        model(&bench, &["check", "new", "--prompt", "prompt.txt", "--dump", "new.safetensors"]).code(0);
        model(&bench, &["check", &dir, "--prompt", "prompt.txt", "--dump", "old.safetensors"]).code(0);
        let [new, old] = ["new", "old"].map(|file| read_values(&bench.path(&format!("{file}.safetensors"))));
        assert_ne!(new["logits"], old["logits"], "{name}");
    }
    // An update is added to the values of a bf16 base, not rounded with them.
    let (bench, adapter) = (Bench::new(""), format!("{}/adapter", family("qwen2_vl")));
    model(&bench, &["convert", &family("qwen2_vl"), "half", "--dtype", "bf16"]).code(0);
    model(&bench, &["convert", "half", "wide", "--dtype", "f32"]).code(0);
    for (base, merged) in [("half", "one"), ("wide", "other")] {
        model(&bench, &["merge-adapter", base, &adapter, merged, "--dtype", "f32"]).code(0);
    }
    let [one, other] = ["one", "other"].map(|dir| std::fs::read(bench.path(dir).join("model.safetensors")).unwrap());
    assert!(one == other, "a bf16 base is merged in another way than its f32 copy");
    // The adapter of another family fits nothing.
    let bench = Bench::new("");
    std::fs::create_dir_all(bench.path("adapter")).unwrap();
    bench.write("adapter/adapter_config.json", r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#);
    write_numbers(&bench.path("adapter/adapter_model.safetensors"), &[("elsewhere.lora_A.weight", &json!([1]))]);
    let run = model(&bench, &["merge-adapter", &family("qwen2_vl"), "adapter", "new"]).code(2);
    assert!(run.err.contains("elsewhere.lora_A.weight") && !bench.path("new").exists(), "{}", run.err);
}

#[test]
fn ids_are_looked_up_in_the_hub_cache() {
    let mut bench = Bench::new("");
    let run = model(&bench, &["check", "org/tiny@v1"]).code(2);
    assert!(
        run.err.contains("models--org--tiny/refs/v1") && run.err.contains("mpcc model download org/tiny@v1"),
        "{}",
        run.err
    );
    assert!(model(&bench, &["check", "nothing"]).code(2).err.contains("there is no folder nothing"));
    let snapshots = bench.path("hub/models--org--tiny/snapshots");
    std::fs::create_dir_all(&snapshots).unwrap();
    std::os::unix::fs::symlink(family("qwen2_vl"), snapshots.join("abc")).unwrap();
    bench.write("hub/models--org--tiny/refs/v1", "abc");
    bench.variables.push(("HF_HUB_CACHE".into(), bench.path("hub").display().to_string()));
    for id in ["org/tiny@v1", "org/tiny@abc"] {
        assert_eq!(told(&model(&bench, &["check", id, "--json"]).code(0))["family"], "qwen2_vl");
    }
    model(&bench, &["check", "org/tiny"]).code(2);
}
