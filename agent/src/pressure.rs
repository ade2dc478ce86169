use std::{path::Path, time::Duration};
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);
pub struct Pressure;
impl Pressure {
    pub fn read(_: &Path) -> Self {
        Self
    }
    pub fn reason(&self) -> Option<String> {
        None
    }
}
