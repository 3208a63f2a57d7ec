//! `export.contact`: a contact sheet. Each item or region twice, as it is with its box drawn and as a model sees it, with a
//! caption that says how much of the object the mask leaves visible.
//!
//! | file | holds |
//! |---|---|
//! | `sheet.png` | the whole sheet as one picture |
//! | `sheet.html` | the same as a page, captions as text |
//! | `pictures/` | the pictures of the page |

mod letters;

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::mask::{Leak, Mask, MaskedImage};
use crate::record::{Item, Region};
use crate::report::html::escape;
use crate::{draw, records};

const PAPER: Rgb<u8> = Rgb([250, 250, 247]);
const INK: Rgb<u8> = Rgb([28, 28, 26]);
const SOFT: Rgb<u8> = Rgb([110, 110, 104]);
const FRAME: Rgb<u8> = Rgb([255, 60, 40]);
/// Pixels between tiles and around them.
const GAP: u32 = 12;
/// Pixels a letter's dot takes in `sheet.png`.
const SCALE: u32 = 2;
/// Pixels for two lines of caption.
const CAPTION: u32 = 34;

/// Parameters of `export.contact`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportContact {
    /// How the objects are hidden.
    pub mask: Mask,
    /// At most so many, drawn by seed; 0 for all.
    pub limit: usize,
    /// Pairs of pictures beside each other.
    pub columns: u32,
    /// Longest side of a picture in the sheet, in pixels.
    pub side: u32,
}

impl Default for ExportContact {
    fn default() -> Self {
        Self { mask: Mask::default(), limit: 24, columns: 3, side: 240 }
    }
}

/// Something to show: a region and what is known about it.
struct Subject {
    region: Region,
    about: Option<String>,
}

/// A pair of pictures and its caption, two lines.
struct Tile {
    open: RgbImage,
    masked: RgbImage,
    caption: [String; 2],
}

impl Stage for ExportContact {
    const KIND: &'static str = "export.contact";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Shows items or regions masked and unmasked on one sheet";

    fn signature() -> Signature {
        Signature::new()
            .takes("dataset", PortType::Dataset)
            .takes_optional("items", PortType::records("Item"))
            .takes_optional("regions", PortType::records("Region"))
            .gives("dir", PortType::Dir)
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        self.mask.check("mask")?;
        if self.columns == 0 || self.columns > 20 {
            return Err(ParamError::new("columns", format!("`columns: {}` is not between 1 and 20", self.columns)));
        }
        match (32..=2000).contains(&self.side) {
            true => Ok(()),
            false => Err(ParamError::new("side", format!("`side: {}` is not between 32 and 2000 pixels", self.side))),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let dataset = Dataset::open(&ctx.input("dataset")?.path)?;
        let subjects = self.subjects(ctx)?;
        let mut tiles = Vec::with_capacity(subjects.len());
        for subject in &subjects {
            ctx.check_cancelled()?;
            tiles.push(self.tile(&dataset, subject)?);
            ctx.progress(tiles.len() as u64, subjects.len() as u64, "pictures");
        }
        let folder = ctx.output("dir")?;
        save(&self.sheet(&tiles), &folder.join("sheet.png"))?;
        write_page(&tiles, folder)
    }
}

impl ExportContact {
    fn subjects(&self, ctx: &Context) -> Result<Vec<Subject>, StageError> {
        let mut subjects: Vec<Subject> = match (ctx.optional("items")?, ctx.optional("regions")?) {
            (Some(items), None) => records::read::<Item>(&items.path)?.into_iter().map(of_item).collect(),
            (None, Some(regions)) => records::read::<Region>(&regions.path)?
                .into_iter()
                .map(|region| Subject { region, about: None })
                .collect(),
            _ => return Err(StageError::invalid("connect either `items` or `regions`: the sheet shows one of them")),
        };
        if self.limit > 0 && subjects.len() > self.limit {
            let rank = |subject: &Subject| draw::rank(ctx.seed, "contact sheet", &subject.region.id);
            let mut ranks: Vec<u64> = subjects.iter().map(rank).collect();
            ranks.sort_unstable();
            let last = ranks[self.limit - 1];
            subjects.retain(|subject| rank(subject) <= last);
        }
        Ok(subjects)
    }

    fn tile(&self, dataset: &Dataset, subject: &Subject) -> Result<Tile, StageError> {
        let region = &subject.region;
        let masked = MaskedImage::open(dataset, region, &self.mask)?;
        let picture = dataset.open_rgb(&region.image)?;
        let mut open = self.shrunk(&picture);
        let scale = f64::from(open.width()) / f64::from(picture.width());
        frame(&mut open, region.bbox.map(|value| value * scale));
        let caption = caption(subject, masked.leak());
        Ok(Tile { open, masked: self.shrunk(masked.pixels()), caption })
    }

