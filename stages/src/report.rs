//! Tables of results: what a table is, how it is written, and the paper's tables made from scores.

mod cells;
mod compare;
pub mod html;
mod latex;
mod layout;
mod markdown;
mod published;
pub mod table;
mod tables;

pub use layout::Layout;
pub use published::PaperTable;
pub use table::{Cell, Row, Table, TableError};
pub use tables::ReportTables;
