use crate::{
    config::DiskFloor,
    containerd::Engine,
    error::Result,
    pull::{Need, Room},
};
#[derive(Debug)]
pub struct Space;
impl Space {
    pub fn of(_: &Engine, _: &str, _: DiskFloor) -> Result<Self> {
        Ok(Self)
    }
}
impl Room for Space {
    fn ask(&self, _: Need) -> Result<()> {
        Ok(())
    }
}
