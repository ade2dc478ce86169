//! Whether there is room for what a pull is about to fetch. What room means (a floor, whose
//! disk) is said by who pulls; here is what is asked, and when.

use std::fmt;

use super::plan::{Image, Step};
use crate::{
    error::Result,
    oci::{Compression, Descriptor, MediaType},
};

/// How much a compressed layer grows when it is unpacked. Its real size stands nowhere
/// before it is unpacked: of published base images gzip makes a third to two fifths, and a
/// file system rounds every small file up to a block.
const GROWTH: u64 = 3;

/// What a pull takes on the disk besides what is there already (bytes).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Blobs that are still to be fetched, into the content store.
    pub fetch: u64,
    /// An estimate of the layers that are still to be unpacked, into the snapshotter.
    pub unpack: u64,
}

/// Asked once in a pull, when it is known what is to be fetched and before the first byte
/// of a layer. An error (`no_space`) ends the pull; nothing of it is lost.
pub trait Room: fmt::Debug + Send + Sync {
    fn ask(&self, need: Need) -> Result<()>;
}

/// The estimate for what is above the `present` lowest layers of `image`.
pub(super) fn unpacked(image: &Image<'_>, present: usize) -> u64 {
    image
        .steps
        .get(present..)
        .unwrap_or_default()
        .iter()
        .map(|Step { layer, .. }| grown(layer))
        .fold(0, u64::saturating_add)
}

/// The estimate for one layer.
pub fn grown(layer: &Descriptor) -> u64 {
    match &layer.media_type {
        MediaType::Layer {
            compression: Compression::None,
            ..
        } => layer.size,
        _ => layer.size.saturating_mul(GROWTH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn only_what_is_compressed_grows() {
        let layer = |media_type: &str, size| {
            Descriptor::new(MediaType::parse(media_type), Digest::of(b"layer"), size)
        };
        for (media_type, size, grows_to) in [
            ("application/vnd.oci.image.layer.v1.tar", 7, 7),
            ("application/vnd.oci.image.layer.v1.tar+gzip", 7, 21),
            ("application/vnd.oci.image.layer.v1.tar+zstd", 7, 21),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                u64::MAX,
                u64::MAX,
            ),
        ] {
            assert_eq!(grown(&layer(media_type, size)), grows_to, "{media_type}");
        }
    }
}
