//! Items to questions, questions and answers to scores, and the split by categories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mpcc_engine::harness::Harness;
use mpcc_stages::dataset::format::{Annotation, Category, CocoFile, Picture};
use mpcc_stages::dataset::write_annotations;
use mpcc_stages::questions::{AskedForm, QuestionsBuild};
use mpcc_stages::record::{Answer, Form, Item, OptionScore, Question, Record, Score, Usage};
use mpcc_stages::records;
use mpcc_stages::score::EvalScore;
use mpcc_stages::split::{OptionSource, Split, SplitCategories};

use crate::support::item;

const WRONG: [&str; 6] = ["bowl", "knife", "clock", "book", "kite", "bus"];

fn ask(stage: &QuestionsBuild, item: &Item) -> Vec<Question> {
    stage.about(item, 17).unwrap()
}

#[test]
fn an_item_has_nine_questions() {
    let questions = ask(&QuestionsBuild::default(), &item(1, "cup", WRONG));
    let forms: Vec<Form> = questions.iter().map(|question| question.form).collect();
    assert_eq!(forms[..2], [Form::ChoiceEasy, Form::ChoiceHard]);
    assert!(forms.len() == 9 && forms[2..].iter().all(|form| *form == Form::TrueFalse));
    let ids: BTreeSet<&str> = questions.iter().map(|question| question.id.as_str()).collect();
    assert_eq!(ids.len(), 9);
    let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&questions[0].options), ["cup", "bowl", "knife", "kite"].map(String::from).into());
    assert_eq!(questions[1].options.len(), 7);
    for question in &questions[..2] {
        assert_eq!(
            (question.options[question.answer].as_str(), question.kinds[question.answer].as_str()),
            ("cup", "gt")
        );
        assert!(
            question.prompt.contains(&format!("{}. cup", (b'A' + question.answer as u8) as char)),
            "{}",
            question.prompt
        );
    }
    let kinds: Vec<(&str, usize)> =
        questions[2..].iter().map(|question| (question.kinds[0].as_str(), question.answer)).collect();
    assert_eq!(
        kinds,
        [
            ("gt", 0),
            ("choose", 1),
            ("choose", 1),
            ("judgement", 1),
            ("judgement", 1),
            ("irrelevant", 1),
            ("irrelevant", 1)
        ]
    );
}

#[test]
fn orders_are_the_items_own_and_cover_every_place() {
    let stage = QuestionsBuild { forms: vec![AskedForm::ChoiceHard], ..QuestionsBuild::default() };
    let first = ask(&stage, &item(1, "cup", WRONG));
    assert_eq!(first, ask(&stage, &item(1, "cup", WRONG)));
    let answers: BTreeSet<usize> = (0..60).map(|k| ask(&stage, &item(k, "cup", WRONG))[0].answer).collect();
    assert_eq!(answers.len(), 7);
}

#[test]
fn circular_asks_every_rotation() {
    let stage = QuestionsBuild { forms: vec![AskedForm::ChoiceEasy], circular: true, ..QuestionsBuild::default() };
    let questions = ask(&stage, &item(1, "cup", WRONG));
    let answers: BTreeSet<usize> = questions.iter().map(|question| question.answer).collect();
    assert_eq!((questions.len(), answers.len()), (4, 4));
}

#[test]
fn templates_are_filled_and_need_not_list_options() {
    let plain = QuestionsBuild {
        prompt: Some("what is it ?\n".to_owned()),
        prompt_true_false: Some("a {{option}} ?".to_owned()),
        ..QuestionsBuild::default()
    };
    let questions = ask(&plain, &item(1, "cup", WRONG));
    assert_eq!((questions[0].prompt.as_str(), questions[3].prompt.as_str()), ("what is it ?", "a bowl ?"));
    let wrong = QuestionsBuild { prompt: Some("{{category}}".to_owned()), ..QuestionsBuild::default() };
    let error = mpcc_engine::stage::Stage::check(&wrong).unwrap_err();
    assert!(error.param == "prompt" && error.message.contains("`{{category}}`"), "{error:?}");
}

#[test]
fn an_item_without_wrong_options_is_named() {
    let bare = item(4, "cup", ["bowl", "bowl", "clock", "book", "kite", "bus"]);
    let error = QuestionsBuild::default().about(&bare, 1).unwrap_err().to_string();
    assert!(error.contains("a.jpg, annotation 4, cup) has the option `bowl` twice"), "{error}");
}

fn answer(question: &Question, text: &str, scores: &[f64]) -> Answer {
    let scores = question
        .options
        .iter()
        .zip(scores)
        .map(|(option, logprob)| OptionScore { option: option.clone(), logprob: *logprob });
    Answer {
        question: question.id.clone(),
        model: "m".into(),
        text: text.into(),
        scores: scores.collect(),
        usage: Usage::default(),
        repeat: 0,
    }
}

fn save<T: Record>(path: &Path, records: &[T]) -> PathBuf {
    mpcc_stages::records::write(path, records).unwrap();
    path.to_owned()
}

fn score(questions: &[Question], answers: &[Answer], stage: &EvalScore) -> Result<Vec<Score>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let harness = Harness::new(&path("run"))
        .input("questions", &save(&path("q"), questions))
        .input("answers", &save(&path("a"), answers));
    let outputs: BTreeMap<String, PathBuf> = harness.run(stage).map_err(|error| error.to_string())?;
    Ok(records::read(&outputs["scores"]).unwrap())
}

