//! `tokenizer.json` and `tokenizer_config.json`: text to ids and back.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::{ModelError, Result};

/// Tags that stay in decoded text even where a tokenizer calls them special: they are the answer's structure.
const KEPT_TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// A tokenizer with the files it came from, so that it can be written back unchanged.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    file: Vec<u8>,
    config: Value,
    dropped: BTreeSet<u32>,
}

impl TextTokenizer {
    /// Takes the bytes of `tokenizer.json` and the JSON of `tokenizer_config.json` (or null).
    ///
    /// # Errors
    /// When the file is no tokenizer.
    pub fn new(file: Vec<u8>, config: Value) -> Result<TextTokenizer> {
        let tokenizer = Tokenizer::from_bytes(&file).map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        let dropped = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !KEPT_TAGS.contains(&token.content.as_str()))
            .map(|(id, _)| id)
            .collect();
        Ok(TextTokenizer { tokenizer, file, config, dropped })
    }

    /// Reads both files of a model directory.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or either file is malformed.
    pub fn read(dir: &Path) -> Result<TextTokenizer> {
        let path = dir.join("tokenizer.json");
        let file = std::fs::read(&path).map_err(|source| ModelError::Read { path, source })?;
        let config = crate::checkpoint::read_json_if_there(&dir.join("tokenizer_config.json"))?;
        TextTokenizer::new(file, config.unwrap_or(Value::Null))
    }

    /// The ids of a text; special tokens written in it are recognised, none are added.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.tokenizer.encode_fast(text, false).map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Self::encode`] with the special tokens that the tokenizer puts around every text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.tokenizer.encode_fast(text, true).map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some ids, special tokens left out except the think and answer tags.
    ///
    /// # Errors
    /// When an id is unknown to the decoder.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let kept: Vec<u32> = ids.iter().copied().filter(|id| !self.dropped.contains(id)).collect();
        self.tokenizer.decode(&kept, false).map_err(|error| ModelError::Tokenizer(error.to_string()))
    }

    /// The id of one token, if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token of an id, if the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The largest id that a text can have.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `tokenizer.json`.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// The JSON of `tokenizer_config.json`, null where there was none.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The text of a special token (`bos_token`, `eos_token`, ...) that the configuration names.
    pub fn special(&self, key: &str) -> Option<&str> {
        let value = &self.config[key];
        value.as_str().or_else(|| value["content"].as_str())
    }
}
