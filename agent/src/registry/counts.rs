use std::collections::BTreeMap;
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    pub requests: BTreeMap<(String, String), u64>,
    pub bytes: BTreeMap<(String, String), u64>,
}
impl Counts {
    pub fn since(&self, _: &Self) -> Self {
        Self::default()
    }
}
