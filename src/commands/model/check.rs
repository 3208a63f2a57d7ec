//! `mpcc model check`: what a model lacks, one answer, and its numbers beside a reference's.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use mpcc_stages::models::chat::{Part, Role, Turn};
use mpcc_stages::models::checkpoint;
use mpcc_stages::models::generate::{Completion, GenerateRequest, Sampling, Watch};
use mpcc_stages::models::image::{Filter, RgbImage};
use mpcc_stages::models::parity::{self, Compared, Reference, Tensors};
use mpcc_stages::models::survey::Survey;
use mpcc_stages::models::vlm::{Prompt, Vlm};
use serde_json::{Value, json};

use super::args::{CheckArgs, DeviceArgs, Held, Resize};
use super::place::{find, load, picture};
use crate::commands::Answer;
use crate::report::{DONE, FAILED, Failure};
use crate::ui::columns::columns;
use crate::ui::say;

/// Tokens of the answer where nothing says how many.
const ANSWER: u32 = 32;
/// Names of one kind that are printed.
const SHOWN: usize = 20;

/// Looks, asks, compares, prints.
pub(super) fn check(args: &CheckArgs) -> Answer {
    if args.device.dtype == Some(Held::Q8) {
        return Err(Failure::wrong("check compares the model as it is, and q8 is near it at best; take f32 or bf16"));
    }
    let dir = find(&args.place.model)?;
    let mut findings = Findings::default();
    findings.survey(&dir);
    if findings.problems.is_empty() {
        // What is compared is compared in f32.
        let device = DeviceArgs { dtype: args.device.dtype.or(Some(Held::F32)), ..args.device };
        match load(&dir, &args.place, &device) {
            Ok((vlm, seconds)) => findings.run(&vlm, seconds, args)?,
            Err(failure) => findings.problem(failure.text.trim_start_matches("error: ")),
        }
    }
    findings.print(&dir, args);
    Ok(if findings.problems.is_empty() { DONE } else { FAILED })
}

/// What was found out.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    /// What it is, in columns.
    facts: Vec<Vec<String>>,
    compared: Vec<Compared>,
    json: serde_json::Map<String, Value>,
}

impl Findings {
    fn problem(&mut self, message: impl ToString) {
        self.problems.push(message.to_string());
    }

    fn fact(&mut self, what: &str, found: impl ToString) {
        self.facts.push(vec![what.to_owned(), found.to_string()]);
    }

    /// Configuration, tokenizer and tensors, their data unread.
    fn survey(&mut self, dir: &Path) {
        let (config, survey) = match Survey::of(dir) {
            Ok(found) => found,
            Err(error) => return self.problem(error),
        };
        let family = config.to_json()["model_type"].as_str().unwrap_or_default().to_owned();
        let dtypes: Vec<String> = survey.dtypes.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let text = config.text();
        let shape = format!("{} layers of {}, vocabulary {}", text.layers, text.hidden_size, text.vocab_size);
        self.fact("family", format!("{family}, {shape}"));
        self.fact("tensors", format!("{} ({}), {} values", survey.tensors, dtypes.join(", "), survey.values));
        for name in &survey.missing {
            self.problem(format_args!("tensor {name} is missing"));
        }
        for name in &survey.surplus {
            self.problem(format_args!("tensor {name} is no weight of this configuration"));
        }
        for one in &survey.misshapen {
            self.problem(format_args!(
                "tensor {} has shape {:?}, the configuration asks for {:?}",
                one.name, one.found, one.wanted
            ));
        }
        let misshapen = survey.misshapen.iter();
        let misshapen: Vec<Value> =
            misshapen.map(|one| json!({"name": one.name, "found": one.found, "wanted": one.wanted})).collect();
        self.json.insert("family".into(), family.into());
        self.json.insert(
            "tensors".into(),
            json!({
                "count": survey.tensors, "values": survey.values, "bytes": survey.bytes, "dtypes": survey.dtypes,
                "missing": survey.missing, "surplus": survey.surplus, "misshapen": misshapen,
            }),
        );
    }

