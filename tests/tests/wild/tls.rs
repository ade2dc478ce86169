//! x
use super::row::Row;
pub(crate) fn rows() -> Vec<Row> { vec![] }
