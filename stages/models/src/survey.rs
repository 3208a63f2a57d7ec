//! What the weight files of a directory hold, against what its configuration asks for: every difference at once, no data read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::checkpoint::TensorFiles;
use crate::error::Result;
use crate::tokenizer::TextTokenizer;
use crate::vlm::Config;
use crate::weights::{WeightSpec, is_no_weight};

/// A tensor of another shape than asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name in the files.
    pub name: String,
    /// Its shape in the files.
    pub found: Vec<usize>,
    /// The shape that the configuration asks for.
    pub wanted: Vec<usize>,
}

/// The weight files of a directory.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Number of tensors in the files.
    pub tensors: usize,
    /// Number of values that they hold.
    pub values: usize,
    /// Bytes of their data.
    pub bytes: usize,
    /// Number of tensors of each type, as the file format names it.
    pub dtypes: BTreeMap<String, usize>,
    /// Names of tensors that are asked for and not there.
    pub missing: Vec<String>,
    /// Names of tensors that nothing asks for.
    pub surplus: Vec<String>,
    /// Tensors of another shape.
    pub misshapen: Vec<Misshapen>,
}

impl Survey {
    /// Looks at the weight files of a directory.
    ///
    /// # Errors
    /// When the tokenizer, the configuration or a weight file is missing or damaged.
    pub fn of(dir: &Path) -> Result<(Config, Survey)> {
        let (config, _) = Config::read(&dir.join("config.json"), &TextTokenizer::read(dir)?)?;
        let files = TensorFiles::open(dir)?;
        let survey = Survey::against(&config.specs(), &files);
        Ok((config, survey))
    }

    /// Whether everything asked for is there, and nothing else.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.misshapen.is_empty()
    }

    /// The type that most tensors have.
    pub fn main_dtype(&self) -> Option<&str> {
        self.dtypes.iter().max_by_key(|(_, count)| **count).map(|(name, _)| name.as_str())
    }

    fn against(specs: &[WeightSpec], files: &TensorFiles) -> Survey {
        let mut survey = Survey { tensors: files.names().len(), ..Survey::default() };
        for (shape, dtype, bytes) in files.names().iter().filter_map(|name| files.describe(name)) {
            survey.values += shape.iter().product::<usize>();
            survey.bytes += bytes;
            *survey.dtypes.entry(dtype).or_default() += 1;
        }
        let known: BTreeSet<&String> = specs.iter().flat_map(WeightSpec::names).collect();
        let surplus = files.names().iter().filter(|name| !known.contains(name) && !is_no_weight(name, specs));
        survey.surplus = surplus.cloned().collect();
        specs.iter().for_each(|spec| survey.look_for(spec, files));
        survey
    }

    fn look_for(&mut self, spec: &WeightSpec, files: &TensorFiles) {
        let fused = spec.fused.iter().filter(|(names, _)| files.find(names).is_some());
        let wanted: Vec<&(Vec<String>, Vec<usize>)> = fused.collect();
        let wanted = if wanted.is_empty() { spec.parts.iter().collect() } else { wanted };
        for (names, shape) in wanted {
            match files.find(names).and_then(|name| Some((name, files.describe(name)?.0))) {
                None if spec.kept => {}
                None => self.missing.push(names[0].clone()),
                Some((name, found)) if found != *shape => {
                    self.misshapen.push(Misshapen { name: name.to_owned(), found, wanted: shape.clone() });
                }
                Some(_) => {}
            }
        }
    }
}
