//! `regions.select`: which annotated boxes may be hidden.

use std::collections::{BTreeMap, BTreeSet};

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::dataset::format::{Annotation, Picture};
use crate::record::Region;
use crate::{draw, records};

/// Parameters of `regions.select`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegionsSelect {
    /// Smallest box, as a share of the picture's area.
    pub min_area: f64,
    /// Largest box, as a share of the picture's area.
    pub max_area: f64,
    /// Shortest side of a box in pixels.
    pub min_side: f64,
    /// Whether crowds are kept.
    pub crowd: bool,
    /// Only these categories; empty keeps all.
    pub categories: Vec<String>,
    /// Never these categories.
    pub exclude: Vec<String>,
    /// At most so many boxes a picture, drawn by seed; 0 for no limit.
    pub max_per_image: usize,
    /// At most so many boxes in all, drawn by seed; 0 for no limit.
    pub limit: usize,
}

impl Default for RegionsSelect {
    fn default() -> Self {
        Self {
            min_area: 0.0,
            max_area: 1.0,
            min_side: 1.0,
            crowd: false,
            categories: Vec::new(),
            exclude: Vec::new(),
            max_per_image: 0,
            limit: 0,
        }
    }
}

impl Stage for RegionsSelect {
    const KIND: &'static str = "regions.select";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Selects the boxes of a dataset that may be hidden";

    fn signature() -> Signature {
        Signature::new().takes("dataset", PortType::Dataset).gives("regions", PortType::records("Region")).seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        for (name, share) in [("min_area", self.min_area), ("max_area", self.max_area)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(ParamError::new(
                    name,
                    format!("`{name}: {share}` is not a share of the picture between 0 and 1"),
                ));
            }
        }
        if self.min_area > self.max_area {
            return Err(ParamError::new(
                "min_area",
                format!("`min_area: {}` is above `max_area: {}`", self.min_area, self.max_area),
            ));
        }
        Ok(())
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        self.known_categories(&dataset)?;
        let regions = self.select(&dataset, ctx.seed)?;
        ctx.info(format!(
            "{} of {} boxes in {} pictures",
            regions.len(),
            dataset.annotations().len(),
            dataset.pictures().len()
        ));
        records::output(ctx, "regions", &regions)
    }
}

impl RegionsSelect {
    /// The selected regions, in the order of pictures and annotations in the file.
    pub fn select(&self, dataset: &Dataset, seed: u64) -> Result<Vec<Region>, StageError> {
        let (mut kept, mut index) = (Vec::new(), BTreeMap::new());
        for picture in dataset.pictures() {
            let mut here = Vec::new();
            for annotation in
                dataset.annotations_of(picture).filter(|annotation| self.keeps(dataset, picture, annotation))
            {
                index.insert(annotation.id, index.len());
                here.push(dataset.region(annotation)?);
            }
            kept.extend(limited(here, self.max_per_image, seed, "regions of a picture"));
        }
        let mut regions = limited(kept, self.limit, seed, "regions");
        regions.sort_by_key(|region| index[&region.annotation]);
        Ok(without_twins(regions))
    }

    fn keeps(&self, dataset: &Dataset, picture: &Picture, annotation: &Annotation) -> bool {
        let [_, _, width, height] = annotation.bbox;
        let share = width * height / (f64::from(picture.width) * f64::from(picture.height));
        let name = &dataset.category_of(annotation).name;
        (self.min_area..=self.max_area).contains(&share)
            && width.min(height) >= self.min_side
            && (self.crowd || annotation.iscrowd == 0)
            && (self.categories.is_empty() || self.categories.contains(name))
            && !self.exclude.contains(name)
    }

    fn known_categories(&self, dataset: &Dataset) -> Result<(), StageError> {
        let names: Vec<&str> = dataset.category_names().collect();
        for name in self.categories.iter().chain(&self.exclude) {
            if !names.contains(&name.as_str()) {
                let hint = crate::suggest::hint(name, names.iter().copied());
                return Err(StageError::invalid(format!("`{name}` is no category of this dataset{hint}")));
            }
        }
        Ok(())
    }
}

/// At most `limit` regions (0 for all): those that a seeded draw by region id ranks first.
fn limited(mut regions: Vec<Region>, limit: usize, seed: u64, purpose: &str) -> Vec<Region> {
    if limit > 0 && regions.len() > limit {
        regions.sort_by_cached_key(|region| (draw::rank(seed, purpose, &region.id), region.annotation));
        regions.truncate(limit);
    }
    regions
}

/// Two annotations with the same picture, box and category are one region: the first stays.
fn without_twins(regions: Vec<Region>) -> Vec<Region> {
    let mut seen = BTreeSet::new();
    regions.into_iter().filter(|region| seen.insert(region.id.clone())).collect()
}
