//! Which files of a revision a model needs. Names come from a server: only plain ones of a known kind are taken.

use std::collections::BTreeSet;

use serde_json::Value;

/// By which a snapshot is recognised; comes last.
const CONFIG: &str = "config.json";
/// Which weight file holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// All weights in one file.
const WHOLE: &str = "model.safetensors";
/// What this program or transformers reads beside configuration and weights.
const BESIDE: [&str; 14] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
];

/// The files to bring, in order: small ones, then the weights or their index, the configuration last.
pub(super) fn beside_weights(listed: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let there = |name: &&str| listed.contains(*name);
    if !there(&CONFIG) {
        return Err(format!("there is no {CONFIG}; a model in Hugging Face layout has one"));
    }
    let Some(weights) = [WHOLE, INDEX].into_iter().find(there) else {
        return Err(format!("there is neither {WHOLE} nor {INDEX}; weights in other formats are not read"));
    };
    Ok(BESIDE.into_iter().filter(there).chain([weights, CONFIG]).map(str::to_owned).collect())
}

/// The weight files that an index names.
pub(super) fn shards(index: &[u8], listed: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|error| format!("{INDEX} is no JSON: {error}"))?;
    let map = index["weight_map"].as_object().ok_or_else(|| format!("{INDEX} has no `weight_map`"))?;
    let named: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    match named.iter().find(|name| !is_shard(name) || !listed.contains(**name)) {
        Some(name) => Err(format!("{INDEX} names `{name}`, which is no weight file of this revision")),
        None => Ok(named.into_iter().map(str::to_owned).collect()),
    }
}

fn is_shard(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    plain && !name.starts_with('.') && name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_a_model_needs_comes_and_the_configuration_last() {
        let all =
            [CONFIG, "README.md", "pytorch_model.bin", "tokenizer.json", WHOLE, INDEX, "onnx/model.onnx", "code.py"];
        assert_eq!(beside_weights(&listed(&all)).unwrap(), ["tokenizer.json", WHOLE, CONFIG]);
        assert_eq!(beside_weights(&listed(&[CONFIG, INDEX])).unwrap(), [INDEX, CONFIG]);
        assert!(beside_weights(&listed(&[WHOLE])).unwrap_err().contains("no config.json"));
        assert!(beside_weights(&listed(&[CONFIG, "pytorch_model.bin"])).unwrap_err().contains("other formats"));
    }

    #[test]
    fn shards_are_plain_names_of_the_revision() {
        let index = |name: &str| format!(r#"{{"weight_map": {{"a": "{name}", "b": "{name}"}}}}"#).into_bytes();
        let all = listed(&["a-1.safetensors", "../b.safetensors", ".c.safetensors", "d.bin"]);
        assert_eq!(shards(&index("a-1.safetensors"), &all).unwrap(), ["a-1.safetensors"]);
        for name in ["../b.safetensors", ".c.safetensors", "d.bin", "absent.safetensors"] {
            assert!(shards(&index(name), &all).unwrap_err().contains(name));
        }
        assert!(shards(b"{}", &all).unwrap_err().contains("weight_map"));
    }
}
