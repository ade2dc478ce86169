//! What the extended headers of a layer's tar (pax's, GNU's long names) say about the entry
//! that follows them, as Go's `archive/tar` takes them.

use super::{layer::invalid, pax::next_record, sparse, tar::number};
use crate::error::Result;

/// What extended headers say about the entry that follows them.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_real_size: Option<u64>,
    pub(super) sparse_version: (Vec<u8>, Vec<u8>),
    /// Offsets and lengths by turns.
    pub(super) sparse_map: Vec<u64>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) long_target: Option<Vec<u8>>,
    pub(super) user: Option<u64>,
    pub(super) group: Option<u64>,
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`. An empty value takes a record back.
    pub(super) fn pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        let broken = || invalid("the layer has a damaged extended header");
        let decimal = |value: &[u8]| -> Result<Option<u64>> {
            if value.is_empty() {
                return Ok(None);
            }
            let digits = std::str::from_utf8(value).ok();
            let number = digits.and_then(|digits| digits.parse().ok());
            number.map(Some).ok_or_else(broken)
        };
        let text = |value: &[u8]| Some(value.to_vec()).filter(|value| !value.is_empty());
        while !bytes.is_empty() {
            let (key, value) = next_record(&mut bytes).ok_or_else(broken)?;
            match key {
                b"path" => self.name = text(value),
                b"linkpath" => self.target = text(value),
                // A negative one, too, is valid, and nobody's.
                b"uid" => self.user = decimal(value).unwrap_or(Some(u64::MAX)),
                b"gid" => self.group = decimal(value).unwrap_or(Some(u64::MAX)),
                b"size" => self.size = decimal(value)?,
                b"GNU.sparse.name" => self.sparse_name = text(value),
                b"GNU.sparse.size" => self.sparse_size = decimal(value)?,
                b"GNU.sparse.realsize" => self.sparse_real_size = decimal(value)?,
                b"GNU.sparse.major" => self.sparse_version.0 = value.to_vec(),
                b"GNU.sparse.minor" => self.sparse_version.1 = value.to_vec(),
                b"GNU.sparse.map" if value.is_empty() => self.sparse_map.clear(),
                b"GNU.sparse.map" => self.sparse_map = sparse::listed(value)?,
                // Format 0.0 has a record for each number, in turns.
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    if (key == b"GNU.sparse.offset") != self.sparse_map.len().is_multiple_of(2) {
                        return Err(broken());
                    }
                    self.sparse_map.push(sparse::decimal(value)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the file is a sparse one (GNU's formats 0.0, 0.1 and 1.0).
    pub(super) fn is_sparse(&self) -> bool {
        match (&self.sparse_version.0[..], &self.sparse_version.1[..]) {
            (b"1", b"0") | (b"0", b"0" | b"1") => true,
            (b"", b"") => !self.sparse_map.is_empty(),
            _ => false,
        }
    }

    /// A user or a group, by the extended header or by the entry's own.
    pub(super) fn id(extended: Option<u64>, own: &[u8]) -> Option<u32> {
        let id = extended.or_else(|| number(own).ok())?;
        // The highest one means "leave it as it is" to the kernel.
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    }
}
