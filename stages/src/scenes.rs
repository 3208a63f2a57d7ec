//! `scenes.generate`: a part of the embedded world.

use std::path::Path;

use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::stage::{Context, ParamError, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::{Form, Question, identity};
use crate::records;
use crate::world::lore::{self, Conversation, Mix, Placed};
use crate::world::part::{Part, Scenes, write_lines};
use crate::world::quiz::{self, Quiz};
use crate::world::random::stream;
use crate::world::{ceiling, curate};

/// Captions, talks and texts a scene of the pretraining part.
const CAPTIONS: usize = 2;
const TALKS: usize = 4;
const TEXTS: usize = 1;
/// Pictures between two progress notes.
const CHUNK: usize = 250;

/// Parameters of `scenes.generate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScenesGenerate {
    /// Which part.
    pub part: Part,
    /// Scenes; by default 6000 (pretrain), 800 (train), 300 (dev), 500 (test, unseen).
    #[serde(default)]
    pub scenes: Option<usize>,
    /// Questions of each of the four tasks in BLINK's form.
    #[serde(default = "default_tasks")]
    pub tasks: usize,
}

fn default_tasks() -> usize {
    128
}

impl Stage for ScenesGenerate {
    const KIND: &'static str = "scenes.generate";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "renders a part of the embedded world as a dataset in COCO's form";

    fn signature() -> Signature {
        Signature::new()
            .gives("dataset", PortType::Dataset)
            .gives("decisions", PortType::File)
            .gives("lore", PortType::File)
            .gives("tasks", PortType::records("Question"))
            .gives("ceiling", PortType::Table)
            .seeded()
    }

    fn check(&self) -> Result<(), ParamError> {
        match self.count() {
            0 => Err(ParamError::new("scenes", "must be at least 1")),
            count if count > 999_999 => Err(ParamError::new("scenes", "must be at most 999999")),
            _ => Ok(()),
        }
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(ctx.threads.max(1)).build();
        let pool = pool.map_err(|error| StageError::Machine(format!("no threads: {error}")))?;
        let scenes = Scenes::draw(self.part, self.count(), ctx.seed);
        pool.install(|| paint(&scenes, ctx))?;
        scenes.annotate(ctx.output("dataset")?)?;
        decide(&scenes, ctx.output("decisions")?)?;
        let conversations = if self.part == Part::Pretrain { conversations(&scenes, ctx.seed) } else { Vec::new() };
        write_lines(ctx.output("lore")?, conversations.iter().map(serde_json::to_vec))?;
        let questions = questions(&scenes, self.tasks, ctx.seed);
        if questions.len() < quiz::TASKS.len() * self.tasks {
            let wanted = quiz::TASKS.len() * self.tasks;
            ctx.warn(format!(
                "the pictures allow {} of the {wanted} task questions; generate more scenes",
                questions.len()
            ));
        }
        records::output(ctx, "tasks", &questions)?;
        ceiling::write(&scenes, ctx.output("ceiling")?)
    }
}

impl ScenesGenerate {
    fn count(&self) -> usize {
        self.scenes.unwrap_or(self.part.default_scenes())
    }
}

fn paint(scenes: &Scenes, ctx: &Context) -> Result<(), StageError> {
    let folder = ctx.output("dataset")?.join("images");
    std::fs::create_dir_all(&folder).map_err(|error| StageError::io(&folder, error))?;
    for start in (0..scenes.len()).step_by(CHUNK) {
        ctx.check_cancelled()?;
        let end = (start + CHUNK).min(scenes.len());
        scenes.paint(&folder, start..end)?;
        ctx.progress(end as u64, scenes.len() as u64, "images");
    }
    Ok(())
}

