//! stub
use crate::{bundle::Bundle, config::Emulation};
pub struct Refusal;
impl Refusal {
    pub fn line(&self) -> &str {
        ""
    }
}
pub fn admit(
    _id: &str,
    _ns: &str,
    _b: &Bundle,
    _r: &std::path::Path,
    _e: Emulation,
) -> Result<(), Refusal> {
    Ok(())
}
pub fn admit_process(
    _id: &str,
    _ns: &str,
    _b: &Bundle,
    _s: &serde_json::Value,
    _e: Emulation,
) -> Result<(), Refusal> {
    Ok(())
}
