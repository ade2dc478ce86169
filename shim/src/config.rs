//! stub
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emulation {
    #[default]
    Allow,
    Never,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grouping {
    #[default]
    Pod,
    Host {
        most: u32,
    },
}
#[derive(Debug, Clone, Copy, Default)]
pub struct Config {
    pub emulation: Emulation,
    pub grouping: Grouping,
}
impl Config {
    pub fn load() -> Config {
        Config::default()
    }
}
