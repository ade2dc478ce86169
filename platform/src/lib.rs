//! What this host can run, and how well each offered platform fits.
#![forbid(unsafe_code)]

mod binfmt;
mod cpu;
mod detect;
mod error;
mod facts;
mod host;
mod normalize;
mod order;
mod platform;
mod select;

pub use detect::detect;
pub use error::{DetectError, FactsError, ParsePlatformError};
pub use facts::Facts;
pub use host::{Evidence, Host, How, Runs};
pub use order::{Removed, Selects, selects_for_engine, selects_without_engine, vector};
pub use platform::{Label, Platform};
pub use select::{
    EngineConflict, EntryVerdict, Missing, Offer, OfferKind, Selection, Verdict, Wanted,
    explain_missing, select,
};
