//! The embedded world: rooms and streets whose things follow a commonsense grammar, so that what is hidden can be inferred
//! from what is visible, and how sure one can be of it is known exactly.
//!
//! It stands in for COCO where there is none, and makes a base model possible where there are no weights. Everything after
//! it is what it would be on photos. Its numbers are measured on it and say nothing about photos.
//!
//! | file | holds |
//! |---|---|
//! | [`catalog`] | COCO's names, ids and supercategories |
//! | [`settings`] | places, slots, odds |
//! | [`grammar`] | draws and the posterior; which configurations are kept out of training |
//! | [`scene`] | one scene: things and their boxes |
//! | [`glyphs`], [`render`] | what things look like; painting |
//! | [`speech`] | captions, descriptions, reasoning, prompts |
//! | [`lore`], [`lessons`] | the pretraining corpus and its mix; sequences to learn from |
//! | [`quiz`] | questions with options, in BLINK's form |
//! | [`curate`] | the decisions of the world's author |
//! | [`part`] | a part as a dataset |
//! | [`ceiling`] | the Bayes ceiling |
//! | [`words`] | the vocabulary, the tokenizer, the chat template |

pub mod catalog;
pub mod ceiling;
pub mod curate;
pub mod glyphs;
pub mod grammar;
pub mod lessons;
pub mod lore;
pub mod part;
pub mod quiz;
pub mod random;
pub mod render;
pub mod scene;
pub mod settings;
pub mod speech;
pub mod words;