    fn shrunk(&self, picture: &RgbImage) -> RgbImage {
        let longest = picture.width().max(picture.height());
        let sized = |side: u32| (side * self.side / longest).max(1);
        let filter = if longest > self.side { FilterType::Triangle } else { FilterType::Nearest };
        imageops::resize(picture, sized(picture.width()), sized(picture.height()), filter)
    }

    fn sheet(&self, tiles: &[Tile]) -> RgbImage {
        let columns = self.columns.min(tiles.len().max(1) as u32);
        let (width, height) = (2 * self.side + GAP / 2, self.side + CAPTION);
        let rows = (tiles.len() as u32).div_ceil(columns).max(1);
        let mut sheet = RgbImage::from_pixel(columns * (width + GAP) + GAP, rows * (height + GAP) + GAP, PAPER);
        for (index, tile) in (0_u32..).zip(tiles) {
            let (x, y) = (GAP + index % columns * (width + GAP), GAP + index / columns * (height + GAP));
            let below = |picture: &RgbImage| self.side - picture.height();
            imageops::replace(&mut sheet, &tile.open, x.into(), (y + below(&tile.open)).into());
            imageops::replace(
                &mut sheet,
                &tile.masked,
                (x + self.side + GAP / 2).into(),
                (y + below(&tile.masked)).into(),
            );
            for (line, (text, colour)) in (0_u32..).zip(tile.caption.iter().zip([INK, SOFT])) {
                let text: String = text.chars().take(letters::fitting(width, SCALE)).collect();
                letters::write(&mut sheet, (x, y + self.side + 6 + line * 7 * SCALE), SCALE, colour, &text);
            }
        }
        sheet
    }
}

fn of_item(item: Item) -> Subject {
    let wrong: Vec<&str> = item.distractors.confusing().collect();
    let about = match wrong.is_empty() {
        true => item.difficulty.name().to_owned(),
        false => format!("{}, not {}", item.difficulty.name(), wrong.join("/")),
    };
    Subject { about: Some(about), region: item.region }
}

fn caption(subject: &Subject, leak: Leak) -> [String; 2] {
    let region = &subject.region;
    let [_, _, width, height] = region.bbox;
    let shows = match leak.visible {
        0 => "nothing shows".to_owned(),
        visible if leak.strongest < 255 => format!("leaks: no pixel fully hidden ({visible} of {})", leak.inside),
        visible => format!("{:.0} % not fully hidden", 100.0 * visible as f64 / leak.inside as f64),
    };
    let about = subject.about.as_ref().map_or(String::new(), |about| format!(", {about}"));
    [
        format!("{}{about}, {width:.0} x {height:.0} px, {shows}", region.category),
        format!("{} #{}", region.image, region.annotation),
    ]
}

/// Draws the outline of a box, two pixels wide, around it.
fn frame(picture: &mut RgbImage, [x, y, width, height]: [f64; 4]) {
    let (left, top, right, bottom) =
        (x.floor() as i64, y.floor() as i64, (x + width).ceil() as i64, (y + height).ceil() as i64);
    let (columns, rows) = (i64::from(picture.width()), i64::from(picture.height()));
    for row in (top - 2).max(0)..(bottom + 2).min(rows) {
        for column in (left - 2).max(0)..(right + 2).min(columns) {
            let inside = (left..right).contains(&column) && (top..bottom).contains(&row);
            if !inside {
                picture.put_pixel(column as u32, row as u32, FRAME);
            }
        }
    }
}

fn save(picture: &RgbImage, path: &Path) -> Result<(), StageError> {
    picture.save(path).map_err(|error| StageError::Machine(format!("{}: {error}", path.display())))
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fafaf7; --soft: #6e6e68; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e2; --paper: #161614; --soft: #9a9a92; } }
body { font: 14px/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5rem; }
main { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; } figcaption small { color: var(--soft); }
figcaption { max-width: 31rem; }
";

fn write_page(tiles: &[Tile], folder: &Path) -> Result<(), StageError> {
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures).map_err(|error| StageError::io(&pictures, error))?;
    let mut figures = String::new();
    for (number, tile) in (1..).zip(tiles) {
        let mut row = String::new();
        for (kind, picture) in [("open", &tile.open), ("masked", &tile.masked)] {
            let name = format!("{number:04}-{kind}.png");
            save(picture, &pictures.join(&name))?;
            row.push_str(&format!("<img src=\"pictures/{name}\" alt=\"{kind}\"> "));
        }
        let [first, second] = tile.caption.each_ref().map(|line| escape(line));
        figures
            .push_str(&format!("<figure>{row}<figcaption>{first}<br><small>{second}</small></figcaption></figure>\n"));
    }
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Contact sheet</title>\n<style>{STYLE}</style>\n<h1>Contact sheet</h1>\n<main>\n{figures}</main>\n</html>\n"
    );
    let path = folder.join("sheet.html");
    std::fs::write(&path, page).map_err(|error| StageError::io(&path, error))
}
