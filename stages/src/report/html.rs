//! Tables as one self-contained page.

use super::table::{Cell, Table};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fcfcfa; --rule: #d8d8d2; --soft: #6f6f68; --band: #f3f3ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e2; --paper: #161614; --rule: #3a3a36; --soft: #9a9a92; --band: #1f1f1c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; font-weight: 600; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); }
tbody tr:nth-child(even) { background: var(--band); }
small { display: block; color: var(--soft); white-space: nowrap; }
.mark { color: var(--soft); margin-left: .3em; }
li { color: var(--soft); }
";

/// The table and its sections as a page.
pub fn page(table: &Table) -> String {
    let title = escape(&table.title);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n"
    );
    for (index, section) in table.all().enumerate() {
        let level = if index == 0 { 1 } else { 2 };
        text.push_str(&format!("<h{level}>{}</h{level}>\n", escape(&section.title)));
        text.push_str(&grid(section));
        if !section.notes.is_empty() {
            let notes: String = section.notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
            text.push_str(&format!("<ul>\n{notes}</ul>\n"));
        }
    }
    text + "</html>\n"
}

fn grid(table: &Table) -> String {
    let heads: String =
        std::iter::once(&table.corner).chain(&table.columns).map(|name| format!("<th>{}</th>", escape(name))).collect();
    let row = |row: &super::table::Row| {
        format!("<tr><td>{}</td>{}</tr>\n", escape(&row.name), row.cells.iter().map(cell).collect::<String>())
    };
    let body: String = table.rows.iter().map(row).collect();
    format!("<div class=\"scroll\"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n")
}

fn cell(cell: &Cell) -> String {
    let Some(value) = cell.value else { return format!("<td>{}</td>", escape(&cell.text)) };
    let mark = if cell.text.is_empty() {
        String::new()
    } else {
        format!("<span class=\"mark\">{}</span>", escape(&cell.text))
    };
    let interval = cell.low.zip(cell.high).map(|(low, high)| format!("{low:.1} to {high:.1}"));
    let n = cell.n.map(|n| format!("n {n}"));
    let beneath = [interval, n].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let beneath = if beneath.is_empty() { beneath } else { format!("<small>{beneath}</small>") };
    format!("<td>{value:.1}{mark}{beneath}</td>")
}

/// `text` for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
