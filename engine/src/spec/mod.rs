//! The pipeline as written: YAML with positions, profiles merged, its shape checked, nothing resolved yet.
//!
//! | step | module | from -> to |
//! |---|---|---|
//! | positions | `positions` | parse events -> a tree of places; bounds depth, aliases and size |
//! | load | `load` | text -> [`yaml::Yaml`], values from serde_yaml, places from `positions` |
//! | merge | `merge` | pipeline + profile + `--set` -> one [`yaml::Yaml`] |
//! | shape | `pipeline` | that -> [`pipeline::Pipeline`], unknown keys reported |
//!
//! A value keeps the place it was written at through every step, so a problem in a merged value still points at the text
//! that has to change. Nothing here stops at the first problem: each step reports what it can and goes on with what is
//! sound.

pub(crate) mod load;
pub(crate) mod merge;
pub(crate) mod pipeline;
pub(crate) mod positions;
pub(crate) mod source;
pub(crate) mod units;
pub(crate) mod yaml;