#[test]
fn texts_and_likelihoods_are_scored() {
    let questions = ask(&QuestionsBuild::default(), &item(1, "cup", WRONG));
    let right = format!("<think> t </think><answer>{}</answer>", (b'A' + questions[0].answer as u8) as char);
    let mut answers = vec![answer(&questions[0], &right, &[])];
    let mut logprobs = vec![-5.0; 7];
    logprobs[(questions[1].answer + 1) % 7] = -1.0;
    answers.push(answer(&questions[1], "", &logprobs));
    answers.extend(
        questions[2..].iter().map(|question| answer(question, "", &[if question.answer == 0 { -0.1 } else { -3.0 }])),
    );
    let scores = score(&questions, &answers, &EvalScore::default()).unwrap();
    assert!(scores[0].correct && scores[0].formatted && scores[0].options == 4);
    assert!(!scores[1].correct && scores[1].chosen == Some((questions[1].answer + 1) % 7));
    assert!(scores[2..].iter().all(|score| score.correct && score.options == 2));
    assert_eq!(scores[3].kind.as_deref(), Some("choose"));
    let strict = score(&questions, &answers, &EvalScore { threshold: 0.99, ..EvalScore::default() }).unwrap();
    assert!(!strict[2].correct && strict[3].correct);
}

#[test]
fn a_missing_answer_is_an_error() {
    let questions = ask(&QuestionsBuild::default(), &item(1, "cup", WRONG));
    let error = score(&questions, &[answer(&questions[0], "A", &[])], &EvalScore::default()).unwrap_err();
    assert!(error.contains("8 of 9 questions have no answer"), "{error}");
}

#[test]
fn a_fitted_threshold_replaces_the_parameter() {
    let questions =
        ask(&QuestionsBuild { forms: vec![AskedForm::TrueFalse], ..QuestionsBuild::default() }, &item(1, "cup", WRONG));
    let answers: Vec<Answer> = questions
        .iter()
        .map(|question| answer(question, "", &[if question.answer == 0 { -4.0 } else { -9.0 }]))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (q, a) = (save(&folder.path().join("q"), &questions), save(&folder.path().join("a"), &answers));
    let plain = Harness::new(&folder.path().join("plain"))
        .input("questions", &q)
        .input("answers", &a)
        .run(&EvalScore::default())
        .unwrap();
    let fitted = Harness::new(&folder.path().join("fitted")).input("questions", &q).input("answers", &a);
    let fitted = fitted.input("dev_questions", &q).input("dev_answers", &a).run(&EvalScore::default()).unwrap();
    let right = |outputs: &BTreeMap<String, PathBuf>| {
        records::read::<Score>(&outputs["scores"]).unwrap().iter().filter(|score| score.correct).count()
    };
    assert_eq!((right(&plain), right(&fitted)), (6, 7));
}

/// A dataset folder with one picture that shows every category.
fn dataset(folder: &Path, names: &[&str]) -> PathBuf {
    let file = CocoFile {
        images: vec![Picture { id: 1, file_name: "a.jpg".into(), width: 640, height: 480 }],
        annotations: (1..)
            .zip(names)
            .map(|(id, _)| Annotation {
                id,
                image_id: 1,
                category_id: id,
                bbox: [0.0, 0.0, 9.0, 9.0],
                area: 81.0,
                iscrowd: 0,
                segmentation: None,
            })
            .collect(),
        categories: (1..)
            .zip(names)
            .map(|(id, name)| Category { id, name: (*name).into(), supercategory: String::new() })
            .collect(),
    };
    std::fs::create_dir_all(folder).unwrap();
    write_annotations(folder, &file).unwrap();
    folder.to_owned()
}

#[test]
fn halves_are_disjoint_and_options_come_from_the_test_half() {
    let names = [
        "bed", "bench", "bird", "book", "bowl", "bus", "car", "chair", "clock", "cup", "dog", "kite", "knife", "oven",
        "sink", "toilet",
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let items: Vec<Item> = (1..)
        .zip(names)
        .map(|(id, name)| {
            item(
                id,
                name,
                ["x", "knife", "clock", "oven", "kite", "bus"].map(|other| if other == name { "chair" } else { other }),
            )
        })
        .collect();
    let data = dataset(&path("data"), &names);
    let run = |name: &str, stage: &SplitCategories| -> (Vec<Item>, Vec<Item>) {
        let all = save(&path("items"), &items);
        let harness = Harness::new(&path(name)).input("train", &all).input("test", &all).input("dataset", &data);
        let outputs = harness.run(stage).unwrap();
        (records::read(&outputs["train"]).unwrap(), records::read(&outputs["test"]).unwrap())
    };
    let (train, test) = run("full", &SplitCategories::default());
    assert_eq!((train.len(), test.len()), (16, 16));
    let stage = SplitCategories { split: Split::Ood, options: OptionSource::HeldOut, ..SplitCategories::default() };
    let (train, test) = run("ood", &stage);
    assert_eq!((train.len(), test.len()), (8, 8));
    let half: BTreeSet<&str> = test.iter().map(|item| item.region.category.as_str()).collect();
    assert!(train.iter().all(|item| !half.contains(item.region.category.as_str())));
    for item in &test {
        let wrong = &item.distractors;
        let all: BTreeSet<&str> = wrong.confusing().chain(wrong.irrelevant.iter().map(String::as_str)).collect();
        assert!(all.len() == 6 && all.is_subset(&half) && !all.contains(item.region.category.as_str()), "{wrong:?}");
        assert!(wrong.filled.iter().all(|name| wrong.confusing().any(|other| other == name)));
        QuestionsBuild::default().about(item, 1).unwrap();
    }
    assert!(test.iter().any(|item| !item.distractors.filled.is_empty()));
    let named =
        SplitCategories { held_out: vec!["cup".to_owned(), "bed".to_owned()], options: OptionSource::All, ..stage };
    assert_eq!(run("named", &named).1.len(), 2);
}
