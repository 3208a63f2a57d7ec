//! The categories of the world: names, ids and supercategories of the COCO instances list.

/// A category.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Category {
    /// COCO's id.
    pub id: u64,
    /// COCO's name.
    pub name: &'static str,
    /// COCO's supercategory.
    pub supercategory: &'static str,
}

const fn category(id: u64, name: &'static str, supercategory: &'static str) -> Category {
    Category { id, name, supercategory }
}

/// Every category that the grammar can place, by COCO id.
pub const CATEGORIES: [Category; 38] = [
    category(1, "person", "person"),
    category(2, "bicycle", "vehicle"),
    category(3, "car", "vehicle"),
    category(6, "bus", "vehicle"),
    category(8, "truck", "vehicle"),
    category(9, "boat", "vehicle"),
    category(10, "traffic light", "outdoor"),
    category(11, "fire hydrant", "outdoor"),
    category(13, "stop sign", "outdoor"),
    category(15, "bench", "outdoor"),
    category(16, "bird", "animal"),
    category(17, "cat", "animal"),
    category(18, "dog", "animal"),
    category(28, "umbrella", "accessory"),
    category(34, "frisbee", "sports"),
    category(38, "kite", "sports"),
    category(42, "surfboard", "sports"),
    category(47, "cup", "kitchen"),
    category(49, "knife", "kitchen"),
    category(51, "bowl", "kitchen"),
    category(62, "chair", "furniture"),
    category(63, "couch", "furniture"),
    category(64, "potted plant", "furniture"),
    category(65, "bed", "furniture"),
    category(70, "toilet", "furniture"),
    category(72, "tv", "electronic"),
    category(73, "laptop", "electronic"),
    category(74, "mouse", "electronic"),
    category(75, "remote", "electronic"),
    category(76, "keyboard", "electronic"),
    category(79, "oven", "appliance"),
    category(81, "sink", "appliance"),
    category(82, "refrigerator", "appliance"),
    category(84, "book", "indoor"),
    category(85, "clock", "indoor"),
    category(86, "vase", "indoor"),
    category(88, "teddy bear", "indoor"),
    category(90, "toothbrush", "indoor"),
];

/// The category called `name`.
pub fn by_name(name: &str) -> Option<&'static Category> {
    CATEGORIES.iter().find(|category| category.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_and_names_are_unique() {
        for pair in CATEGORIES.windows(2) {
            assert!(pair[0].id < pair[1].id, "{pair:?}");
        }
        for category in CATEGORIES {
            assert_eq!(by_name(category.name), Some(&category_by_id(category.id)));
        }
    }

    fn category_by_id(id: u64) -> Category {
        CATEGORIES.into_iter().find(|category| category.id == id).expect("listed")
    }

    #[test]
    fn ids_are_those_of_the_real_coco_list() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/coco/instances.json");
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped: needs ../shared");
            return;
        };
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for category in CATEGORIES {
            let real = value["categories"].as_array().unwrap().iter().find(|c| c["name"] == category.name);
            let real = real.unwrap_or_else(|| panic!("{} is no COCO category", category.name));
            assert_eq!(real["id"], category.id, "{}", category.name);
            assert_eq!(real["supercategory"], category.supercategory, "{}", category.name);
        }
    }
}