    /// One answer, and the comparison.
    fn run(&mut self, vlm: &Vlm, seconds: f64, args: &CheckArgs) -> Result<(), Failure> {
        self.fact("tokenizer", format!("{} tokens, an answer ends at {:?}", vlm.assets().tokenizer.len(), vlm.eos()));
        self.json.insert("load_s".into(), json!(seconds));
        let reference = args.against.as_deref().map(Reference::open).transpose()?;
        let Asked { prompt, mut tensors, filter } = asked(vlm, args, reference.as_ref())?;
        if let Some(filter) = filter {
            let name = if filter == Filter::Pillow { "pillow" } else { "torchvision" };
            self.fact("pictures", format!("resized by the filter of {name}"));
            self.json.insert("resize".into(), name.into());
        }
        tensors.insert("logits".into(), parity::logits(vlm, &prompt)?);
        let length = self.length(args, reference.as_ref(), vlm)?;
        let answer = greedy(vlm, prompt, length)?;
        tensors.insert("gen_ids".into(), parity::answer(&answer.ids)?);
        let end = if answer.finished { ", ended by itself" } else { "" };
        self.fact("answer", format!("{:?} ({} tokens{end})", answer.text, answer.ids.len()));
        self.json.insert(
            "answer".into(),
            json!({
                "text": answer.text, "ids": answer.ids, "finished": answer.finished,
            }),
        );
        if let Some(path) = &args.dump {
            checkpoint::write_tensors(path, &tensors)?;
            self.json.insert("dumped".into(), json!(path));
        }
        match &reference {
            Some(reference) => self.compare(reference, &tensors, vlm)?,
            None if parity::finite(&tensors["logits"])? => {}
            None => self.problem("logits of the prompt are not all finite: the weights are damaged"),
        }
        Ok(())
    }

    /// How many tokens, and whether end tokens are excluded: a reference without any was cut, or they were excluded there, too.
    fn length(&self, args: &CheckArgs, reference: Option<&Reference>, vlm: &Vlm) -> Result<(u32, bool), Failure> {
        if let Some(length) = args.min_new_tokens {
            return Ok((length, true));
        }
        let ids = match reference {
            Some(reference) => reference.numbers("gen_ids")?,
            None => None,
        };
        let ends = |ids: &[i64]| ids.iter().any(|id| vlm.eos().iter().any(|eos| i64::from(*eos) == *id));
        Ok(ids.map_or((ANSWER, false), |ids| (ids.len().try_into().unwrap_or(ANSWER), !ends(&ids))))
    }

    /// Where pixel values are beyond, the model behind the reference's own: whose fault the other differences are.
    fn alone(&mut self, reference: &Reference, vlm: &Vlm) -> Result<(), Failure> {
        let differs = |one: &&Compared| one.name == "pixel_values" && !one.holds() && one.ours == one.theirs;
        if self.compared.iter().find(differs).is_none() {
            return Ok(());
        }
        let logits = parity::logits(vlm, &reference.prompt(vlm)?)?;
        let found = reference.compare(&Tensors::from([("logits".to_owned(), logits)]))?;
        if let Some(one) = found.first() {
            self.json.insert("logits_with_reference_pixels".into(), json!(one.largest));
            self.fact(
                "the model alone",
                format!("logits differ by {:.1e} with the reference's pixel values", one.largest),
            );
        }
        Ok(())
    }

    fn compare(&mut self, reference: &Reference, tensors: &Tensors, vlm: &Vlm) -> Result<(), Failure> {
        self.compared = reference.compare(tensors)?;
        for one in self.compared.iter().filter(|one| !one.holds()) {
            self.problems.push(match one.ours == one.theirs {
                true => format!("{} differs by {:.1e}, allowed is {:.0e}", one.name, one.largest, one.limit),
                false => format!("{} has shape {:?}, the reference's {:?}", one.name, one.ours, one.theirs),
            });
        }
        let compared = self.compared.iter().map(|one| {
            let difference = if one.largest.is_finite() { json!(one.largest) } else { Value::Null };
            let entry = json!({
                "shape": one.ours, "reference_shape": one.theirs, "largest_difference": difference,
                "allowed": one.limit, "holds": one.holds(),
            });
            (one.name.clone(), entry)
        });
        let compared: serde_json::Map<String, Value> = compared.collect();
        let equal = compared.get("gen_ids").map(|ids| ids["holds"].clone());
        self.alone(reference, vlm)?;
        self.json.insert("greedy_ids_equal".into(), equal.unwrap_or(Value::Null));
        self.json.insert("compared".into(), compared.into());
        Ok(())
    }

    fn print(&self, dir: &Path, args: &CheckArgs) {
        if args.json {
            let mut all = serde_json::Map::new();
            all.insert("model".into(), json!(dir));
            all.insert("ok".into(), json!(self.problems.is_empty()));
            all.insert("problems".into(), json!(self.problems));
            all.extend(self.json.clone());
            return say(Value::Object(all));
        }
        if !self.facts.is_empty() {
            say(columns(&self.facts));
        }
        if !self.compared.is_empty() {
            let head = ["", "largest difference", "allowed", ""].map(str::to_owned).to_vec();
            let row = |one: &Compared| {
                let (largest, limit) = (format!("{:.1e}", one.largest), format!("{:.0e}", one.limit));
                vec![one.name.clone(), largest, limit, if one.holds() { "ok" } else { "BEYOND" }.to_owned()]
            };
            say(columns(&std::iter::once(head).chain(self.compared.iter().map(row)).collect::<Vec<_>>()));
            if let Some(ids) = self.compared.iter().find(|one| one.name == "gen_ids") {
                say(if ids.holds() { "greedy ids are equal" } else { "greedy ids DIFFER" });
            }
        }
        for problem in self.problems.iter().take(SHOWN) {
            say(format_args!("problem: {problem}"));
        }
        match self.problems.len() {
            0 => say("nothing is wrong"),
            count if count > SHOWN => say(format_args!("problem: and {} more; --json lists all", count - SHOWN)),
            _ => {}
        }
    }
}

