//! Tables as LaTeX (package booktabs).

use super::markdown;
use super::table::Table;

/// Every section as a `tabular`, its title and notes as comments.
pub(super) fn document(table: &Table) -> String {
    table.all().map(tabular).collect::<Vec<_>>().join("\n")
}

fn tabular(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
    let mut text =
        format!("% {}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n", table.title, "r".repeat(table.columns.len()));
    text.push_str(&line(std::iter::once(&table.corner).chain(&table.columns).map(|name| escape(name)).collect()));
    text.push_str("\\midrule\n");
    for row in &table.rows {
        let cells = row.cells.iter().map(|cell| escape(&markdown::show(cell, true, false)));
        text.push_str(&line(std::iter::once(escape(&row.name)).chain(cells).collect()));
    }
    text.push_str("\\bottomrule\n\\end{tabular}\n");
    table.notes.iter().for_each(|note| text.push_str(&format!("% {note}\n")));
    text
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', character]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '±' => out.push_str("$\\pm$"),
            '<' | '>' => out.push_str(&format!("${character}$")),
            other => out.push(other),
        }
    }
    out
}
