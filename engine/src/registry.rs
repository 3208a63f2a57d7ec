//! The registry: from the name of a kind to what the engine must know of it.

use std::collections::BTreeMap;

use schemars::Schema;
use serde_json::Value;

use crate::port::Signature;
use crate::resources::Resources;
use crate::stage::{Context, ParamError, Provider, Stage, StageError};

/// A stage whose parameters are parsed and checked.
pub trait BoundStage: Send + Sync {
    /// Every parameter with defaults filled in, for the recipe.
    fn params(&self) -> Value;
    /// See [`Stage::check`].
    fn check(&self) -> Result<(), ParamError>;
    /// See [`Stage::check_model`].
    fn check_model(&self, port: &str, provider: Provider) -> Result<(), String>;
    /// See [`Stage::resources`].
    fn resources(&self) -> Resources;
    /// See [`Stage::run`].
    fn run(&self, ctx: &Context) -> Result<(), StageError>;
}

struct Typed<S>(S);

impl<S: Stage> BoundStage for Typed<S> {
    fn params(&self) -> Value {
        serde_json::to_value(&self.0).expect("parameters are plain data")
    }

    fn check(&self) -> Result<(), ParamError> {
        self.0.check()
    }

    fn check_model(&self, port: &str, provider: Provider) -> Result<(), String> {
        self.0.check_model(port, provider)
    }

    fn resources(&self) -> Resources {
        self.0.resources()
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        self.0.run(ctx)
    }
}

/// A built-in kind.
pub struct Kind {
    /// The name a pipeline `uses`.
    pub name: &'static str,
    /// Enters every recipe.
    pub version: u32,
    /// One line of description.
    pub about: &'static str,
    /// The ports.
    pub signature: Signature,
    /// JSON Schema of the parameters.
    pub schema: Schema,
    parse: fn(Value) -> Result<Box<dyn BoundStage>, serde_json::Error>,
}

impl Kind {
    /// The kind that `S` implements.
    pub fn of<S: Stage>() -> Self {
        Self {
            name: S::KIND,
            version: S::VERSION,
            about: S::ABOUT,
            signature: S::signature(),
            schema: schemars::schema_for!(S),
            parse: |value| Ok(Box::new(Typed(serde_json::from_value::<S>(value)?))),
        }
    }

    /// Parses parameters (a JSON object); missing ones take their defaults, unknown ones are an error.
    pub fn parse(&self, params: Value) -> Result<Box<dyn BoundStage>, serde_json::Error> {
        (self.parse)(params)
    }
}

/// All built-in kinds by name.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the kind that `S` implements. Panics when the name is taken: the registry is written by hand, in one place.
    pub fn with<S: Stage>(mut self) -> Self {
        let previous = self.kinds.insert(S::KIND, Kind::of::<S>());
        assert!(previous.is_none(), "kind `{}` registered twice", S::KIND);
        self
    }

    /// The kind called `name`.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }

    /// Every kind, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.values()
    }
}
