//! Toy kinds with the ports of a real pipeline, none of which can run.

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::registry::Registry;
use mpcc_engine::resources::Resources;
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Defines a kind: its parameters with their defaults, its ports, and optionally a check and resources.
macro_rules! kind {
    ($name:ident, $kind:literal, { $($field:ident : $ty:ty = $default:expr),* }, $signature:expr $(, check $check:expr)? $(, cpus $cpus:expr)?) => {
        #[derive(Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        struct $name { $($field: $ty),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl Stage for $name {
            const KIND: &'static str = $kind;
            const VERSION: u32 = 1;
            const ABOUT: &'static str = "a toy";

            fn signature() -> Signature {
                $signature
            }

            $(fn check(&self) -> Result<(), ParamError> {
                #[allow(clippy::redundant_closure_call, reason = "the check is written where the kind is")]
                ($check)(self)
            })?

            $(fn resources(&self) -> Resources {
                Resources { cpus: $cpus, ..Resources::default() }
            })?

            fn run(&self, _: &Context) -> Result<(), StageError> {
                Err(StageError::invalid("a toy does not run"))
            }
        }
    };
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Part {
    Pretrain,
    Train,
    Dev,
    Test,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Options {
    All,
    HeldOut,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Prior {
    Off,
    Replace,
}

fn records(name: &str) -> PortType {
    PortType::records(name)
}

kind!(Scenes, "scenes.generate", { part: Part = Part::Train, count: u32 = 8 },
    Signature::new().gives("dataset", PortType::Dataset).gives("decisions", PortType::File).gives("lore", PortType::File).seeded(),
    check |s: &Scenes| if s.count == 0 { Err(ParamError::new("count", "at least one scene")) } else { Ok(()) });
kind!(
    Import,
    "coco.import",
    {},
    Signature::new()
        .takes("annotations", PortType::File)
        .takes("images", PortType::Dir)
        .gives("dataset", PortType::Dataset)
);
kind!(
    Select,
    "regions.select",
    {},
    Signature::new().takes("dataset", PortType::Dataset).gives("regions", records("Region"))
);
kind!(Filter, "vlm.filter", { threshold: f64 = 6.0, prompt: Option<String> = None },
    Signature::new().takes("dataset", PortType::Dataset).takes("regions", records("Region")).takes_many("model", PortType::Model)
        .gives("regions", records("Region")).gives("verdicts", records("Verdict")).file_param("prompt").numerics());
kind!(
    Curation,
    "curation.import",
    {},
    Signature::new()
        .takes("regions", records("Region"))
        .takes_many("decisions", PortType::File)
        .takes_optional("overrides", PortType::File)
        .gives("items", records("Item"))
        .gives("agreement", PortType::Table)
);
kind!(
    Mine,
    "distractors.mine",
    {},
    Signature::new()
        .takes("dataset", PortType::Dataset)
        .takes("items", records("Item"))
        .takes_many("models", PortType::Model)
        .gives("items", records("Item"))
);
kind!(Split, "split.categories", { split: String = "full".to_owned(), options: Options = Options::All },
    Signature::new().takes("train", records("Item")).takes("test", records("Item")).gives("train", records("Item")).gives("test", records("Item")));
kind!(
    Questions,
    "questions.build",
    {},
    Signature::new().takes("items", records("Item")).gives("questions", records("Question"))
);
kind!(
    Traces,
    "traces.synthesize",
    {},
    Signature::new()
        .takes("dataset", PortType::Dataset)
        .takes("items", records("Item"))
        .takes("model", PortType::Model)
        .gives("traces", records("Trace"))
        .gives("rejected", records("Trace"))
);
kind!(Pretrain, "model.pretrain", { steps: u32 = 10 },
    Signature::new().takes("dataset", PortType::Dataset).takes("lore", PortType::File).gives("model", PortType::Model).numerics().seeded(),
    cpus 2);
kind!(Sft, "train.sft", { rate: f64 = 1e-4 },
    Signature::new().takes("model", PortType::Model).takes("dataset", PortType::Dataset).takes("traces", records("Trace"))
        .gives("model", PortType::Model).gives("metrics", PortType::File).numerics().seeded());
kind!(Grpo, "train.grpo", { prior: Prior = Prior::Off },
    Signature::new().takes("model", PortType::Model).takes("dataset", PortType::Dataset).takes("items", records("Item"))
        .takes_optional("traces", records("Trace")).gives("model", PortType::Model).gives("metrics", PortType::File).numerics().seeded());
kind!(Answer, "eval.answer", { system: Option<String> = None },
    Signature::new().takes("model", PortType::Model).takes("dataset", PortType::Dataset).takes("questions", records("Question"))
        .gives("answers", records("Answer")).file_param("system").numerics().seeded());
kind!(
    Score,
    "eval.score",
    {},
    Signature::new()
        .takes("questions", records("Question"))
        .takes("answers", records("Answer"))
        .gives("scores", PortType::Scores)
);
kind!(Tables, "report.tables", { layout: String = "plain".to_owned() },
    Signature::new().takes_many("scores", PortType::Scores).takes_optional_many("tables", PortType::Table).gives("table", PortType::Table));

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Needy {
    column: String,
    limits: [u32; 2],
}

impl Stage for Needy {
    const KIND: &'static str = "toy.needy";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "a toy whose parameters must be given";

    fn signature() -> Signature {
        Signature::new().takes("scores", PortType::Scores).gives("table", PortType::Table)
    }

    fn run(&self, _: &Context) -> Result<(), StageError> {
        Err(StageError::invalid("a toy does not run"))
    }
}

/// Every toy kind.
pub(crate) fn registry() -> Registry {
    Registry::new()
        .with::<Scenes>()
        .with::<Import>()
        .with::<Select>()
        .with::<Filter>()
        .with::<Curation>()
        .with::<Mine>()
        .with::<Split>()
        .with::<Questions>()
        .with::<Traces>()
        .with::<Pretrain>()
        .with::<Sft>()
        .with::<Grpo>()
        .with::<Answer>()
        .with::<Score>()
        .with::<Tables>()
        .with::<Needy>()
}