fn decide(scenes: &Scenes, path: &Path) -> Result<(), StageError> {
    let failed = |error: csv::Error| StageError::Machine(format!("{}: {error}", path.display()));
    let mut out = csv::Writer::from_path(path).map_err(failed)?;
    for (placed, index, annotation) in scenes.things() {
        out.serialize(curate::decide(placed.scene, index, placed.image, annotation)).map_err(failed)?;
    }
    out.flush().map_err(|error| StageError::io(path, error))
}

/// The lore of a part: for every scene [`CAPTIONS`], [`TALKS`] and [`TEXTS`].
fn conversations(scenes: &Scenes, seed: u64) -> Vec<Conversation> {
    let (mix, all) = (Mix::default(), scenes.iter().collect::<Vec<Placed<'_>>>());
    let talk = |index: usize| lore::talk(all[index / TALKS], &all, &mix, &mut stream(seed, "world talk", index));
    let captions = (0..all.len() * CAPTIONS)
        .map(|i| lore::caption(all[i / CAPTIONS], &mix, &mut stream(seed, "world caption", i)));
    let texts = (0..all.len() * TEXTS).map(|index| lore::text(&mut stream(seed, "world text", index)));
    captions.chain((0..all.len() * TALKS).map(talk)).chain(texts).collect()
}

/// `count` questions of each task about the pictures of a part, fewer where they allow no more.
fn questions(scenes: &Scenes, count: usize, seed: u64) -> Vec<Question> {
    let mut found = Vec::new();
    for task in quiz::TASKS {
        let posed = (0..20 * count).filter_map(|attempt| pose(scenes, task, attempt, seed));
        let mut ids = std::collections::BTreeSet::new();
        found.extend(posed.filter(|question| ids.insert(question.id.clone())).take(count));
    }
    found
}

fn pose(scenes: &Scenes, task: &str, attempt: usize, seed: u64) -> Option<Question> {
    use rand::RngExt;
    let mut rng = stream(seed, &format!("world {} {task}", scenes.part().name()), attempt);
    let first = scenes.get(attempt % scenes.len());
    let second = scenes.get((attempt + rng.random_range(1..scenes.len().max(2))) % scenes.len());
    let quiz = quiz::about(task, first.scene, second.scene, &mut rng)?;
    let images = if task == quiz::TASKS[0] { vec![first.image, second.image] } else { vec![first.image] };
    Some(question(task, &images, quiz, seed))
}

fn question(task: &str, images: &[&str], quiz: Quiz, seed: u64) -> Question {
    let parts = [task, &quiz.prompt].into_iter().chain(images.iter().copied()).map(str::as_bytes).collect::<Vec<_>>();
    Question {
        id: identity(&parts),
        item: None,
        form: Form::Blink,
        group: task.to_owned(),
        images: images.iter().map(|&image| image.to_owned()).collect(),
        prompt: quiz.prompt,
        kinds: vec!["choice".to_owned(); quiz.options.len()],
        options: quiz.options,
        answer: quiz.answer,
        seed,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;

    use mpcc_engine::harness::Harness;

    use super::*;
    use crate::dataset::Dataset;

    fn generate(part: Part, scenes: usize, seed: u64) -> (tempfile::TempDir, BTreeMap<String, PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let stage = ScenesGenerate { part, scenes: Some(scenes), tasks: 12 };
        let outputs = Harness::new(folder.path()).seed(seed).run(&stage).unwrap();
        (folder, outputs)
    }

    fn digest(outputs: &BTreeMap<String, PathBuf>) -> String {
        let mut files: Vec<PathBuf> = Vec::new();
        let mut open: Vec<PathBuf> = outputs.values().cloned().collect();
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files.push(path);
            }
        }
        files.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
        let mut hasher = blake3::Hasher::new();
        files.iter().for_each(|path| {
            hasher.update(&std::fs::read(path).unwrap());
        });
        hasher.finalize().to_hex().to_string()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_others() {
        let [a, b, c] = [1, 1, 2].map(|seed| digest(&generate(Part::Pretrain, 20, seed).1));
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn the_dataset_opens_and_decisions_name_its_annotations() {
        let (_folder, outputs) = generate(Part::Test, 60, 3);
        let dataset = Dataset::open(&outputs["dataset"]).unwrap();
        assert_eq!(dataset.pictures().len(), 60);
        let regions = dataset.regions().unwrap();
        let boxes: BTreeSet<(String, u64)> = regions.iter().map(|r| (r.image.clone(), r.annotation)).collect();
        let mut reader = csv::Reader::from_path(&outputs["decisions"]).unwrap();
        assert_eq!(reader.headers().unwrap(), vec!["image", "annotation", "decision", "difficulty", "curator"]);
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), boxes.len());
        for row in &rows {
            assert!(boxes.contains(&(row[0].to_owned(), row[1].parse().unwrap())));
            assert_eq!(&row[2] == "accept", ["easy", "moderate", "hard"].contains(&&row[3]), "{row:?}");
        }
        for name in ["000000", "000059"] {
            assert_eq!(dataset.open_rgb(&format!("test-{name}.jpg")).unwrap().dimensions(), (112, 112));
        }
        assert_eq!(std::fs::metadata(&outputs["lore"]).unwrap().len(), 0);
    }

    #[test]
    fn tasks_are_answerable_from_pictures_of_the_part() {
        let (_folder, outputs) = generate(Part::Dev, 60, 3);
        let dataset = Dataset::open(&outputs["dataset"]).unwrap();
        let questions: Vec<Question> = records::read(&outputs["tasks"]).unwrap();
        assert_eq!(questions.len(), 48);
        for question in questions {
            assert!(question.answer < question.options.len());
            assert!(question.images.iter().all(|image| dataset.picture(image).is_some()));
            assert_eq!(question.images.len(), if question.group == quiz::TASKS[0] { 2 } else { 1 });
        }
    }

    /// Prints sizes, times and ceilings of two default parts, and keeps their files for a look.
    #[test]
    #[ignore = "prints numbers; run by hand"]
    fn numbers() {
        for part in [Part::Pretrain, Part::Test] {
            let folder = tempfile::tempdir().unwrap();
            let start = std::time::Instant::now();
            let stage = ScenesGenerate { part, scenes: None, tasks: 128 };
            let outputs = Harness::new(folder.path()).run(&stage).unwrap();
            let images = outputs["dataset"].join("images");
            let bytes: u64 = std::fs::read_dir(&images).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            println!(
                "{part:?}: {:.2} s, pictures {bytes}, lore {}",
                start.elapsed().as_secs_f64(),
                std::fs::metadata(&outputs["lore"]).unwrap().len()
            );
            println!("{}", std::fs::read_to_string(outputs["ceiling"].join("table.md")).unwrap());
            std::mem::forget(folder);
            println!("{}", outputs["dataset"].display());
        }
    }

    #[test]
    fn the_posterior_file_agrees_with_the_decisions() {
        let (_folder, outputs) = generate(Part::Train, 40, 5);
        let dataset = Dataset::open(&outputs["dataset"]).unwrap();
        let text = std::fs::read_to_string(outputs["dataset"].join("posterior.jsonl")).unwrap();
        let mut decisions = csv::Reader::from_path(&outputs["decisions"]).unwrap();
        for (line, row) in text.lines().zip(decisions.records()) {
            let (line, row): (serde_json::Value, _) = (serde_json::from_str(line).unwrap(), row.unwrap());
            let annotation = dataset.annotation(line["annotation"].as_u64().unwrap()).unwrap();
            assert_eq!(dataset.picture_of(annotation).file_name, line["image"]);
            let truth = line["posterior"][&dataset.category_of(annotation).name].as_f64().unwrap();
            let total: f64 = line["posterior"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
            assert!((total - 1.0).abs() < 1e-9);
            assert_eq!(row[1], annotation.id.to_string());
            assert_eq!(&row[3] == "easy", &row[2] == "accept" && truth >= 0.85, "{row:?} {truth}");
        }
    }
}
