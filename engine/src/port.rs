//! Ports: the named, typed inputs and outputs of a stage kind.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The type of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PortType {
    /// A directory in COCO layout: `annotations.json` and pictures.
    Dataset,
    /// A JSONL file; `records<T>` names the record type, plain `records` leaves it open.
    Records(Option<String>),
    /// A model: a directory in Hugging Face layout, or anything declared under `models`.
    Model,
    /// A JSONL file of scored answers.
    Scores,
    /// A directory with one table in several formats (md, csv, tex, html, json).
    Table,
    /// Any file.
    File,
    /// Any directory.
    Dir,
}

/// A text that names no port type.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a port type (dataset, records, records<T>, model, scores, table, file, dir)")]
pub struct UnknownPortType(pub String);

impl PortType {
    /// `records<T>` for the record type `name`.
    pub fn records(name: &str) -> Self {
        Self::Records(Some(name.to_owned()))
    }

    /// Whether an artifact of this type is a directory (a tree) rather than one file.
    pub fn is_tree(&self) -> bool {
        matches!(self, Self::Dataset | Self::Model | Self::Table | Self::Dir)
    }

    /// Whether an output of type `source` may feed an input of this type. Plain `records` and `records<T>` fit both ways
    /// (the content is checked when it is read); `file` takes any file, `dir` any tree.
    pub fn accepts(&self, source: &PortType) -> bool {
        match (self, source) {
            (Self::Records(want), Self::Records(have)) => want.is_none() || have.is_none() || want == have,
            (Self::File, other) => !other.is_tree(),
            (Self::Dir, other) => other.is_tree(),
            (want, have) => want == have,
        }
    }
}

impl fmt::Display for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dataset => f.write_str("dataset"),
            Self::Records(None) => f.write_str("records"),
            Self::Records(Some(name)) => write!(f, "records<{name}>"),
            Self::Model => f.write_str("model"),
            Self::Scores => f.write_str("scores"),
            Self::Table => f.write_str("table"),
            Self::File => f.write_str("file"),
            Self::Dir => f.write_str("dir"),
        }
    }
}

impl FromStr for PortType {
    type Err = UnknownPortType;

    fn from_str(text: &str) -> Result<Self, UnknownPortType> {
        Ok(match text {
            "dataset" => Self::Dataset,
            "records" => Self::Records(None),
            "model" => Self::Model,
            "scores" => Self::Scores,
            "table" => Self::Table,
            "file" => Self::File,
            "dir" => Self::Dir,
            other => {
                let inner = other.strip_prefix("records<").and_then(|rest| rest.strip_suffix('>'));
                Self::Records(Some(inner.ok_or_else(|| UnknownPortType(other.to_owned()))?.to_owned()))
            }
        })
    }
}

impl TryFrom<String> for PortType {
    type Error = UnknownPortType;

    fn try_from(text: String) -> Result<Self, UnknownPortType> {
        text.parse()
    }
}

impl From<PortType> for String {
    fn from(port: PortType) -> Self {
        port.to_string()
    }
}

/// How many artifacts an input port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// One or a list of one or more.
    Many,
    /// None, one or a list.
    OptionalMany,
}

/// An input port of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputPort {
    /// Name, as written under `inputs:`.
    pub name: String,
    /// Type; `None` takes any artifact (inputs of `run` stages).
    pub ty: Option<PortType>,
    /// How many artifacts it takes.
    pub arity: Arity,
}

/// An output port of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPort {
    /// Name, as written after the dot in `stage.port`.
    pub name: String,
    /// Type.
    pub ty: PortType,
}

/// The ports of a kind and what else the engine must know to key it. The first output is the default one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Input ports in declaration order.
    pub inputs: Vec<InputPort>,
    /// Output ports in declaration order.
    pub outputs: Vec<OutputPort>,
    /// Parameters whose value is a path of a text file (prompt templates): the engine replaces the path by the file's
    /// text before the stage sees it, so the content enters the recipe.
    pub file_params: Vec<&'static str>,
    /// Whether the outputs depend on the numerics class (device kind, dtype, CPU level): training and generation.
    pub numerics: bool,
    /// Whether the seed enters the recipe.
    pub seeded: bool,
    /// Whether the stage asks models, and announces it (see [`crate::asking`]): then it can be rehearsed.
    pub asks: bool,
}

impl Signature {
    /// An empty signature, to be built up.
    pub fn new() -> Self {
        Self::default()
    }

    fn input(mut self, name: &str, ty: PortType, arity: Arity) -> Self {
        self.inputs.push(InputPort { name: name.to_owned(), ty: Some(ty), arity });
        self
    }

    /// Adds an input that takes exactly one artifact.
    pub fn takes(self, name: &str, ty: PortType) -> Self {
        self.input(name, ty, Arity::One)
    }

    /// Adds an input that may be left out.
    pub fn takes_optional(self, name: &str, ty: PortType) -> Self {
        self.input(name, ty, Arity::Optional)
    }

    /// Adds an input that takes one artifact or a list.
    pub fn takes_many(self, name: &str, ty: PortType) -> Self {
        self.input(name, ty, Arity::Many)
    }

    /// Adds an input that takes a list, one artifact or nothing.
    pub fn takes_optional_many(self, name: &str, ty: PortType) -> Self {
        self.input(name, ty, Arity::OptionalMany)
    }

    /// Adds an output.
    pub fn gives(mut self, name: &str, ty: PortType) -> Self {
        self.outputs.push(OutputPort { name: name.to_owned(), ty });
        self
    }

    /// Declares that parameter `name` holds the path of a text file.
    pub fn file_param(mut self, name: &'static str) -> Self {
        self.file_params.push(name);
        self
    }

    /// Declares that the outputs depend on the numerics class.
    pub fn numerics(mut self) -> Self {
        self.numerics = true;
        self
    }

    /// Declares that the stage asks models by way of its context and writes only where the context says.
    pub fn asks(mut self) -> Self {
        self.asks = true;
        self
    }

    /// Declares that the outputs depend on the seed.
    pub fn seeded(mut self) -> Self {
        self.seeded = true;
        self
    }
}
