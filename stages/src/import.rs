//! `model.import`: a model directory from outside becomes a `model` artifact.

use std::path::Path;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files that make a directory a model.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Parameters of `model.import`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelImport {
    /// The architecture the configuration must name (`model_type`), such as `qwen2_5_vl`; none takes any.
    pub architecture: Option<String>,
}

impl Stage for ModelImport {
    const KIND: &'static str = "model.import";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "takes a Hugging Face model directory into the store";

    fn signature() -> Signature {
        Signature::new().takes("dir", PortType::Dir).gives("model", PortType::Model)
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let from = &ctx.input("dir")?.path;
        self.check_directory(from)?;
        let to = ctx.output("model")?;
        let mut names: Vec<_> = std::fs::read_dir(from)
            .map_err(|error| StageError::io(from, error))?
            .collect::<Result<_, _>>()
            .map_err(|error| StageError::io(from, error))?;
        names.sort_by_key(std::fs::DirEntry::file_name);
        for (done, entry) in names.iter().enumerate() {
            ctx.progress(done as u64, names.len() as u64, "files");
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name()))
                    .map_err(|error| StageError::io(&entry.path(), error))?;
            }
        }
        Ok(())
    }
}

impl ModelImport {
    fn check_directory(&self, dir: &Path) -> Result<(), StageError> {
        if let Some(name) = NEEDED.iter().find(|name| !dir.join(name).is_file()) {
            let message = format!(
                "{}: no `{name}`; a model directory has {} and *.safetensors",
                dir.display(),
                NEEDED.join(", ")
            );
            return Err(StageError::invalid(message));
        }
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| StageError::io(&path, error))?;
        let config: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| StageError::invalid(format!("{}: {error}", path.display())))?;
        let found = config.get("model_type").and_then(serde_json::Value::as_str);
        match &self.architecture {
            Some(wanted) if found != Some(wanted) => Err(StageError::invalid(format!(
                "{}: model_type is `{}`, wanted `{wanted}`",
                path.display(),
                found.unwrap_or("none")
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mpcc_engine::harness::Harness;

    use super::*;

    #[test]
    fn takes_a_model_and_refuses_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), r#"{"model_type":"qwen2_5_vl"}"#).unwrap();
        let run = |kind: ModelImport| Harness::new(&folder.path().join("out")).input("dir", &model).run(&kind);
        let message = run(ModelImport::default()).unwrap_err().to_string();
        assert!(message.contains("no `tokenizer.json`"), "{message}");
        std::fs::write(model.join("tokenizer.json"), "{}").unwrap();
        let outputs = run(ModelImport::default()).unwrap();
        assert!(outputs["model"].join("config.json").is_file());
        let wrong = run(ModelImport { architecture: Some("llava_next".into()) }).unwrap_err().to_string();
        assert!(wrong.contains("model_type is `qwen2_5_vl`, wanted `llava_next`"), "{wrong}");
    }
}
