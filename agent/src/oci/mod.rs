//! Parsed OCI values: references, digests, media types, descriptors, documents,
//! and bytes that are verified by construction. Nothing here does I/O.

mod descriptor;
mod digest;
mod document;
mod media_type;
mod reference;
mod verify;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, ChainId, DiffId, Digest, Hasher, ParseDigestError};
pub use document::{Document, DocumentKind, ImageConfig, Index, Manifest};
pub use media_type::{Compression, MediaType};
pub use reference::{ParseReferenceError, Reference, Repository};
pub use verify::{Verified, Verifier};
