//! What headers and descriptors say about a document, held against the document itself.

use base64::Engine;
use bytes::Bytes;

use super::{repo::MAX_MANIFEST, transport::Answer};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Document, DocumentKind, MediaType, Verified},
};

/// The headers that describe a document.
pub(super) struct DocumentHeaders {
    pub(super) content_type: Option<String>,
    pub(super) digest: Option<Digest>,
}

/// What the headers of a HEAD say, if all of it can be used.
pub(super) fn described(answer: &Answer, asked: Option<&Digest>) -> Option<Descriptor> {
    if answer.status().as_u16() != 200 || answer.encoding().is_some() {
        return None;
    }
    let digest = Digest::parse(answer.header("docker-content-digest")?.trim()).ok()?;
    if asked.is_some_and(|asked| *asked != digest) {
        return None;
    }
    let size = answer
        .length()
        .filter(|size| (1..=MAX_MANIFEST as u64).contains(size))?;
    let media_type = MediaType::parse(answer.header("content-type")?);
    (media_type.is_index() || media_type.is_manifest())
        .then(|| Descriptor::new(media_type, digest, size))
}

/// A child must be of the kind that its parent says.
pub(super) fn fitting(document: Document, descriptor: &Descriptor) -> Result<Document> {
    let is_index = matches!(document.kind, DocumentKind::Index(_));
    let said = &descriptor.media_type;
    if (said.is_index() && !is_index) || (said.is_manifest() && is_index) {
        let name = |index| if index { "an index" } else { "a manifest" };
        return Err(Error::new(
            Kind::InvalidContent,
            format_args!(
                "document {} is {}, but its parent says it is {}",
                descriptor.digest,
                name(is_index),
                name(!is_index)
            ),
        )
        .hint("such a document can show different images to different clients; it is refused"));
    }
    Ok(document)
}

/// The content that the descriptor carries itself, if it is what the descriptor says.
pub(super) fn inline(descriptor: &Descriptor) -> Option<Bytes> {
    let data = descriptor.data.as_deref()?;
    if data.len() > MAX_MANIFEST {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(data)
        .ok()?;
    let verified = Verified::check(bytes.into(), &descriptor.digest).ok()?;
    (verified.size() == descriptor.size).then(|| verified.bytes().clone())
}

pub(super) fn is_foreign(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type,
        MediaType::Layer { foreign: true, .. }
    ) && !descriptor.urls.is_empty()
}
