//! Which device computes, what is said where there is none, and what a model without weights costs.

use serde_json::json;

use super::{Bench, family, model, picture, told};

#[test]
fn a_gpu_that_is_demanded_and_absent_is_an_error_that_says_what_to_do() {
    if cfg!(feature = "cuda") {
        println!("skipped: needs a build without CUDA");
        return;
    }
    let (bench, dir) = (Bench::new(""), family("qwen2_vl"));
    for device in ["cuda", "cuda:1"] {
        for words in [["ask", &dir, "Hello", "--device", device], ["bench", &dir, "--json", "--device", device]] {
            let ended = model(&bench, &words).code(3);
            let number = device.strip_prefix("cuda:").unwrap_or("0");
            let told = format!("CUDA device {number} was asked for");
            assert!(ended.err.contains(&told) && ended.err.contains("docs/cuda.md"), "{}", ended.err);
        }
    }
    let ended = model(&bench, &["ask", &dir, "Hello", "--device", "gpu"]).code(2);
    assert!(ended.err.contains("write auto, cpu, cuda or cuda:N"), "{}", ended.err);
    let ended = model(&bench, &["ask", &dir, "Hello", "--dtype", "q8", "--tensors"]).code(2);
    assert!(ended.err.contains("q8"), "{}", ended.err);
}

#[test]
fn a_gpu_that_is_preferred_and_absent_is_a_line() {
    if cfg!(feature = "cuda") {
        println!("skipped: needs a build without CUDA");
        return;
    }
    let (bench, dir) = (Bench::new(""), family("internvl"));
    let ask = |more: &[&str]| {
        model(&bench, &[&["ask", &dir, "Hello", "--max-new-tokens", "6", "--json"], more].concat()).code(0)
    };
    let [plain, auto] = [ask(&["--device", "cpu"]), ask(&["--device", "auto"])];
    assert_eq!(told(&plain)["ids"], told(&auto)["ids"]);
    let warnings = |err: &str| err.lines().filter(|line| line.starts_with("warning: ")).count();
    assert_eq!((warnings(&plain.err), warnings(&auto.err)), (0, 1), "{}", auto.err);
    assert!(auto.err.contains("computing on the CPU"), "{}", auto.err);
    assert_eq!(warnings(&ask(&[]).err), 0, "nobody asked for a GPU");
}

#[test]
fn tensors_answer_as_the_processors_own_engine_does() {
    let (bench, dir, shown) = (Bench::new(""), family("llava_next_mistral"), picture("wide.png"));
    let ask = |more: &[&str]| {
        let words = ["ask", &dir, "What is it?", "--image", &shown, "--max-new-tokens", "16", "--json"];
        told(&model(&bench, &[&words, more].concat()).code(0))["ids"].clone()
    };
    let ids = ask(&["--device", "cpu"]);
    assert!(ids.as_array().unwrap().len() > 1);
    assert_eq!(ask(&["--device", "cpu", "--tensors"]), ids);
    let check = ["check", &dir, "--device", "cpu", "--tensors", "--json"];
    assert_eq!(told(&model(&bench, &check).code(0))["ok"], true);
}

#[test]
fn a_model_without_weights_can_be_measured() {
    let (bench, from) = (Bench::new(""), family("qwen2_vl"));
    let dir = bench.path("bare");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|end| end == "json" || end == "jinja") {
            std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    }
    let words = ["bench", "bare", "--prompt", "9", "--decode", "3", "--image", "60x60", "--json", "--device", "cpu"];
    model(&bench, &words).code(2);
    for (more, device, dtype) in
        [(&["--random"][..], "cpu", "f32"), (&["--random", "--tensors", "--dtype", "bf16"], "cpu, on tensors", "bf16")]
    {
        let found = told(&model(&bench, &[&words[..], more].concat()).code(0));
        let shown = (&found["random"], &found["device"], &found["dtype"], &found["decode_tokens"]);
        assert_eq!(shown, (&json!(true), &json!(device), &json!(dtype), &json!(2)), "{found}");
        assert!(found["decode_tokens_per_s"].as_f64().unwrap() > 0.0 && found["peak_memory_bytes"].as_u64() > Some(0));
        assert_eq!(found["peak_gpu_memory_bytes"], json!(null));
    }
}
