//! Fingerprints: what decides a node's outputs.
//!
//! A node's recipe is one ordered list of named values ([`mpcc_cache::Recipe`]). The same list is hashed, stored beside the
//! outputs and compared by `mpcc why`, so a name is written for people: `params.threshold`, `inputs.regions`.
//!
//! # What enters
//!
//! | field | value | for |
//! |---|---|---|
//! | `kind` | the kind's name, `run` for a plain command | all |
//! | `version` | the kind's VERSION | built-in kinds |
//! | `command` | the words with `${inputs.x}` and `${outputs.y}` still in place, and whether a shell reads them | commands |
//! | `each` | the port whose records are handed out | record commands |
//! | `outputs.PORT` | the port's type | commands (a built-in kind's VERSION stands for its ports) |
//! | `params.NAME` | the value, defaults filled in, file parameters by their text | all that have parameters |
//! | `env.NAME` | the declared value | commands |
//! | `code.PATH` | digest of the file, its path relative to the pipeline's folder | commands |
//! | `seed` | the seed | seeded kinds |
//! | `numerics` | device kind, dtype, CPU level | kinds whose results depend on them |
//! | `inputs.PORT` | `file:DIGEST` or `tree:DIGEST`, or a model's identity | all |
//! | `inputs.PORT` as a list | the same for each source with the coordinates it came from | list ports |
//!
//! A model's identity: the weights' digest, dtype and every other setting of a local model; provider, model, revision and
//! the other settings of a served one; in both the text of its own system prompt. Settings that cannot change an answer
//! ([`OPERATIONAL`]) are left out. A setting that mpcc does not know enters: that may cost a re-run, never a wrong answer.
//!
//! # What does not enter
//!
//! Names of nodes, stages and models; the pipeline's name and folder; where external data lies; resources, executor,
//! retries, timeout, `publish`; secrets; concurrency, rate limits, budget and prices; the time. Results must not depend on
//! them.
//!
//! # Limits
//!
//! What a command reads without declaring it is not seen. Environment variables that are not declared are not seen. A
//! served model that changes behind its name is not seen, unless `revision` says so.

mod external;
mod model;
mod resolve;
#[cfg(test)]
mod tests;

pub use external::External;
pub use model::OPERATIONAL;
pub use resolve::{Fingerprinter, KeyError, Numerics, Outputs, Resolved};
