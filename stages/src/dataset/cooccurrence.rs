//! Which categories appear together: counts over the pictures of a raw dataset, never over curated items, so that editing
//! one item moves no other.

use std::collections::{BTreeMap, BTreeSet};

use crate::draw;
use crate::record::Region;

/// In how many pictures each category and each pair of categories occurs.
#[derive(Clone, Debug, Default)]
pub struct Cooccurrence {
    names: Vec<String>,
    index: BTreeMap<String, usize>,
    together: Vec<u32>,
}

impl Cooccurrence {
    /// Counts over pictures, each given as the set of its categories; `names` are all categories.
    pub fn count<'a>(
        names: impl IntoIterator<Item = &'a str>,
        pictures: impl IntoIterator<Item = BTreeSet<&'a str>>,
    ) -> Self {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let index: BTreeMap<String, usize> = names.iter().cloned().zip(0..).collect();
        let mut together = vec![0; names.len() * names.len()];
        for picture in pictures {
            let present: Vec<usize> = picture.iter().filter_map(|name| index.get(*name).copied()).collect();
            for a in &present {
                for b in &present {
                    together[a * names.len() + b] += 1;
                }
            }
        }
        Self { names, index, together }
    }

    /// Pictures that hold both categories; for one category twice, the pictures that hold it.
    pub fn together(&self, a: &str, b: &str) -> u32 {
        match (self.index.get(a), self.index.get(b)) {
            (Some(a), Some(b)) => self.together[a * self.names.len() + b],
            _ => 0,
        }
    }

    /// How well `name` fits the visible rest of the region's picture: the sum over its categories s of P(name | s). In a
    /// picture that shows nothing else, how common `name` is.
    pub fn fit(&self, region: &Region, name: &str) -> f64 {
        let visible = region.scene.iter().filter(|(category, boxes)| *category != region.category || *boxes > 1);
        let mut visible = visible.map(|(category, _)| category.as_str()).peekable();
        if visible.peek().is_none() {
            let most = self.names.iter().map(|name| self.together(name, name)).max().unwrap_or(0);
            return f64::from(self.together(name, name)) / f64::from(most.max(1));
        }
        let given = |category: &str| {
            f64::from(self.together(category, name)) / f64::from(self.together(category, category).max(1))
        };
        visible.filter(|category| *category != name).map(given).sum()
    }

    /// Every other category, the best fit to the region's surroundings first, ties by name: the order in which confusing
    /// names are filled in.
    pub fn confusing(&self, region: &Region) -> Vec<&str> {
        let mut ranked: Vec<(f64, &str)> = self.others(region).map(|name| (self.fit(region, name), name)).collect();
        ranked.sort_by(|(fit_a, a), (fit_b, b)| fit_b.total_cmp(fit_a).then(a.cmp(b)));
        ranked.into_iter().map(|(_, name)| name).collect()
    }

    /// Categories that nobody would guess here, in a seeded order of the region's own: absent from the picture, the worst
    /// fitting third first (or more where that leaves fewer than four), then the rest from bad to good fit.
    pub fn irrelevant(&self, region: &Region, seed: u64) -> Vec<&str> {
        let absent = |name: &&str| !region.scene.iter().any(|(category, _)| category == name);
        let order = |name: &str| draw::rank(seed, "irrelevant", &format!("{}\n{name}", region.id));
        let mut ranked: Vec<(f64, &str)> =
            self.others(region).filter(absent).map(|name| (self.fit(region, name), name)).collect();
        ranked.sort_by(|(fit_a, a), (fit_b, b)| fit_a.total_cmp(fit_b).then(order(a).cmp(&order(b))));
        let mut names: Vec<&str> = ranked.into_iter().map(|(_, name)| name).collect();
        let pool = (names.len() / 3).max(4).min(names.len());
        names[..pool].sort_by_key(|name| order(name));
        names
    }

    fn others<'a, 'r>(&'a self, region: &'r Region) -> impl Iterator<Item = &'a str> + use<'a, 'r> {
        self.names.iter().map(String::as_str).filter(move |name| *name != region.category)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Cooccurrence {
        let names = ["bed", "bird", "cup", "kite", "plane", "sink", "toilet"];
        let pictures = [
            vec!["cup", "sink"],
            vec!["cup", "sink", "toilet"],
            vec!["bed", "cup"],
            vec!["bird", "kite"],
            vec!["bird", "plane"],
        ];
        Cooccurrence::count(names, pictures.map(|picture| picture.into_iter().collect()))
    }

    fn region(scene: &[&str]) -> Region {
        Region {
            id: "r".into(),
            image: "1.png".into(),
            image_digest: String::new(),
            annotation: 1,
            size: [9, 9],
            bbox: [0.0; 4],
            category: "cup".into(),
            supercategory: String::new(),
            area: 1.0,
            crowd: false,
            scene: scene.iter().map(|name| ((*name).to_owned(), 1)).collect(),
        }
    }

    #[test]
    fn counts_pictures() {
        assert_eq!(
            (counts().together("cup", "cup"), counts().together("cup", "sink"), counts().together("cup", "kite")),
            (3, 2, 0)
        );
    }

    #[test]
    fn surroundings_rank_confusing_names() {
        assert_eq!(counts().confusing(&region(&["cup", "sink"]))[0], "toilet");
        assert_eq!(counts().confusing(&region(&["cup"]))[..2], ["bird", "sink"]);
    }

    #[test]
    fn irrelevant_names_neither_fit_nor_appear() {
        let (counts, region) = (counts(), region(&["cup", "sink"]));
        let names = counts.irrelevant(&region, 1);
        assert!(!names[..4].contains(&"toilet") && !names.contains(&"sink"), "{names:?}");
        assert_eq!(names, counts.irrelevant(&region, 1));
    }
}