/// A prompt and its tensors.
struct Asked {
    prompt: Prompt,
    tensors: Tensors,
    /// Whose filter its pictures went through, if there are any.
    filter: Option<Filter>,
}

/// The prompt that was asked for: the one typed, else the reference's, else one of our own.
fn asked(vlm: &Vlm, args: &CheckArgs, reference: Option<&Reference>) -> Result<Asked, Failure> {
    if let (Some(reference), true, None) = (reference, args.images.is_empty(), &args.prompt) {
        return Ok(Asked { prompt: reference.prompt(vlm)?, tensors: Tensors::new(), filter: None });
    }
    let mut images = args.images.iter().map(|path| picture(path)).collect::<Result<Vec<_>, _>>()?;
    let text = match &args.prompt {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            text.map_err(|error| Failure::wrong(format_args!("{}: {error}", path.display())))?
        }
        None => {
            if images.is_empty() {
                images.push(board());
            }
            let mut parts = vec![Part::Image; images.len()];
            parts.push(Part::Text("What is in the picture?".to_owned()));
            vlm.prompt(&[Turn { role: Role::User, parts }], &images, true)?.text
        }
    };
    let with = |filter| through(vlm, &text, &images, filter);
    let asked = match args.resize {
        Resize::Torchvision => return with(Filter::Torchvision),
        // Only to be compared with transformers elsewhere.
        Resize::Auto if args.dump.is_some() && reference.is_none() => return with(Filter::Torchvision),
        Resize::Pillow => return with(Filter::Pillow),
        Resize::Auto => with(Filter::Pillow)?,
    };
    let Some(reference) = reference else { return Ok(asked) };
    let distance = |asked: &Asked| -> Result<f64, Failure> {
        let compared = reference.compare(&asked.tensors)?;
        Ok(compared.iter().find(|one| one.name == "pixel_values").map_or(0.0, |one| one.largest))
    };
    let pillow = distance(&asked)?;
    if pillow <= parity::PIXELS {
        return Ok(asked);
    }
    let other = with(Filter::Torchvision)?;
    Ok(if distance(&other)? < pillow { other } else { asked })
}

/// A prompt whose pictures go through a filter.
fn through(vlm: &Vlm, text: &str, images: &[RgbImage], filter: Filter) -> Result<Asked, Failure> {
    let process = |image: &RgbImage| vlm.assets().processor.process_with(image, filter);
    let prompt = vlm.prompt_of_text(text.to_owned(), images.iter().map(process).collect::<Result<_, _>>()?)?;
    let sizes: Vec<(u32, u32)> = images.iter().map(RgbImage::dimensions).collect();
    let tensors = parity::inputs(vlm, &prompt, &sizes)?;
    Ok(Asked { prompt, tensors, filter: (!images.is_empty()).then_some(filter) })
}

/// A picture of our own: a chequered board.
fn board() -> RgbImage {
    let (width, height) = (224_u32, 168_u32);
    let shade = |place: u32| if (place % width / 28 + place / width / 28).is_multiple_of(2) { 230 } else { 40 };
    let values = (0..width * height).flat_map(|place| [shade(place), shade(place), 128]).collect();
    RgbImage::from_raw(width, height, values).expect("three values a pixel")
}

/// End tokens that may not be drawn.
struct Banned(Vec<u32>);

impl Watch for Banned {
    fn token(&mut self, _: usize, _: usize, _: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn banned(&self) -> &[u32] {
        &self.0
    }
}

/// The most likely answer of so many tokens, end tokens excluded or not.
fn greedy(vlm: &Vlm, prompt: Prompt, (length, exact): (u32, bool)) -> Result<Completion, Failure> {
    let request =
        GenerateRequest { prompt: Arc::new(prompt), sampling: Sampling::greedy(length as usize), seeds: vec![0] };
    let mut answer = None;
    let mut banned = Banned(if exact { vlm.eos().to_vec() } else { vec![] });
    vlm.generate_watched(&[request], &mut banned, &mut |_, mut completions| {
        answer = completions.pop();
        ControlFlow::Continue(())
    })?;
    answer.ok_or_else(|| Failure::machine("the model gave no answer"))
}
