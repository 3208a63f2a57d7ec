//! Tables of results.

pub mod html;
pub mod latex;
pub mod markdown;
pub mod table;

pub use table::{Cell, Row, Table, TableError};
