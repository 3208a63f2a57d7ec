//! What a ballot may be about: the boxes of the regions, and of the raw dataset where it is connected.

use std::collections::BTreeMap;

use super::ballot::{Ballot, Target};
use crate::dataset::Dataset;
use crate::record::Region;
use crate::suggest;

/// A box.
struct Known {
    annotation: u64,
    bbox: [f64; 4],
    category: String,
}

/// Every box that a ballot may name.
pub(super) struct Boxes {
    pictures: BTreeMap<String, Vec<Known>>,
    by_annotation: BTreeMap<u64, String>,
    /// Whether boxes that are not regions are known too: then a key that is not here is an error.
    complete: bool,
    overlap: f64,
}

/// What a ballot turned out to be about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This annotation.
    Annotation(u64),
    /// A box that is not among the regions, as far as can be known without the dataset.
    Unknown,
}

impl Boxes {
    /// The boxes of `regions`, and of `dataset`. Boxes overlap from an intersection over union of `overlap` on.
    pub(super) fn new(regions: &[Region], dataset: Option<&Dataset>, overlap: f64) -> Self {
        let mut pictures: BTreeMap<String, Vec<Known>> = BTreeMap::new();
        for picture in dataset.iter().flat_map(|dataset| dataset.pictures()) {
            pictures.entry(picture.file_name.clone()).or_default();
        }
        match dataset {
            Some(dataset) => {
                for annotation in dataset.annotations() {
                    let category = dataset.category_of(annotation).name.clone();
                    let known = Known { annotation: annotation.id, bbox: annotation.bbox, category };
                    pictures.entry(dataset.picture_of(annotation).file_name.clone()).or_default().push(known);
                }
            }
            None => {
                for region in regions {
                    let known =
                        Known { annotation: region.annotation, bbox: region.bbox, category: region.category.clone() };
                    pictures.entry(region.image.clone()).or_default().push(known);
                }
            }
        }
        let by_annotation = pictures
            .iter()
            .flat_map(|(name, boxes)| boxes.iter().map(|known| (known.annotation, name.clone())))
            .collect();
        Self { pictures, by_annotation, complete: dataset.is_some(), overlap }
    }

    /// What `ballot` is about.
    pub(super) fn find(&self, ballot: &Ballot) -> Result<Found, String> {
        let Some((name, boxes)) = self.picture(&ballot.image) else {
            return match self.complete {
                false => Ok(Found::Unknown),
                true => Err(format!(
                    "{}: no picture `{}` in the dataset{}",
                    ballot.place,
                    ballot.image,
                    self.near(&ballot.image)
                )),
            };
        };
        match &ballot.target {
            Target::Annotation(id) if boxes.iter().any(|known| known.annotation == *id) => Ok(Found::Annotation(*id)),
            Target::Annotation(id) => match self.by_annotation.get(id) {
                Some(other) => Err(format!("{}: annotation {id} belongs to `{other}`, not to `{name}`", ballot.place)),
                None if !self.complete => Ok(Found::Unknown),
                None => Err(format!("{}: `{name}` has no annotation {id}{}", ballot.place, listed(boxes))),
            },
            Target::Box(bounds) => self.overlapping(ballot, name, boxes, *bounds),
        }
    }

    fn overlapping(&self, ballot: &Ballot, name: &str, boxes: &[Known], bounds: [f64; 4]) -> Result<Found, String> {
        let scored = boxes.iter().map(|known| (intersection_over_union(known.bbox, bounds), known));
        let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
        match best {
            Some((overlap, known)) if overlap >= self.overlap => Ok(Found::Annotation(known.annotation)),
            _ if !self.complete => Ok(Found::Unknown),
            best => {
                let near = best.map_or(String::new(), |(overlap, known)| {
                    format!(
                        "; the nearest is annotation {} ({}) with an overlap of {overlap:.2}",
                        known.annotation, known.category
                    )
                });
                let bounds = bounds.map(|value| format!("{value:.1}")).join(", ");
                Err(format!("{}: the box [{bounds}] in `{name}` is no annotated box{near}", ballot.place))
            }
        }
    }

    /// The picture that a file calls `written`: its path, or an address that ends with it. An upload's `1a2b3c4d-` before the
    /// file name is passed over. Several matches are none.
    fn picture(&self, written: &str) -> Option<(&str, &[Known])> {
        let exact = self.pictures.get_key_value(written);
        let (name, boxes) = exact.or_else(|| {
            let file = written.rsplit(['/', '=', '\\']).next().unwrap_or(written);
            let uploaded = file
                .split_once('-')
                .filter(|(code, _)| code.len() == 8 && code.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let wanted = [Some(file), uploaded.map(|(_, rest)| rest)];
            let mut matches = self.pictures.iter().filter(|(name, _)| {
                let base = name.rsplit('/').next().unwrap_or(name);
                wanted.iter().flatten().any(|wanted| *wanted == base)
            });
            matches.next().filter(|_| matches.next().is_none())
        })?;
        Some((name, boxes))
    }

    fn near(&self, image: &str) -> String {
        suggest::hint(image, self.pictures.keys().map(String::as_str))
    }
}

fn listed(boxes: &[Known]) -> String {
    let ids: Vec<String> =
        boxes.iter().take(8).map(|known| format!("{} ({})", known.annotation, known.category)).collect();
    if ids.is_empty() { "; it has none".to_owned() } else { format!("; it has {}", ids.join(", ")) }
}

fn intersection_over_union(a: [f64; 4], b: [f64; 4]) -> f64 {
    let shared =
        |start: usize| ((a[start] + a[start + 2]).min(b[start] + b[start + 2]) - a[start].max(b[start])).max(0.0);
    let both = shared(0) * shared(1);
    both / (a[2] * a[3] + b[2] * b[3] - both)
}
